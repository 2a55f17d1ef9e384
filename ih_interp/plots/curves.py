"""Curves over training: losses, strengths of heads, losses under clamps, the toy model.

Time is the column `sequences`, or `step` where a table has no sequences.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.transforms import BboxBase
from pandas import DataFrame

import ih_interp.plots._style as style
from ih_interp._columns import distinct, equal, finite, shown, time_column
from ih_interp._expect import integer
from ih_interp.plots._style import Palette, looking, palette_colours
from ih_interp.plots._tables import expect_numbers, plotted_rows
from ih_interp.plots.seeds import plot_curve, plot_over_seeds

SPLIT_NAMES = {"test_exemplars": "test (exemplars)", "test_relabel": "test (relabel)"}
"""The paper's names for splits, where they differ."""

VIA_LINES: dict[str, style.Line] = {
    "q": style.Line("#0072B2", (0, (5, 1)), "queries"),
    "k": style.Line("#000000", "-", "keys"),
    "v": style.Line("#D55E00", (0, (3, 1, 1, 1)), "values"),
}
"""The inputs of a receiver."""

MEASURES = {
    "many_to_many": "many-to-many index",
    "fan_in": "fan-in (senders per receiver)",
    "fan_out": "fan-out (receivers per sender)",
    "effective_senders": "effective number of senders",
    "effective_receivers": "effective number of receivers",
}
"""Measures of `redundancy`, as an axis calls them; the first three lie in [0, 1]."""


@style.axes_optional
def plot_losses(
    table: DataFrame,
    ax: Axes,
    *,
    guess: float | None = math.log(2),
    palette: Palette = None,
    **look: Any,
) -> Axes:
    """Plot the loss of each split over training (Figure 3a).

    Columns `sequences`, `split`, `loss`, and of several networks `seed`: each is thin, their median
    thick, where all have values. One network's `run.metrics` is such a table. `guess` is as in
    `plot_clamped_losses`, which takes runs under different clamps.
    """
    time = time_column(table)
    table = plotted_rows(table, time, "split", "loss", seed=True)
    for split, line, rows in style.conditions_of(table, "split", style.SPLIT_LINES, palette):
        plot_over_seeds(rows, ax, SPLIT_NAMES.get(split, split), line, **look)
    guess_line(ax, guess)
    style.count_sequences(ax, time)
    style.start_at_zero(ax, float(table[time].max()))
    ax.set(ylabel="loss (nats)", title="Loss over training, on what is shown and what is new")
    n = table["seed"].nunique(dropna=False)
    return style.legend_off_curves(ax, title=f"{n} networks: median, range" if n > 1 else None)


@style.axes_optional
def plot_strengths(
    table: DataFrame,
    ax: Axes,
    *,
    layer: int | None = None,
    measure: str = "",
    chance: float | None = None,
    palette: Palette = None,
    **look: Any,
) -> Axes:
    """Plot a score of every head over training: of all layers, or of one (Figure 3b).

    Columns `sequences`, `name` ("L1H3"), `value`, of one network, as `ih.trace` gives them. In one
    `layer`, from 0, each head has its own colour. In several, heads have their layer's; the legend
    names the head of each that ends highest, and a palette by name may colour heads, too. `measure`
    is the score's name, by default the one that `ih.trace` leaves in `table.attrs["measure"]`. A
    dotted line is at `chance`, if given. Raises ValueError for a layer without heads.
    """
    time = time_column(table)
    table = plotted_rows(table, "value", once=[time, "name"])
    measure = measure or str(table.attrs.get("measure", ""))
    of_layer = table["name"].map(lambda name: style.head_place(name).layer)
    layers = sorted({*of_layer}) if layer is None else [integer(layer, "layer")]
    table = table[of_layer.isin(layers)]
    if table.empty:
        there = sorted({*of_layer})
        raise ValueError(f"layer={layer}: no head of it is in the table, which has {there}.")
    if several := len(layers) > 1:
        _draw_layers(table, ax, layers, palette=palette, look=look)
    else:
        draw_heads(table, ax, by="name", y="value", palette=palette, look=look)
    if chance is not None:
        level = float(finite([chance], "chance")[0])
        ax.axhline(level, label="chance", **style.FAINT)
    style.count_sequences(ax, time)
    ax.set(xlim=(0, float(table[time].max()) or 1), ylabel=measure or "score")
    heads = "heads of all layers" if several else f"heads of layer {layers[0]}"
    ax.set_title(_sentence(f"{measure}, {heads}" if measure else heads))
    return style.legend_beside(ax, title="layer: its highest\nat the end" if several else None)


