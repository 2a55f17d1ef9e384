"""Figure 11: which head of layer 0 serves which head of layer 1, and how.

Layer 1 reads layer 0 in two ways: through its patterns, where values are preserved, and through its
values, where patterns are. Layers count from 0 here, from 1 in the paper.
"""

import math
from collections.abc import Iterable, Mapping
from itertools import product

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas, SubFigure

from ih_interp.analysis.heads.composition import (
    Kind,
    output_composition,
    output_composition_chance,
    pair_table,
)
from ih_interp.analysis.patching.preserving import Keep, Kept, preserving_map
from ih_interp.batch import Batch
from ih_interp.hooked_model import HookedModel
from ih_interp.paper.claims import Measured, by_rules, spearman
from ih_interp.paper.study import Figure, Study, each_run
from ih_interp.plots._style import HEAD_COLOURS, HEAD_MARKERS
from ih_interp.plots.maps import DIVERGING, draw_map
from ih_interp.runs import Run

LEFT: dict[str, Keep] = {"one ablated": "all_but_one", "one left": "one"}
"""Heads of layer 0: the first and the second column of Figure 11."""

MAPS: Mapping[str, str] = {
    "one ablated": "change of accuracy,\none head of layer 0 ablated",
    "one left": "accuracy,\none head of layer 0 left",
    "composition": "composition",
}
"""Columns of Figure 11, and their titles."""

PATHS: Mapping[str, tuple[Kept, Kind]] = {"patterns": ("values", "K"), "values": ("patterns", "V")}
"""Rows of Figure 11: how layer 1 reads, what is preserved then, and the kind of composition."""

SMALL = 1.55  # inches a further network takes in Figure 11
GUESS = 0.5  # accuracy of a guess between the context's two labels
ALIKE = 0.9  # rank correlation from which two maps would be called the same
AGREES = 0.5  # rank correlation from which one quantity would be called a prediction of another


@each_run
def map_table(study: Study, run: Run, batch: Batch) -> pd.DataFrame:
    """Return the six maps of Figure 11, of every network at its end.

    Columns: those of `each_run`, `map` ("one ablated": accuracy less that with every head of
    layer 0; "one left": accuracy; "composition"), `through` ("patterns" or "values"), `sender`,
    `previous_token` (whether the sender is one), `receiver`, `value`, and `neutral`, which says
    nothing: 0, chance 1/L, and composition of random matrices.
    """
    model, circuit = run.model(), study.circuits[run.config.seeds.init]
    causal = causal_maps(model, batch, LEFT).assign(n_sequences=len(batch))
    table = pd.concat([causal, composition_maps(model)], ignore_index=True)  # of weights alone
    return table.assign(previous_token=table["sender"].isin([*map(str, circuit.previous_token)]))


def causal_maps(model: HookedModel, batch: Batch, names: Iterable[str]) -> pd.DataFrame:
    """Return the causal maps of these names, keys of `LEFT`, as rows of `map_table`."""
    parts: list[pd.DataFrame] = []
    for through, (kept, _) in PATHS.items():
        for name in names:
            found = preserving_map(model, batch, preserve=kept, keep=LEFT[name]).table()
            column = "accuracy_change" if name == "one ablated" else "accuracy"
            neutral = 0.0 if name == "one ablated" else 1 / model.cfg.d_vocab_out
            rows = found[["sender", "receiver", column]].rename(columns={column: "value"})
            parts.append(rows.assign(map=name, through=through, neutral=neutral))
    return pd.concat(parts, ignore_index=True)


def composition_maps(model: HookedModel) -> pd.DataFrame:
    """Return the two maps of composition, as rows of `map_table`."""
    chance = output_composition_chance(model, generator=torch.Generator().manual_seed(0)).mean
    parts = [
        pair_table(output_composition(model, kind)).assign(through=through)
        for through, (_, kind) in PATHS.items()
    ]
    table = pd.concat(parts, ignore_index=True).assign(map="composition", neutral=chance)
    return table.rename(columns={"source": "sender", "name": "receiver"})


