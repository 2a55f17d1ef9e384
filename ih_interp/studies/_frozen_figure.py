"""The figure of the study "frozen weights": four panels, all in times of the network left free."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from ih_interp.analysis.dynamics.emergence import Crossing
from ih_interp.analysis.dynamics.survival import (
    bootstrap_over_seeds,
    crossings_by_seed,
    median_time,
)
from ih_interp.plots._style import FAINT, HEAD_COLOURS, note
from ih_interp.plots.maps import draw_map
from ih_interp.studies._frozen_runs import (
    ALWAYS,
    GROUPS,
    LIMIT,
    NOTHING,
    STAGES,
    THAWED,
    WEIGHTS,
    joined,
    of,
    relative,
)

STAGE_WORDS: Mapping[str, str] = {
    "previous token": "attend to the\ntoken before",
    "layer 1": "write what\nstands there",
    "match": "match\nthe query",
    "copy": "copy\nthe label",
}
"""What a stage of the circuit does, by the clamp that makes it perfect."""

LOOKS: Mapping[str, tuple[str, str]] = dict(
    zip(STAGES, zip([HEAD_COLOURS[n] for n in (5, 2, 6, 1)], "osDP", strict=True), strict=True)
)
"""Colour and marker of each stage: blues for layer 0, reds for layer 1."""
PLAIN = ("0.35", "o")
AFTER_ALL = THAWED[-1] + 0.5  # where "always" stands among the times of a thaw

TIME = "time to learn / time with nothing frozen"
TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.25, 1.5, 2.0)
LIGHTEST, BRIGHT = 0.8, 1.6  # free times of the lightest cells, and from which words are white


def draw_frozen(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw what freezing each weight, pair and group costs, against clamps and thaws.

    Every dot is a network; a bar is the Kaplan-Meier median with its 95% interval over networks; an
    open arrow is a run that ended before it learned.
    """
    times = relative(table)
    if not len(times):
        words = "No network learned with nothing frozen: there is no time to compare with."
        canvas.text(0.5, 0.5, words, ha="center")
        return
    (alone, pairs), (stages, thaws) = canvas.subplots(2, 2, width_ratios=(1.1, 1))
    _rows(alone, times, [*WEIGHTS, *GROUPS])
    alone.set_title("a  Weights frozen throughout: all heads of a layer")
    plot_pairs(times, pairs)
    plot_stages(times, stages)
    plot_thaws(times, thaws)
    words = (
        '"L0 Q": the query weights of all heads of layer 0, the first. Mark: a network. Bar: ',
        f"median and 95% interval over {times['seed'].nunique()} networks.\nOpen arrow: the run ",
        "ended before it learned, twice the free time after it began, or after the thaw.",
    )
    canvas.suptitle("".join(words), fontsize="small")


def plot_pairs(times: pd.DataFrame, ax: Axes) -> None:
    """Plot a map of pairs frozen throughout, with single weights on the diagonal.

    A cell has the median in free times or, where it is not reached, how many networks learned.
    """
    values = pd.DataFrame(np.nan, index=WEIGHTS, columns=WEIGHTS)
    for row, first in enumerate(WEIGHTS):
        for column, second in enumerate(WEIGHTS[row:], start=row):
            both = (first,) if first == second else (first, second)
            found = of(times, joined(both))
            median, observed = _median(found), found["observed"].astype(bool)
            values.loc[first, second] = min(median, LIMIT)
            words = f"{median:.2f}" if median < ALWAYS else _share(observed)
            bright = "white" if min(median, LIMIT) > BRIGHT else "black"
            ax.text(column, row, words, ha="center", va="center", fontsize=7, color=bright)
    shades = LogNorm(LIGHTEST, LIMIT)
    draw_map(values, ax, shades=shades, colours="Oranges", reach=LIMIT, written=False)
    ax.set_title("b  Pairs frozen throughout, median time (diagonal: one weight)")
    if (values.to_numpy() >= LIMIT).any():
        ax.set_xlabel('"never", "3 of 8": learned within twice the free time')


def plot_stages(times: pd.DataFrame, ax: Axes) -> None:
    """Plot what each stage costs with its weights frozen, and saves under its perfect clamp."""
    for place, (name, stage) in enumerate(STAGES.items()):
        colour, marker = LOOKS[name]
        _dots(ax, of(times, joined(stage.weights)), place - 0.18, colour, marker)
        _dots(ax, of(times, name), place + 0.18, colour, marker, hollow=True)
    names = [f"{STAGE_WORDS[name]}\n({joined(stage.weights)})" for name, stage in STAGES.items()]
    ax.set_yticks(range(len(STAGES)), names)
    _finish(ax)
    own: dict[str, Any] = {"color": "0.35", "linestyle": "", "marker": "o"}
    handles = [
        Line2D([], [], label="its two weights frozen", **own),
        Line2D([], [], label="clamped to be perfect", fillstyle="none", **own),
    ]
    words = "Clamps are nested: the second contains the first, a perfect match needs neither."
    ax.legend(
        handles=handles, title=words, loc="upper center", bbox_to_anchor=(0.4, -0.14), ncols=2
    )
    ax.set_title("c  Stages of the circuit: frozen throughout, or perfect from the start")


