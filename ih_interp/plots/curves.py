"""Curves over training: losses, strengths of heads, losses under clamps, the toy model."""

import math
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from ih_interp._columns import equal, finite, shown
from ih_interp.plots._palettes import Palette, looking
from ih_interp.plots._style import (
    CLAMP_LINES,
    CLAMPED_VECTORS,
    SPLIT_LINES,
    condition_lines,
    count_sequences,
    drawing,
    head_colours,
    head_marker,
    head_place,
    known_first,
    legend_off_curves,
    start_at_zero,
)
from ih_interp.plots._tables import (
    ONE_NETWORK,
    distinct,
    expect_numbers,
    expect_once,
    expect_table,
    with_seed,
)
from ih_interp.plots.seeds import plot_curve, plot_over_seeds
from ih_interp.types import integer


@drawing
def plot_losses(
    table: pd.DataFrame, ax: Axes, *, palette: Palette | None = None, **look: Any
) -> Axes:
    """Figure 3a: loss of each split over training.

    Columns `sequences`, `split`, `loss`, and of several networks `seed`: each is thin, their median
    thick, where all have values. One network's `run.metrics` is such a table. `palette` gives
    colours of splits, `look` what else the thick lines have.
    """
    table = with_seed(table)
    expect_table(table, "sequences", "split", "loss")
    n_networks = table["seed"].nunique(dropna=False)
    splits = known_first(distinct(table["split"]), SPLIT_LINES)
    known = {split: line for split, (_, line) in SPLIT_LINES.items()}
    for split, line in condition_lines(splits, known, palette).items():
        label, _ = SPLIT_LINES.get(split, (shown(split), line))
        plot_over_seeds(table[equal(table["split"], split)], ax, label, line, **look)
    guess_line(ax)
    count_sequences(ax)
    start_at_zero(ax, float(table["sequences"].max()))
    ax.set(ylabel="loss (nats)", title="Loss over training, on what is shown and what is new")
    ax.legend(title=f"{n_networks} networks: median, range" if n_networks > 1 else None)
    return ax


