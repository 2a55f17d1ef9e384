"""Schedules of clamps: a gate from 0 (free) to 1 (clamped) for every optimiser update."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from ih_interp.registry import Kinded

Metrics: TypeAlias = Sequence[Mapping[str, Any]]
"""Rows of a run's metrics: `step`, `split`, and one column per metric."""


def _refuse_early_stop(schedule: Any) -> Any:
    if schedule.stop is not None and schedule.stop <= schedule.start:
        raise ValueError(f"stop={schedule.stop}: expected more than start={schedule.start}.")
    return schedule


class AbstractSchedule(Kinded):
    """A schedule: a gate for every optimiser update."""

    family: ClassVar[str] = "schedule"

    @abstractmethod
    def gate(self, step: int, metrics: Metrics | None = None) -> float:
        """Return the gate at an update, from 0 (free) to 1 (clamped)."""


class Always(AbstractSchedule):
    """A schedule that is on throughout, without the arithmetic of a gate."""

    kind: Literal["always"] = "always"

    def gate(self, step: int, metrics: Metrics | None = None) -> float:
        return 1.0


class During(AbstractSchedule):
    """A schedule that is on for updates `start <= step < stop`; without `stop` it never ends."""

    kind: Literal["during"] = "during"
    start: int = Field(default=0, ge=0)
    """The first update under the clamp."""
    stop: int | None = Field(default=None, ge=1)
    """The first update without it again; None for none."""

    _ordered = model_validator(mode="after")(_refuse_early_stop)

    def gate(self, step: int, metrics: Metrics | None = None) -> float:
        return float(self.start <= step and (self.stop is None or step < self.stop))


class Pulses(AbstractSchedule):
    """A schedule that is on for the first `max(1, round(duty * period))` of `period` updates.

    An evaluation has the gate of its step: at multiples of `period` alone it only sees the pulse.
    """

    kind: Literal["pulses"] = "pulses"
    period: int = Field(ge=1)
    """Updates from the start of one pulse to the start of the next."""
    duty: float = Field(default=0.5, gt=0, le=1)
    """Share of a period that is under the clamp."""

    def gate(self, step: int, metrics: Metrics | None = None) -> float:
        return float(step % self.period < max(1, round(self.duty * self.period)))


class Ramp(AbstractSchedule):
    """A schedule that goes straight from `low` at `start` to `high` at `stop`, flat outside."""

    kind: Literal["ramp"] = "ramp"
    start: int = Field(ge=0)
    """The last update with the gate at `low`."""
    stop: int = Field(ge=1)
    """The first update with the gate at `high`."""
    low: float = Field(default=0.0, ge=0, le=1)
    """The gate up to `start`: 0 is free, 1 is clamped."""
    high: float = Field(default=1.0, ge=0, le=1)
    """The gate from `stop` on; below `low` the clamp is taken off little by little."""

    _ordered = model_validator(mode="after")(_refuse_early_stop)

    def gate(self, step: int, metrics: Metrics | None = None) -> float:
        share = min(1.0, max(0.0, (step - self.start) / (self.stop - self.start)))
        return self.low + (self.high - self.low) * share


class FromLevel(AbstractSchedule):
    """A schedule that is on, ever after, once an evaluation found a metric past a level.

    An evaluation at step s comes after s updates, and switches it on from update s + 1: the gate of
    a step depends on evaluations of earlier steps only.
    """

    kind: Literal["from_level"] = "from_level"
    metric: str = "loss"
    """The metric that is waited for, as `evaluation.sequence_metrics` defines it."""
    split: str = "train"
    """The evaluation set that it is measured on."""
    below: float | None = None
    """The level below which it must fall."""
    above: float | None = None
    """The level above which it must rise; exactly one of the two is given."""

    @model_validator(mode="after")
    def _one_side(self) -> "FromLevel":
        if (self.below is None) == (self.above is None):
            raise ValueError("Give exactly one of below and above.")
        most = math.inf if self.metric == "loss" else 1.0
        below_fits = self.below is None or 0 < self.below <= most
        above_fits = self.above is None or 0 <= self.above < most
        if not (below_fits and above_fits):
            level = f"above {self.above}" if self.below is None else f"below {self.below}"
            raise ValueError(f"{self.metric} is in [0, {most:g}]: {level} is never or always true.")
        return self

    def gate(self, step: int, metrics: Metrics | None = None) -> float:
        if metrics is None:
            raise ValueError(
                f"A clamp waits for {self.metric} on {self.split} to cross a level: pass the "
                'metrics of its run, run.metrics.to_dict("records"), or [] before the first.'
            )
        rows = [row for row in metrics if row["split"] == self.split]
        if metrics and not rows:
            raise ValueError(
                f"A clamp waits for {self.metric} on {self.split}, which its run does not measure; "
                f"choose from {', '.join(sorted({row['split'] for row in metrics}))}."
            )
        values = [row[self.metric] for row in rows if row["step"] < step]
        low = -math.inf if self.below is None else self.below
        high = math.inf if self.above is None else self.above
        return float(any(value < low or value > high for value in values))


ALWAYS = Always()


def always() -> Always:
    """Return a schedule that is on throughout, as clamps without one are."""
    return Always()


def during(start: int = 0, stop: int | None = None) -> During:
    """Return a schedule that is on for updates `start <= step < stop`; without `stop`, for ever."""
    return During(start=start, stop=stop)


def pulses(period: int, duty: float = 0.5) -> Pulses:
    """Return a schedule that is on for the first `duty` share of every `period` updates."""
    return Pulses(period=period, duty=duty)


def ramp(start: int, stop: int, low: float = 0.0, high: float = 1.0) -> Ramp:
    """Return a schedule that goes from `low` at `start` to `high` at `stop`, flat on both sides."""
    return Ramp(start=start, stop=stop, low=low, high=high)


def from_level(
    metric: str = "loss",
    *,
    split: str = "train",
    below: float | None = None,
    above: float | None = None,
) -> FromLevel:
    """Return a schedule that is on once an earlier evaluation found a metric past a level.

    Give exactly one of `below` and `above`; see `FromLevel`.
    """
    return FromLevel(metric=metric, split=split, below=below, above=above)
