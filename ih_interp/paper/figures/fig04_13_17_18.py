"""Figures 4, 13, 17 and 18: what heads do alone and without each other, and learn alone."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

import ih_interp.plots._style as style
from ih_interp.analysis.ablation.single_heads import ablate_each_head
from ih_interp.analysis.dynamics.emergence import emergence_table
from ih_interp.batch import Batch
from ih_interp.evaluation import Metric
from ih_interp.paper.claims import (
    Claim,
    Judging,
    Measured,
    Rule,
    by_rules,
    by_seed,
    correlation,
    judge,
    outlasts,
    over_seeds,
    times_of,
    when,
)
from ih_interp.paper.drawing import BESIDE, plot_each_network
from ih_interp.paper.study import Figure, Study, each_run
from ih_interp.plots import plot_ablate_each_head
from ih_interp.plots.curves import guess_line
from ih_interp.runs import Run

LINEAR = 0.95  # correlation of strength and accuracy that every network of the paper exceeds
ACCURATE = 0.9  # accuracy with all heads above which a network has learned
ALL_HEADS = "all heads"  # names the network with every head, in the column `heads`

QUANTITIES: Mapping[str, str] = {
    "accuracy": "accuracy, only that head on",
    "loss": "loss (nats), only that head on",
    "learning_time": "sequences to learn, trained alone",
}
"""Panels of Figure 18, and the labels of their y axes."""


# Figures 4a and 13: heads of a trained network, alone and ablated


def _ablated(rows: pd.DataFrame) -> Measured:
    """Return one network's metric with all heads, only the strongest, without it, or another."""
    only, without = (
        rows[rows["kept"] == kept].set_index("head")["value"] for kept in ("only", "without")
    )
    strength = rows[rows["kept"] == "only"].set_index("head")["strength"]
    strongest = strength.sort_values().index[-1]
    return {
        "r": correlation(strength, only),
        "all": float(rows.loc[rows["kept"] == "all", "value"].iloc[0]),
        "only": float(only[strongest]),
        "without": float(without[strongest]),
        "others": float(without.drop(strongest).min()),
    }


def _unneeded(n: Measured, without: str) -> bool:
    """Return whether a network that has learned loses little accuracy without a head."""
    return n[without] > n["all"] - 0.02 and n["all"] > ACCURATE


accuracy_claims = by_rules(
    "4a",
    _ablated,
    linear=lambda n: n["r"] > LINEAR,
    enough=lambda n: n["only"] > 0.9,
    strongest_unneeded=lambda n: _unneeded(n, "without"),
    others_unneeded=lambda n: _unneeded(n, "others"),
)

loss_claims = by_rules(
    "13",
    _ablated,
    linear=lambda n: n["r"] < -LINEAR,
    others_replace=lambda n: n["without"] < n["only"],
)


