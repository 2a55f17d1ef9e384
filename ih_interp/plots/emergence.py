"""When networks learn: times of each seed, survival, progress measures, one curve's transition."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ih_interp._columns import equal, finite, flags, shown
from ih_interp.plots._palettes import Palette, looking, palette_colours
from ih_interp.plots._style import (
    CLAMP_LINES,
    DASHES,
    HEAD_COLOURS,
    Line,
    condition_lines,
    count_sequences,
    drawing,
    legend_off_curves,
    short_count,
)
from ih_interp.plots._tables import (
    distinct,
    expect_known,
    expect_numbers,
    expect_once,
    expect_table,
    rows_where,
    with_seed,
)
from ih_interp.plots.curves import guess_line
from ih_interp.plots.seeds import plot_curve, plot_over_seeds
from ih_interp.types import expect

WHEN = {"training": "clamped in training", "inference": "perfected at inference"}
"""Panels of Figure 10."""

MEDIAN = ("median", "median_low", "median_high")
"""Columns of an `emergence_summary`: when half had learned, and its interval."""


@drawing
def plot_emergence(
    times: pd.DataFrame,
    ax: Axes,
    *,
    summary: pd.DataFrame | None = None,
    by: str = "clamp",
    palette: Palette | None = None,
    **look: Any,
) -> Axes:
    """When each network got there: one dot per seed, open with an arrow where its run ended before.

    Columns of `times` (an `emergence_table`): `by`, `seed`, `time`, `observed`; of `summary` (an
    `emergence_summary`): `by`, `median`, `median_low`, `median_high`, drawn as a bar and a line
    over the interval, up to the edge where it is not reached. Conditions in the table's order.
    `palette` gives their colours, `look` what else the dots have.
    """
    expect_table(times, by, "seed", "time", "observed")
    time = finite(times["time"], "The column 'time'", low=0)
    times = times.assign(time=time, observed=flags(times["observed"], "The column 'observed'"))
    conditions = distinct(times[by])
    edge = 1.12 * float(time.max()) or 1.0
    ax.set_xlim(0, edge)
    for row, (condition, line) in enumerate(
        condition_lines(conditions, CLAMP_LINES, palette).items()
    ):
        runs = times[equal(times[by], condition)].sort_values("time")
        _draw_times(runs, ax, row, line, look)
        if summary is not None:
            expect_table(summary, by, *MEDIAN)
            expect_once(summary, by, remedy="give one summary")
            ends = rows_where(summary, **{by: condition})[[*MEDIAN]].iloc[0]
            _draw_median(*ends.astype(float), ax=ax, row=row, edge=edge)
    ax.set_yticks(range(len(conditions)), list(map(shown, conditions)))
    ax.set_ylim(len(conditions) - 0.5, -0.6)
    ax.grid(axis="y", color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    count_sequences(ax)
    ax.set(xlabel="sequences seen until learned", title="When each network learned")
    return ax


@drawing
def plot_survival(
    table: pd.DataFrame,
    ax: Axes,
    *,
    by: str = "clamp",
    band: bool = True,
    palette: Palette | None = None,
    **look: Any,
) -> Axes:
    """Share of networks that have not yet learned (Kaplan-Meier); ticks where runs ended before.

    Columns of a `survival_table`: `by`, `sequences`, `share`, `low`, `high`, `censored`. The band
    is left out where its formula has no value. `palette` gives colours of conditions, `look` what
    else the steps have.
    """
    expect_table(table, by, "sequences", "share", "censored", *(("low", "high") if band else ()))
    finite(table["sequences"], "The column 'sequences'", low=0)
    expect_numbers(table, "share", "censored")
    expect_numbers(table, *(("low", "high") if band else ()), gaps=True)
    if not table["share"].between(0, 1).all():
        raise ValueError(f"The column 'share' goes to {table['share'].max():g}: expected [0, 1].")
    for condition, line in condition_lines(distinct(table[by]), CLAMP_LINES, palette).items():
        curve = table[equal(table[by], condition)].sort_values("sequences", kind="stable")
        own = looking(look, color=line.colour, linestyle=line.dash, label=shown(condition))
        ax.step(curve["sequences"], curve["share"], where="post", **own)
        if band:
            ax.fill_between(
                curve["sequences"],
                curve["low"],
                curve["high"],
                step="post",
                color=own["color"],
                alpha=0.12,
                linewidth=0,
            )
        ended = curve[curve["censored"] > 0]
        ax.plot(ended["sequences"], ended["share"], "|", color=own["color"], markersize=9)
    count_sequences(ax)
    ax.set(
        ylim=(0, 1.02), ylabel="share not yet learned", title="Networks that have not yet learned"
    )
    ax.legend(title=by, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


@drawing
def plot_progress(
    table: pd.DataFrame,
    axes: Sequence[Axes] | np.ndarray,
    *,
    palette: Palette | None = None,
    **look: Any,
) -> tuple[Axes, Axes]:
    """Figure 10: loss under clamps in training, and the progress measures of the free run.

    Columns of `progress_beside_training`: `sequences`, `clamp`, `when`, `loss`, and of several
    networks `seed`: each thin, their median thick, a band from least to most. Two axes, left and
    right, which come back on one scale. `palette` gives colours of clamps, `look` what else the
    thick lines have.
    """
    if np.size(axes) != len(WHEN):  # pyright: ignore
        raise ValueError("Two axes are drawn on; give those of figure.subplots(1, 2).")
    table = with_seed(table)
    expect_table(table, "sequences", "clamp", "when", "loss")
    expect_known(table, "when", WHEN)
    left, right = axes
    panels: tuple[Axes, Axes] = (left, right)
    lines = condition_lines(distinct(table["clamp"]), CLAMP_LINES, palette)
    for ax, (when, title) in zip(panels, WHEN.items(), strict=True):
        for clamp, line in lines.items():
            rows = rows_where(table, when=when, clamp=clamp)
            plot_over_seeds(rows, ax, shown(clamp), line, **look)
        guess_line(ax)
        count_sequences(ax)
        ax.set(title=title)
    top = 1.05 * float(table["loss"].max())
    end = float(table["sequences"].max())
    bottom = min(0.0, float(table["loss"].min()))
    for ax in panels:
        ax.set(xlim=(0, end or 1), ylim=(bottom, top))
    left.set_ylabel("training loss (nats)")
    legend_off_curves(right, title="clamped")
    return panels


@drawing
def plot_transition(
    curve: pd.DataFrame,
    ax: Axes,
    *,
    marks: Mapping[str, float],
    plateau: tuple[float, float] | None = None,
    value: str = "loss",
    palette: Palette | None = None,
    **look: Any,
) -> Axes:
    """One run's curve with times marked on it, such as its crossing and its steepest descent.

    Columns `sequences` and `value`. `marks` are times by name, infinite ones told in the legend
    alone; `plateau` is from when to when, shaded. `palette` gives colours of marks, `look` what the
    curve has.
    """
    expect_table(curve, "sequences", value)
    expect_once(curve, "sequences", remedy="give one network's curve, on one split")
    expect(marks, Mapping, "marks", 'write {"learned": 40_000}')
    for name, time in marks.items():
        expect(time, (int, float, np.number), f"The mark {name!r}", "of a Crossing give .time")
        if not time >= 0:
            raise ValueError(f"The mark {name!r} is at {time}; a time of at least 0 was expected.")
    curve = curve.sort_values("sequences")
    plot_curve(curve, ax, x="sequences", y=value, **looking(look, color="black"))
    there = curve[curve[value].notna()]
    x, y = (there[column].to_numpy(dtype=float) for column in ("sequences", value))
    if plateau is not None:
        if not 0 <= plateau[0] < math.inf or not plateau[0] <= plateau[1]:
            raise ValueError(f"plateau={plateau} has no beginning, or no end after; leave it out.")
        start, end = plateau[0], min(plateau[1], float(x[-1]))
        left = math.isfinite(plateau[1])
        label = f"plateau: {short_count(plateau[1] - plateau[0])}" if left else "plateau, not left"
        ax.axvspan(start, end, color="0.9", label=label, zorder=0)
    chosen = palette_colours(palette, marks)
    for place, (name, time) in enumerate(marks.items()):
        colour, dash = chosen.get(name, HEAD_COLOURS[1 + place % 7]), DASHES[1 + place % 3]
        style: dict[str, Any] = {
            "color": colour,
            "marker": "osDv"[place % 4],
            "markersize": 6,
            "markeredgecolor": "white",
            "linestyle": dash,
            "linewidth": 1.2,
            "label": f"{name}: {short_count(time)}",
        }
        if math.isfinite(time):
            height = float(np.interp(time, x, y))
            ax.plot([time, time], [min(0.0, float(y.min())), height], markevery=[1], **style)
        else:
            ax.plot([], [], **style)
    count_sequences(ax)
    ax.set_xlim(0, max([float(x[-1]), *(t for t in marks.values() if t < math.inf)]) or 1)
    ax.set(ylabel=value, title="One network's transition")
    if ax.get_legend_handles_labels()[0]:
        ax.legend()
    return ax


def _draw_times(
    runs: pd.DataFrame, ax: Axes, row: int, line: Line, look: Mapping[str, Any]
) -> None:
    """Dots of one condition, a little apart, above its median."""
    heights = row - 0.08 - 0.36 * np.linspace(0, 1, len(runs) + 1)[:-1]
    for time, observed, height in zip(runs["time"], runs["observed"], heights, strict=True):
        own = looking(look, color=line.colour, marker="o", markersize=5.5)
        own.setdefault("markerfacecolor", own["color"] if observed else "white")
        ax.plot(time, height, **own)
        if not observed:
            ax.annotate(
                "",
                (time, height),
                (22, 0),
                textcoords="offset points",
                arrowprops={"arrowstyle": "<-", "color": own["color"], "shrinkB": 3},
            )


def _draw_median(
    median: float, low: float, high: float, *, ax: Axes, row: int, edge: float
) -> None:
    if math.isnan(low):  # of one seed: its dot says it
        return
    height = row + 0.2
    ax.plot([min(low, edge), min(high, edge)], [height] * 2, color="0.35", linewidth=1.2)
    if math.isfinite(median):
        ax.plot(median, height, "|", color="black", markersize=11, markeredgewidth=2)
    else:
        ax.annotate("median not reached", (edge, height), ha="right", va="top", fontsize=8)
