"""Sweeps on a SLURM cluster: `ih.train(..., cluster=ih.Slurm(...))`."""

import math
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal, cast

from pydantic import Field, field_validator, model_validator

from ih_interp._config_base import Frozen

MEMORY = r"[1-9][0-9]*[KMGT]?"
OPTION = r"[a-z][a-z0-9_-]*"
TIME = r"(?:(?P<days>\d+)-)?(?P<numbers>\d+(?::\d+){0,2})"

OURS = {
    "partition": "partition",
    "account": "account",
    "time": "time",
    "cpus-per-task": "cpus",
    "mem": "memory",
    "array": "at_once",
}
"""Options of `sbatch` that are fields of `Slurm`."""

FIXED = ("output", "error", "open-mode", "requeue", "job-name")
"""Options of `sbatch` on which collecting the runs depends."""


class ClusterError(RuntimeError):
    """An error for a cluster that takes no jobs, or a machine from which none can be sent."""


class Slurm(Frozen):
    """A request to SLURM for the jobs of a sweep, in SLURM's words.

        ih.train(runs, "runs/sweep", cluster=ih.Slurm(partition="short", time="2:00:00"))

    Runs of one shape train together, at most eight in a job. Jobs are sent by `submitit`, which
    has to be installed.
    """

    partition: str | None = None
    """Where jobs run, "short" or "short,long"; None for the cluster's default."""
    account: str | None = None
    """Who is charged; None for your default."""
    time: int | str = 60
    """The limit of a job, in minutes, or as "H:MM:SS" or "D-HH:MM:SS". A job that reaches it saves,
    goes back to the queue, and continues."""
    cpus: int = Field(default=1, ge=1)
    """Cores of a job, each of which trains a share of its runs."""
    memory: str | None = None
    """Memory of a job, "4G"; None for the cluster's default."""
    at_once: int = Field(default=256, ge=1)
    """Jobs of this sweep that run at the same time."""
    setup: tuple[str, ...] = ()
    """Lines of shell before a job starts, "module load gcc"."""
    extra: dict[str, str | int | bool] = Field(default_factory=dict[str, str | int | bool])
    """Other options of `sbatch` by their long names, such as {"qos": "low"}; True for a flag."""
    executor: Literal["slurm", "local"] = "slurm"
    """"local" starts the jobs on this machine, all at once, for a trial without SLURM. Of the other
    fields it reads `time` and `cpus` alone."""

    @model_validator(mode="before")
    @classmethod
    def _are_fields(cls, given: object) -> object:
        """Raise ValueError for what is no field, which says where options of `sbatch` go.

        A name that is nearly a field's is left to `explain`, which names that field.
        """
        for name, value in cast(Any, given).items() if isinstance(given, Mapping) else ():
            if name in cls.model_fields or get_close_matches(name, cls.model_fields, n=1):
                continue
            if ours := OURS.get(name.replace("_", "-")):
                raise ValueError(f"{name}={value!r}: this is the field {ours}; write {ours} for it")
            if name.replace("_", "-") in FIXED:
                raise ValueError(
                    f"{name}={value!r}: leave it out, ih.train sets this option itself"
                )
            raise ValueError(
                f"{name}={value!r}: there is no such field; another option of sbatch is "
                f"extra={{{name!r}: {value!r}}} in Python, extra.{name}={value} on the command line"
            )
        return given

    @field_validator("time")
    @classmethod
    def _is_a_time(cls, time: int | str) -> int | str:
        if minutes_of(time) < 1:
            raise ValueError(
                f'time={time!r}: expected minutes, at least 1, or "H:MM:SS" or "D-HH:MM:SS".'
            )
        return time

    @field_validator("memory")
    @classmethod
    def _is_memory(cls, memory: str | None) -> str | None:
        if memory is not None and not re.fullmatch(MEMORY, memory):
            raise ValueError(f'memory={memory!r}: expected a number with K, M, G or T, as "4G".')
        return memory

    @field_validator("setup")
    @classmethod
    def _are_lines(cls, setup: tuple[str, ...]) -> tuple[str, ...]:
        for line in setup:
            if not line.strip() or line.splitlines() != [line]:
                raise ValueError(f"setup: {line!r} is not one line of shell; give a list of lines.")
        return setup

    @field_validator("extra")
    @classmethod
    def _are_other_options(cls, extra: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        for name, value in extra.items():
            option = name.replace("_", "-")
            if not re.fullmatch(OPTION, name) or value is False or "\n" in str(value):
                raise ValueError(
                    f"extra: {name!r}={value!r}: expected a long option of sbatch without dashes, "
                    'such as "qos", and a value in one line, or True for a flag.'
                )
            if option in OURS:
                raise ValueError(f"extra: {name!r} is the field {OURS[option]}; give it there.")
            if option in FIXED:
                raise ValueError(f"extra: {name!r} is set by ih.train; leave it out.")
        return extra

    @property
    def minutes(self) -> int:
        """The limit of a job in minutes, rounded up."""
        return minutes_of(self.time)

    @classmethod
    def parse(cls, text: str) -> "Slurm":
        """Read "partition=short,time=2:00:00,cpus=4", as on a command line.

        A part without "=" belongs to the value before it, "partition=short,long". Lines of setup
        are separated by semicolons, and other options of `sbatch` begin with "extra.", as in
        "extra.qos=low,extra.exclusive=true". Raises ValueError for anything else.

        >>> Slurm.parse("partition=short,time=2:00:00,cpus=4")
        Slurm(partition='short', time='2:00:00', cpus=4)
        """
        given: dict[str, str] = {}
        name = ""
        for part in text.split(","):
            before, equals, value = part.partition("=")
            if equals and (name := before.strip()) not in given:
                given[name] = value.strip()
            elif not equals and name:
                given[name] += f",{part.strip()}"
            else:
                raise ValueError(
                    f"{part!r} in {text!r}: expected name=value, each name once, as in "
                    f'"partition=short,time=2:00:00,cpus=4".'
                )
        return cls(**_fields(given))


def _fields(given: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a request from their words."""
    own: dict[str, Any] = {n: v for n, v in given.items() if not n.startswith("extra.")}
    extra = {n.removeprefix("extra."): v for n, v in given.items() if n.startswith("extra.")}
    if "setup" in own:
        own["setup"] = [line.strip() for line in own["setup"].split(";")]
    if extra:
        own["extra"] = {n: True if v.lower() == "true" else v for n, v in extra.items()}
    return own


def minutes_of(time: int | str) -> int:
    """Return a time limit in minutes, rounded up; 0 for anything else.

    As SLURM reads it: minutes, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    >>> minutes_of("2:00:00"), minutes_of("1-12"), minutes_of("10:30"), minutes_of(45)
    (120, 2160, 11, 45)
    """
    match = re.fullmatch(TIME, str(time).strip())
    if match is None:
        return 0
    numbers = [int(number) for number in match["numbers"].split(":")]
    if match["days"] is None and len(numbers) < 3:
        numbers = [0, *numbers]
    hours, minutes, seconds = (*numbers, 0, 0)[:3]
    return math.ceil((int(match["days"] or 0) * 24 + hours) * 60 + minutes + seconds / 60)
