"""Figures 7, 8 and 15: a layer is grafted in, or attention is set, from the first update on."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize

from ih_interp._columns import ordered
from ih_interp.clamps import PreviousTokenAttention
from ih_interp.paper.claims import Measured, ascend, by_rules, curves, outlasts, times_of, when
from ih_interp.paper.drawing import BESIDE, draw_conditions, finish_losses, networks_beside, panels
from ih_interp.paper.study import Figure, Study
from ih_interp.plots._style import FAINT, Line, count_sequences
from ih_interp.plots._tables import expect_known
from ih_interp.plots.curves import SPLIT_NAMES, guess_line
from ih_interp.plots.seeds import common_values

DONOR_LINES: dict[str, tuple[str, Line]] = {
    "none": ("nothing grafted", Line("#000000")),
    "own": ("its own", Line("#D55E00")),
    "another's": ("another's", Line("#0072B2", (0, (5, 1)))),
    "a third's": ("a third's", Line("#009E73", (0, (3, 1, 1, 1)))),
}
"""The networks whose trained embedding and layer 0 are grafted in, in words, and their lines."""

PREVIOUS_TOKEN_LINES: dict[str, tuple[str, Line]] = {
    "none": ("none", Line("#000000")),
    "best": ("the best previous-token head", Line("#0072B2", (0, (5, 1)))),
    "unlike": ("the head least like one", Line("#E69F00", (0, (1, 1)))),
    "like": ("every previous-token head", Line("#009E73", (0, (3, 1, 1, 1)))),
    "all": ("all heads of layer 0", Line("#D55E00")),
}
"""The conditions of Figure 8, in words, and their lines."""

SOME = ("best", "unlike", "like")  # conditions in which one head or several are clamped, not all

HALF_GUESS = math.log(2) / 2  # the loss that Figure 15 is read at, as the paper's numbers are
EVEN = 0.5  # strength of attention that is on the correct label no more than on the other

SIDES = LinearSegmentedColormap.from_list(
    "sides", ["#7A3200", "#D98032", "#A8A8A8", "#4F8FCB", "#08306B"]
)
"""Darker the further from even attention; the wrong side is dashed, so that grey print tells."""

STRENGTH_SPLITS = {"train": "train", **dict(sorted(SPLIT_NAMES.items(), reverse=True))}
"""Panels of Figure 15, by their names in the paper."""


# Figure 7: the rest of a network learns under a trained first layer, its own or another's


def graft_table(study: Study) -> pd.DataFrame:
    """Return training losses with trained first layers grafted in, and without.

    Columns: `seed`, `run`, `donor` (the seed of the network that gives embedding and layer 0, or
    "none"), `whose` (a key of `DONOR_LINES`), `sequences`, `loss` as in `Study.losses`.
    """
    free = study.losses("main").assign(donor="none")
    table = pd.concat([free, study.losses("grafts", by="donor")], ignore_index=True)
    names: dict[tuple[int, str], str] = {}
    for seed, donors in table.groupby("seed")["donor"]:
        others = sorted({*donors} - {"none", str(seed)}, key=int)
        for name, donor in zip(DONOR_LINES, ["none", str(seed), *others], strict=False):
            names[int(str(seed)), donor] = name
    keys = zip(table["seed"], table["donor"], strict=True)
    table["whose"] = [names[key] for key in keys]
    return table[["seed", "run", "donor", "whose", "sequences", "loss"]]


def _grafted(rows: pd.DataFrame) -> Measured:
    """Return when one network learned, by donor, and the times with donors that are not its own."""
    times = times_of(rows, "whose")
    others = [time for whose, time in times.items() if whose not in ("none", "own")]
    return {**times, "others": others, "slowest": max(others, key=when)}


graft_claims = by_rules(
    "7",
    _grafted,
    own_is_fast=lambda n: outlasts(n["none"], n["own"], factor=3),
    donor_matters=lambda n: any(outlasts(donor, n["own"], factor=3) for donor in n["others"]),
)


def plot_grafts(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw Figure 7 for one network: as in the paper, three quarters of the grafted runs."""

    def label(words: str, rows: pd.DataFrame) -> str:
        donor = rows["donor"].iloc[0]
        return words if donor == "none" else f"{words} (seed {donor})"

    draw_conditions(table, ax, "whose", DONOR_LINES, label=label)
    end = float(table.loc[table["whose"] != "none", "sequences"].max()) * 3 / 4
    title = f"Trained first layer grafted in, seed {table['seed'].iloc[0]}"
    finish_losses(ax, end, title=title, legend="source of embedding and layer 0", fontsize=8)
    return ax


# Figure 8: previous-token attention is perfect in one head of layer 0, in several, in all


def previous_table(study: Study) -> pd.DataFrame:
    """Return training losses with heads of layer 0 attending perfectly, one induction head active.

    Columns: `seed`, `run`, `condition` (a key of `PREVIOUS_TOKEN_LINES`), `heads`, as "L0H2, L0H5",
    `sequences`, `loss` as in `Study.losses`. "none" is the network with that one head.
    """
    single = study.losses("single")
    heads = {seed: str(circuit.induction) for seed, circuit in study.circuits.items()}
    free = single[single["condition"] == single["seed"].map(heads)].assign(condition="none")
    table = pd.concat([free, study.losses("previous_token")], ignore_index=True)
    clamped = {
        run.config.name: ", ".join(map(str, sorted(clamp.heads)))
        for by_condition in study.runs["previous_token"].values()
        for run in by_condition.values()
        for clamp in run.clamps
        if isinstance(clamp, PreviousTokenAttention)
    }
    table["heads"] = table["run"].map(clamped).fillna("")
    return table[["seed", "run", "condition", "heads", "sequences", "loss"]]


