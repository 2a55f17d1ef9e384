"""Critical periods: a clamp helps for a tenth of the learning time; is anything of it left?

Networks have all heads, and everything is measured with every clamp off. A run equals its network's
free run until the clamp comes, so that it can save at most the time that is left then.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from numpy import ndarray

from ih_interp.analysis.dynamics.survival import emergence_summary
from ih_interp.plots._style import CLAMP_LINES, FAINT
from ih_interp.studies._periods_runs import (
    ONSETS,
    closed_loops,
    free_runs,
    rows,
    same_doses,
    windows,
)
from ih_interp.studies.findings import Finding, Tested, above_zero, flatness, judge, unlearned
from ih_interp.studies.study import CLAMPS, SMOKE, Scale, Study, trace_runs

N_WINDOWS = len(ONSETS)
EARLY = 5  # onsets that count as early
BEYOND = 1e3  # windows, longer than any axis

CLAIMS = (
    "a window saves time, on average over onsets",
    "a window saves less time than it lasts, on average over onsets",
    "the first five windows save more than the last five",
    "savings differ between onsets",
)
FIXED = {
    "from the start": "help on the plateau saves more than as much at the start",
    "spread": "help on the plateau saves more than as much in ten pulses",
}
ARMS = ("closed loop", *FIXED)
"""When a clamp is on where doses are compared: while the free loss is between 0.8 and 0.6 nats; for
as many updates from the start; for about as many, the first of every tenth of the free time."""

NOTHING = "No network learned by itself: there is nothing to compare."
TITLE = """A clamp is on for one window, a tenth of the time in which the network learns without it.
Thin: networks, measured with clamps off. Open triangles: never learned in 1.5 times the free time.
Closed loops end when the network, measured without the clamp, leaves its plateau."""
KEYS = ["arm", "clamp", "onset"]


def savings(table: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with a clamp and what each saved: (free time - time) / window.

    A window is a tenth of the free time. 1 is as much as one window lasted, 0 is nothing. Of a run
    that did not learn (`observed` False) it is the most that it can have saved, -5. Networks that
    do not learn without a clamp have no windows, and are left out.
    """
    free = table[(table["arm"] == "free") & table["observed"].astype(bool)]
    clamped = table[(table["arm"] != "free") & table["seed"].isin(free["seed"])]
    return clamped.assign(savings=N_WINDOWS * (1 - clamped["time"] / clamped["free"]))


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return median savings by arm, clamp and onset, with intervals over networks.

    Columns: `KEYS`, `n_seeds`, `n_observed`, `run`, `config`, and by Kaplan-Meier `savings`,
    `savings_low`, `savings_high`, -inf where half of the networks never learned.
    """
    saved = savings(table)
    if saved.empty:
        return saved[[*KEYS, "run", "config"]]
    lost = saved.assign(time=N_WINDOWS - saved["savings"])  # may be censored, as times are
    of_arms = emergence_summary(lost, by=KEYS)
    for name, end in (("savings", ""), ("savings_low", "_high"), ("savings_high", "_low")):
        of_arms[name] = N_WINDOWS - of_arms[f"median{end}"]
    columns = [*KEYS, "n_seeds", "n_observed", "savings", "savings_low", "savings_high"]
    return trace_runs(of_arms[columns], saved, KEYS)


def by_onset(table: pd.DataFrame, clamp: str) -> Float[ndarray, "network onset"]:
    """Return the savings of each network's windows under one clamp."""
    saved = savings(table)
    own = saved[(saved["arm"] == "window") & (saved["clamp"] == clamp)]
    by_place = own.pivot(index="seed", columns="onset", values="savings")
    return by_place.reindex(columns=list(ONSETS)).to_numpy(dtype=float)


def judge_periods(table: pd.DataFrame) -> list[Finding]:
    """Judge whether help lasts, repays itself, has its time, and is better given when needed."""
    return judge([test for clamp in CLAMPS for test in _tests(table, clamp)])


def _tests(table: pd.DataFrame, clamp: str) -> list[Tested]:
    saved, runs = by_onset(table, clamp), savings(table)
    runs = runs[runs["clamp"] == clamp]
    mean = saved.mean(axis=1)
    early = saved[:, :EARLY].mean(axis=1) - saved[:, EARLY:].mean(axis=1)
    words = f"{{}} windows{unlearned(runs[runs['arm'] == 'window'])}"
    saves, lasts, first, matters = (f"{clamp}: {claim}" for claim in CLAIMS)
    return [
        above_zero(saves, mean, words=words),
        above_zero(lasts, 1 - mean, words=words),
        above_zero(first, early, words=words),
        Tested(matters, "nothing", _spread(saved), agrees=True, p=flatness(saved)),
        *(_more(runs, arm, f"{clamp}: {claim}") for arm, claim in FIXED.items()),
    ]


def _spread(saved: Float[ndarray, "network onset"]) -> str:
    if not len(saved):
        return "not measured"
    mean = saved.mean(axis=0)
    best = f"the most by the window from {ONSETS[int(mean.argmax())]:.0%} on"
    return f"{mean.min():.2f} to {mean.max():.2f} windows, {best}"


