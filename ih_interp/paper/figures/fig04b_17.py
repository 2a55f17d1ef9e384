"""Figures 4b and 17: heads trained alone and in pairs, beside networks with all of them."""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ih_interp.paper.drawing import BESIDE, plot_each_network
from ih_interp.paper.judging import Measured, Rule, by_rules, by_seed, surely_longer, times_of, when
from ih_interp.paper.study import Figure, Study
from ih_interp.plots._style import (
    HEAD_MARKERS,
    count_sequences,
    head_colour,
    head_marker,
    head_place,
)
from ih_interp.plots.curves import guess_line

ALL_HEADS = "all heads"  # names the network with every head, in the column `heads`


def apart_table(study: Study) -> pd.DataFrame:
    """Return training losses of single-head networks and of all heads.

    Columns: `seed`, `run`, `heads` ("L1H3" or `ALL_HEADS`), `sequences`, `loss` as in
    `Study.losses`.
    """
    return _with_all_heads(study, [study.losses("single", by="heads")])


def pairs_table(study: Study) -> pd.DataFrame:
    """Return training losses of the strongest head beside each other, of it alone, and of all.

    Columns: `seed`, `run`, `heads` ("L1H3", "L1H3 + L1H0", `ALL_HEADS`), `sequences`, `loss` as in
    `Study.losses`.
    """
    strongest = {seed: str(circuit.induction) for seed, circuit in study.circuits.items()}
    singles, pairs = study.losses("single", by="heads"), study.losses("pairs", by="heads")
    alone = singles[singles["heads"] == singles["seed"].map(strongest)]
    pairs["heads"] = pairs["seed"].map(strongest) + " + " + pairs["heads"]
    return _with_all_heads(study, [alone, pairs])


def _measure(rows: pd.DataFrame) -> Measured:
    """Return when one network's heads learn alone, in pairs and all together."""
    (times,) = times_of(rows, "heads")
    alone = [time for name, time in times.items() if _is_alone(name)]
    pairs = [time for name, time in times.items() if "+" in name]
    return {
        "all": times[ALL_HEADS],
        "alone": alone,
        "learned": sum(time.observed for time in alone),
        "first": min(alone, key=when),
        "last": max(alone, key=when),
        "pairs": pairs,
        "faster": sum(surely_longer(alone[0], pair) for pair in pairs),
        "fastest": min(pairs, key=when, default=math.nan),
    }


apart_claims = by_rules(
    "4b",
    _measure,
    Rule(
        "every head learns the task if trained alone: how many of 8 do by the end; sequences of "
        "the first, the last",
        "8; 309k, 615k; 6 of 8 in one of its other networks",
        "{learned}; {first}, {last}",
        lambda n: n["learned"] == len(n["alone"]),
        varies=True,
    ),
    Rule(
        "all heads together learn faster than any alone: sequences together, first alone",
        "272k, 309k; not in two of its other networks",
        "{all}, {first}",
        lambda n: all(surely_longer(one, n["all"]) for one in n["alone"]),
        varies=True,
    ),
)

pairs_claims = by_rules(
    "17",
    _measure,
    Rule(
        "most second heads speed up learning: how many of 7 pairs learn before the strongest "
        "head alone",
        "6",
        "{faster}",
        lambda n: n["faster"] > len(n["pairs"]) / 2,
    ),
    Rule(
        "one more head can do as much as seven: sequences of the fastest pair, of all heads",
        "248k, 272k",
        "{fastest}, {all}",
        lambda n: any(surely_longer(n["all"], pair) for pair in n["pairs"]),
    ),
)


def draw_apart(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw Figure 4b: one panel per network."""
    axes = plot_each_network(table, canvas, plot_learning_of_heads)
    axes[0].set_title("Training with one head of layer 1 (the paper's 2)")


def draw_pairs(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw Figure 17: one panel per network; a title names the head that all its pairs have."""
    axes = plot_each_network(table, canvas, plot_learning_of_heads)
    for ax, rows in zip(axes, by_seed(table), strict=True):
        strongest = next(name for name in rows["heads"] if _is_alone(name))
        if ax is axes[0]:
            ax.set_title(f"Training with the strongest head, {strongest}, and one other")
        else:
            ax.set_title(f"seed {rows['seed'].iloc[0]}: {strongest} +")


def plot_learning_of_heads(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw training losses of networks that differ in their heads, for one seed.

    Columns `sequences`, `loss`, and `heads` of the last layer that the network has: "L1H3", "L1H3 +
    L1H0" or `ALL_HEADS`, which is dashed. A curve looks as its last head does elsewhere; beside
    pairs, a head alone is thicker.
    """
    names = list(dict.fromkeys(table["heads"]))
    pairs = any("+" in name for name in names)
    for name in names:
        curve = table[table["heads"] == name].sort_values("sequences")
        own: dict[str, Any] = {"color": "0.3", "linestyle": "--", "label": name, "zorder": 3}
        if name != ALL_HEADS:
            first, _, second = name.partition(" + ")
            last, words = second or first, f"+ {second}" if second else f"{first} alone"
            step, turn = max(1, len(curve) // 6), head_place(last).head % len(HEAD_MARKERS)
            own = {
                "color": head_colour(last),
                "marker": head_marker(last),
                "markevery": (turn * step // len(HEAD_MARKERS), step),  # not on other heads'
                "markersize": 4,
                "linewidth": 2.4 if pairs and not second else 1.2,
                "label": words if pairs else name,
            }
        ax.plot(curve["sequences"], curve["loss"], **own)
    guess_line(ax)
    count_sequences(ax)
    ax.set(ylabel="training loss (nats)", ylim=(0, None))
    ax.legend(loc="center left", bbox_to_anchor=(1.08, 0.5))
    return ax


def _is_alone(heads: str) -> bool:
    return heads != ALL_HEADS and "+" not in heads


def _with_all_heads(study: Study, parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Return losses of networks by `heads`, and of those with all heads."""
    every = study.losses("main").assign(heads=ALL_HEADS)
    table = pd.concat([*parts, every], ignore_index=True)
    return table[["seed", "run", "heads", "sequences", "loss"]]


FIGURES = (
    Figure("4b", ("main", "single"), apart_table, draw_apart, apart_claims, BESIDE),
    Figure("17", ("main", "single", "pairs"), pairs_table, draw_pairs, pairs_claims, BESIDE),
)
