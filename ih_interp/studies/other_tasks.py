"""Study "other tasks": is the order of Figure 5b, and the loss of the plateau, the paper's alone?

For each task of `KINDS`: the order in which clamped networks learn, and how long their plateau is.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, NullFormatter

from ih_interp._columns import ordered
from ih_interp.analysis.dynamics.emergence import Crossing
from ih_interp.analysis.dynamics.survival import crossings_by_seed, emergence_summary, median_time
from ih_interp.paper.figures.fig05_09_10 import ORDER
from ih_interp.plots._style import CLAMP_LINES, FAINT, count_sequences, note, short_count
from ih_interp.plots.emergence import MEDIAN, plot_emergence
from ih_interp.plots.seeds import common_values, plot_curve
from ih_interp.studies._clamped_tasks import clamped_runs, learning_times, plateau_times, tasks_of
from ih_interp.studies.findings import Finding, Tested, above_zero, judge
from ih_interp.studies.study import LEARNED, SMOKE, Scale, Study, curve_rows, guess_loss, trace_runs

ABOVE: Mapping[str, Any] = {"xycoords": ("data", "axes fraction"), "color": "0.4"}
BESIDE: Mapping[str, Any] = {"xycoords": ("axes fraction", "data"), "color": "0.4"}
ROOM = 1.6  # factor below the shortest time and above the longest
NO_PLATEAU = 8  # the factor by which a clamp without a plateau shortens it at least
WITHOUT_PLATEAU = ("match", "layer 1 + copy")


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return `emergence_summary` by task and clamp, and medians of plateaus as `plateau_...`."""
    by = ["task", "clamp"]
    parts: list[pd.DataFrame] = []
    for name in table["task"].unique():  # each has a horizon of its own
        of_task = table[table["task"] == name]
        times, plateaus = (
            emergence_summary(of(of_task), by=by) for of in (learning_times, plateau_times)
        )
        parts.append(times.merge(plateaus.set_index(by)[[*MEDIAN]].add_prefix("plateau_"), on=by))
    return trace_runs(pd.concat(parts, ignore_index=True), table, by)


def log_ratio(slow: Crossing, fast: Crossing, *, factor: float = 1) -> float:
    """Return log2 of a time over `factor` times another, as near to 0 as the runs allow.

    Where one is censored, its length is a bound: the ratio of lengths stands where the truth can
    only be further from 0 on the same side. Else, and where both are censored, it is NaN.
    """
    ratio = float(np.log2(slow.time / (factor * fast.time)))
    at_least, at_most = fast.observed, slow.observed
    known = (at_least and at_most) or (at_least and ratio > 0) or (at_most and ratio < 0)
    return ratio if known else np.nan


def tested(table: pd.DataFrame) -> list[Tested]:
    """Return a test over networks of every claim in every task: order, plateau, previous token."""
    found: list[Tested] = []
    for task, kind, rows in tasks_of(table):
        times, plateaus = _by_clamp(learning_times(rows)), _by_clamp(plateau_times(rows))
        pairs = [*((late, early) for early, late in ORDER), ("none", "previous token")]
        for late, early in pairs:
            slower = "without a clamp" if late == "none" else f"with {late}"
            claim = f"{task}: with {early} perfect it is learned earlier than {slower}"
            words = f"log2 of time ({late}) / time ({early}): {{}}"
            effects = [log_ratio(times[late][seed], times[early][seed]) for seed in times[late]]
            found.append(above_zero(claim, effects, known=kind.known, words=words))
        for clamp in WITHOUT_PLATEAU:
            claim = f"{task}: with {clamp} perfect the plateau is less than 1/{NO_PLATEAU} as long"
            words = f"log2 of plateau (none) / {NO_PLATEAU} plateaus ({clamp}): {{}}"
            pair = plateaus["none"], plateaus[clamp]
            effects = [log_ratio(pair[0][s], pair[1][s], factor=NO_PLATEAU) for s in pair[0]]
            found.append(above_zero(claim, effects, known=kind.known, words=words))
    return found


def _by_clamp(times: pd.DataFrame) -> dict[str, dict[int, Crossing]]:
    return {str(clamp): crossings_by_seed(rows) for clamp, rows in times.groupby("clamp")}


def verdicts(table: pd.DataFrame) -> list[Finding]:
    """Return the verdicts of `tested`, in one family."""
    return judge(tested(table))


