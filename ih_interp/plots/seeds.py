"""Several networks in one plot: thin curves, their median and a band."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy import ndarray
from pandas import DataFrame

from ih_interp._columns import equal, finite, ordered, time_column
from ih_interp.plots._style import Line, looking
from ih_interp.plots._tables import expect_numbers, expect_once


def plot_curve(table: DataFrame, ax: Axes, *, x: str, y: str, **look: Any) -> Line2D:
    """Draw one curve by its rows, in the order of `x`; a point without neighbours is a dot.

    Where `y` is NaN there is a gap. Raises ValueError for infinite values, for `x` that is not
    finite or below 0, and where all of `y` is NaN.
    """
    (line,) = ax.plot(*_curve(table, x, y), **look)
    there = np.isfinite(np.asarray(line.get_ydata(), dtype=float))
    before, after = np.append(False, there[:-1]), np.append(there[1:], False)
    alone = np.flatnonzero(there & ~before & ~after)
    if len(alone) and line.get_marker() in ("None", "none", " ", "", None):
        line.set(marker="o", markersize=4, markevery=alone.tolist())
    elif len(alone) and isinstance(every := line.get_markevery(), int):
        line.set_markevery(sorted({*range(0, len(there), every), *alone.tolist()}))
    return line


def plot_over_seeds(
    table: DataFrame, ax: Axes, label: str, line: Line, *, y: str = "loss", **look: Any
) -> Line2D:
    """Draw several networks as one curve: each thin, their median thick, a band from least to most.

    Columns: `seed`, `sequences` or else `step`, `y`. Median and band stand where all networks have
    values, each straight between its own points; where they have no place in common, the curves
    stand alone. One network alone is thick, without a band. Returns the line that has the label.
    """
    x = time_column(table)
    expect_once(table, x, "seed")
    networks = [table[equal(table["seed"], seed)] for seed in ordered(table["seed"])]
    look = looking(look, color=line.colour, linestyle=line.dash, label=label)
    if len(networks) == 1:
        return plot_curve(networks[0], ax, x=x, y=y, **look)
    places, values = common_values([_curve(rows, x, y) for rows in networks])
    thin = {"color": look["color"], "linewidth": 0.5, "alpha": 0.6}
    if len(places):
        low, high = values.min(axis=0), values.max(axis=0)
        ax.fill_between(places, low, high, color=look["color"], alpha=0.12, linewidth=0)
    curves = [plot_curve(rows, ax, x=x, y=y, **thin) for rows in networks]
    if not len(places):
        curves[0].set_label(label)
        return curves[0]
    median = DataFrame({x: places, y: np.median(values, axis=0)})
    return plot_curve(median, ax, x=x, y=y, **look)


def common_values(curves: list[tuple[ndarray, ndarray]]) -> tuple[ndarray, ndarray]:
    """Return the places where all curves have a value, and their values there, `[curve, place]`.

    Between its points a curve is straight; next to a NaN it has no value.
    """
    places = np.unique(np.concatenate([x for x, _ in curves]))
    values = np.full((len(curves), len(places)), np.nan)
    for row, (x, y) in zip(values, curves, strict=True):
        row[:] = np.interp(places, x, y, left=np.nan, right=np.nan)
        row[np.searchsorted(places, x)] = y  # also beside a NaN
    there = ~np.isnan(values).any(axis=0)
    return places[there], values[:, there]


def _curve(table: DataFrame, x: str, y: str) -> tuple[ndarray, ndarray]:
    """Return places in their order, and values, of which at least one is a number."""
    expect_numbers(table, y, gaps=True)
    places = finite(table[x], f"The column {x!r}", low=0)
    values = table[y].to_numpy(dtype=float, na_value=np.nan)
    if np.isnan(values).all():
        words = [c for c in table if isinstance(table[c].iloc[0], str)]
        of = ", ".join(f"{column}={table[column].iloc[0]!r}" for column in words)
        raise ValueError(f"The column {y!r} is NaN in all rows of the curve {of}; leave it out.")
    order = np.argsort(places, kind="stable")
    return places[order], values[order]
