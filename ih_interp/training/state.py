"""The state of a run in training: its step, its metrics, and how it is saved and resumed."""

import operator
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ih_interp._recorded import rewrite_config
from ih_interp.batch import Batch
from ih_interp.clamps import AbstractClamp, in_order
from ih_interp.clamps.schedules import FromLevel
from ih_interp.config import RunConfig
from ih_interp.engine.compiled_forward import Sequences
from ih_interp.engine.feature_table import Rows
from ih_interp.engine.update import FleetState
from ih_interp.evaluation import evaluation_sets
from ih_interp.model import build_model, trained_parameters
from ih_interp.runs import Run
from ih_interp.start import starting_weights
from ih_interp.storage import run_files
from ih_interp.storage.atomic import Writer, make_folders
from ih_interp.storage.lock import expect_held
from ih_interp.tasks.base import Task, drawn

CHUNK = 64  # updates whose sequences are sampled at once


class TrainingFailedError(RuntimeError):
    """An error that names the runs that could not be trained to their end; the others were."""


class StopRun(Exception):
    """An exception that ends the run for which `on_metrics` was called; the others go on."""


class RunState:
    """A run in training: its step, what it has measured, and what comes next."""

    def __init__(self, run: Run, task: Task, rows: Rows, writer: Writer) -> None:
        self.run, self.task = run, task
        self.config = config = run.config
        self._fingerprint = config.fingerprint  # a third of the time of a checkpoint
        self.writer = writer
        self.sets = evaluation_sets(task, config)
        self.evaluations = set(config.evaluations.steps(config.n_steps, config.batch_size))
        self.checkpoints = set(config.checkpoints.steps(config.n_steps, config.batch_size))
        self._due = self.evaluations | self.checkpoints | {config.n_steps}
        self.start, self.step = self._resume()
        saved = run.rows(before=self.step) if self.step else []
        self.rows = [row for row in saved if self._stays(row["step"])]
        self._saved_step = self.step
        self.failure: str | None = None
        self.closed = False
        self.stops_at = run.stopped  # it is trained again, since files before were lost
        self._shown = rows
        self._chunk: tuple[int, Sequences] | None = None
        self._scheduled = [clamp for clamp in in_order(config.clamps) if clamp.is_scheduled]
        # For each clamp that waits for a level: the number of rows looked at, and the gate.
        self._levels: dict[int, tuple[int, float]] = {}

    def _stays(self, step: int) -> bool:
        """Return whether a row is kept: of an evaluation that will not be made again.

        One at the former end of a run that goes on stays, unless a schedule might look at it: then
        the run would become another than if it had been trained at once.
        """
        if step in self.evaluations:
            return step < self.step
        return step <= self.step and not any(clamp.is_scheduled for clamp in self.config.clamps)

    @property
    def is_open(self) -> bool:
        """Return whether the run has neither failed nor been closed."""
        return self.failure is None and not self.closed

    @property
    def active(self) -> bool:
        """Return whether the run has updates to make."""
        return self.is_open and self.step < self.config.n_steps

    @property
    def is_due(self) -> bool:
        """Return whether something has to be measured or saved at this step."""
        return self.is_open and self.step in self._due

    def batch(self) -> Sequences:
        """Return the sequences of the next update, renumbered to the rows of the feature table.

        They depend on the seed and the step alone: resuming needs no generator's state.
        """
        number, offset = divmod(min(self.step, self.config.n_steps - 1), CHUNK)
        if self._chunk is None or self._chunk[0] != number:
            sampled = self._shown.of(training_sequences(self.task, self.config, number))
            self._chunk = (number, Sequences.of(sampled, self.task, self.config.clamps))
        size = self.config.batch_size
        of_update = slice(offset * size, (offset + 1) * size)
        return tree_map(operator.itemgetter(of_update), self._chunk[1])

    def gates(self) -> list[float]:
        """Return the gates of the scheduled clamps at this step."""
        return [self._gate(*numbered) for numbered in enumerate(self._scheduled)]

    def _gate(self, number: int, clamp: AbstractClamp) -> float:
        if not isinstance(clamp.schedule, FromLevel):
            return clamp.gate(self.step, self.rows)
        n_rows = len(self.rows)
        while n_rows and self.rows[n_rows - 1]["step"] >= self.step:
            n_rows -= 1
        if self._levels.get(number, (-1, 0.0))[0] != n_rows:  # no rows are looked at twice
            self._levels[number] = (n_rows, clamp.gate(self.step, self.rows[:n_rows]))
        return self._levels[number][1]

    def _resume(self) -> tuple[FleetState, int]:
        """Return the saved state and its step, or the initial state."""
        saved = run_files.saved_states(self.run.folder)
        begun = initial_state(self.task, self.config, begun=bool(saved))
        if not saved:
            return begun, 0
        tensors, step = load_state(saved[0], self.config)
        if {name: tensor.shape for name, tensor in tensors.items()} != {
            name: tensor.shape for name, tensor in as_tensors(begun, 0).items()
        }:
            raise ValueError(f"{saved[0]} holds the state of another model; delete that file.")
        # In the order of the beginning, in which norms are summed; files are sorted by name.
        groups = [
            {name: tensors[f"{number}:{name}"][None].clone() for name in group}
            for number, group in enumerate((begun.parameters, *begun.moments))
        ]
        first, *moments = groups
        return FleetState(first, tuple(moments), count=torch.tensor([float(step)])), step

    @property
    def _facts(self) -> dict[str, Any]:
        """The facts saved with the files of this step."""
        return {"run": self._fingerprint, "step": self.step}

    def save_state(self, state: FleetState, place: int) -> None:
        """Write what resuming needs, after the checkpoints before; keep the last state."""
        self.writer.settle()
        self._write_metrics()
        newest = self.run.folder / run_files.STATE
        if newest.is_file() and self.step != self._saved_step:
            # A run that is killed right after this goes on from the older state.
            newest.replace(self.run.folder / run_files.STATE_BEFORE)
        run_files.save_tensors(newest, as_tensors(state, place), self._facts)
        self._saved_step = self.step

    def save_checkpoint(self, state: FleetState, place: int) -> None:
        """Begin to write the weights after this many updates."""
        weights = {name: tensor[place] for name, tensor in state.parameters.items()}
        path = run_files.checkpoint_path(self.run.folder, self.step)
        expect_held(self.run.folder)
        make_folders(path.parent)
        self.writer.write(path, run_files.packed(weights, self._facts))

    def close(self, state: FleetState, place: int) -> None:
        """Write the end of the run: the last checkpoint comes last and marks it as finished.

        The last state stays: from it the run can go on to more sequences.
        """
        self.save_state(state, place)
        self.save_checkpoint(state, place)
        self.writer.settle()
        (self.run.folder / run_files.STATE_BEFORE).unlink(missing_ok=True)
        self.closed = True

    def stop(self, state: FleetState, place: int) -> None:
        """Write the run as far as it got, and that it ends there; a closed run is left alone."""
        if self.closed:
            return
        self.save_state(state, place)
        self.save_checkpoint(state, place)
        self.writer.settle()
        run_files.write_json(self.run.folder / run_files.STOPPED, self._facts)
        self.closed = True

    def record(self, measured: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Add rows to the metrics, with their place in the run, and return them."""
        place = {"step": self.step, "sequences": self.step * self.config.batch_size}
        new = [{**place, **values} for values in measured]
        self.rows += new
        return new

    def _write_metrics(self) -> None:
        expect_held(self.run.folder)
        run_files.write_metrics(self.run.folder, self.rows, self._fingerprint)

    def fail(self, what: str) -> None:
        """Stop this run; what was measured before is kept, if it can be written."""
        with suppress(OSError):
            self._write_metrics()
        saved = bool(run_files.saved_states(self.run.folder))
        kept = "its last saved state is kept" if saved else "it had saved none yet"
        self.failure = (
            f"{self.run.folder}: {what}; lower the learning rate or look at the features ({kept})"
        )


def as_tensors(state: FleetState, place: int) -> dict[str, Tensor]:
    """Return the tensors of a saved state of the run at this place of its fleet."""
    groups = (state.parameters, *state.moments)
    return {
        f"{number}:{name}": tensor[place]
        for number, group in enumerate(groups)
        for name, tensor in group.items()
    }


def load_state(path: Path, config: RunConfig) -> tuple[dict[str, Tensor], int]:
    """Read a saved state of this run, and its step; DamagedFileError for any other file."""
    tensors, facts = run_files.load_tensors(path)
    if facts.get("run") != config.fingerprint:
        raise run_files.DamagedFileError(path, "belongs to another run")
    step = facts.get("step", -1)
    is_step = type(step) is int and 0 <= step <= config.n_steps
    is_state = all(
        re.match(r"[0-9]+:", name) and tensor.dtype == torch.float32
        for name, tensor in tensors.items()
    )
    if not (is_step and is_state):
        raise run_files.DamagedFileError(path, "is not a state to go on from")
    return tensors, step


def remove_states(folder: Path) -> None:
    """Remove the saved states, the older one first."""
    for path in reversed(run_files.saved_states(folder)):
        path.unlink(missing_ok=True)


def to_train(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Return the runs that can go on, and in words what is damaged in others."""
    unfinished: list[Run] = []
    failures: list[str] = []
    for run in runs:
        try:
            if run.whole:
                # Left by a kill at the run's end.
                (run.folder / run_files.STATE_BEFORE).unlink(missing_ok=True)
            elif run.stopped is None or run.lost(run.stopped + 1):
                refuse_unsound(run)
                unfinished.append(run)
        except ValueError as error:
            failures.append(str(error))
    return unfinished, failures


def refuse_unsound(run: Run) -> None:
    """Raise ValueError, with the remedy, if the run cannot go on from its saved state.

    One that had ended is trained again from its beginning.
    """
    saved = run_files.saved_states(run.folder)
    step = load_state(saved[0], run.config)[1] if saved else 0
    lost = run.lost(step)
    if lost and run.finished and step == run.config.n_steps:
        remove_states(run.folder)
    elif lost:
        raise ValueError(
            f"{'; '.join(lost)}, although {saved[0].name} goes on from step {step}: restore it, or "
            "train again with repair=True, which goes back as far as needed."
        )


def record_engine(run: Run, engine: str) -> None:
    """Write another engine than the one at the beginning into `config.json`."""
    run.engine = engine
    rewrite_config(run.folder / run_files.CONFIG, {"engine": engine})


def saved_step(folder: Path) -> int:
    """Return the update from which a run in this folder goes on; 0 where nothing was saved."""
    saved = run_files.saved_states(folder)
    return int(run_files.load_tensors(saved[0])[1]["step"]) if saved else 0


def training_sequences(task: Task, config: RunConfig, chunk: int) -> Batch:
    """Return the sequences of updates `64 * chunk` to `64 * chunk + 63`."""
    seed = int(np.random.SeedSequence((config.seeds.data, chunk)).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(seed)
    return drawn(task, task.splits[0], CHUNK * config.batch_size, generator=generator)


def initial_state(task: Task, config: RunConfig, *, begun: bool = False) -> FleetState:
    """Return a run before its first update, as a fleet of one.

    Of a run that has begun, whose start may be gone, it has the sizes only.
    """
    model = build_model(task, config.model, seed=config.seeds.init)
    first = trained_parameters(model) if begun else starting_weights(config.start, model, task)
    weights = {name: p.detach()[None].clone() for name, p in first.items()}
    moments = tuple(
        {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        for _ in range(config.optimiser.n_moments)
    )
    return FleetState(weights, moments, count=torch.zeros(1))