def draw(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw a column per task: losses under clamps, when each network learned, its plateau.

    Open dots with arrows are networks whose run ended before. Bars are medians with their intervals
    over networks.
    """
    found = [*tasks_of(table)]
    grid = canvas.subplots(3, len(found), sharey="row", squeeze=False, height_ratios=(1.5, 1, 1))
    for (task, kind, rows), (losses, times, plateaus) in zip(found, grid.T, strict=True):
        guess = guess_loss(kind.task)
        draw_losses(rows.assign(loss=rows["loss"] / guess), losses)
        losses.set_title(f"{task[0].upper()}{task[1:]} (a guess: {guess:.2f} nats)")
        draw_times(learning_times(rows), times, "sequences until learned")
        stays = plateau_times(rows)
        draw_times(stays, plateaus, "sequences on the plateau")
        free = median_time([*_by_clamp(stays)["none"].values()])
        if np.isfinite(free):
            plateaus.axvline(free / NO_PLATEAU, **FAINT)
            where = (free / NO_PLATEAU, 1)
            note(plateaus, f"none / {NO_PLATEAU}", where, (0, 3), ha="center", va="bottom", **ABOVE)
    first = grid[0, 0]
    first.set(ylim=(0, 2), ylabel="training loss / loss of a guess\namong the context's answers")
    for level, words in ((1.0, "guess"), (LEARNED, "learned")):
        note(grid[0, -1], words, (1, level), (3, 0), **BESIDE)
    lines, names = first.get_legend_handles_labels()
    told = [f"{name}: {CLAMP_LINES[name].words}" for name in names]
    words = (
        "Perfect from the start: left to learn "
        "(A: attend to the previous token and copy it, B: match, C: copy the label out)"
    )
    canvas.legend(lines, told, loc="outside upper center", ncols=len(told), title=words)


def draw_losses(table: pd.DataFrame, ax: Axes) -> None:
    """Draw one task's losses in units of a guess's: networks thin, their median thick.

    Runs end when learned, at the dotted line; a median ends when half of the networks have.
    """
    for clamp, line in CLAMP_LINES.items():
        rows = table[table["clamp"] == clamp]
        if len(rows):
            look: dict[str, Any] = {"color": line.colour, "linestyle": line.dash}
            for seed in ordered(rows["seed"]):
                one = rows[rows["seed"] == seed]
                plot_curve(one, ax, x="sequences", y="loss", lw=0.5, alpha=0.5, color=line.colour)
            plot_curve(median_until_half(rows), ax, x="sequences", y="loss", label=clamp, **look)
    for level in (1.0, LEARNED):
        ax.axhline(level, **FAINT)
    count_sequences(ax)


def median_until_half(table: pd.DataFrame) -> pd.DataFrame:
    """Return the median over networks; those that have learned count as below all others."""
    of_seed = [rows.sort_values("sequences") for _, rows in table.groupby("seed")]
    ends = sorted(float(rows["sequences"].iloc[-1]) for rows in of_seed)
    end = ends[len(ends) // 2]
    x, losses = (
        [np.append(rows[name], rows[name].iloc[-1]) for rows in of_seed]
        for name in ("sequences", "loss")
    )
    for places in x:
        places[-1] = max(places[-1], end + 1)
    places, values = common_values([*zip(x, losses, strict=True)])
    median = pd.DataFrame({"sequences": places, "loss": np.median(values, axis=0)})
    return median[median["sequences"] <= end]


def draw_times(times: pd.DataFrame, ax: Axes, words: str) -> None:
    """Draw one task's times on a logarithmic axis, with the medians and their intervals."""
    order = [clamp for clamp in CLAMP_LINES if clamp in set(times["clamp"])]
    times = times.sort_values("clamp", key=lambda names: names.map(order.index), kind="stable")
    plot_emergence(times, ax, summary=emergence_summary(times), markersize=4)
    ax.set_xscale("log")
    ax.set_xlim(float(times["time"].min()) / ROOM, float(times["time"].max()) * ROOM)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set(xlabel=words, title="")


STUDY = Study(
    name="other tasks",
    question="Do the order of Figure 5b, and a plateau that clamps remove, hold in other tasks?",
    scales={
        "smoke": SMOKE.replace(sequences=96),
        "quick": Scale(sequences=32_000, evaluation_size=500),
        "paper": Scale(learning_rate=1e-5, sequences=384_000, every=5_000),
    },
    stages=(clamped_runs,),
    summarise=summarise,
    judge=verdicts,
    draw=draw,
    size=(13.0, 8.4),
    rows=curve_rows,
)
