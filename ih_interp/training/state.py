"""One run while it trains: where it is, what it has measured, what comes next."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ih_interp._recorded import rewrite_config
from ih_interp.clamps import in_order
from ih_interp.clamps.schedules import FromLevel
from ih_interp.config import RunConfig
from ih_interp.engine.feature_table import Rows
from ih_interp.engine.update import FleetState
from ih_interp.evaluation import evaluation_sets
from ih_interp.model import build_model, trained_parameters
from ih_interp.runs import Run
from ih_interp.storage import run_files
from ih_interp.storage.atomic import make_folders, write_atomic
from ih_interp.storage.lock import expect_held
from ih_interp.storage.writer import Writer
from ih_interp.tasks.few_shot import FewShotTask
from ih_interp.training._data import TrainingData


class TrainingFailedError(RuntimeError):
    """Runs that could not be trained to their end, in words; the others were."""


class StopRun(Exception):
    """An exception that ends the run for which `on_metrics` was called; the others go on."""


class RunState:
    """One run while it trains: where it is, what it has measured, what comes next."""

    def __init__(self, run: Run, task: FewShotTask, rows: Rows, writer: Writer) -> None:
        self.run, self.task = run, task
        self.config = config = run.config
        self.writer = writer
        self.data = TrainingData(task, config, rows)
        self.sets = evaluation_sets(task, config)
        self.evaluations = set(config.evaluations.steps(config.n_steps, config.batch_size))
        self.checkpoints = set(config.checkpoints.steps(config.n_steps, config.batch_size))
        refuse_unsound(run)
        self.start, self.step = self._resume()
        saved = run.rows(before=self.step) if self.step else []
        self.rows = [row for row in saved if row["step"] < self.step]
        self._saved_step = self.step
        self.failure: str | None = None
        self.closed = False
        self.stops_at = run.stopped  # files before it were lost since
        self._levels: dict[int, tuple[int, float]] = {}
        """Of clamps that wait for a level: rows that were looked at, and the gate."""

    @property
    def active(self) -> bool:
        return self.failure is None and not self.closed and self.step < self.config.n_steps

    @property
    def is_due(self) -> bool:
        """Whether this step has something to measure or save."""
        if self.failure is not None or self.closed:
            return False
        last = self.step == self.config.n_steps
        return last or self.step in self.evaluations or self.step in self.checkpoints

    def gates(self) -> list[float]:
        """The gates of the scheduled clamps at this step."""
        scheduled = [clamp for clamp in in_order(self.config.clamps) if clamp.is_scheduled]
        return [self._gate(number, clamp.schedule) for number, clamp in enumerate(scheduled)]

    def _gate(self, number: int, schedule: Any) -> float:
        if not isinstance(schedule, FromLevel):
            return schedule.gate(self.step, self.rows)
        seen, gate = self._levels.get(number, (0, 0.0))
        if not gate:  # a level stays crossed, and no row is looked at twice
            new = [row for row in self.rows[seen:] if row["step"] < self.step]
            gate = schedule.gate(self.step, new)
            self._levels[number] = (seen + len(new), gate)
        return gate

    def _resume(self) -> tuple[FleetState, int]:
        """The saved state and its step, or the beginning."""
        saved = run_files.saved_states(self.run.folder)
        begun = initial_state(self.task, self.config)
        if not saved:
            return begun, 0
        tensors, step = load_state(saved[0], self.config)
        if {name: tensor.shape for name, tensor in tensors.items()} != {
            name: tensor.shape for name, tensor in as_tensors(begun, 0).items()
        }:
            raise ValueError(f"{saved[0]} holds the state of another model; delete that file.")
        groups: list[dict[str, Tensor]] = [{}, {}, {}]
        for name, tensor in tensors.items():
            group, parameter = name.split(":", 1)
            groups[int(group)][parameter] = tensor[None].clone()
        return FleetState(*groups, count=torch.tensor([float(step)])), step

    def save_state(self, state: FleetState, place: int) -> None:
        """Write what resuming needs, after all checkpoints before it: it vouches for them.

        The state before it is kept, for `repair`.
        """
        self.writer.settle()
        expect_held(self.run.folder)
        self._write_metrics()
        facts = {"run": self.config.fingerprint, "step": self.step}
        content = run_files.packed(as_tensors(state, place), facts)
        newest, before = (
            self.run.folder / name for name in (run_files.STATE, run_files.STATE_BEFORE)
        )
        if newest.is_file() and self.step != self._saved_step:
            newest.replace(before)  # killed after this, a run goes on from there
        write_atomic(newest, content)
        self._saved_step = self.step

    def save_checkpoint(self, state: FleetState, place: int) -> None:
        """Begin to write the weights after this many updates."""
        weights = {name: tensor[place] for name, tensor in state.parameters.items()}
        facts = {"run": self.config.fingerprint, "step": self.step}
        path = run_files.checkpoint_path(self.run.folder, self.step)
        expect_held(self.run.folder)
        make_folders(path.parent)
        self.writer.write(path, run_files.packed(weights, facts))

    def close(self, state: FleetState, place: int) -> None:
        """Write the end of the run; its last checkpoint says that it is finished."""
        self.writer.settle()
        expect_held(self.run.folder)
        self._write_metrics()
        self.save_checkpoint(state, place)
        self.writer.settle()
        remove_states(self.run.folder)
        self.closed = True

    def stop(self, state: FleetState, place: int) -> None:
        """Write the run as far as it got, and that it is to stay there."""
        if self.closed:
            return  # it is at its end anyway
        self.save_state(state, place)
        self.save_checkpoint(state, place)
        self.writer.settle()
        facts = {"run": self.config.fingerprint, "step": self.step}
        run_files.write_json(self.run.folder / run_files.STOPPED, facts)
        self.closed = True

    def record(self, measured: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
        """Add a row a split to the metrics; the new rows."""
        place = {"step": self.step, "sequences": self.step * self.config.batch_size}
        new = [{**place, "split": split, **values} for split, values in measured.items()]
        self.rows += new
        return new

    def _write_metrics(self) -> None:
        run_files.write_metrics(self.run.folder, self.rows, self.config.fingerprint)

    def fail(self, what: str) -> None:
        """Stop this run; what was measured before is kept, if it can be written."""
        with suppress(OSError):
            expect_held(self.run.folder)
            self._write_metrics()
        saved = bool(run_files.saved_states(self.run.folder))
        kept = "its last saved state is kept" if saved else "it had saved none yet"
        self.failure = (
            f"{self.run.folder}: {what}; lower the learning rate or look at the features ({kept})"
        )


def as_tensors(state: FleetState, place: int) -> dict[str, Tensor]:
    """Return what a saved state holds of the run at this place of its fleet."""
    groups = (state.parameters, state.first_moments, state.second_moments)
    return {
        f"{number}:{name}": tensor[place]
        for number, group in enumerate(groups)
        for name, tensor in group.items()
    }


def load_state(path: Path, config: RunConfig) -> tuple[dict[str, Tensor], int]:
    """Read a saved state of this run, and its step; DamagedFileError where it is none."""
    tensors, facts = run_files.load_tensors(path)
    if facts.get("run") != config.fingerprint:
        raise run_files.DamagedFileError(path, f"belongs to another run; {run_files.REPAIR}.")
    step = facts.get("step", -1)
    is_step = type(step) is int and 0 <= step <= config.n_steps
    is_state = all(
        name[:2] in ("0:", "1:", "2:") and tensor.dtype == torch.float32
        for name, tensor in tensors.items()
    )
    if not (is_step and is_state):
        raise run_files.DamagedFileError(
            path, f"is no state to go on from, such as a checkpoint; {run_files.REPAIR}."
        )
    return tensors, step


def remove_states(folder: Path) -> None:
    """Remove the saved states, the older one first."""
    for path in reversed(run_files.saved_states(folder)):
        path.unlink(missing_ok=True)


def refuse_unsound(run: Run) -> None:
    """Raise ValueError, with the remedy, if the run cannot go on from what was saved of it."""
    saved = run_files.saved_states(run.folder)
    step = load_state(saved[0], run.config)[1] if saved else 0
    if lost := run.lost(step):
        raise ValueError(
            f"{'; '.join(lost)}, although {saved[0].name} goes on from step {step}: restore it, or "
            "train again with repair=True, which goes back as far as it must."
        )


def record_engine(run: Run, engine: str) -> None:
    """Write into `config.json` how the run is trained after all."""
    run.engine = engine
    rewrite_config(run.folder / run_files.CONFIG, {"engine": engine})


def saved_step(folder: Path) -> int:
    """The update from which a run in this folder goes on; 0 where nothing was saved."""
    saved = run_files.saved_states(folder)
    return int(run_files.load_tensors(saved[0])[1]["step"]) if saved else 0


def initial_state(task: FewShotTask, config: RunConfig) -> FleetState:
    """A run before its first update, as a fleet of one."""
    model = build_model(task, config.model, seed=config.seeds.init)
    weights = {n: p.detach()[None].clone() for n, p in trained_parameters(model).items()}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    moments = {name: tensor.clone() for name, tensor in zeros.items()}
    return FleetState(weights, zeros, moments, count=torch.zeros(1))
