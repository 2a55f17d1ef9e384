"""The configuration of a run: task, model, clamps, optimiser, seeds and times; JSON both ways."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from ih_interp._config_base import Frozen, canonical_json, explain
from ih_interp._expect import once_each
from ih_interp.clamps import AbstractClamp, Function
from ih_interp.clamps.schedules import Under
from ih_interp.model import ModelConfig
from ih_interp.optimisers import AbstractOptimiser, Adam
from ih_interp.registry import AnyOf
from ih_interp.start import AbstractStart, FromSeed
from ih_interp.storage.atomic import PathLike, as_path
from ih_interp.tasks.base import AbstractTask
from ih_interp.tasks.few_shot import TaskConfig

# Kinds in JSON:
from ih_interp.tasks.fixed_labels import FixedLabels as FixedLabels
from ih_interp.tasks.markov_chains import MarkovChains as MarkovChains
from ih_interp.tasks.repeated_tokens import RepeatedTokens as RepeatedTokens

MAX_POINTS = 10_000_000  # of a grid; more would fill the memory


class Seeds(Frozen):
    """One seed per source of chance; each can vary alone. 5, 0 and 1 are the paper's."""

    init: int = Field(default=5, ge=0, lt=2**32)
    """Draws the weights before training."""
    data: int = Field(default=0, ge=0, lt=2**32)
    """Draws the training sequences and their order, and what clamps draw at an update."""
    evaluation: int = Field(default=1, ge=0, lt=2**32)
    """Draws the evaluation sets, once, and what clamps draw in the evaluations of a run."""


