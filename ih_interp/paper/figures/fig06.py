"""Figure 6: what more classes and more labels do to learning, and through which subcircuit."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ih_interp.analysis.dynamics.emergence import Crossing, emergence_table, learned
from ih_interp.paper.claims import Measured, ascend, by_rules, outlasts, when
from ih_interp.paper.recipes import EVOLUTIONS
from ih_interp.paper.study import Figure, Study
from ih_interp.plots._style import Line, count_sequences, note
from ih_interp.plots._tables import expect_known, expect_table
from ih_interp.plots.curves import guess_line
from ih_interp.plots.seeds import plot_over_seeds
from ih_interp.runs import Run

UNCHANGED = 1.25  # the factor by which a time changes at least where data are said to change it

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


def data_table(study: Study) -> pd.DataFrame:
    """Return training losses with more classes or labels, normally and with subcircuits clamped.

    Columns: `seed`, `run`, `evolution` (a key of `recipes.EVOLUTIONS`: what is left to learn),
    `classes`, `labels`, `sequences`, `loss` as in `Study.losses`. Clamped runs with the fewest of
    both are those of Figure 5b, cut where the other clamped runs end.
    """
    parts: list[pd.DataFrame] = []
    for seed in study.seeds:
        runs = study.runs["data"][seed]
        clamped = [run for key, run in runs.items() if not key.startswith("normal")]
        end = float(max(run.config.sequences for run in clamped))
        parts += [_losses(seed, key.partition(",")[0], run) for key, run in runs.items()]
        parts += [
            _losses(seed, evolution, study.runs["clamped"][seed][condition], end)
            for evolution, condition in EVOLUTIONS.items()
            if evolution != "normal"
        ]
    return pd.concat(parts, ignore_index=True)


def _losses(seed: int, evolution: str, run: Run, end: float = math.inf) -> pd.DataFrame:
    metrics = run.metrics
    task: Any = run.config.task
    there = metrics[(metrics["split"] == "train") & (metrics["sequences"] <= end)]
    keys = {"seed": seed, "run": run.config.name, "evolution": evolution}
    keys |= {"classes": task.n_train_classes, "labels": task.n_labels}
    return pd.DataFrame({**keys, "sequences": there["sequences"], "loss": there["loss"]})


def learning_times(table: pd.DataFrame) -> pd.DataFrame:
    """Return when every run of the figure learned: its loss fell below 0.4 ln 2 = 0.277 nats.

    Columns: `seed`, `evolution`, `classes`, `labels`, `time` in sequences, infinite for never.
    """
    times = _emergence(table)
    times["time"] = times["time"].where(times["observed"].astype(bool), np.inf)
    return times.drop(columns="observed")


def slowdowns(times: pd.DataFrame) -> pd.DataFrame:
    """Return how many times as long the most classes or labels take as the fewest.

    Columns: `varied` ("classes" or "labels"), `evolution`, `seed`, `factor`; 1 is no effect, NaN
    where even the fewest were not learned, infinite where only the most were not.
    """
    times = times.assign(observed=np.isfinite(times["time"]))
    rows = [
        (varied, evolution, seed, _factor(found))
        for seed, network in times.groupby("seed")
        for (evolution, varied), found in _of_network(network).items()
    ]
    return pd.DataFrame(rows, columns=["varied", "evolution", "seed", "factor"])


def _measure(rows: pd.DataFrame) -> Measured:
    """Return one network's times, factors, and how far losses of B differ between labels."""
    times = {" ".join(key): found for key, found in _of_network(_emergence(rows)).items()}
    fewest, *more = times["normal labels"]
    factors = {f"{name} factor": _factor(found) for name, found in times.items()}
    return {**times, **factors, "fewest": fewest, "more": more, "apart": _apart(rows)}


def _slows_more(times: Sequence[Crossing], others: Sequence[Crossing]) -> bool:
    """Return whether the last of some times is surely more times the first than among others."""
    known = times[0].observed and others[0].observed and others[-1].observed
    return known and times[-1].time * others[0].time > others[-1].time * times[0].time


def _emergence(table: pd.DataFrame) -> pd.DataFrame:
    """Return when every run learned, or how long it ran: an `emergence_table`."""
    return emergence_table(table, learned, by=["evolution", "classes", "labels"])


def _of_network(times: pd.DataFrame) -> dict[tuple[str, str], list[Crossing]]:
    """Return one network's times by evolution and what varies, the fewest first."""
    return {
        (evolution, varied): [
            Crossing(float(row["time"]), bool(row["observed"]))
            for _, row in of_row(times[times["evolution"] == evolution], varied)
            .sort_values(varied)
            .iterrows()
        ]
        for evolution, varied in product(EVOLUTIONS, ROWS)
    }


def _factor(times: Sequence[Crossing]) -> float:
    """Return how many times as long the last takes as the first, to write it, not to judge."""
    first, last = times[0], times[-1]
    return when(last) / first.time if first.observed and first.time > 0 else math.nan


def _apart(table: pd.DataFrame) -> float:
    """Return the largest difference between one network's losses of B alone with other labels.

    It is that of evaluations which all its curves have, and NaN where there are none.
    """
    alone = of_row(table[table["evolution"] == "B alone"], "labels")
    wide = alone.pivot_table(index="sequences", columns="labels", values="loss").dropna()
    return float((wide.max(axis=1) - wide.min(axis=1)).max())


data_claims = by_rules(
    "6",
    _measure,
    classes_later=lambda n: ascend(n["normal classes"]),
    fewest_labels_first=lambda n: all(outlasts(time, n["fewest"]) for time in n["more"]),
    labels_much_later=lambda n: all(outlasts(time, n["fewest"], factor=2) for time in n["more"]),
    most_labels_last=lambda n: ascend(n["more"]),
    b_with_classes=lambda n: ascend(n["B alone classes"]),
    b_with_labels=lambda n: n["apart"] < 1e-3,
    c_with_labels=lambda n: (
        ascend(n["C alone labels"])
        and outlasts(n["C alone labels"][-1], n["C alone labels"][0], factor=2)
    ),
    c_with_classes=lambda n: all(
        outlasts(a, b, factor=1 / UNCHANGED) for a, b in product(n["C alone classes"], repeat=2)
    ),
    b_and_c_apart=lambda n: (
        _slows_more(n["B alone classes"], n["C alone classes"])
        and _slows_more(n["C alone labels"], n["B alone labels"])
    ),
)


def plot_data_dependence(table: pd.DataFrame, canvas: Canvas) -> list[list[Axes]]:
    """Draw Figure 6: a row for classes and one for labels, one column per evolution.

    Each seed is thin, their median thick; the curve with fewest of both stands in both rows. Losses
    are cut off above the first fall, and above all curves that stay up.
    """
    expect_table(table, "seed", "evolution", "classes", "labels", "sequences", "loss")
    expect_known(table, "evolution", COLUMNS)
    there = [evolution for evolution in COLUMNS if (table["evolution"] == evolution).any()]
    median = table.groupby(["seed", "evolution", "classes", "labels"])["loss"].median()
    top = 1.5 if median.max() < 1.5 else 1.05 * float(table["loss"].max())
    grid = canvas.subplots(len(ROWS), len(there), sharey=True, squeeze=False)
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


FIGURES = (
    Figure("6", ("clamped", "data"), data_table, plot_data_dependence, data_claims, (11.0, 5.2)),
)
