"""When networks learn: times of each seed, survival, progress measures, one curve's transition."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ih_interp.plots.curves import guess_line
from ih_interp.plots.seeds import plot_over_seeds
from ih_interp.plots.style import (
    DASHES,
    HEAD_COLOURS,
    Line,
    condition_lines,
    count_sequences,
    legend_off_curves,
    short_count,
)
from ih_interp.plots.tables import distinct, expect_once, expect_table, rows_where, with_seed

WHEN = {"training": "clamped in training", "inference": "perfected at inference"}
"""Panels of Figure 10."""

MEDIAN = ("median", "median_low", "median_high")
"""Columns of an `emergence_summary`: when half had learned, and its interval."""


def plot_emergence(
    times: pd.DataFrame, ax: Axes, *, summary: pd.DataFrame | None = None, by: str = "clamp"
) -> Axes:
    """When each network got there: a dot a seed, open with an arrow where its run ended before.

    Columns of `times` (an `emergence_table`): `by`, `seed`, `time`, `observed`; of `summary` (an
    `emergence_summary`): `by`, `median`, `median_low`, `median_high`, drawn as a bar and a line
    over the interval, up to the edge where it is not reached. Conditions in the table's order.
    """
    expect_table(times, by, "seed", "time", "observed")
    conditions = distinct(times[by])
    lines = condition_lines(conditions)
    edge = 1.12 * float(times["time"].max())
    ax.set_xlim(0, edge)
    for row, condition in enumerate(conditions):
        runs = times[times[by] == condition].sort_values("time")
        _draw_times(runs, ax, row, lines[condition])
        if summary is not None:
            expect_table(summary, by, *MEDIAN)
            ends = rows_where(summary, **{by: condition})[[*MEDIAN]].iloc[0]
            _draw_median(*ends.astype(float), ax=ax, row=row, edge=edge)
    ax.set_yticks(range(len(conditions)), list(map(str, conditions)))
    ax.set_ylim(len(conditions) - 0.5, -0.6)
    ax.grid(axis="y", color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    count_sequences(ax)
    ax.set(xlabel="sequences seen until learned", title="When each network learned")
    return ax


def plot_survival(table: pd.DataFrame, ax: Axes, *, by: str = "clamp", band: bool = True) -> Axes:
    """Share of networks that have not yet learned (Kaplan-Meier); ticks where runs ended before.

    Columns of a `survival_table`: `by`, `sequences`, `share`, `low`, `high`, `censored`. The band
    is left out where its formula has no value.
    """
    expect_table(table, by, "sequences", "share", "censored", *(("low", "high") if band else ()))
    lines = condition_lines(distinct(table[by]))
    for condition, line in lines.items():
        curve = table[table[by] == condition].sort_values("sequences", kind="stable")
        ax.step(
            curve["sequences"],
            curve["share"],
            where="post",
            color=line.colour,
            linestyle=line.dash,
            label=condition,
        )
        if band:
            ax.fill_between(
                curve["sequences"],
                curve["low"],
                curve["high"],
                step="post",
                color=line.colour,
                alpha=0.12,
                linewidth=0,
            )
        ended = curve[curve["censored"] > 0]
        ax.plot(ended["sequences"], ended["share"], "|", color=line.colour, markersize=9)
    count_sequences(ax)
    ax.set(
        ylim=(0, 1.02), ylabel="share not yet learned", title="Networks that have not yet learned"
    )
    ax.legend(title=by, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def plot_progress(table: pd.DataFrame, axes: Sequence[Axes] | np.ndarray) -> tuple[Axes, Axes]:
    """Figure 10: loss under clamps in training, and the progress measures of the free run.

    Columns of `progress_beside_training`: `sequences`, `clamp`, `when`, `loss`, and of several
    networks `seed`: each thin, their median thick, a band from least to most. Two axes, left and
    right, which come back on one scale.
    """
    if np.size(axes) != len(WHEN):  # pyright: ignore
        raise ValueError("Two axes are drawn on; give those of figure.subplots(1, 2).")
    table = with_seed(table)
    expect_table(table, "sequences", "clamp", "when", "loss")
    left, right = axes
    panels: tuple[Axes, Axes] = (left, right)
    lines = condition_lines(distinct(table["clamp"]))
    for ax, (when, title) in zip(panels, WHEN.items(), strict=True):
        panel = rows_where(table, when=when)
        for clamp, line in lines.items():
            plot_over_seeds(panel[panel["clamp"] == clamp], ax, str(clamp), line)
        guess_line(ax)
        count_sequences(ax)
        ax.set(title=title)
    top = 1.05 * float(table["loss"].max())
    end = float(table["sequences"].max())
    for ax in panels:
        ax.set(xlim=(0, end), ylim=(0, top))
    left.set_ylabel("training loss (nats)")
    legend_off_curves(right, title="clamped")
    return panels


def plot_transition(
    curve: pd.DataFrame,
    ax: Axes,
    *,
    marks: Mapping[str, float],
    plateau: tuple[float, float] | None = None,
    value: str = "loss",
) -> Axes:
    """One run's curve with times marked on it, such as its crossing and its steepest descent.

    Columns `sequences` and `value`. `marks` are times by name, infinite ones told in the legend
    alone; `plateau` is from when to when, shaded.
    """
    expect_table(curve, "sequences", value)
    expect_once(curve, "sequences", remedy="give one network's curve, on one split")
    curve = curve.sort_values("sequences")
    x, y = (curve[column].to_numpy(dtype=float) for column in ("sequences", value))
    ax.plot(x, y, color="black")
    if plateau is not None:
        start, end = plateau[0], min(plateau[1], float(x[-1]))
        left = math.isfinite(plateau[1])
        label = f"plateau: {short_count(plateau[1] - plateau[0])}" if left else "plateau, not left"
        ax.axvspan(start, end, color="0.9", label=label, zorder=0)
    for place, (name, time) in enumerate(marks.items()):
        colour, dash = HEAD_COLOURS[1 + place % 7], DASHES[1 + place % 3]
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
    ax.set_xlim(0, float(x[-1]))
    ax.set(ylabel=value, title="One network's transition")
    if ax.get_legend_handles_labels()[0]:
        ax.legend()
    return ax


def _draw_times(runs: pd.DataFrame, ax: Axes, row: int, line: Line) -> None:
    """Dots of one condition, a little apart, above its median."""
    heights = row - 0.08 - 0.36 * np.linspace(0, 1, len(runs) + 1)[:-1]
    for time, observed, height in zip(runs["time"], runs["observed"], heights, strict=True):
        face = line.colour if observed else "white"
        ax.plot(time, height, "o", color=line.colour, markerfacecolor=face, markersize=5.5)
        if not observed:
            ax.annotate(
                "",
                (time, height),
                (22, 0),
                textcoords="offset points",
                arrowprops={"arrowstyle": "<-", "color": line.colour, "shrinkB": 3},
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