def draw_heads(
    table: DataFrame, ax: Axes, *, by: str, y: str, palette: Palette, look: dict[str, Any]
) -> None:
    """Draw a curve of each head, with its colour and marker."""
    heads = sorted(distinct(table[by]), key=style.head_place)
    for name, colour in style.head_colours(heads, palette).items():
        of_head = table[equal(table[by], name)]
        marks = {"marker": style.head_marker(name), "markevery": max(1, len(of_head) // 6)}
        own = looking(look, color=colour, markersize=4, label=name, **marks)
        line = plot_curve(of_head, ax, x=time_column(table), y=y, **own)
        line.set_clip_box(_Around(ax))


class _Around(BboxBase):
    """The axes and 4 points around: markers at the edges are whole, and zooming still cuts."""

    def __init__(self, ax: Axes) -> None:
        super().__init__()
        self._ax = ax

    def get_points(self) -> np.ndarray:
        figure: Any = self._ax.get_figure(root=True)
        return self._ax.bbox.padded(4 * figure.dpi / 72).get_points()


def _draw_layers(
    table: DataFrame, ax: Axes, layers: list[int], *, palette: Palette, look: dict[str, Any]
) -> None:
    """Draw a curve of each head in its layer's colour: from dark to light, told apart in grey."""
    heads = sorted(distinct(table["name"]), key=style.head_place)
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(layers)))
    is_named = isinstance(palette, Mapping)
    chosen = palette_colours(palette, [*layers, *heads] if is_named else layers)
    colours = dict(zip(layers, map(tuple, shades), strict=True)) | chosen
    time = time_column(table)
    highest: dict[int, str] = {}
    for layer in layers:
        names = [name for name in heads if style.head_place(name).layer == layer]
        rows = table[table["name"].isin(names)].dropna(subset=["value"])
        last = rows[rows[time] == rows[time].max()]
        if len(last):
            highest[layer] = str(last.loc[last["value"].idxmax(), "name"])
        told = f"{layer}: {highest.get(layer, '')}"
        ax.plot([], [], color=colours[layer], label=told)
    for name in sorted(heads, key=lambda name: name in colours):  # those that stand out on top
        colour = colours.get(name, colours[style.head_place(name).layer])
        label = name if name in colours else f"_{name}"
        own = looking(look, color=colour, linewidth=1.2, label=label)
        plot_curve(table[equal(table["name"], name)], ax, x=time, y="value", **own)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


@style.axes_optional
def plot_clamped_losses(
    table: DataFrame,
    ax: Axes,
    *,
    end: float | None = None,
    guess: float | None = math.log(2),
    palette: Palette = None,
    **look: Any,
) -> Axes:
    """Plot the training loss under each clamp, and what it leaves to learn (Figure 5b).

    Columns `sequences`, `clamp`, `loss`, and of several networks `seed`. Clamps may have any name;
    those of `CLAMP_LINES` come first, in the paper's colours, and a missing one is "none". `end` is
    the last number of sequences shown, by default that of the longest run. A line at `guess` is the
    loss of a model that guesses among what its context holds, ln 2 in the paper's task; with None
    there is no line.
    """
    time = time_column(table)
    table = plotted_rows(table, time, "clamp", "loss", seed=True)
    last = table[time] if end is None else [end]
    last = float(finite(last, "end" if end is not None else f"The column {time!r}", low=0).max())
    clamps = style.conditions_of(table, "clamp", style.CLAMP_LINES, palette)
    is_papers = any(line.words and name != "none" for name, line, _ in clamps)
    lines: dict[str, Line2D] = {}
    for name, line, rows in clamps:
        told = f"{name}: {line.words}" if is_papers and line.words else name
        lines[told] = plot_over_seeds(rows, ax, name, line, **look)
    guess_line(ax, guess)
    style.count_sequences(ax, time)
    style.start_at_zero(ax, last)
    ax.set(ylabel="training loss (nats)", title="Training under clamps")
    title = "clamp"
    if is_papers:
        title = "perfect from the start: left to learn"
        if any(name.startswith("layer") for name, *_ in clamps):
            title += "\n(layers from 1, as in the paper)"
        ax.set_title("Training with subcircuits made perfect", pad=20)
        words = "A  attend to the previous token and copy it     B  match     C  copy the label out"
        style.note(ax, words, (0, 1), (0, 5), xycoords="axes fraction", color="0.25", va="baseline")
    return style.legend_off_curves(ax, [*lines.values()], [*lines], title=title)


