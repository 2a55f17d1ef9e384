"""Schedules of clamps: a gate from 0 (free) to 1 (clamped) for every optimiser update."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import Field, model_validator

from ih_interp._config_base import Frozen
from ih_interp.registry import Kinded
from ih_interp.types import HeadField, HeadName

Metrics: TypeAlias = Sequence[Mapping[str, Any]]
"""Rows of a run's metrics: `step`, `split`, `under`, and one column per metric."""

Under: TypeAlias = Literal["clamped", "free"]
"""Whether a metric is of the run as it is clamped at that step, or with every clamp off."""


def _refuse_early_stop(schedule: Any) -> Any:
    if schedule.stop is not None and schedule.stop <= schedule.start:
        raise ValueError(f"stop={schedule.stop}: expected more than start={schedule.start}.")
    return schedule


class Level(Frozen):
    """A level of a metric, which an evaluation may find crossed."""

    metric: str = "loss"
    """A metric of the task, or the name of a measure of heads, as "previous_token_score"."""
    split: str = "train"
    """The evaluation set that it is measured on."""
    head: HeadField | None = None
    """The head that is measured; None for a metric of the task."""
    under: Under = "clamped"
    """Whether it is measured under the run's clamps, or without any."""
    below: float | None = None
    """The level below which it must fall."""
    above: float | None = None
    """The level above which it must rise; exactly one of the two is given."""

    @model_validator(mode="after")
    def _one_side(self) -> "Level":
        if (self.below is None) == (self.above is None):
            raise ValueError(
                f"below={self.below}, above={self.above}: expected exactly one of the two."
            )
        most = 1.0 if self.metric.endswith(("accuracy", "probability")) else math.inf
        is_bounded = most == 1 or self.metric.endswith("loss")
        below_fits = self.below is None or 0 < self.below <= most
        above_fits = self.above is None or 0 <= self.above < most
        if is_bounded and not (below_fits and above_fits):
            level = f"above {self.above}" if self.below is None else f"below {self.below}"
            raise ValueError(f"{self.metric} is in [0, {most:g}]: {level} is never or always true.")
        return self

    @property
    def column(self) -> str:
        """The column of a run's metrics: "loss", or "previous_token_score L0H2"."""
        return self.metric if self.head is None else f"{self.metric} {self.head}"

    def crossed(self, metrics: Metrics) -> list[int]:
        """Return the steps at which it is past the level; ValueError where it is not measured."""
        own = (self.split, self.under)
        rows = [row for row in metrics if (row["split"], row.get("under", "clamped")) == own]
        if metrics and not any(self.column in row for row in rows):
            measured = "; ".join(sorted({f"{', '.join(row)} on {row['split']}" for row in metrics}))
            raise ValueError(
                f"A clamp waits for {self.column} on {self.split} ({self.under}), which its run "
                f"does not measure; it has {measured}."
            )
        low = -math.inf if self.below is None else self.below
        high = math.inf if self.above is None else self.above
        values = [(row["step"], row.get(self.column, math.nan)) for row in rows]
        return [step for step, value in values if value < low or value > high]


class AbstractSchedule(Kinded):
    """A schedule: a gate for every optimiser update."""

    family: ClassVar[str] = "schedule"
    by_step: ClassVar[bool] = False
    """Whether the gate depends on the step alone: one that is never on is then refused."""

    @abstractmethod
    def gate(self, step: int, metrics: Metrics | None = None) -> float:
        """Return the gate at an update, from 0 (free) to 1 (clamped).

        `metrics` are the rows of earlier evaluations, none before the first.
        """

    @property
    def levels(self) -> tuple[Level, ...]:
        """The levels that it waits for, which its run then measures."""
        return ()


class Always(AbstractSchedule):
    """A schedule that is on throughout, without the arithmetic of a gate."""

    kind: Literal["always"] = "always"

    def gate(self, step: int, metrics: Metrics | None = None) -> float:
        return 1.0


class During(AbstractSchedule):
    """A schedule that is on for updates `start <= step < stop`; without `stop` it never ends."""

    by_step = True
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

    by_step = True
    kind: Literal["pulses"] = "pulses"
    period: int = Field(ge=1)
    """Updates from the start of one pulse to the start of the next."""
    duty: float = Field(default=0.5, gt=0, le=1)
    """Share of a period that is under the clamp."""

    def gate(self, step: int, metrics: Metrics | None = None) -> float:
        return float(step % self.period < max(1, round(self.duty * self.period)))


class Ramp(AbstractSchedule):
    """A schedule that goes straight from `low` at `start` to `high` at `stop`, flat outside."""

    by_step = True
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
    """A schedule that is on once a level is crossed, and until another one is; then off for ever.

    An evaluation at step s comes after s updates, and switches it from update s + 1 on: the gate of
    a step depends on evaluations of earlier steps only.
    """

    kind: Literal["from_level"] = "from_level"
    start: Level | None = None
    """The level that is waited for; None is on from the beginning."""
    until: Level | None = None
    """The level that ends it, at an evaluation after the one that began it; None for none."""

    @model_validator(mode="after")
    def _waits(self) -> "FromLevel":
        if not self.levels:
            raise ValueError("Give start, until or both; from_level(below=...) makes a start.")
        return self

    @property
    def levels(self) -> tuple[Level, ...]:
        return tuple(level for level in (self.start, self.until) if level is not None)

    def gate(self, step: int, metrics: Metrics | None = None) -> float:
        if metrics is None:
            waits = " and ".join(f"{level.column} on {level.split}" for level in self.levels)
            raise ValueError(
                f"A clamp waits for {waits} to cross a level: pass the "
                'metrics of its run, run.metrics.to_dict("records"), or [] before the first.'
            )
        begun = -1 if self.start is None else min(self.start.crossed(metrics), default=step)
        ends = [] if self.until is None else self.until.crossed(metrics)
        ended = min((end for end in ends if end > begun), default=step)
        return float(begun < step <= ended)


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
    head: HeadName | None = None,
    under: Under = "clamped",
    until: Level | None = None,
) -> FromLevel:
    """Return a schedule that is on once an earlier evaluation found a metric past a level.

    Give exactly one of `below` and `above`, or neither for one that is on at once `until` a level
    is crossed; see `FromLevel` and `Level`.
    """
    own: dict[str, Any] = {
        "split": split,
        "head": head,
        "under": under,
        "below": below,
        "above": above,
    }
    at_once = below is None and above is None and until is not None
    return FromLevel(start=None if at_once else Level(metric=metric, **own), until=until)
