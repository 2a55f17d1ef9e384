"""Critical periods: a clamp helps for a tenth of the learning time; is anything of it left?

All networks have all heads. Clamps are on one head of a layer: before training the heads of a layer
are alike, so the first stands for any. Everything is measured with every clamp off.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from numpy import ndarray

from ih_interp.analysis.dynamics.emergence import PLATEAU, first_below
from ih_interp.analysis.dynamics.survival import emergence_summary
from ih_interp.clamps import AbstractClamp, Level, PreviousTokenAttention, copy, layer_one, match
from ih_interp.clamps.schedules import AbstractSchedule, FromLevel, Metrics, during, pulses
from ih_interp.plots._style import CLAMP_LINES, FAINT
from ih_interp.runs import Run
from ih_interp.studies.drawing import draw_medians, draw_networks
from ih_interp.studies.findings import Finding, Tested, above_zero, flatness, judge
from ih_interp.studies.study import (
    SMOKE,
    Scale,
    Study,
    Trial,
    time_rows,
    trace_runs,
    training_curve,
)
from ih_interp.types import Head

ONSETS = tuple(place / 10 for place in range(10))  # in free learning times; windows fill the gaps
PATIENCE = 1.5  # times the free learning time after which a run that has not learned is censored
N_WINDOWS = len(ONSETS)
EARLY = 5  # onsets that count as early

CLAMPS: Mapping[str, Callable[[AbstractSchedule], AbstractClamp]] = {
    "previous token": lambda on: PreviousTokenAttention(heads=(Head(0, 0),), schedule=on),
    "layer 1": lambda on: layer_one(schedule=on),
    "match": lambda on: match("L1H0", schedule=on),
    "copy": lambda on: copy("L1H0", schedule=on),
}
"""The clamps of Figure 5b, as functions of their schedule."""

FIXED = {"from the start": "as much at the start", "spread": "as much spread over the time"}
ARMS = ("closed loop", *FIXED)
"""When a clamp is on where doses are compared: while the free loss is between 0.8 and 0.6 nats; for
as many updates from the start; for as many, spread evenly over the free learning time."""

KEYS = ["arm", "clamp", "onset"]


def free_runs(scale: Scale, _: pd.DataFrame) -> list[Trial]:
    """Return the runs without a clamp, which say how long a network takes by itself."""
    return [
        Trial({"arm": "free", "clamp": "none"}, scale.run("free", seed, evaluate=("free",)))
        for seed in scale.seeds
    ]


def windows(scale: Scale, table: pd.DataFrame) -> list[Trial]:
    """Return runs with each clamp on for a tenth of the free learning time, at ten onsets."""
    return [
        network.under(clamp, "window", during(start, start + network.window), onset=onset)
        for clamp in CLAMPS
        for onset in ONSETS
        for network in Network.all(scale, table)
        for start in [round(onset * network.updates)]
    ]


def closed_loops(scale: Scale, table: pd.DataFrame) -> list[Trial]:
    """Return runs with each clamp on while the network, measured without it, is on its plateau."""
    end, begin = (Level(below=level, under="free") for level in PLATEAU)
    on_plateau, networks = FromLevel(start=begin, until=end), Network.all(scale, table)
    return [each.under(clamp, "closed loop", on_plateau) for clamp in CLAMPS for each in networks]


def same_doses(scale: Scale, table: pd.DataFrame) -> list[Trial]:
    """Return runs with each network's dose of the closed loop at times fixed beforehand."""
    doses = table[table["arm"] == "closed loop"].set_index(["clamp", "seed"])["dose"]
    trials: list[Trial] = []
    for clamp in CLAMPS:
        for network in Network.all(scale, table):
            dose = max(1, int(doses.loc[(clamp, network.seed)]))
            spread = pulses(network.window, min(1.0, dose / network.updates))
            trials.append(network.under(clamp, "from the start", during(0, dose)))
            trials.append(network.under(clamp, "spread", spread))
    return trials


class Network(NamedTuple):
    """A network whose free learning time is known: `updates`, and `time` in sequences."""

    scale: Scale
    seed: int
    time: float

    @classmethod
    def all(cls, scale: Scale, table: pd.DataFrame) -> list["Network"]:
        """Return the networks of the free runs in a table."""
        free = table[table["arm"] == "free"]
        return [cls(scale, *key) for key in zip(free["seed"], free["time"], strict=True)]

    @property
    def updates(self) -> int:
        return round(self.time / self.scale.batch_size)

    @property
    def window(self) -> int:
        return max(1, round(self.updates / N_WINDOWS))

    def under(self, clamp: str, arm: str, on: AbstractSchedule, onset: float = math.nan) -> Trial:
        """Return the run under a clamp, as long as a run may take."""
        words = [arm, clamp, *([] if math.isnan(onset) else [f"{onset:g}"])]
        sequences = round(PATIENCE * self.updates) * self.scale.batch_size
        name, clamps = "-".join(words).replace(" ", ""), [CLAMPS[clamp](on)]
        run = self.scale.run(name, self.seed, clamps, evaluate=("free",), sequences=sequences)
        return Trial({"arm": arm, "clamp": clamp, "onset": onset, "free": self.time}, run)


