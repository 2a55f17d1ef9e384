"""Shapes of drawing that several figures have: one panel per network, one curve per condition."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from pandas import DataFrame

from ih_interp._columns import equal, ordered
from ih_interp.plots._style import Line, count_sequences, legend_off_curves
from ih_interp.plots._tables import expect_known
from ih_interp.plots.curves import guess_line
from ih_interp.plots.seeds import plot_over_seeds

Drawing: TypeAlias = Callable[[DataFrame, Canvas], object]

BESIDE = (8.4, 3.6)  # inches of a figure with the first network large and others beside it


def panels(plot: Callable[[DataFrame, Any], object], *grid: int, **options: Any) -> Drawing:
    """Return the drawing that plots a table into `canvas.subplots(*grid, **options)`."""
    return lambda table, canvas: plot(table, canvas.subplots(*grid, **options))


def networks_beside(plot: Callable[[DataFrame, Axes], object]) -> Drawing:
    """Return the drawing that is `plot_each_network` with this plot."""
    return lambda table, canvas: plot_each_network(table, canvas, plot)


def plot_each_network(
    table: DataFrame, canvas: Canvas, plot: Callable[[DataFrame, Axes], object]
) -> list[Axes]:
    """Plot the first network's table large, and those of the other seeds small beside it.

    Heads of different networks have nothing to do with each other, so they cannot share a curve.
    Small axes keep no title, labels or legend of their own but their seed.
    """
    seeds = ordered(table["seed"])
    n_others = len(seeds) - 1
    n_rows = min(n_others, 2) or 1
    grid = canvas.add_gridspec(n_rows, 3 + 2 * math.ceil(n_others / n_rows))
    places = [(n % n_rows, 3 + 2 * (n // n_rows)) for n in range(n_others)]
    cells = [grid[:, :3], *(grid[row, column : column + 2] for row, column in places)]
    axes = [canvas.add_subplot(cell) for cell in cells]
    for seed, ax in zip(seeds, axes, strict=True):
        plot(table[equal(table["seed"], seed)], ax)
    for seed, ax in zip(seeds[1:], axes[1:], strict=True):
        ax.set(title=f"seed {seed}", xlabel="", ylabel="")
        ax.tick_params(labelsize=7)
        if (legend := ax.get_legend()) is not None:
            legend.remove()
    return axes


def draw_conditions(
    table: DataFrame,
    ax: Axes,
    column: str,
    known: Mapping[str, tuple[str, Line]],
    *,
    y: str = "loss",
    label: Callable[[str, DataFrame], str] = lambda words, _: words,
) -> None:
    """Draw the curve of each condition that is there, over its seeds.

    `known` holds the words and the line of every condition of the column; `label` makes the
    legend's words of these and of the condition's rows.
    """
    expect_known(table, column, known)
    for condition, (words, line) in known.items():
        rows = table[table[column] == condition]
        if len(rows):
            plot_over_seeds(rows, ax, label(words, rows), line, y=y)
    count_sequences(ax)


def finish_losses(ax: Axes, end: float | None, *, title: str, legend: str, **look: Any) -> None:
    """Write the axes and the legend of training losses that are shown from 0 to `end` sequences."""
    guess_line(ax)
    ax.set(xlim=(0, end), ylim=(0, None), ylabel="training loss (nats)", title=title)
    legend_off_curves(ax, title=legend, **look)