def draw_ablations(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw Figure 4a or 13: one panel per network."""
    (metric,) = table["metric"].unique()
    axes = plot_each_network(table, canvas, partial(plot_ablate_each_head, metric=metric))
    for ax in axes:
        ax.set_ylim(0, 1.05 if metric == "accuracy" else None)
    for ax in axes[1:]:
        for text in [*ax.texts]:  # names of heads, too many for small axes
            text.remove()
    axes[0].set_title("One head of layer 1 (the paper's 2) alone, or ablated")


def _ablation_figure(name: str, metric: Metric, claims: Judging) -> Figure:
    """Return the figure of one metric with only a head on and with all but it.

    Its columns are those of `each_run` and `ablate_each_head`; loss and accuracy as in
    `Study.losses`, but over `Study.batch`.
    """

    @each_run
    def table(_: Study, run: Run, batch: Batch) -> pd.DataFrame:
        return ablate_each_head(run.model(), batch, metrics=[metric])

    return Figure(name, ("main",), table, draw_ablations, claims, BESIDE)


# Figures 4b and 17: heads trained alone and in pairs


def apart_table(study: Study) -> pd.DataFrame:
    """Return training losses of single-head networks and of all heads.

    Columns of `Study.losses`: `seed`, `run`, `heads` ("L1H3" or `ALL_HEADS`), `sequences`, `loss`.
    """
    return _with_all_heads(study, [study.losses("single", by="heads")])


def pairs_table(study: Study) -> pd.DataFrame:
    """Return training losses of the strongest head beside each other, of it alone, and of all.

    Columns: those of `apart_table`; `heads` is "L1H3", "L1H3 + L1H0" or `ALL_HEADS`.
    """
    strongest = {seed: str(circuit.induction) for seed, circuit in study.circuits.items()}
    singles, pairs = study.losses("single", by="heads"), study.losses("pairs", by="heads")
    alone = singles[singles["heads"] == singles["seed"].map(strongest)]
    pairs["heads"] = pairs["seed"].map(strongest) + " + " + pairs["heads"]
    return _with_all_heads(study, [alone, pairs])


def _with_all_heads(study: Study, parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Return losses of networks by `heads`, and of those with all heads."""
    table = pd.concat([*parts, study.losses("main").assign(heads=ALL_HEADS)], ignore_index=True)
    return table[["seed", "run", "heads", "sequences", "loss"]]


def _is_alone(heads: str) -> bool:
    return heads != ALL_HEADS and "+" not in heads


def _trained(rows: pd.DataFrame) -> Measured:
    """Return when one network's heads learn alone, in pairs and all together."""
    times = times_of(rows, "heads")
    alone = [time for name, time in times.items() if _is_alone(name)]
    pairs = [time for name, time in times.items() if "+" in name]
    return {
        "all": times[ALL_HEADS],
        "alone": alone,
        "learned": sum(time.observed for time in alone),
        "first": min(alone, key=when),
        "last": max(alone, key=when),
        "pairs": pairs,
        "faster": sum(outlasts(alone[0], pair) for pair in pairs),
        "fastest": min(pairs, key=when, default=math.nan),
    }


apart_claims = by_rules(
    "4b",
    _trained,
    all_learn=lambda n: n["learned"] == len(n["alone"]),
    faster_together=lambda n: all(outlasts(one, n["all"]) for one in n["alone"]),
)

pairs_claims = by_rules(
    "17",
    _trained,
    second_head_helps=lambda n: n["faster"] > len(n["pairs"]) / 2,
    one_is_enough=lambda n: any(outlasts(n["all"], pair) for pair in n["pairs"]),
)


def draw_trained(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw Figure 4b or 17: one panel per network; titles name the head that all its pairs have."""
    axes = plot_each_network(table, canvas, plot_learning_of_heads)
    if not table["heads"].str.contains("+", regex=False).any():
        axes[0].set_title("Training with one head of layer 1 (the paper's 2)")
        return
    for ax, rows in zip(axes, by_seed(table), strict=True):
        strongest = next(name for name in rows["heads"] if _is_alone(name))
        ax.set_title(f"seed {rows['seed'].iloc[0]}: {strongest} +")
        if ax is axes[0]:
            ax.set_title(f"Training with the strongest head, {strongest}, and one other")


def plot_learning_of_heads(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw training losses of networks that differ in their heads, for one seed.

    Columns as in `pairs_table`. All heads are dashed; a curve looks as its last head does
    elsewhere; beside pairs, a head alone is thicker.
    """
    names = list(dict.fromkeys(table["heads"]))
    pairs = any("+" in name for name in names)
    n_markers = len(style.HEAD_MARKERS)
    for name in names:
        curve = table[table["heads"] == name].sort_values("sequences")
        own: dict[str, Any] = {"color": "0.3", "linestyle": "--", "label": name, "zorder": 3}
        if name != ALL_HEADS:
            first, _, second = name.partition(" + ")
            last, words = second or first, f"+ {second}" if second else f"{first} alone"
            step, turn = max(1, len(curve) // 6), style.head_place(last).head % n_markers
            own = {"color": style.head_colour(last), "label": words if pairs else name}
            own |= {"marker": style.head_marker(last), "markersize": 4}
            own["markevery"] = (turn * step // n_markers, step)  # not on other heads'
            own["linewidth"] = 2.4 if pairs and not second else 1.2
        ax.plot(curve["sequences"], curve["loss"], **own)
    guess_line(ax)
    style.count_sequences(ax)
    ax.set(ylabel="training loss (nats)", ylim=(0, None))
    ax.legend(loc="center left", bbox_to_anchor=(1.08, 0.5))
    return ax


# Figure 18: strength beside all others, against what a head does and learns alone


def strength_table(study: Study) -> pd.DataFrame:
    """Return the strength of every head beside all others, and what it does alone.

    Columns: `seed`, `run`, `head`, `strength`, `quantity`, `value`, `observed`. `quantity` is
    "accuracy" or "loss" (as in `Study.losses`, but over `batch`) of the whole network with only
    that head on, or "learning_time", sequences of the head trained alone; where it never learned,
    `observed` is False and `value` the length of its run.
    """
    ends = each_run(lambda _, run, batch: ablate_each_head(run.model(), batch))(study)
    ends = ends[ends["kept"] == "only"].rename(columns={"metric": "quantity"})
    strengths = ends.drop_duplicates(["seed", "head"])[["seed", "head", "strength"]]
    times = emergence_table(study.losses("single", by="head"), by=["head", "run"])
    times = times.rename(columns={"time": "value"}).assign(quantity="learning_time")
    times = times.sort_values("seed", kind="stable").merge(strengths)
    both = pd.concat([ends.assign(observed=True), times])
    columns = ["seed", "run", "head", "strength", "quantity", "value", "observed"]
    return both[columns].reset_index(drop=True)


def strength_claims(table: pd.DataFrame) -> list[Claim]:
    """Judge how a head's strength goes with its accuracy alone, and with its learning time."""
    pooled = {f"pooled {name}": _r(table, name) for name in QUANTITIES}
    networks = [
        {**pooled, **{name: _r(rows, name) for name in QUANTITIES}} for rows in by_seed(table)
    ]
    rules: dict[str, Rule] = {
        "with_accuracy": lambda n: n["accuracy"] > LINEAR,
        "with_learning_time": lambda n: -n["accuracy"] < n["learning_time"] < 0,
    }
    return judge("18", networks, rules)


def draw_strength(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw Figure 18: three panels, each with the correlation in every network and in all."""

    def told(rows: pd.DataFrame) -> str:
        return over_seeds([_r(rows, quantity)], ".2f")

    for ax, (quantity, ylabel) in zip(canvas.subplots(1, 3), QUANTITIES.items(), strict=True):
        rows = table[table["quantity"] == quantity]
        networks = {int(seed): rows[rows["seed"] == seed] for seed in rows["seed"].unique()}
        names = {n: f"seed {n}: r = {told(of_seed)}" for n, of_seed in networks.items()}
        plot_strength_against(rows, ax, names=names, ylabel=ylabel)
        ax.set_title(f"{quantity.replace('_', ' ')}: r = {told(table)}")
        if quantity == "learning_time":
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: style.short_count(value)))


def plot_strength_against(
    table: pd.DataFrame, ax: Axes, *, names: Mapping[int, str], ylabel: str
) -> Axes:
    """Draw a panel of Figure 18: a number of every head against its strength beside all others.

    A point that is not observed lies higher than drawn: it is open, with an arrow. Every seed of
    `names`, the words of the legend, has a colour and a marker.
    """
    colours, markers = style.HEAD_COLOURS, style.HEAD_MARKERS
    for place, (seed, name) in enumerate(names.items()):
        turns, number = divmod(place, len(colours))
        colour, marker = colours[number], markers[(number + turns) % len(markers)]
        arrow = {"arrowstyle": "<-", "color": colour, "linewidth": 0.9}
        rows = table[table["seed"] == seed]
        seen = rows["observed"].to_numpy(dtype=bool)
        own: dict[str, Any] = {"edgecolors": colour, "marker": marker, "s": 26, "zorder": 3}
        fill = [colour if is_seen else "none" for is_seen in seen]
        ax.scatter(rows["strength"], rows["value"], facecolors=fill, **own)
        ax.scatter([], [], c=colour, marker=marker, s=26, label=name)  # filled in the legend
        for point in rows.loc[~seen, ["strength", "value"]].to_numpy(dtype=float):
            style.note(ax, "", point, (0, 14), va="baseline", fontsize=None, arrowprops=arrow)
    ax.margins(x=0.08, y=0.12)
    ax.set(xlabel="induction strength, all heads on", ylabel=ylabel)
    ax.legend(loc="upper left", bbox_to_anchor=(-0.05, -0.22), fontsize=8, ncols=1)
    return ax


def _r(table: pd.DataFrame, quantity: str) -> float:
    """Return the correlation of strength and a quantity over all heads of a table."""
    rows = table[table["quantity"] == quantity]
    return correlation(rows["strength"], rows["value"])


FIGURES = (
    _ablation_figure("4a", "accuracy", accuracy_claims),
    _ablation_figure("13", "loss", loss_claims),
    Figure("4b", ("main", "single"), apart_table, draw_trained, apart_claims, BESIDE),
    Figure("17", ("main", "single", "pairs"), pairs_table, draw_trained, pairs_claims, BESIDE),
    Figure("18", ("main", "single"), strength_table, draw_strength, strength_claims, (9.6, 3.8)),
)