def rows(trial: Trial, run: Run) -> list[dict[str, Any]]:
    """Return a run's row of `time_rows`, and what windows and doses are made of.

    `dose` counts the updates under the clamp, `plateau_start` and `plateau_end` are the first
    sequences with a loss below 0.8 and 0.6 nats, infinite where it stays above.
    """
    (row,) = time_rows(trial, run)
    curve, measured = training_curve(run), cast(Metrics, run.metrics.to_dict("records"))
    end, start = (first_below(curve["sequences"], curve["loss"], level) for level in PLATEAU)
    steps = range(int(curve["step"].max()))
    gates = [clamp.gate(step, measured) for clamp in run.config.clamps for step in steps]
    return [{**row, "dose": int(sum(gates)), "plateau_start": start, "plateau_end": end}]


def savings(table: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with a clamp and what each saved: (free time - time) / window.

    A window is a tenth of the free time. 1 is as much as one window lasted, 0 is nothing. Of a run
    that did not learn (`observed` False) it is the most that it can have saved, below 0.
    """
    clamped = table[table["arm"] != "free"]
    saved = N_WINDOWS * (1 - clamped["time"] / clamped["free"])
    return clamped.assign(savings=saved)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return median savings by arm, clamp and onset, with intervals over networks.

    Columns: `KEYS`, `n_seeds`, `n_observed`, `run`, `config`, and by Kaplan-Meier `savings`,
    `savings_low`, `savings_high`, -inf where half of the networks never learned.
    """
    saved = savings(table)
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
    return own.pivot_table(index="seed", columns="onset", values="savings").to_numpy()


def judge_periods(table: pd.DataFrame) -> list[Finding]:
    """Judge whether help lasts, repays itself, has its time, and is better given when needed."""
    return judge([test for clamp in CLAMPS for test in _tests(table, clamp)])


def _tests(table: pd.DataFrame, clamp: str) -> list[Tested]:
    saved, arms = by_onset(table, clamp), savings(table)
    mean, by_place = saved.mean(axis=1), saved.mean(axis=0)
    early = saved[:, :EARLY].mean(axis=1) - saved[:, EARLY:].mean(axis=1)
    best = ONSETS[int(by_place.argmax())]
    spread = f"{by_place.min():.2f} to {by_place.max():.2f} windows, the most at {best:.0%}"
    own = arms[arms["clamp"] == clamp]
    doses = own.pivot_table(index="seed", columns="arm", values="savings")
    words, matters = "{} windows", f"{clamp}: it matters when help comes"
    return [
        above_zero(f"{clamp}: a window saves time", mean, words=words),
        above_zero(f"{clamp}: less than it lasts", 1 - mean, words=f"{words} less"),
        above_zero(f"{clamp}: early windows save more than late ones", early, words=words),
        Tested(matters, "nothing", spread, agrees=True, p=flatness(saved)),
        *(
            above_zero(
                f"{clamp}: help on the plateau saves more than {told}",
                doses["closed loop"] - doses[arm],
                words=f"{words} more",
            )
            for arm, told in FIXED.items()
        ),
    ]


def draw(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw savings over onsets, a panel per clamp, and below them the three ways to give a dose."""
    axes = canvas.subplots(2, len(CLAMPS), sharey=True, height_ratios=(3, 2))
    free, drawn = table[table["arm"] == "free"], (savings(table), summarise(table))
    plateau = [100.0 * (free[f"plateau_{end}"] / free["time"]).median() for end in ("start", "end")]
    places = {arm: place for place, arm in enumerate(ARMS)}
    for clamp, upper, lower in zip(CLAMPS, *axes, strict=True):
        if np.isfinite(plateau).all():
            upper.axvspan(*plateau, color="0.93", label="plateau, free")
        runs, medians = (rows[rows["clamp"] == clamp] for rows in drawn)
        _draw_savings(runs, medians, upper, lambda rows: 100 * rows["onset"])
        _draw_savings(runs, medians, lower, lambda rows: rows["arm"].map(places))
        title = f"{clamp}\ndoes it matter when? p = {flatness(by_onset(table, clamp)):.2g}"
        upper.set(title=title, xlabel="onset (% of the free learning time)")
        lower.set_xticks([*places.values()], [arm.replace(" ", "\n") for arm in ARMS])
        lower.set_xlim(-0.5, len(ARMS) - 0.5)
    axes[0, 0].set_ylabel("time saved by a window\n(windows; 1 repays it)")
    axes[1, 0].set_ylabel("time saved by\nequal doses (windows)")
    axes[0, -1].legend(loc="lower right", fontsize=8)


def _draw_savings(
    runs: pd.DataFrame, medians: pd.DataFrame, ax: Axes, place: Callable[[pd.DataFrame], pd.Series]
) -> None:
    """Draw one clamp's runs and medians that have a place on this x axis."""
    there, middle = (rows[place(rows).notna()] for rows in (runs, medians))
    colour = CLAMP_LINES[str(runs["clamp"].iloc[0])].colour
    draw_networks(ax, place(there), there["savings"], there, color=colour)
    draw_medians(ax, place(middle), middle, "savings")
    for level in (0, 1):
        ax.axhline(level, **FAINT)


STUDY = Study(
    name="critical periods",
    question="Is help of a tenth of the learning time still seen when it is over?",
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