class Grid(Frozen):
    """Points of a run, in sequences, at which something is done: both ends and some in between.

    A point at `s` sequences falls on the first update with at least `s`, as in the published code.
    Both fields may be given; without any, only the ends are points.
    """

    every: int | None = Field(default=None, ge=1)
    """Sequences from one point to the next."""
    per_decade: int | None = Field(default=None, ge=1)
    """Points per factor of ten in sequences, evenly in the logarithm."""

    def steps(self, n_steps: int, batch_size: int) -> list[int]:
        """Return the updates at these points, ascending, 0 and `n_steps` included.

        >>> Grid(every=5000).steps(n_steps=400, batch_size=32)
        [0, 157, 313, 400]
        """
        end = n_steps * batch_size
        points = [0, end]
        if self.every is not None:
            points += range(self.every, end, self.every)
        if self.per_decade is not None:
            exponents = np.arange(0, np.log10(end), 1 / self.per_decade)
            points += [round(10**exponent) for exponent in exponents.tolist()]
        return sorted({min(n_steps, -(-point // batch_size)) for point in points})


class RunConfig(Frozen):
    """One training run. A named run is a value; a sweep is a comprehension of `replace`.

    >>> RunConfig(name="main").n_steps
    31250

    `sequences`, `evaluations` and `checkpoints` count sequences. Schedules of clamps (`during`,
    `ramp`, `pulses`), `n_steps` and `run.steps` count updates, of `batch_size` sequences each:
    `during(0, 100)` ends at 3,200 sequences by default.
    """

    name: str = "run"
    """The run's folder under the root; letters, digits and `._=+-` only."""
    task: AnyOf[AbstractTask] = TaskConfig()
    """What is trained on: `ih.TaskConfig`, another of `ih.tasks`, or a task of your own."""
    model: ModelConfig = ModelConfig()
    """Layers, heads and widths of the transformer."""
    clamps: tuple[AnyOf[AbstractClamp], ...] = ()
    """Clamps in force while it trains, each from `ih.clamps`."""
    optimiser: AnyOf[AbstractOptimiser] = Adam()
    """How weights follow from gradients: `ih.Adam`, `ih.SGD`, or an optimiser of your own."""
    start: AnyOf[AbstractStart] = FromSeed()
    """Where the first weights come from: the seed, or `FromRun(...)` of `ih.start`."""
    seeds: Seeds = Seeds()
    """One seed per source of chance."""
    sequences: int = Field(default=1_000_000, ge=1, le=10**12)
    """How many sequences are seen, a whole number of batches; a finished run continues to more."""
    batch_size: int = Field(default=32, ge=1)
    """Sequences per update."""
    evaluations: Grid = Grid(every=5_000)
    """The points at which metrics are measured, in sequences."""
    evaluate: tuple[Under, ...] = ("clamped",)
    """How metrics are measured: under the run's clamps, without them ("free"), or both."""
    evaluation_size: int = Field(default=1_000, ge=1, le=10_000_000)
    """Sequences of each evaluation set, drawn once."""
    checkpoints: Grid = Grid(every=10_000)
    """The points at which weights are saved, in sequences."""

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        # File systems take 255 letters, and temporary names are longer than this one.
        if not re.fullmatch(r"[A-Za-z0-9_=+-][A-Za-z0-9._=+-]{0,199}", name):
            raise ValueError(f"name={name!r}: expected up to 200 letters, digits and ._=+- only.")
        return name

    @field_validator("evaluate")
    @classmethod
    def _once_each(cls, evaluate: tuple[Under, ...]) -> tuple[Under, ...]:
        if not evaluate:
            raise ValueError('evaluate=(): expected at least one of "clamped" and "free".')
        return once_each(evaluate, "evaluate")

    @field_validator("clamps", mode="before")
    @classmethod
    def _a_list_of_clamps(cls, clamps: object) -> object:
        if isinstance(clamps, AbstractClamp | Mapping | str) or not isinstance(clamps, Iterable):
            raise ValueError(f"clamps={clamps}: expected a list; write clamps=[clamp].")
        given = list(clamps)
        for clamp in given:
            if isinstance(clamp, list | tuple):
                raise ValueError(f"clamps contains the list {clamp}: unpack it with a star.")
            Function.refuse([clamp])
            if callable(clamp):
                raise ValueError(f"clamps contains the function {clamp}: call it with its heads.")
        return given

    @model_validator(mode="after")
    def _whole_batches_and_few_points(self) -> "RunConfig":
        for field in ("evaluations", "checkpoints"):
            grid: Grid = getattr(self, field)
            n_points = max(self.sequences // (grid.every or self.sequences), grid.per_decade or 0)
            if n_points > MAX_POINTS:
                raise ValueError(
                    f"{field}={grid!r} has {n_points:,} points in sequences={self.sequences}: "
                    f"expected at most {MAX_POINTS:,}."
                )
        if self.sequences % self.batch_size:
            below = self.sequences // self.batch_size * self.batch_size
            raise ValueError(
                f"sequences={self.sequences} is not a whole number of batches of "
                f"{self.batch_size}; {below} or {below + self.batch_size} is."
            )
        return self

    @property
    def n_steps(self) -> int:
        """The number of optimiser updates."""
        return self.sequences // self.batch_size

    def save(self) -> dict[str, Any]:
        """Return the JSON value that `load` reads back as an equal configuration."""
        return self.model_dump(mode="json")

    @classmethod
    def load(cls, value: dict[str, Any]) -> "RunConfig":
        """Read a JSON value; ValueError names the field, what came and what was expected."""
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise ValueError(f"Not a run's configuration: {explain(error, cls)}") from error

    @property
    def identity(self) -> "RunConfig":
        """The fields that numbers depend on: no name, and no places of files with known digests.

        The length is not among them: a longer run continues the shorter one.
        """
        clamps = [clamp.identity for clamp in self.clamps]
        return self.replace(
            name="run",
            sequences=self.batch_size,
            task=self.task.identity,
            start=self.start.identity,
            clamps=clamps,
        )

    def pinned(self) -> "RunConfig":
        """Return the run bound to the weights that clamps and start read now, by their digests."""
        clamps = [clamp.pinned() for clamp in self.clamps]
        return self.replace(start=self.start.pinned(), clamps=clamps)

    @property
    def fingerprint(self) -> str:
        """12 hexadecimal digits, the same for runs with the same identity."""
        return hashlib.sha256(canonical_json(self.identity).encode()).hexdigest()[:12]


def run_folder(root: PathLike, config: RunConfig) -> Path:
    """Return the folder of a run under a root."""
    return as_path(root, "root") / config.name
