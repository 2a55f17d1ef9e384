"""The runs of the study "critical periods": windows of help, closed loops, equal doses."""

import math
from typing import Any, NamedTuple, cast

import pandas as pd

from ih_interp.analysis.dynamics.emergence import PLATEAU, first_below
from ih_interp.clamps import Level
from ih_interp.clamps.schedules import AbstractSchedule, FromLevel, Metrics, during, pulses
from ih_interp.runs import Run
from ih_interp.studies.study import CLAMPS, Scale, Trial, time_rows, training_curve

ONSETS = tuple(place / 10 for place in range(10))  # in free learning times; windows fill the gaps
PATIENCE = 1.5  # times the free learning time after which a run that has not learned is censored


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
    """Return runs with each network's dose of the closed loop at times fixed beforehand.

    A loop that did not end has the dose of its whole run, and one that did not begin one update.
    """
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
        return max(1, round(self.updates / len(ONSETS)))

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
