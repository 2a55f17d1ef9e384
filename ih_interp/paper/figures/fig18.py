"""Figure 18: the strength of heads beside all others, against what they do and learn alone."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

from ih_interp.analysis.ablation.single_heads import ablate_each_head
from ih_interp.analysis.dynamics.emergence import learned
from ih_interp.paper.claims import Claim
from ih_interp.paper.figures.fig04a_13 import LINEAR
from ih_interp.paper.judging import Rule, by_seed, correlation, curves, judge, over_seeds
from ih_interp.paper.study import Figure, Study
from ih_interp.plots._style import HEAD_COLOURS, HEAD_MARKERS, note, short_count

QUANTITIES: Mapping[str, str] = {
    "accuracy": "accuracy, only that head on",
    "loss": "loss (nats), only that head on",
    "learning_time": "sequences to learn, trained alone",
}
"""Panels of Figure 18, and the labels of their y axes."""


def strength_table(study: Study) -> pd.DataFrame:
    """Return the strength of every head beside all others, and what it does alone.

    Columns: `seed`, `run`, `head`, `strength`, `quantity`, `value`, `observed`. `quantity` is
    "accuracy" or "loss" (as in `Study.losses`, but over `batch`) of the whole network with only
    that head on, or "learning_time", sequences of the head trained alone; where it never learned,
    `observed` is False and `value` the length of its run.
    """
    ends = study.each_network(lambda model, batch: ablate_each_head(model, batch))
    ends = ends[ends["kept"] == "only"].rename(columns={"metric": "quantity"})
    strengths = ends.drop_duplicates(["seed", "head"])[["seed", "head", "strength"]]
    losses = study.losses("single")
    names = losses.drop_duplicates(["seed", "condition"]).set_index(["seed", "condition"])["run"]
    times = pd.DataFrame(
        [
            (seed, names[seed, head], head, "learning_time", *learned(*curve))
            for seed, network in curves(losses, "condition").items()
            for head, curve in network.items()
        ],
        columns=["seed", "run", "head", "quantity", "value", "observed"],
    )
    both = [ends.assign(observed=True), times.merge(strengths, on=["seed", "head"])]
    columns = ["seed", "run", "head", "strength", "quantity", "value", "observed"]
    return pd.concat([table[columns] for table in both], ignore_index=True)


def strength_claims(table: pd.DataFrame) -> list[Claim]:
    """Judge how a head's strength goes with its accuracy alone, and with its learning time."""
    networks = [{name: _r(rows, name) for name in QUANTITIES} for rows in by_seed(table)]
    pooled = {name: _told(table, name) for name in QUANTITIES}
    return judge(
        "18",
        networks,
        Rule(
            f"strength and accuracy alone: r above {LINEAR} in each network; all networks together",
            "0.96 to 0.99; 0.956",
            f"{{accuracy:.2f}}; {pooled['accuracy']}",
            lambda n: n["accuracy"] > LINEAR,
        ),
        Rule(
            "strength and sequences to learn alone: r below 0, and further from -1 than that of "
            "accuracy from 1; all networks together",
            "-0.33; -0.89, -0.58, -0.71, -0.71 in its other networks; -0.62",
            f"{{learning_time:.2f}}; {pooled['learning_time']}",
            lambda n: -n["accuracy"] < n["learning_time"] < 0,
            varies=True,
        ),
    )


def draw_strength(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw Figure 18: three panels, each with the correlation in every network and in all."""
    for ax, (quantity, ylabel) in zip(canvas.subplots(1, 3), QUANTITIES.items(), strict=True):
        rows = table[table["quantity"] == quantity]
        names = {
            int(str(seed)): f"seed {seed}: r = {_told(of_seed, quantity)}"
            for seed, of_seed in rows.groupby("seed")
        }
        plot_strength_against(rows, ax, names=names, ylabel=ylabel)
        ax.set_title(f"{quantity.replace('_', ' ')}: r = {_told(table, quantity)}")
        if quantity == "learning_time":
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))


def plot_strength_against(
    table: pd.DataFrame, ax: Axes, *, names: Mapping[int, str], ylabel: str
) -> Axes:
    """Draw a panel of Figure 18: a number of every head against its strength beside all others.

    Columns `seed`, `strength`, `value`, `observed`; a point that is not observed lies higher than
    drawn: it is open, with an arrow. Every seed of `names`, the words of the legend, has a colour
    and a marker.
    """
    for place, (seed, name) in enumerate(names.items()):
        turns, number = divmod(place, len(HEAD_COLOURS))
        colour = HEAD_COLOURS[number]
        marker = HEAD_MARKERS[(number + turns) % len(HEAD_MARKERS)]  # another each turn
        arrow = {"arrowstyle": "<-", "color": colour, "linewidth": 0.9}
        rows = table[table["seed"] == seed]
        seen = rows["observed"].to_numpy(dtype=bool)
        own: dict[str, Any] = {"edgecolors": colour, "marker": marker, "s": 26, "zorder": 3}
        fill = [colour if is_seen else "none" for is_seen in seen]
        ax.scatter(rows["strength"], rows["value"], facecolors=fill, **own)
        ax.scatter([], [], c=colour, marker=marker, s=26, label=name)  # filled in the legend
        for point in rows.loc[~seen, ["strength", "value"]].to_numpy(dtype=float):
            note(ax, "", point, (0, 14), va="baseline", fontsize=None, arrowprops=arrow)
    ax.margins(x=0.08, y=0.12)
    ax.set(xlabel="induction strength, all heads on", ylabel=ylabel)
    ax.legend(loc="upper left", bbox_to_anchor=(-0.05, -0.22), fontsize=8, ncols=1)
    return ax


def _r(table: pd.DataFrame, quantity: str) -> float:
    """Return the correlation of strength and a quantity over all heads of a table."""
    rows = table[table["quantity"] == quantity]
    return correlation(rows["strength"], rows["value"])


def _told(table: pd.DataFrame, quantity: str) -> str:
    return over_seeds([_r(table, quantity)], ".2f")


FIGURES = (
    Figure("18", ("main", "single"), strength_table, draw_strength, strength_claims, (9.6, 3.8)),
)
