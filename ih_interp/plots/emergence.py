"""Plots of when networks learn: times, survival, progress measures, one curve's transition.

Time is the column `sequences`, or `step` where a table has no sequences.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from pandas import DataFrame

import ih_interp.plots._style as style
from ih_interp._columns import distinct, equal, finite, flags, shown, time_column, time_unit
from ih_interp._expect import expect
from ih_interp.plots._style import Palette, looking, palette_colours
from ih_interp.plots._tables import expect_known, plotted_rows, rows_where
from ih_interp.plots.curves import guess_line
from ih_interp.plots.seeds import plot_curve, plot_over_seeds

WHEN = {"training": "clamped in training", "inference": "perfected at inference"}  # of Figure 10
MEDIAN = ("median", "median_low", "median_high")  # columns of an `emergence_summary`


@style.axes_optional
def plot_emergence(
    times: DataFrame,
    ax: Axes,
    *,
    summary: DataFrame | None = None,
    by: str = "clamp",
    palette: Palette = None,
    **look: Any,
) -> Axes:
    """Plot when each network learned: one dot per seed, open with an arrow where its run ended.

    Columns of `times` (an `emergence_table`): `by`, `seed`, `time`, `observed`; of `summary` (an
    `emergence_summary`): `by`, `median`, `median_low`, `median_high`, drawn as a bar and a line
    over the interval, up to the edge where it is not reached. Conditions in the table's order.
    """
    times = plotted_rows(times, by, "seed", "time", "observed")
    unit = time_unit(times)
    time = finite(times["time"], "The column 'time'", low=0)
    times = times.assign(time=time, observed=flags(times["observed"], "The column 'observed'"))
    if summary is not None:
        summary = plotted_rows(summary, *MEDIAN, once=[by])
    edge = 1.12 * float(time.max()) or 1.0
    ax.set_xlim(0, edge)
    lines = style.condition_lines(distinct(times[by]), palette=palette)
    for row, (condition, line) in enumerate(lines.items()):
        runs = times[equal(times[by], condition)].sort_values("time")
        _draw_times(runs, ax, row, line, look)
        if summary is not None:
            ends = rows_where(summary, **{by: condition}).iloc[0]
            _draw_median(*(float(ends[name]) for name in MEDIAN), ax=ax, row=row, edge=edge)
    ax.set_yticks(range(len(lines)), list(map(shown, lines)))
    ax.set_ylim(len(lines) - 0.5, -0.6)
    ax.grid(axis="y", color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    style.count_sequences(ax, unit)
    ax.set(xlabel=f"{ax.get_xlabel()} until learned", title="When each network learned")
    return ax


@style.axes_optional
def plot_survival(
    table: DataFrame,
    ax: Axes,
    *,
    by: str = "clamp",
    band: bool = True,
    palette: Palette = None,
    **look: Any,
) -> Axes:
    """Plot the share of networks that have not yet learned (Kaplan-Meier); ticks where runs ended.

    Columns of a `survival_table`: `by`, `sequences`, `share`, `low`, `high`, `censored`. The band
    is left out where its formula has no value.
    """
    time = time_column(table)
    ends, numbers = ["low", "high"] if band else [], ["share", "censored"]
    table = plotted_rows(table, by, time, finite=numbers, gaps=ends)
    finite(table[time], f"The column {time!r}", low=0)
    if not table["share"].between(0, 1).all():
        raise ValueError(f"The column 'share' goes to {table['share'].max():g}: expected [0, 1].")
    for name, line, curve in style.conditions_of(table, by, style.CLAMP_LINES, palette):
        curve = curve.sort_values(time, kind="stable")
        own = looking(look, color=line.colour, linestyle=line.dash, label=name)
        ax.step(curve[time], curve["share"], where="post", **own)
        if band:
            faint: dict[str, Any] = {"color": own["color"], "alpha": 0.12, "linewidth": 0}
            ax.fill_between(curve[time], curve["low"], curve["high"], step="post", **faint)
        ended = curve[curve["censored"] > 0]
        ax.plot(ended[time], ended["share"], "|", color=own["color"], markersize=9)
    style.count_sequences(ax, time)
    ax.set(ylim=(0, 1.02), ylabel="share not yet learned")
    ax.set_title("Networks that have not yet learned")
    return style.legend_beside(ax, title=by)


@style.axes_optional
def plot_progress(
    table: DataFrame, axes: Sequence[Axes] | np.ndarray, *, palette: Palette = None, **look: Any
) -> tuple[Axes, Axes]:
    """Plot the loss under clamps in training, and progress measures of the free run (Figure 10).

    Columns of `progress_beside_training`: `sequences`, `clamp`, `when`, `loss`, and of several
    networks `seed`. Two axes, left and right, which come back on one scale.
    """
    if np.size(axes) != len(WHEN):  # pyright: ignore
        raise ValueError("axes: expected two; give those of figure.subplots(1, 2).")
    table = plotted_rows(table, "sequences", "clamp", "when", "loss", seed=True)
    expect_known(table, "when", WHEN)
    left, right = axes
    lines = style.condition_lines(distinct(table["clamp"]), palette=palette)
    for ax, (when, title) in zip((left, right), WHEN.items(), strict=True):
        for clamp, line in lines.items():
            rows = rows_where(table, when=when, clamp=clamp)
            plot_over_seeds(rows, ax, shown(clamp), line, **look)
        guess_line(ax)
        style.count_sequences(ax)
        ax.set(title=title)
    end, least, most = table["sequences"].max(), table["loss"].min(), table["loss"].max()
    for ax in (left, right):
        ax.set(xlim=(0, float(end) or 1), ylim=(min(0.0, float(least)), 1.05 * float(most)))
    left.set_ylabel("training loss (nats)")
    style.legend_off_curves(right, title="clamped")
    return left, right


@style.axes_optional
def plot_transition(
    curve: DataFrame,
    ax: Axes,
    *,
    marks: Mapping[str, float],
    plateau: tuple[float, float] | None = None,
    value: str = "loss",
    palette: Palette = None,
    **look: Any,
) -> Axes:
    """Plot one run's curve with times marked on it, such as its crossing and its steepest descent.

    Columns `sequences` and `value`. `marks` are times by name, infinite ones told in the legend
    alone; `plateau` is from when to when, shaded.
    """
    x_column = time_column(curve)
    curve = plotted_rows(curve, value, once=[x_column])
    expect(marks, Mapping, "marks", 'write {"learned": 40_000}')
    for name, time in marks.items():
        expect(time, (int, float, np.number), f"The mark {name!r}", "of a Crossing give .time")
        if not time >= 0:
            raise ValueError(f"The mark {name!r} is at {time}: expected a time of at least 0.")
    line = plot_curve(curve, ax, x=x_column, y=value, **looking(look, color="black"))
    x, y = np.asarray(line.get_xydata(), dtype=float).T
    x, y = x[~np.isnan(y)], y[~np.isnan(y)]
    if plateau is not None:
        _shade(plateau, ax, float(x[-1]))
    chosen = palette_colours(palette, marks)
    for place, (name, time) in enumerate(marks.items()):
        ends = [min(0.0, float(y.min())), float(np.interp(time, x, y))]
        is_seen = math.isfinite(time)
        colour = chosen.get(name, style.HEAD_COLOURS[1 + place % 7])
        own: dict[str, Any] = {"color": colour, "linestyle": style.DASHES[1 + place % 3]}
        own |= {"label": f"{name}: {style.short_count(time)}", "linewidth": 1.2}
        own |= {"marker": "osDv"[place % 4], "markersize": 6, "markeredgecolor": "white"}
        own["markevery"] = (1, 2)  # the curve's end of the line
        ax.plot(*([[time, time], ends] if is_seen else [[], []]), **own)
    style.count_sequences(ax, x_column)
    ax.set_xlim(0, max([float(x[-1]), *(t for t in marks.values() if t < math.inf)]) or 1)
    ax.set(ylabel=value, title="One network's transition")
    if ax.get_legend_handles_labels()[0]:
        style.legend_off_curves(ax)
    return ax


def _shade(plateau: tuple[float, float], ax: Axes, end: float) -> None:
    """Shade from when to when a plateau lasts, or up to the curve's end."""
    start, left = plateau
    if not 0 <= start < math.inf or not start <= left:
        raise ValueError(f"plateau={plateau}: expected (start, end) with start <= end.")
    ended = left < math.inf
    label = f"plateau: {style.short_count(left - start)}" if ended else "plateau, not left"
    ax.axvspan(start, min(left, end), color="0.9", label=label, zorder=0)