@drawing
def plot_strengths(
    table: pd.DataFrame,
    ax: Axes,
    *,
    layer: int | None = None,
    palette: Palette | None = None,
    **look: Any,
) -> Axes:
    """Figure 3b: induction strength of every head of a layer over training, for one network.

    Columns `sequences`, `name` ("L1H3"), `value`. `layer` is the last of the table by default, and
    the title says which; layers count from 0 here, from 1 in the paper. `palette` gives colours of
    heads, `look` what else their lines have. Raises ValueError for a layer without heads.
    """
    expect_table(table, "sequences", "name", "value")
    expect_once(table, "sequences", "name", remedy=ONE_NETWORK)
    heads = sorted(distinct(table["name"]), key=head_place)
    layers = sorted({head_place(name)[0] for name in heads})
    layer = layers[-1] if layer is None else integer(layer, "layer")
    if layer not in layers:
        raise ValueError(f"No head of layer {layer} is in the table; it has layers {layers}.")
    heads = [name for name in heads if head_place(name)[0] == layer]
    draw_heads(table, ax, heads, by="name", y="value", palette=palette, look=look)
    count_sequences(ax)
    ax.set(
        xlim=(0, float(table["sequences"].max()) or 1),
        ylabel="induction strength",
        title=f"Induction strength, heads of layer {layer} (the paper's {layer + 1})",
    )
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def draw_heads(
    table: pd.DataFrame,
    ax: Axes,
    heads: list[str],
    *,
    by: str,
    y: str,
    palette: Palette | None,
    look: dict[str, Any],
) -> None:
    """Draw a curve of each head, with its colour and marker, over a line at 0."""
    for name, colour in head_colours(heads, palette).items():
        of_head = table[equal(table[by], name)]
        own: dict[str, Any] = {
            "color": colour,
            "marker": head_marker(name),
            "markevery": max(1, len(of_head) // 6),
            "markersize": 4,
            "label": name,
        }
        plot_curve(of_head, ax, x="sequences", y=y, **looking(look, **own))
    ax.axhline(0, color="0.6", linewidth=0.8, linestyle=":")


LEFT_TO_LEARN = {
    "none": "A, B, C",
    "previous token": "A's copying, B, C",
    "layer 1": "B, C",
    "match": "C",
    "copy": "A, B",
    "layer 1 + copy": "B",
}
"""Subcircuits that each clamp of Figure 5b leaves to learn."""


@drawing
def plot_clamped_losses(
    table: pd.DataFrame,
    ax: Axes,
    *,
    end: float | int | None = None,
    palette: Palette | None = None,
    **look: Any,
) -> Axes:
    """Figure 5b: training loss under each clamp, and which subcircuits it leaves to learn.

    Columns `sequences`, `clamp`, `loss`, and of several networks `seed`. Clamps may have any name;
    the paper's (`style.CLAMP_LINES`) come first, in its colours, and a missing one is "none". `end`
    is the last number of sequences shown, by default that of the longest run. `palette` gives
    colours of clamps, `look` what else the thick lines have.
    """
    table = with_seed(table)
    expect_table(table, "sequences", "clamp", "loss")
    last = table["sequences"] if end is None else [end]
    last = float(finite(last, "end" if end is not None else "The column 'sequences'", low=0).max())
    clamps = known_first(distinct(table["clamp"]), CLAMP_LINES)
    papers = any(shown(clamp) in LEFT_TO_LEARN and shown(clamp) != "none" for clamp in clamps)
    lines: dict[str, Line2D] = {}
    for clamp, line in condition_lines(clamps, CLAMP_LINES, palette).items():
        rows, name = table[equal(table["clamp"], clamp)], shown(clamp)
        told = f"{name}: {LEFT_TO_LEARN[name]}" if papers and name in LEFT_TO_LEARN else name
        lines[told] = plot_over_seeds(rows, ax, name, line, **look)
    guess_line(ax)
    count_sequences(ax)
    start_at_zero(ax, last)
    ax.set(ylabel="training loss (nats)", title="Training under clamps")
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


VECTORS_LEFT = {"none": "waits, then falls", "c": "waits less", "b, c": "falls exponentially"}
"""What the loss of Figure 5a does under each clamp."""


@drawing
def plot_toy(table: pd.DataFrame, ax: Axes, *, palette: Palette | None = None, **look: Any) -> Axes:
    """Figure 5a: loss of the toy model with none, c, and b and c clamped.

    Columns `iteration`, `clamped` (the paper's are the keys of `style.CLAMPED_VECTORS`), `loss`;
    `plateau`, the loss of a product that is zero, is a dotted line where the table has it.
    `palette` gives colours of conditions, `look` what else their lines have.
    """
    expect_table(table, "iteration", "clamped", "loss")
    expect_once(table, "iteration", "clamped", remedy="give one run for each `clamped`")
    there = known_first(distinct(table["clamped"]), CLAMPED_VECTORS)
    lines: dict[str, Line2D] = {}
    for clamped, (colour, dash) in condition_lines(there, CLAMPED_VECTORS, palette).items():
        name = shown(clamped)
        own = looking(look, color=colour, linestyle=dash, label=name)
        rows = table[equal(table["clamped"], clamped)]
        told = f"{name}: {VECTORS_LEFT[name]}" if name in VECTORS_LEFT else name
        lines[told] = plot_curve(rows, ax, x="iteration", y="loss", **own)
    if "plateau" in table:
        expect_numbers(table, "plateau")
        height = float(table["plateau"].iloc[0])
        if (table["plateau"] != height).any():
            raise ValueError("The column 'plateau' holds several values; one was expected.")
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
    start_at_zero(ax, float(table["iteration"].max()))
    ax.set(
        xlabel="gradient descent iteration",
        ylabel="loss (half the mean squared error)",
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