previous_claims = by_rules(
    "8",
    lambda rows: times_of(rows, "condition"),
    alike=lambda n: all(outlasts(n[one], n[other], factor=1 / 2) for one in SOME for other in SOME),
    all_slower=lambda n: all(outlasts(n["all"], n[name]) for name in SOME),
    all_slowest=lambda n: outlasts(n["all"], n["none"]),
)


def plot_previous_token(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw Figure 8; the legend names heads where there is one network."""

    def label(words: str, rows: pd.DataFrame) -> str:
        one = rows["seed"].nunique() == 1 and rows["condition"].iloc[0] not in ("none", "all")
        return f"{words}: {rows['heads'].iloc[0]}" if one else words

    draw_conditions(table, ax, "condition", PREVIOUS_TOKEN_LINES, label=label)
    end = float(table.loc[table["condition"] != "none", "sequences"].max())
    title = "Perfect previous-token attention, one induction head"
    finish_losses(ax, end, title=title, legend="which heads of layer 0 (the paper's 1)")
    return ax


# Figure 15: the induction head attends to the correct label with a strength that is set


def strength_table(study: Study) -> pd.DataFrame:
    """Return losses with the induction head's attention clamped, other heads active.

    Columns: `seed`, `run`, `strength` (attention on the correct label, from 0 to 1; the rest is on
    the other), `split`, `sequences`, `loss` as in `Study.losses`.
    """
    table = study.losses("strengths", STRENGTH_SPLITS, by="strength").astype({"strength": float})
    return table[["seed", "run", "strength", "split", "sequences", "loss"]]


def _strengths(rows: pd.DataFrame) -> Measured:
    """Return one network's times, the strongest first, to even attention, and the losses' ends."""
    splits = {str(split): of_split for split, of_split in rows.groupby("split")}
    times = times_of(splits["train"], "strength", level=HALF_GUESS)
    right = sorted((s for s in times if float(s) >= EVEN), key=float, reverse=True)
    found = {f"at {float(strength):.0%}": times[strength] for strength in right}
    found |= {"times": [times[strength] for strength in right]}
    if "test_relabel" in splits:
        last = curves(splits["test_relabel"], "strength")
        ends = {strength: float(loss[-1]) for strength, (_, loss) in last.items()}
        wrong = times.keys() - right
        found |= {
            "learned": all(times[strength].observed for strength in wrong),
            "wrong": min(ends[strength] for strength in wrong),
            "right": max(ends[strength] for strength in right),
        }
    return found


strength_claims = by_rules(
    "15",
    _strengths,
    stronger_is_faster=lambda n: ascend(n["times"]),
    wrong_way_fails=lambda n: n["learned"] and n["wrong"] > math.log(2) > n["right"],
)


def plot_match_strengths(table: pd.DataFrame, axes: Sequence[Axes] | np.ndarray) -> None:
    """Draw Figure 15: losses by split, medians over seeds, where all have values.

    Colour is attention to the correct label minus to the other, from -1 to 1; below 0, on the wrong
    side, curves are dashed. A split that has no rows leaves its panel empty.
    """
    shades = Normalize(-1, 1)
    expect_known(table, "split", STRENGTH_SPLITS)
    for ax, (split, title) in zip(axes, STRENGTH_SPLITS.items(), strict=True):
        panel = table[table["split"] == split]
        for strength in ordered(panel["strength"]):
            rows = panel[panel["strength"] == strength]
            x, y = common_values([*curves(rows, "seed").values()])
            lead = 2 * float(strength) - 1
            dashes = (0, (4, 1.2)) if lead < 0 else "-"
            ax.plot(x, np.median(y, axis=0), color=SIDES(shades(lead)), lw=1.4, linestyle=dashes)
        count_sequences(ax)
        ax.set(xlim=(0, table["sequences"].max()), ylim=(0, 2), title=title)
    for ax in axes[:-1]:
        ax.axhline(np.log(2), **FAINT)
    guess_line(axes[-1])
    axes[0].set_ylabel("loss (nats)")
    image, ticks = ScalarMappable(shades, SIDES), [-1, -0.5, 0, 0.5, 1]
    bar = axes[-1].figure.colorbar(image, ax=list(axes), aspect=22, pad=0.005, ticks=ticks)
    bar.set_label("attention, correct label\nminus other (dashed: below 0)")


draw_grafts = networks_beside(plot_grafts)
draw_previous = panels(plot_previous_token)
draw_strengths = panels(plot_match_strengths, 1, 3, sharey=True)

FIGURES = (
    Figure("7", ("main", "grafts"), graft_table, draw_grafts, graft_claims, BESIDE),
    Figure("8", ("single", "previous_token"), previous_table, draw_previous, previous_claims),
    Figure("15", ("strengths",), strength_table, draw_strengths, strength_claims, (9.6, 3.2)),
)