def _more(runs: pd.DataFrame, arm: str, claim: str) -> Tested:
    """Test whether the closed loop saves more; two runs that did not learn cannot tell."""
    loop, fixed = (runs[runs["arm"] == name].set_index("seed") for name in ("closed loop", arm))
    can_tell = loop["observed"].astype(bool) | fixed["observed"].astype(bool)
    more = (loop["savings"] - fixed["savings"]).where(can_tell)
    return above_zero(claim, more, words=f"{{}} windows more{unlearned(loop, fixed)}")


def draw(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw savings over onsets, a panel per clamp, and below them the three ways to give a dose."""
    drawn, free = (savings(table), summarise(table)), table[table["arm"] == "free"]
    axes = canvas.subplots(2, len(CLAMPS), sharey=True, height_ratios=(3, 2))
    plateau = [100.0 * (free[f"plateau_{end}"] / free["time"]).median() for end in ("start", "end")]
    places = {arm: place for place, arm in enumerate(ARMS)}
    for clamp, upper, lower in zip(CLAMPS, *axes, strict=True):
        runs, medians = (rows[rows["clamp"] == clamp] for rows in drawn)
        if len(runs):
            upper.axvspan(*plateau, color="0.9", label="free network's plateau")
            upper.plot([0, 100], [N_WINDOWS, 0], color="0.6", label="all of the time left")
            _draw_savings(runs, medians, upper, lambda rows: 100 * rows["onset"])
            _draw_savings(runs, medians, lower, lambda rows: rows["arm"].map(places))
            upper.set_ylim(runs["savings"].min() - 0.5, drawn[0]["savings"].max() + 0.5)
        upper.set(title=clamp, xlabel="onset (% of the free learning time)")
        lower.set_xticks([*places.values()], [arm.replace(" ", "\n") for arm in ARMS])
        lower.set_xlim(-0.5, len(ARMS) - 0.5)
    axes[0, 0].set_ylabel(
        "time saved by a window, in windows\n(0: nothing; 1: as long as it lasts)"
    )
    axes[1, 0].set_ylabel("time saved by\nequal doses, in windows")
    shown = [ax.get_legend_handles_labels() for ax in axes.flat]
    named = {label: handle for pair in shown for handle, label in zip(*pair, strict=True)}
    look: dict[str, Any] = {"loc": "outside upper center", "ncols": len(named), "fontsize": 9}
    canvas.legend(named.values(), named.keys(), title=TITLE if named else NOTHING, **look)


def _draw_savings(
    runs: pd.DataFrame, medians: pd.DataFrame, ax: Axes, place: Callable[[pd.DataFrame], pd.Series]
) -> None:
    """Draw one clamp's runs and medians that have a place on this x axis."""
    there, middle = (rows[place(rows).notna()] for rows in (runs, medians))
    colour = CLAMP_LINES[str(runs["clamp"].iloc[0])].colour
    _draw_networks(ax, place(there), there["savings"], there, color=colour)
    _draw_medians(ax, place(middle), middle, "savings")
    for level in (0, 1):
        ax.axhline(level, **FAINT)


def _draw_networks(
    ax: Axes, x: pd.Series, y: pd.Series, table: pd.DataFrame, *, color: Any
) -> None:
    """Draw a thin line for each network, in the order of `x`; open triangles never learned.

    `x` and `y` belong to the rows of the table, which has columns `seed` and `observed`.
    """
    rows = table.assign(x=x, y=y).sort_values("x")
    for _, network in rows.groupby("seed"):
        ax.plot(network["x"], network["y"], color=color, linewidth=0.7, alpha=0.5)
    never = rows[~rows["observed"].astype(bool)]
    look: dict[str, Any] = {"color": color, "markerfacecolor": "white", "linestyle": ""}
    label = "never learned" if len(never) else None
    ax.plot(never["x"], never["y"], marker="v", markersize=4, label=label, **look)


def _draw_medians(ax: Axes, x: pd.Series, summary: pd.DataFrame, name: str) -> None:
    """Draw the column `name` with the interval between `name_low` and `name_high`.

    A median that is not reached is left out. An end of an interval that is not reached lies beyond
    the axes: set their limits afterwards.
    """
    at, value = np.asarray(x, dtype=float), summary[name].to_numpy(dtype=float)
    ends = [summary[f"{name}{end}"].to_numpy(dtype=float) for end in ("_low", "_high")]
    there = np.isfinite(value)
    lengths = [
        np.where(np.isfinite(end[there]), np.abs(end[there] - value[there]), BEYOND) for end in ends
    ]
    look: dict[str, Any] = {"fmt": "o", "color": "black", "capsize": 2, "markersize": 4}
    label = "median, 95% interval"
    ax.errorbar(at[there], value[there], lengths, linewidth=1.2, zorder=3, label=label, **look)


STUDY = Study(
    name="critical periods",
    question="A clamp helps for a tenth of the learning time. What of it is left when it is off?",
    scales={
        "smoke": SMOKE,
        "quick": Scale(sequences=160_000),
        "paper": Scale(learning_rate=1e-5, sequences=1_600_000, every=5_000),
    },
    stages=(free_runs, windows, closed_loops, same_doses),
    summarise=summarise,
    judge=judge_periods,
    draw=draw,
    size=(12.5, 6.4),
    rows=rows,
)
