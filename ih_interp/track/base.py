"""The base of trackers: what is sent when, and that a failing tracker stops no run."""

import importlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import torch

from ih_interp._expect import expect, installing
from ih_interp.analysis.dynamics.trace import measured
from ih_interp.batch import Batch
from ih_interp.hooked_model import HookedModel
from ih_interp.runs import Run
from ih_interp.tasks.base import drawn
from ih_interp.training.loop import OnMetrics
from ih_interp.training.state import StopRun

N_SEQUENCES = 500  # on which checkpoints are measured where none are given
PLACE = ("step", "sequences", "split", "under")  # columns that are no metrics


@dataclass
class Followed:
    """The state of a run that a tracker follows."""

    rows: list[dict[str, Any]]
    """The metrics of earlier evaluations, for which schedules may wait."""
    begun: int
    """The first update from which it was followed."""
    new: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    """The rows of the evaluation that is being reported."""
    last: int = -1
    """The update of the last evaluation that was written."""
    model: HookedModel | None = None
    batch: Batch | None = None
    writer: Any = None


class AbstractTracker(ABC):
    """The base of trackers. A subclass opens a writer per run and writes numbers by name.

    A tracker never stops a run: where it fails, it says so once in the log `ih_interp`, and tries
    again at the next evaluation. Runs that resume go on where they were, without double points.

    Args:
        measures: functions by name, each of `(model, batch)`, as for `ih.trace`, or of the model
            alone; of `[layer, head]` scores every head is a number, `name/L1H3`. They are applied
            to every checkpoint in the process that called `ih.train`, under the run's clamps at
            that step; those of the model alone, whose weights clamps leave as they are, without
            clamps. A function that takes a `generator` draws its own sequences.
        batch: the sequences for measures; by default 500 of the run's training split, always the
            same.
    """

    def __init__(
        self,
        *,
        measures: Mapping[str, Callable[..., Any]] | None = None,
        batch: Batch | None = None,
    ) -> None:
        if batch is not None:
            expect(batch, Batch, "batch", "draw one, task.sample(split, 500, seed=0)")
        self._measures = {name: _checked(name, f) for name, f in dict(measures or {}).items()}
        self._batch = batch
        self._followed: dict[tuple[Path, str], Followed] = {}
        self._has_warned = False

    @abstractmethod
    def open(self, run: Run, step: int) -> Any:
        """Return a writer for a run, which goes on from an update; later points may be there."""

    @abstractmethod
    def write(self, writer: Any, step: int, numbers: Mapping[str, float]) -> None:
        """Write numbers by name at an update."""

    @abstractmethod
    def end(self, writer: Any) -> None:
        """Close the writer of a run that has ended."""

    def __call__(self, run: Run, row: Mapping[str, Any]) -> None:
        """Follow a run: `ih.train` calls this with every new row of its metrics."""
        with self._telling(run):
            self._follow(run, dict(row))

    def close(self) -> None:
        """Close what is open: runs that were interrupted or stopped have no last evaluation."""
        for key in list(self._followed):
            self._end(key)

    @contextmanager
    def _telling(self, run: Run) -> Generator[None]:
        """Log the first error of the block, and go on after any."""
        try:
            yield
        except StopRun:  # of a measure
            raise
        except Exception as error:  # of the user's measures, of the disk, of the other library
            if not self._has_warned:
                # No warning, which some programs turn into an error.
                logging.getLogger("ih_interp").warning(
                    "%s, at %s: %s: %s. Training goes on, and further failures of this tracker are "
                    "not told.",
                    *(type(self).__name__, run.folder, type(error).__name__, error),
                )
            self._has_warned = True

    def _follow(self, run: Run, row: dict[str, Any]) -> None:
        followed = self._known(run, row["step"])
        if row["step"] <= followed.last:
            return  # it was written, and a run gives the same numbers again
        if followed.new and followed.new[0]["step"] != row["step"]:
            followed.new.clear()  # of an evaluation that was interrupted
        followed.new.append(row)
        if (row["split"], row["under"]) != (run.task.splits[-1], run.config.evaluate[-1]):
            return
        try:
            self._write_evaluation(run, followed, row["step"])
        finally:
            followed.rows += followed.new
            followed.new = []
            followed.last = row["step"]
            if row["step"] == run.config.n_steps:
                self._end(_key(run))

    def _known(self, run: Run, step: int) -> Followed:
        """Return what is known of a run; one that is new here has metrics of earlier calls."""
        if _key(run) not in self._followed:
            begun = _goes_on_from(run, step)
            rows = [row for row in run.rows(before=0) if row["step"] < begun]
            self._followed[_key(run)] = Followed(rows, begun)
        return self._followed[_key(run)]

    def _write_evaluation(self, run: Run, followed: Followed, step: int) -> None:
        if followed.writer is None:
            followed.writer = self.open(run, max(followed.begun, followed.last + 1))
        numbers = {
            f"{name.replace(' ', '/')}/{row['split']}/{row['under']}": float(value)
            for row in followed.new
            for name, value in row.items()
            if name not in PLACE
        }
        for place, clamp in enumerate(run.config.clamps):
            numbers[f"gate/{place}_{clamp.kind}"] = clamp.gate(step, followed.rows)
        after = max(followed.begun - 1, followed.last)
        due = [at for at in run.steps if after < at <= step] if self._measures else []
        try:
            for at in due:
                found = self._measured(run, followed, at)
                if at < step:
                    self.write(followed.writer, at, found)
                else:
                    numbers |= found
        finally:
            self.write(followed.writer, step, numbers)

    def _measured(self, run: Run, followed: Followed, step: int) -> dict[str, float]:
        """Return the measures of a checkpoint under the run's clamps."""
        if followed.batch is None:
            followed.batch = _sequences(run) if self._batch is None else self._batch
        if followed.model is None:
            followed.model = run.model(step)
        run.load_weights(followed.model, step)
        at: dict[str, Any] = {"step": step}
        at["metrics"] = [row for row in followed.rows if row["step"] < step]
        numbers: dict[str, float] = {}
        for name, function in self._measures.items():
            measure, reads_sequences = _called(function, run.config.seeds.evaluation)
            clamps = run.clamps if reads_sequences else ()
            with self._telling(run):
                values = measured(followed.model, measure, followed.batch, clamps, **at)
                for part, value in values.items():
                    numbers[name if part == "value" else f"{name}/{part}"] = value
        return numbers

    def _end(self, key: tuple[Path, str]) -> None:
        writer = self._followed.pop(key).writer
        if writer is not None:
            self.end(writer)


