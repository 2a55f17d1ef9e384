"""When a fleet's runs are evaluated, saved and stopped."""

import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp import store
from ih_interp.clamps import check, in_order
from ih_interp.clamps.schedules import FromLevel
from ih_interp.evaluation import evaluate, evaluation_sets, means
from ih_interp.model import build_model
from ih_interp.runs import Run
from ih_interp.task import FewShotTask
from ih_interp.training.fleet import (
    TrainingData,
    TrainingRows,
    clamp_tensors,
    initial_state,
    stack,
)
from ih_interp.training.step import (
    FleetInputs,
    FleetState,
    Step,
    eager_step,
    is_scheduled,
    traced_step,
)

SAVE_SECONDS = 20.0  # of training that a kill can cost
LOSSES_EVERY = 64  # updates between looks at the losses

OnMetrics: TypeAlias = Callable[[Run, Mapping[str, Any]], None]
"""Called with every new row of a run's metrics."""

OnProgress: TypeAlias = Callable[[int, float], None]
"""Told of updates done since the last call, over all runs, and of their mean loss."""


class RunState:
    """One run while it trains: where it is, what it has measured, what comes next."""

    def __init__(self, run: Run, task: FewShotTask, rows: TrainingRows) -> None:
        self.run, self.task, config = run, task, run.config
        self.config = config
        self.data = TrainingData(task, config, rows)
        self.sets = evaluation_sets(task, config)
        self.evaluations = set(config.evaluations.steps(config.n_steps, config.batch_size))
        self.checkpoints = set(config.checkpoints.steps(config.n_steps, config.batch_size))
        self.start, self.step = self._resume()
        self.rows = [row for row in store.read_metrics(run.folder) if row["step"] < self.step]
        self.failure: str | None = None
        self.closed = False
        self._gates: dict[int, tuple[int, float]] = {}

    @property
    def active(self) -> bool:
        return self.failure is None and self.step < self.config.n_steps

    @property
    def is_due(self) -> bool:
        """Whether this step has something to measure or save."""
        if self.failure is not None or self.closed:
            return False
        last = self.step == self.config.n_steps
        return last or self.step in self.evaluations or self.step in self.checkpoints

    def gates(self) -> list[float]:
        """The gates of the scheduled clamps at this step."""
        scheduled = [clamp for clamp in in_order(self.config.clamps) if is_scheduled(clamp)]
        return [self._gate(number, clamp.schedule) for number, clamp in enumerate(scheduled)]

    def _gate(self, number: int, schedule: Any) -> float:
        # A level can only be crossed by a new row: the history is not read again at every update.
        known = self._gates.get(number)
        if isinstance(schedule, FromLevel) and known is not None and known[0] == len(self.rows):
            return known[1]
        gate = schedule.gate(self.step, self.rows)
        self._gates[number] = (len(self.rows), gate)
        return gate

    def _resume(self) -> tuple[FleetState, int]:
        """The saved state and its step, or the beginning."""
        path = self.run.folder / store.STATE
        if not path.is_file():
            return initial_state(self.task, self.config), 0
        tensors, facts = store.load_tensors(path)
        if facts.get("run") != self.config.fingerprint:
            raise ValueError(f"{path} belongs to another run; delete it to start over.")
        groups: list[dict[str, Tensor]] = [{}, {}, {}]
        for name, tensor in tensors.items():
            group, parameter = name.split(":", 1)
            groups[int(group)][parameter] = tensor[None].clone()
        step = int(facts["step"])
        return FleetState(*groups, count=torch.tensor([float(step)])), step

    def save_state(self, state: FleetState, place: int) -> None:
        """Write what resuming needs."""
        groups = (state.parameters, state.first_moments, state.second_moments)
        tensors = {
            f"{number}:{name}": tensor[place]
            for number, group in enumerate(groups)
            for name, tensor in group.items()
        }
        store.write_metrics(self.run.folder, self.rows)
        facts = {"run": self.config.fingerprint, "step": self.step}
        store.save_tensors(self.run.folder / store.STATE, tensors, facts)

    def save_checkpoint(self, state: FleetState, place: int) -> None:
        """Write the weights after this many updates."""
        weights = {name: tensor[place] for name, tensor in state.parameters.items()}
        facts = {"run": self.config.fingerprint, "step": self.step}
        store.save_tensors(store.checkpoint_path(self.run.folder, self.step), weights, facts)

    def close(self, state: FleetState, place: int) -> None:
        """Write the end of the run; its last checkpoint says that it is finished."""
        store.write_metrics(self.run.folder, self.rows)
        self.save_checkpoint(state, place)
        (self.run.folder / store.STATE).unlink(missing_ok=True)
        self.closed = True

    def evaluate(self, model: HookedTransformer, on_metrics: OnMetrics | None) -> None:
        """Measure every evaluation set under the clamps, as they are at this step."""
        for split, batch in self.sets.items():
            values = evaluate(model, batch, self.config.clamps, step=self.step, metrics=self.rows)
            sequences = self.step * self.config.batch_size
            row = {"step": self.step, "sequences": sequences, "split": split, **means(values)}
            self.rows.append(row)
            if on_metrics is not None:
                on_metrics(self.run, row)