def _draw_times(
    runs: DataFrame, ax: Axes, row: int, line: style.Line, look: Mapping[str, Any]
) -> None:
    """Draw the dots of one condition, a little apart, above its median."""
    heights = row - 0.08 - 0.36 * np.linspace(0, 1, len(runs) + 1)[:-1]
    for time, observed, height in zip(runs["time"], runs["observed"], heights, strict=True):
        own = looking(look, color=line.colour, marker="o", markersize=5.5)
        own.setdefault("markerfacecolor", own["color"] if observed else "white")
        ax.plot(time, height, **own)
        if not observed:
            arrow = {"arrowstyle": "<-", "color": own["color"], "shrinkB": 3}
            style.note(ax, "", (time, height), (22, 0), arrowprops=arrow)


def _draw_median(median: float, low: float, high: float, ax: Axes, row: int, edge: float) -> None:
    if math.isnan(low):  # one seed has no interval; its dot is enough
        return
    ax.plot([min(low, edge), min(high, edge)], [row + 0.2] * 2, color="0.35", linewidth=1.2)
    if math.isfinite(median):
        ax.plot(median, row + 0.2, "|", color="black", markersize=11, markeredgewidth=2)
    else:
        style.note(ax, "median not reached", (edge, row + 0.2), ha="right", va="top")
