"""The drawings of Figure 6: learning with more classes or labels, and with parts clamped."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ih_interp.plots._style import Line, count_sequences, note
from ih_interp.plots._tables import expect_known, expect_table
from ih_interp.plots.curves import guess_line
from ih_interp.plots.seeds import plot_over_seeds

COLUMNS: Mapping[str, tuple[str, str]] = {
    "normal": ("normal", "all left to learn"),
    "B alone": ("B alone: match", "layer 1 and copy clamped"),
    "C alone": ("C alone: copy", "match clamped"),
    "B and C": ("B and C", "layer 1 clamped"),
}
"""Columns: evolutions, their titles, and what is clamped (layers count from 1, as in the paper)."""

AMOUNT_LINES = (Line("#56B4E9"), Line("#0072B2", (0, (5, 1))), Line("#00264D", (0, (1, 1))))
"""Lines from the fewest classes or labels, light, to the most, dark."""

ROWS = {"classes": "labels", "labels": "classes"}
"""The quantity that varies in a row, and the one that stays at its fewest there."""
AMOUNTS = {"classes": "classes to train on", "labels": "labels"}


def plot_data_dependence(table: pd.DataFrame, figure: Figure) -> list[list[Axes]]:
    """Draw Figure 6: a row for classes and one for labels, one column per evolution.

    Columns `seed`, `evolution` (a key of `COLUMNS`), `classes`, `labels`, `sequences`, `loss`. Each
    seed is thin, their median thick; the curve with fewest of both stands in both rows.
    """
    expect_table(table, "seed", "evolution", "classes", "labels", "sequences", "loss")
    expect_known(table, "evolution", COLUMNS)
    there = [evolution for evolution in COLUMNS if (table["evolution"] == evolution).any()]
    top = _top(table)
    grid = figure.subplots(len(ROWS), len(there), sharey=True, squeeze=False)
    for axes, varied in zip(grid, ROWS, strict=True):
        row = of_row(table, varied)
        for ax, evolution in zip(axes, there, strict=True):
            _draw_amounts(row[row["evolution"] == evolution], ax, varied, top)
        axes[0].set_ylabel("training loss (nats)")
        axes[-1].legend(title=varied, loc="upper right")
        for ax in axes[1:]:
            ax.texts[0].remove()  # ln 2 is named once a row
    for ax, evolution in zip(grid[0], there, strict=True):
        name, clamped = COLUMNS[evolution]
        ax.set_title(f"{name}\n({clamped})")
        ax.set_xlabel("")
    if "B alone" in there:
        words = "identical by construction: its\nloss does not depend on labels"
        place: dict[str, Any] = {"xycoords": "axes fraction", "ha": "right", "va": "top"}
        note(grid[1][there.index("B alone")], words, (0.97, 0.97), color="0.3", **place)
    return [list(axes) for axes in grid]


def plot_slowdown(
    times: pd.DataFrame, axes: Mapping[str, Axes], *, lines: Mapping[str, Line]
) -> None:
    """Draw when each evolution learns, against how many classes or labels there are.

    `axes` are those of "classes" and "labels". Columns of `times`: `seed`, `evolution` (a key of
    `lines`), `classes`, `labels`, `time`, infinite where it never learned. Each seed that learned
    is a dot; the line is the median of all seeds, broken where that is infinite. Both scales are
    logarithmic: what multiplies the time has the same slope wherever it starts.
    """
    for varied, ax in axes.items():
        row = of_row(times, varied)
        for evolution, line in lines.items():
            curve = row[row["evolution"] == evolution]
            if not np.isfinite(curve["time"]).any():
                continue
            by_seed = curve.pivot_table(index=varied, columns="seed", values="time")
            median = by_seed.median(axis=1).replace(np.inf, np.nan)  # never is latest
            by_seed = by_seed.replace(np.inf, np.nan)
            ax.plot(by_seed.index, by_seed, ".", color=line.colour, alpha=0.5)
            ax.plot(median.index, median, color=line.colour, linestyle=line.dash, label=evolution)
        amounts = sorted(row[varied].unique())
        ax.set(xscale="log", yscale="log", xlabel=AMOUNTS[varied], ylabel="sequences until learned")
        ax.set_xticks(amounts, [str(amount) for amount in amounts])
        ax.minorticks_off()
        ax.set_title(f"More {varied}")
    last = [*axes.values()][-1]
    if last.lines:
        last.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def of_row(table: pd.DataFrame, varied: str) -> pd.DataFrame:
    """Return the rows of a table in which nothing but `varied` is more than the fewest."""
    kept = ROWS[varied]
    return table[table[kept] == table[kept].min()]


def _top(table: pd.DataFrame) -> float:
    """Return where losses are cut off: above the first fall, and above all curves that stay up."""
    curves = table.groupby(["seed", "evolution", "classes", "labels"])["loss"]
    return 1.5 if curves.median().max() < 1.5 else 1.05 * float(table["loss"].max())


def _draw_amounts(panel: pd.DataFrame, ax: Axes, varied: str, top: float) -> None:
    amounts = sorted(panel[varied].unique())
    if len(amounts) > len(AMOUNT_LINES):
        raise ValueError(f"{varied} are {amounts}; at most {len(AMOUNT_LINES)} can be told apart.")
    for amount, line in zip(amounts, AMOUNT_LINES, strict=False):
        plot_over_seeds(panel[panel[varied] == amount], ax, str(amount), line)
    guess_line(ax)
    count_sequences(ax)
    ax.set(xlim=(0, float(panel["sequences"].max())), ylim=(0, top))
    ax.locator_params(axis="x", nbins=4)
