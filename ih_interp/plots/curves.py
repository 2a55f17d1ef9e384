"""Curves over training: losses, strengths of heads, losses under clamps, the toy model."""

import math

import pandas as pd
from matplotlib.axes import Axes

from ih_interp.plots.seeds import plot_over_seeds
from ih_interp.plots.style import (
    CLAMP_LINES,
    CLAMPED_VECTORS,
    HEAD_COLOURS,
    HEAD_MARKERS,
    SPLIT_LINES,
    count_sequences,
)


def plot_losses(table: pd.DataFrame, ax: Axes) -> Axes:
    """Figure 3a: loss of each split over training.

    Columns `sequences`, `split`, `loss`, and `seed`: each seed is thin, their median thick.
    """
    for split, (label, line) in SPLIT_LINES.items():
        if (table["split"] == split).any():  # some features have no unseen classes
            plot_over_seeds(table[table["split"] == split], ax, label, line)
    guess_line(ax)
    count_sequences(ax)
    ax.set(ylabel="loss (nats)", ylim=(0, None), title="Loss over training")
    ax.legend()
    return ax


def plot_strengths(table: pd.DataFrame, ax: Axes, *, layer: int = 1) -> Axes:
    """Figure 3b: induction strength of every head of a layer over training, for one network.

    Columns `sequences`, `name` ("L1H3"), `value`. Layers count from 0 here, from 1 in the paper.
    """
    heads = sorted(name for name in table["name"].unique() if name.startswith(f"L{layer}H"))
    for name in heads:
        of_head = table[table["name"] == name].sort_values("sequences")
        number = int(name.split("H")[1]) % len(HEAD_COLOURS)
        ax.plot(
            of_head["sequences"],
            of_head["value"],
            color=HEAD_COLOURS[number],
            marker=HEAD_MARKERS[number],
            markevery=max(1, len(of_head) // 6),
            markersize=4,
            label=name,
        )
    ax.axhline(0, color="0.6", linewidth=0.8, linestyle=":")
    count_sequences(ax)
    ax.set(
        ylabel="induction strength",
        title=f"Induction strength, heads of layer {layer} (the paper's {layer + 1})",
    )
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def plot_clamped_losses(table: pd.DataFrame, ax: Axes) -> Axes:
    """Figure 5b: training loss under each clamp.

    Columns `sequences`, `clamp` (a key of `style.CLAMP_LINES`), `loss`, and `seed`.
    """
    for clamp, line in CLAMP_LINES.items():
        plot_over_seeds(table[table["clamp"] == clamp], ax, clamp, line)
    guess_line(ax)
    count_sequences(ax)
    ax.set(ylabel="training loss (nats)", ylim=(0, None), title="Loss with subcircuits clamped")
    ax.legend(title="clamped (layers from 1)")
    return ax


def plot_toy(table: pd.DataFrame, ax: Axes) -> Axes:
    """Figure 5a: loss of the toy model with none, c, and b and c clamped.

    Columns `iteration`, `clamped` (a key of `style.CLAMPED_VECTORS`), `loss`.
    """
    for clamped, (colour, dash) in CLAMPED_VECTORS.items():
        curve = table[table["clamped"] == clamped]
        ax.plot(curve["iteration"], curve["loss"], color=colour, linestyle=dash, label=clamped)
    ax.set(
        xlabel="gradient descent iteration",
        ylabel="loss",
        ylim=(0, None),
        title="Toy model: a product of three vectors",
    )
    ax.legend(title="clamped")
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