def plot_thaws(times: pd.DataFrame, ax: Axes) -> None:
    """Plot times to learn by the time of the thaw, between no cost and all frozen time lost."""
    ends = np.array([0.0, THAWED[-1]])
    ax.plot(ends, 1 + ends, **FAINT)
    ax.axhline(1, **FAINT)
    note(ax, "all frozen time lost", (0.66, 1.66), (-4, 6), ha="right", color="0.4")
    note(ax, "no cost", (THAWED[0] / 2, 1), (0, -7), ha="center", color="0.4")
    places = {0.0: 0.0, **{until: until for until in THAWED}, ALWAYS: AFTER_ALL}
    for turn, (name, stage) in enumerate(STAGES.items()):
        colour, marker = LOOKS[name]
        medians: list[tuple[float, float]] = []
        for until, place in places.items():
            what = joined(stage.weights) if until else NOTHING
            x = place + 0.06 * (turn - (len(STAGES) - 1) / 2)
            rows = of(times, what, until)
            if until:
                _networks(ax, np.full(len(rows), x), rows, colour, marker, upward=True)
            median = _median(rows) if until else 1.0
            medians += [(x if until else 0.0, median)] if median < ALWAYS else []
        ax.plot(
            *zip(*medians, strict=True), color=colour, marker=marker, label=joined(stage.weights)
        )
    ax.set_xticks([*places.values()], ["0", *(f"{until:g}" for until in THAWED), "always"])
    ax.set(xlabel="frozen until / time with nothing frozen", ylabel=TIME)
    ax.set_title("d  Frozen at first, then thawed: networks and medians")
    ax.legend(loc="upper left", fontsize=8)


def _rows(ax: Axes, times: pd.DataFrame, names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        _dots(ax, of(times, name), place, *_look(name))
    ax.set_yticks(range(len(names)), names)
    _finish(ax)


def _finish(ax: Axes) -> None:
    """Draw the free time, and turn axes so that the first row is on top."""
    ax.axvline(1, **FAINT)
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(FixedLocator(TICKS))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.set_xlabel(TIME)


def _dots(
    ax: Axes, rows: pd.DataFrame, place: float, colour: str, marker: str, *, hollow: bool = False
) -> None:
    """Draw networks along a row, and below them the median with its interval."""
    heights = place + np.linspace(-0.12, 0.04, len(rows))
    _networks(ax, heights, rows, colour, marker, hollow=hollow)
    median, (low, high) = _median(rows), _interval(rows)
    below = place + 0.16
    if low < ALWAYS:
        end = min(high, LIMIT)
        ax.plot([low, end], [below, below], color="black", linewidth=1.2)
        if high > LIMIT:
            ax.plot(end, below, ">", color="black", markersize=4)
    if median < ALWAYS:
        ax.plot(median, below, "|", color="black", markersize=7, markeredgewidth=2)
    if not (observed := rows["observed"].astype(bool)).all():
        words = f"learned: {_share(observed)}"
        note(ax, words, (float(rows["time"].min()), place), (-8, 0), ha="right", fontsize=7)


def _networks(
    ax: Axes,
    places: np.ndarray,
    rows: pd.DataFrame,
    colour: str,
    marker: str,
    *,
    hollow: bool = False,
    upward: bool = False,
) -> None:
    """Draw a mark per network, an open arrow where it did not learn."""
    there, time = rows["observed"].to_numpy(dtype=bool), rows["time"].to_numpy(dtype=float)
    looks: list[tuple[np.ndarray, str, str]] = [
        (there, marker, "none" if hollow else colour),
        (~there, "^" if upward else ">", "none"),
    ]
    for chosen, shape, inside in looks:
        points = places[chosen], time[chosen]
        x, y = points if upward else points[::-1]
        ax.scatter(x, y, s=16, marker=shape, facecolors=inside, edgecolors=colour, alpha=0.6)


def _crossings(rows: pd.DataFrame) -> list[Crossing]:
    return [*crossings_by_seed(rows.reset_index()).values()]


def _median(rows: pd.DataFrame) -> float:
    return median_time(_crossings(rows))


def _interval(rows: pd.DataFrame) -> tuple[float, float]:
    """Return the ends of the median's interval over networks; NaN for one network."""
    if len(rows) < 2:
        return np.nan, np.nan
    _, low, high = bootstrap_over_seeds(_crossings(rows))
    return float(low), float(high)


def _share(observed: "pd.Series[bool]") -> str:
    """Return how many networks learned: "never" or "3 of 8"."""
    return f"{observed.sum()} of {len(observed)}" if observed.any() else "never"


def _look(name: str) -> tuple[str, str]:
    """Return colour and marker of a weight, its stage's, or of a group."""
    return next((LOOKS[key] for key, s in STAGES.items() if name in s.weights), PLAIN)