class Fleet:
    """Runs that train together; `advance` is one update of all of them."""

    def __init__(self, runs: Sequence[Run], *, compiled: bool, device: str = "cpu") -> None:
        configs = [run.config for run in runs]
        task = runs[0].task
        self.model = build_model(task, configs[0].model)
        for config in configs:
            check(self.model, config.clamps)
        rows = TrainingRows.of(task)
        tasks = [FewShotTask(task.exemplars, config.task) for config in configs]
        self.runs = [RunState(r, t, rows) for r, t in zip(runs, tasks, strict=True)]
        self.state = stack([run.start for run in self.runs]).map(lambda tensor: tensor.to(device))
        self.device = device
        self._features = rows.features.to(device)
        self._rates = torch.tensor([c.optimiser.learning_rate for c in configs], device=device)
        self._clamps = [
            {name: t.to(device) for name, t in given.items()} for given in clamp_tensors(configs)
        ]
        n_scheduled = sum(is_scheduled(clamp) for clamp in configs[0].clamps)
        self._gates = [torch.ones(len(runs), device=device) for _ in range(n_scheduled)]
        self._gate_values: list[list[float]] = []
        self._compiled = compiled
        self._step: Step | None = None

    @property
    def active(self) -> bool:
        return any(run.active for run in self.runs)

    def advance(self) -> Tensor:
        """One update of every run, finished ones included, whose results are not kept."""
        inputs = self._inputs()
        if self._step is None:
            self._step = self._make_step(inputs)
        losses = self._step(self.state, inputs)
        for run in self.runs:
            run.step += run.active
        return losses

    def _make_step(self, inputs: FleetInputs) -> Step:
        config = self.runs[0].config
        training_model = build_model(self.runs[0].task, config.model)
        training_model.to(self.device, print_details=False)
        clamps = in_order(config.clamps)
        if self._compiled:
            return traced_step(training_model, clamps, config.optimiser, self.state, inputs)
        return eager_step(training_model, clamps, config.optimiser)

    def _inputs(self) -> FleetInputs:
        batches = [run.data.at(min(run.step, run.config.n_steps - 1)) for run in self.runs]
        self._fill_gates()
        return FleetInputs(
            tokens=torch.stack([batch.tokens for batch in batches]).to(self.device),
            target=torch.stack([batch.target for batch in batches]).to(self.device),
            learning_rate=self._rates,
            clamps=self._clamps,
            gates=self._gates,
            features=self._features,
        )

    def _fill_gates(self) -> None:
        if not self._gates:
            return
        values = [run.gates() for run in self.runs]
        if values != self._gate_values:
            self._gate_values = values
            for number, gate in enumerate(self._gates):
                gate.copy_(torch.tensor([of_run[number] for of_run in values]))

    def load_model(self, place: int) -> HookedTransformer:
        """The evaluation model with one run's weights."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if name in self.state.parameters:
                    parameter.copy_(self.state.parameters[name][place])
        return self.model


def train_fleet(
    runs: Sequence[Run],
    *,
    compiled: bool,
    device: str = "cpu",
    on_metrics: OnMetrics | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Train runs that share a trace to their ends, each into its own folder.

    Raises KeyboardInterrupt after SIGINT or SIGTERM, with everything saved; ArithmeticError, once
    the others have ended, for runs whose loss became NaN or infinite.
    """
    fleet = Fleet(runs, compiled=compiled, device=device)
    losses: list[Tensor] = []
    saved = time.monotonic()
    with deferred_interrupts() as interrupted:
        measure(fleet, on_metrics)
        while fleet.active:
            losses.append(fleet.advance())
            due = any(run.is_due for run in fleet.runs)
            if due or len(losses) == LOSSES_EVERY:
                look_at(losses, fleet, on_progress)
                losses.clear()
            late = time.monotonic() - saved > SAVE_SECONDS
            if late or interrupted():
                look_at(losses, fleet, on_progress)
                losses.clear()
                save(fleet)
                saved = time.monotonic()
            if interrupted():
                raise KeyboardInterrupt
            if due:
                measure(fleet, on_metrics)
    failures = [run.failure for run in fleet.runs if run.failure is not None]
    if failures:
        raise ArithmeticError("; ".join(failures))