@style.axes_optional
def plot_toy(table: DataFrame, ax: Axes, *, palette: Palette = None, **look: Any) -> Axes:
    """Plot the loss of the toy model with none, c, and b and c clamped (Figure 5a).

    Columns `iteration`, `clamped` (the paper's are "none", "c" and "b, c"), `loss`; `plateau`, the
    loss of a product that is zero, is a dotted line where the table has it.
    """
    table = plotted_rows(table, "loss", once=["iteration", "clamped"])
    lines: dict[str, Line2D] = {}
    for name, line, rows in style.conditions_of(table, "clamped", style.CLAMPED_VECTORS, palette):
        own = looking(look, color=line.colour, linestyle=line.dash, label=name)
        told = f"{name}: {line.words}" if line.words else name
        lines[told] = plot_curve(rows, ax, x="iteration", y="loss", **own)
    if "plateau" in table:
        expect_numbers(table, "plateau")
        if table["plateau"].nunique() > 1:
            raise ValueError("The column 'plateau' holds several values: expected one.")
        height = float(table["plateau"].iloc[0])
        ax.axhline(height, **style.FAINT)
        place = (float(table["iteration"].max()), height)
        style.note(ax, "a product of zero", place, (0, 3), color="0.4", ha="right", va="baseline")
    style.start_at_zero(ax, float(table["iteration"].max()))
    ax.set(xlabel="gradient descent iteration", ylabel="loss (half the mean squared error)")
    ax.set_title("Toy model: a product of three vectors")
    return style.legend_off_curves(ax, [*lines.values()], [*lines], title="perfect from the start")


@style.axes_optional
def plot_wiring_over_training(
    table: DataFrame,
    ax: Axes,
    *,
    receiver: str,
    via: str = "k",
    column: str = "use",
    palette: Palette = None,
    **look: Any,
) -> Axes:
    """Plot every sender's edge to one receiver over training.

    Columns of `wiring_over_training`: `sequences`, `via`, `sender`, `receiver`, and the one shown.
    """
    edges = {"via": via, "receiver": receiver}
    time = time_column(table)
    table = plotted_rows(table, column, where=edges, once=[time, "sender"])
    draw_heads(table, ax, by="sender", y=column, palette=palette, look=look)
    ax.axhline(0, **style.FAINT)
    style.count_sequences(ax, time)
    ax.set(ylabel=f"{column} of the edge", title=f"Edges into the {input_name(via)} of {receiver}")
    return style.legend_beside(ax, title="sender")


@style.axes_optional
def plot_redundancy_over_training(
    table: DataFrame, ax: Axes, *, name: str = "many_to_many", palette: Palette = None, **look: Any
) -> Axes:
    """Plot one measure of redundancy over training, a line with its interval for each input.

    Columns of `redundancy_over_training`: `sequences`, `via`, `name`, such as "many_to_many" or
    "effective_senders L1H3", `value`, `low`, `high`.
    """
    time = time_column(table)
    once, gaps = [time, "via"], ["low", "high"]
    table = plotted_rows(table, "value", where={"name": name}, once=once, gaps=gaps)
    for via, line, rows in style.conditions_of(table, "via", VIA_LINES, palette):
        rows = rows.sort_values(time)
        own = looking(look, color=line.colour, linestyle=line.dash, label=input_name(via))
        plot_curve(rows, ax, x=time, y="value", **own)
        ends = rows["low"], rows["high"]
        ax.fill_between(rows[time], *ends, color=own["color"], alpha=0.2, linewidth=0)
    measure, _, head = name.partition(" ")
    style.count_sequences(ax, time)
    title = f"Redundancy of the wiring{f', {head}' if head else ''}"
    ax.set(ylabel=MEASURES.get(measure, measure), title=title)
    if not head:
        ax.set_ylim(0, 1)
    return style.legend_beside(ax, title="through")


def input_name(via: object) -> str:
    """Return an input of a receiver in words; itself where it has none."""
    line = VIA_LINES.get(shown(via))
    return line.words if line else shown(via)


def guess_line(ax: Axes, loss: float | None = math.log(2)) -> None:
    """Draw a line at the loss of a guess: ln 2, of one of the context's two labels, or another."""
    if loss is None:
        return
    ax.axhline(loss, **style.FAINT)
    words = "ln 2" if loss == math.log(2) else f"guess\n{loss:.2f}"
    place = (1, loss)
    style.note(ax, words, place, (3, 0), xycoords=("axes fraction", "data"), color="0.4")