def _maps(network: pd.DataFrame) -> Measured:
    """Return what one network's pairs of heads do alone, and how composition agrees with it."""
    found: dict[str, float] = {}
    for through in PATHS:
        rows = network[network["through"] == through]
        left, composition = (rows[rows["map"] == name] for name in ("one left", "composition"))
        previous = left["previous_token"]
        gap = left.loc[previous, "value"].mean() - left.loc[~previous, "value"].mean()
        both = left.merge(composition, on=["sender", "receiver"])
        agreement = spearman(both["value_y"], both["value_x"])
        found |= {f"{through} gap": float(gap), f"{through} agreement": agreement}
        if through == "patterns":
            works = left["value"] > GUESS
            found |= {
                "served": float(works[previous].groupby(left["sender"]).sum().max()),
                "fed": float(works.groupby(left["receiver"]).sum().max()),
                "above": float(works.sum()),
                "best": float(left["value"].max()),
            }
    return found


map_claims = by_rules(
    "11",
    _maps,
    roles=lambda n: n["patterns gap"] > 0 > n["values gap"],
    many_to_many=lambda n: n["served"] > 1 and n["fed"] > 1,
    pairs_work=lambda n: n["above"] >= 2,
    partly_agrees=lambda n: all(0 < n[f"{through} agreement"] < ALIKE for through in PATHS),
)


def plot_wiring_maps(table: pd.DataFrame, figure: Canvas) -> None:
    """Draw Figure 11: six maps of the first network with their values, and others' small below.

    Names of previous-token heads are bold. All networks share the colours of a map, white (or
    lightest) at `neutral`. The figure grows with the networks.
    """
    first, *others = sorted(table["seed"].unique())
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + SMALL * len(others))
    heights = [height, *[SMALL] * len(others)]
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_large(table, table[table["seed"] == first], parts[0])
    for seed, part in zip(others, parts[1:], strict=True):
        axes = part.subplots(1, len(MAPS) * len(PATHS))
        for (through, name), ax in zip(product(PATHS, MAPS), axes, strict=True):
            _draw_one(table, table[table["seed"] == seed], ax, name, through, written=False)
            ax.set_title(_composition(name, through) or f"{name}, {through}", fontsize=7)
        axes[0].set_ylabel(f"seed {seed}\nlayer 1")


def _draw_large(table: pd.DataFrame, network: pd.DataFrame, part: SubFigure) -> None:
    axes = part.subplots(len(PATHS), len(MAPS))
    for (row, through), (column, name) in product(enumerate(PATHS), enumerate(MAPS)):
        ax = axes[row, column]
        _draw_one(table, network, ax, name, through, written=True)
        ax.set_title(_composition(name, through) or MAPS[name])
        ax.set_xlabel("head of layer 0" if row else "")
        ax.set_ylabel(
            "" if column else f"through {through} ({PATHS[through][0]} preserved)\nhead of layer 1"
        )


def _draw_one(
    table: pd.DataFrame, network: pd.DataFrame, ax: Axes, name: str, through: str, *, written: bool
) -> None:
    of_map = table[table["map"] == name]
    neutral = float(of_map["neutral"].mean())
    reach = float((of_map["value"] - neutral).abs().max()) or 1.0
    one = network[(network["map"] == name) & (network["through"] == through)]
    values = one.pivot_table(index="receiver", columns="sender", values="value")
    least, colours = (neutral, "Greys") if name == "one left" else (neutral - reach, DIVERGING)
    shades, reach = Normalize(least, neutral + reach), min(reach, 0.5)
    draw_map(values, ax, shades=shades, colours=colours, reach=reach, written=written)
    if not written:
        ax.set(xticks=[], yticks=[])
        return
    previous = set(one.loc[one["previous_token"], "sender"])
    for label in ax.get_xticklabels():
        label.set_fontweight("bold" if label.get_text() in previous else "normal")


