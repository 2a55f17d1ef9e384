"""Figures 4b and 17: heads trained alone and in pairs, beside networks with all of them."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ih_interp.analysis.dynamics.emergence import Crossing
from ih_interp.paper.claims import Claim
from ih_interp.paper.judging import Measured, Rule, by_seed, judge, surely_longer, times_of, when
from ih_interp.paper.study import Figure, Study
from ih_interp.plots._style import (
    HEAD_MARKERS,
    count_sequences,
    head_colour,
    head_marker,
    head_place,
)
from ih_interp.plots.curves import guess_line
from ih_interp.plots.seeds import plot_each_network

ALL_HEADS = "all heads"
"""Names the network with every head, in the column `heads`."""


def apart_table(study: Study) -> pd.DataFrame:
    """Return training losses of single-head networks and of all heads.

    Columns: `seed`, `run`, `heads` ("L1H3" or `ALL_HEADS`), `sequences`, `loss` as in
    `Study.losses`.
    """
    singles = study.losses("single").rename(columns={"condition": "heads"})
    return _with_all_heads(study, [singles])


def apart_claims(table: pd.DataFrame) -> list[Claim]:
    """Judge which heads learn if trained alone, and whether all together learn faster."""
    networks = [_measure(times) for times in times_of(table, "heads")]
    return judge(
        "4b",
        networks,
        Rule(
            "every head learns the task if trained alone: how many of "
            f"{len(networks[0]['alone'])} do by the end; sequences of the first, the last",
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


def pairs_table(study: Study) -> pd.DataFrame:
    """Return training losses of the strongest head beside each other, of it alone, and of all.

    Columns: `seed`, `run`, `heads` ("L1H3", "L1H3 + L1H0", `ALL_HEADS`), `sequences`, `loss` as in
    `Study.losses`.
    """
    strongest = {seed: str(circuit.induction) for seed, circuit in study.circuits.items()}
    singles = study.losses("single")
    alone = singles[singles["condition"] == singles["seed"].map(strongest)]
    pairs = study.losses("pairs")
    names = pairs["seed"].map(strongest) + " + " + pairs["condition"]
    return _with_all_heads(
        study, [alone.rename(columns={"condition": "heads"}), pairs.assign(heads=names)]
    )


def pairs_claims(table: pd.DataFrame) -> list[Claim]:
    """Judge whether a second head helps the strongest one, and as much as all others do."""
    networks = [_measure(times) for times in times_of(table, "heads")]
    n_pairs = len(networks[0]["pairs"])
    return judge(
        "17",
        networks,
        Rule(
            f"most second heads speed up learning: how many of {n_pairs} pairs learn before "
            "the strongest head alone",
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


def _measure(times: dict[str, Crossing]) -> Measured:
    """Return when one network's heads learn alone, in pairs and all together."""
    alone = [time for name, time in times.items() if _is_alone(name)]
    pairs = [time for name, time in times.items() if "+" in name]
    measured: dict[str, object] = {
        "all": times[ALL_HEADS],
        "alone": alone,
        "learned": sum(time.observed for time in alone),
        "first": min(alone, key=when),
        "last": max(alone, key=when),
    }
    if pairs:
        faster = sum(surely_longer(alone[0], pair) for pair in pairs)
        measured |= {"pairs": pairs, "faster": faster, "fastest": min(pairs, key=when)}
    return measured


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

    Columns `sequences`, `loss`, and `heads` of the last layer that the network has: "L1H3",
    "L1H3 + L1H0" or `ALL_HEADS`, which is dashed. A curve looks as its last head does elsewhere;
    beside pairs, a head alone is thicker.
    """
    names = list(dict.fromkeys(table["heads"]))
    pairs = any("+" in name for name in names)
    for name in names:
        curve = table[table["heads"] == name].sort_values("sequences")
        if name == ALL_HEADS:
            ax.plot(curve["sequences"], curve["loss"], "--", color="0.3", label=name, zorder=3)
            continue
        last = name.split(" + ")[-1]
        ax.plot(
            curve["sequences"],
            curve["loss"],
            color=head_colour(last),
            marker=head_marker(last),
            markevery=_places(len(curve), last),
            markersize=4,
            linewidth=2.4 if pairs and "+" not in name else 1.2,
            label=_in_legend(name) if pairs else name,
        )
    guess_line(ax)
    count_sequences(ax)
    ax.set(ylabel="training loss (nats)", ylim=(0, None))
    ax.legend(loc="center left", bbox_to_anchor=(1.08, 0.5))
    return ax


def _places(n_points: int, head: str) -> tuple[int, int]:
    """Return where a curve has markers: six, at other places than those of other heads."""
    step = max(1, n_points // 6)
    number = head_place(head)[1] % len(HEAD_MARKERS)
    return (number * step // len(HEAD_MARKERS), step)


def _in_legend(name: str) -> str:
    """Return the other head of a pair, as "+ L1H0"; or "L1H3 alone"."""
    return "+ " + name.split(" + ")[1] if "+" in name else f"{name} alone"


def _is_alone(heads: str) -> bool:
    return heads != ALL_HEADS and "+" not in heads


def _with_all_heads(study: Study, parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Return losses of networks by `heads`, and of those with all heads."""
    every = study.losses("main").assign(heads=ALL_HEADS)
    table = pd.concat([*parts, every], ignore_index=True)
    return table[["seed", "run", "heads", "sequences", "loss"]]


FIGURES = (
    Figure("4b", ("main", "single"), apart_table, draw_apart, apart_claims, size=(8.4, 3.6)),
    Figure(
        "17", ("main", "single", "pairs"), pairs_table, draw_pairs, pairs_claims, size=(8.4, 3.6)
    ),
)
