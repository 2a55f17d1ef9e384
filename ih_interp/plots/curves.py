"""Curves over training: losses, strengths of heads, losses under clamps, the toy model."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ih_interp.plots.seeds import plot_over_seeds
from ih_interp.plots.style import (
    CLAMP_LINES,
    CLAMPED_VECTORS,
    SPLIT_LINES,
    condition_lines,
    count_sequences,
    head_colour,
    head_marker,
    head_place,
    known_first,
    legend_off_curves,
)
from ih_interp.plots.tables import ONE_NETWORK, distinct, expect_once, expect_table, with_seed


def plot_losses(table: pd.DataFrame, ax: Axes) -> Axes:
    """Figure 3a: loss of each split over training.

    Columns `sequences`, `split`, `loss`, and of several networks `seed`: each is thin, their median
    thick. One network's `run.metrics` is such a table.
    """
    table = with_seed(table)
    expect_table(table, "sequences", "split", "loss")
    n_networks = table["seed"].nunique()
    splits = known_first(distinct(table["split"]), SPLIT_LINES)
    lines = condition_lines(splits, {split: line for split, (_, line) in SPLIT_LINES.items()})
    for split, line in lines.items():
        label, _ = SPLIT_LINES.get(split, (str(split), line))
        plot_over_seeds(table[table["split"] == split], ax, label, line)
    guess_line(ax)
    count_sequences(ax)
    ax.set(
        xlim=(0, table["sequences"].max()),
        ylim=(0, None),
        ylabel="loss (nats)",
        title="Loss over training, on what is shown and what is new",
    )
    ax.legend(title=f"{n_networks} networks: median, range" if n_networks > 1 else None)
    return ax


def plot_strengths(table: pd.DataFrame, ax: Axes, *, layer: int = 1) -> Axes:
    """Figure 3b: induction strength of every head of a layer over training, for one network.

    Columns `sequences`, `name` ("L1H3"), `value`. Layers count from 0 here, from 1 in the paper.
    """
    expect_table(table, "sequences", "name", "value")
    expect_once(table, "sequences", "name", remedy=ONE_NETWORK)
    heads = sorted(set(table["name"]), key=head_place)
    layers = sorted({head_place(name)[0] for name in heads})
    if layer not in layers:
        raise ValueError(f"No head of layer {layer} is in the table; it has layers {layers}.")
    for name in heads:
        if head_place(name)[0] != layer:
            continue
        of_head = table[table["name"] == name].sort_values("sequences")
        ax.plot(
            of_head["sequences"],
            of_head["value"],
            color=head_colour(name),
            marker=head_marker(name),
            markevery=max(1, len(of_head) // 6),
            markersize=4,
            label=name,
        )
    ax.axhline(0, color="0.6", linewidth=0.8, linestyle=":")
    count_sequences(ax)
    ax.set(
        xlim=(0, table["sequences"].max()),
        ylabel="induction strength",
        title=f"Induction strength, heads of layer {layer} (the paper's {layer + 1})",
    )
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


LEFT_TO_LEARN = {
    "none": "A, B, C",
    "previous token": "A's copying, B, C",
    "layer 1": "B, C",
    "match": "C",
    "copy": "A, B",
    "layer 1 + copy": "B",
}
"""Subcircuits that each clamp of Figure 5b leaves to learn."""


def plot_clamped_losses(table: pd.DataFrame, ax: Axes, *, end: float | int | None = None) -> Axes:
    """Figure 5b: training loss under each clamp, and which subcircuits it leaves to learn.

    Columns `sequences`, `clamp`, `loss`, and of several networks `seed`. Clamps may have any name;
    the paper's (`style.CLAMP_LINES`) come first, in its colours. `end` is the last number of
    sequences shown; by default, as in the paper, two thirds of the runs: by then all but the
    slowest have learned.
    """
    table = with_seed(table)
    expect_table(table, "sequences", "clamp", "loss")
    clamps = known_first(distinct(table["clamp"]), CLAMP_LINES)
    papers = any(clamp in LEFT_TO_LEARN and clamp != "none" for clamp in clamps)
    lines: dict[str, Line2D] = {}
    for clamp, line in condition_lines(clamps).items():
        plot_over_seeds(table[table["clamp"] == clamp], ax, str(clamp), line)
        told = papers and clamp in LEFT_TO_LEARN
        lines[f"{clamp}: {LEFT_TO_LEARN[clamp]}" if told else str(clamp)] = ax.lines[-1]
    guess_line(ax)
    count_sequences(ax)
    ax.set(
        xlim=(0, end or table["sequences"].max() * 2 / 3),
        ylim=(0, None),
        ylabel="training loss (nats)",
        title="Training under clamps",
    )
    if papers:
        _explain_subcircuits(ax)
    title = "perfect from the start: left to learn\n(layers from 1, as in the paper)"
    legend_off_curves(ax, [*lines.values()], [*lines], title=title if papers else "clamp")
    return ax


def _explain_subcircuits(ax: Axes) -> None:
    ax.set_title("Training with subcircuits made perfect", pad=20)
    ax.annotate(
        "A  attend to the previous token and copy it     B  match     C  copy the label out",
        xy=(0, 1),
        xytext=(0, 5),
        xycoords="axes fraction",
        textcoords="offset points",
        color="0.25",
        fontsize=8,
    )


VECTORS_LEFT = {
    "none": "waits, then falls",
    "c": "waits less",
    "b, c": "falls exponentially",
}
"""What the loss of Figure 5a does under each clamp."""


def plot_toy(table: pd.DataFrame, ax: Axes) -> Axes:
    """Figure 5a: loss of the toy model with none, c, and b and c clamped.

    Columns `iteration`, `clamped` (the paper's are the keys of `style.CLAMPED_VECTORS`), `loss`;
    `plateau`, the loss of a product that is zero, is a dotted line where the table has it.
    """
    expect_table(table, "iteration", "clamped", "loss")
    expect_once(table, "iteration", "clamped", remedy="give one run for each `clamped`")
    there = known_first(distinct(table["clamped"]), CLAMPED_VECTORS)
    lines: dict[str, Line2D] = {}
    for clamped, (colour, dash) in condition_lines(there, CLAMPED_VECTORS).items():
        curve = table[table["clamped"] == clamped]
        (line,) = ax.plot(
            curve["iteration"], curve["loss"], color=colour, linestyle=dash, label=clamped
        )
        told = f": {VECTORS_LEFT[clamped]}" if clamped in VECTORS_LEFT else ""
        lines[f"{clamped}{told}"] = line
    if "plateau" in table:
        height = float(table["plateau"].iloc[0])
        ax.axhline(height, color="0.6", linewidth=0.8, linestyle=":")
        ax.annotate(
            "a product of zero",
            xy=(table["iteration"].max(), height),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            color="0.4",
            fontsize=8,
        )
    ax.set(
        xlabel="gradient descent iteration",
        ylabel="loss (half the mean squared error)",
        xlim=(0, table["iteration"].max()),
        ylim=(0, None),
        title="Toy model: a product of three vectors",
    )
    legend_off_curves(ax, [*lines.values()], [*lines], title="perfect from the start")
    return ax


def guess_line(ax: Axes) -> None:
    """A line at ln 2, the loss of a model that knows the context's two labels and not which."""
    ax.axhline(math.log(2), color="0.6", linewidth=0.8, linestyle=":")
    ax.annotate(
        "ln 2",
        xy=(1, math.log(2)),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        va="center",
        color="0.4",
        fontsize=8,
    )