def _composition(name: str, through: str) -> str:
    """Return the title of a map of composition, with its kind; "" for another map."""
    return f"{PATHS[through][1]}-composition" if name == "composition" else ""


# Figure "11 init": does composition before training tell which pairs of heads will work?


@each_run
def before_table(_: Study, run: Run, batch: Batch) -> pd.DataFrame:
    """Return composition before training beside that at the end, and beside what pairs then do.

    Columns: those of `each_run`, `through` ("patterns": K-composition, "values": V),
    `sender`, `receiver`, `start` and `end` (`output_composition`, chance about 0.125), and
    `accuracy` with that pair alone, as "one left" of Figure 11 (chance 1/L for L labels).
    """
    pairs = ["through", "sender", "receiver"]
    tables = {
        "start": composition_maps(run.model(0)),
        "end": composition_maps(run.model()),
        "accuracy": causal_maps(run.model(), batch, ["one left"]),
    }
    columns = {name: table.set_index(pairs)["value"] for name, table in tables.items()}
    return pd.DataFrame(columns).reset_index()


def _compositions(network: pd.DataFrame) -> Measured:
    """Return one network's best pair and rank correlations, through patterns and values."""
    found: dict[str, float] = {}
    for through in PATHS:
        rows = network[network["through"] == through]
        start, accuracy = rows["start"], rows["accuracy"]
        best = start.iloc[int(accuracy.argmax())]
        found |= {
            f"{through} best": float(accuracy.max()),
            f"{through} function": spearman(start, accuracy),
            f"{through} stays": spearman(start, rows["end"]),
            f"{through} rank": float(1 + (start > best).sum()),
            f"{through} excess": float(best - start.mean()),
        }
    return found


def _holds(n: Measured, name: str, low: float, high: float) -> bool:
    """Return whether a number is in bounds for K and for V, and the best pairs above a guess."""
    return all(n[f"{p} best"] > GUESS and low < n[f"{p} {name}"] < high for p in PATHS)


before_claims = by_rules(
    "11 init",
    _compositions,
    unpredictive=lambda n: _holds(n, "function", -AGREES, AGREES),
    best_not_first=lambda n: _holds(n, "rank", 1, math.inf),
    best_below_mean=lambda n: _holds(n, "excess", -math.inf, 0),
)


def plot_before(table: pd.DataFrame, figure: Canvas) -> None:
    """Draw how strongly pairs of heads compose before training, against what they do at its end.

    One panel each for K and V, one marker per network, its best pair ringed; dashed is the mean.
    """
    for ax, (through, (_, letter)) in zip(
        figure.subplots(1, len(PATHS), sharey=True), PATHS.items(), strict=True
    ):
        panel = table[table["through"] == through]
        for n, (seed, rows) in enumerate(panel.groupby("seed")):
            colour = HEAD_COLOURS[(0, 5, 6, 3, 7)[n % 5]]
            marker = HEAD_MARKERS[n % len(HEAD_MARKERS)]
            own = {"color": colour, "markersize": 4, "alpha": 0.7, "label": f"seed {seed}"}
            ax.plot(rows["start"], rows["accuracy"], marker, linestyle="", **own)
            best = rows.iloc[int(rows["accuracy"].argmax())]
            ax.plot(best["start"], best["accuracy"], "o", mfc="none", mec=colour, markersize=11)
        ax.axvline(float(panel["start"].mean()), color="0.5", linewidth=0.9, linestyle="--")
        ax.set_xlabel(f"{letter}-composition before training")
        ax.set_title(f"Pairs acting through {through}")
    left, right = figure.axes
    left.set_ylabel("accuracy at the end, that pair alone")
    right.legend(title="ringed: best pair", loc="center left", bbox_to_anchor=(1, 0.5))


FIGURES = (
    Figure("11", ("main",), map_table, plot_wiring_maps, map_claims, (11.0, 7.2)),
    Figure("11 init", ("main",), before_table, plot_before, before_claims, (8.4, 3.9)),
)