def look_at(losses: Sequence[Tensor], fleet: Fleet, on_progress: OnProgress | None) -> None:
    """Stop runs whose loss is no number, and tell of the progress.

    `losses` are those of the last updates, `[run]` each; the last one belongs to update `step - 1`.
    """
    if not losses:
        return
    table = torch.stack(list(losses)).cpu()
    for place, run in enumerate(fleet.runs):
        bad = (~torch.isfinite(table[:, place])).nonzero()
        if run.failure is None and not run.closed and len(bad):
            step = run.step - len(table) + int(bad[0])
            run.failure = (
                f"{run.run.folder}: the loss was {float(table[bad[0], place])} at update {step}; "
                "lower the learning rate or look at the features. Its last saved state is kept"
            )
    if on_progress is not None:
        counted = [place for place, run in enumerate(fleet.runs) if not run.closed]
        mean = float(table[-1, counted].mean()) if counted else math.nan
        on_progress(len(table) * len(counted), mean)


def save(fleet: Fleet) -> None:
    """Save what resuming needs, of every run that goes on."""
    for place, run in enumerate(fleet.runs):
        if run.active:
            run.save_state(fleet.state, place)


def measure(fleet: Fleet, on_metrics: OnMetrics | None) -> None:
    """Evaluate and save the runs for which it is time, and close those that are at their end."""
    for place, run in enumerate(fleet.runs):
        if not run.is_due:
            continue
        if run.step in run.evaluations:
            run.evaluate(fleet.load_model(place), on_metrics)
        if run.step == run.config.n_steps:
            run.close(fleet.state, place)
        elif run.step in run.checkpoints:
            run.save_checkpoint(fleet.state, place)


@contextmanager
def deferred_interrupts() -> Generator[Callable[[], bool]]:
    """SIGINT and SIGTERM wait until the update is whole; the value says whether one came."""
    came: list[int] = []
    with _handling((signal.SIGINT, signal.SIGTERM), came.append):
        yield lambda: bool(came)


@contextmanager
def terminate_as_interrupt() -> Generator[None]:
    """SIGTERM, which schedulers send, raises KeyboardInterrupt as Ctrl-C does."""

    def interrupt(number: int) -> None:
        del number
        raise KeyboardInterrupt

    with _handling((signal.SIGTERM,), interrupt):
        yield


@contextmanager
def _handling(numbers: Sequence[int], handle: Callable[[int], Any]) -> Generator[None]:
    """Handlers for the block; only a main thread may set any, others leave signals alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = [signal.signal(number, lambda got, _: handle(got)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