def _key(run: Run) -> tuple[Path, str]:
    return run.folder, run.config.fingerprint


def _sequences(run: Run) -> Batch:
    """Return sequences of the run's training split, the same every time."""
    generator = _generator(run.config.seeds.evaluation)
    return drawn(run.task, run.task.splits[0], N_SEQUENCES, generator=generator)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _goes_on_from(run: Run, step: int) -> int:
    """Return the update before which all points stay when the evaluation of `step` comes.

    A run whose clamps have schedules and that goes on to more sequences drops the evaluation at its
    former end, if that is none of the longer run's.
    """
    if not any(clamp.is_scheduled for clamp in run.config.clamps):
        return step
    grid = run.config.evaluations.steps(run.config.n_steps, run.config.batch_size)
    return max((at for at in grid if at < step), default=-1) + 1


def _checked(name: object, function: Any) -> Callable[..., Any]:
    """Return a measure; TypeError for what cannot be called with a model."""
    expect(name, str, "The name of a measure")
    try:
        _called(function, 0)
    except (TypeError, ValueError):
        raise TypeError(
            f"measures: {name!r}: expected a function of (model, batch) or of (model), got "
            f"{function!r}; wrap it: lambda model, batch: ..."
        ) from None
    return function


def _called(function: Callable[..., Any], seed: int) -> tuple[Callable[..., Any], bool]:
    """Return a function of a model and a batch, and whether it reads sequences.

    Raises TypeError where it can be called neither with both nor with a model alone.
    """
    takes = signature(function)
    if "generator" in takes.parameters:
        return lambda model, _: function(model, generator=_generator(seed)), True
    try:
        takes.bind("model", "batch")
    except TypeError:
        takes.bind("model")
        return lambda model, _: function(model), False
    return function, True


class All:
    """Call several callbacks with every row: trackers, and functions of your own.

        ih.train(runs, on_metrics=ih.track.All(ih.track.TensorBoard("logs"), stop_when_learned))

    A run ends where one of them raises `ih.StopRun`, once all have been called.
    """

    def __init__(self, *callbacks: OnMetrics) -> None:
        for callback in callbacks:
            if not callable(callback):
                raise TypeError(f"{callback!r}: expected a tracker or a function(run, row).")
        self.callbacks = callbacks

    def __call__(self, run: Run, row: Mapping[str, Any]) -> None:
        """Call each with a row of its own."""
        stopped: StopRun | None = None
        for callback in self.callbacks:
            try:
                callback(run, dict(row))
            except StopRun as stop:
                stopped = stop
        if stopped is not None:
            raise stopped

    def close(self) -> None:
        """Close the trackers among them."""
        for callback in self.callbacks:
            if isinstance(callback, AbstractTracker):
                callback.close()


def library(module: str, extra: str) -> Any:
    """Return a library of an extra; ImportError that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{extra} is needed, and is not installed: {installing(extra)}."
        ) from error
