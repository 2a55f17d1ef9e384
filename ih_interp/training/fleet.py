"""Fleets: the runs that can train together, what they share, and one update of all of them."""

import json
import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ih_interp.clamps import Shape, check, in_order
from ih_interp.clamps.base import flat_tensors
from ih_interp.config import RunConfig
from ih_interp.engine.compiled_forward import ClampedModel, Tensors
from ih_interp.engine.feature_table import Rows
from ih_interp.engine.update import FleetInputs, FleetState, Step, eager_step, traced_step
from ih_interp.model import build_model
from ih_interp.runs import Run
from ih_interp.storage.atomic import Writer
from ih_interp.tasks.pairs import build_like
from ih_interp.training.evaluating import Evaluator
from ih_interp.training.state import RunState, TrainingFailedError, record_engine

FLEET_SIZE = 8  # runs per fleet: more are no faster per update, and cost memory


class Planned(NamedTuple):
    """A run that is not made yet, and the engine that it will have."""

    config: RunConfig
    engine: str


AnyRun = TypeVar("AnyRun", Run, Planned)


def make_jobs(runs: Sequence[AnyRun], n_workers: int) -> list[list[AnyRun]]:
    """Group runs into fleets, the longest first, small enough to keep every worker busy."""
    groups: defaultdict[tuple[str, str], list[AnyRun]] = defaultdict(list)
    for run in runs:
        groups[run.engine, trace_key(run.config)].append(run)
    jobs: list[list[AnyRun]] = []
    for (engine, _), group in groups.items():
        share = -(-sum(run.engine == engine for run in runs) // n_workers)
        size = min(FLEET_SIZE, share)
        jobs += [group[start : start + size] for start in range(0, len(group), size)]
    return sorted(jobs, key=lambda job: -len(job) * max(run.config.n_steps for run in job))


def trace_key(config: RunConfig) -> str:
    """Return, as JSON, what two runs must have in common to share a trace and a feature table."""
    key: dict[str, Any] = {
        "task": config.task.structure(),
        "model": config.model.model_dump(mode="json"),
        "optimiser": config.optimiser.model_dump(
            mode="json", exclude={"learning_rate", "schedule"}
        ),
        "batch_size": config.batch_size,
        "clamps": [[clamp.structure(), clamp.is_scheduled] for clamp in in_order(config.clamps)],
    }
    return json.dumps(key, sort_keys=True)


class Fleet:
    """Runs that train together; `advance` makes one update of all of them."""

    def __init__(self, runs: Sequence[Run], *, compiled: bool, device: str = "cpu") -> None:
        configs = [run.config for run in runs]
        task = runs[0].task
        model = build_model(task, configs[0].model)
        for config in configs:
            check(model, config.clamps)
        rows = Rows.of_splits(task, task.splits[:1])
        thread = ThreadPoolExecutor(max_workers=1)  # one for all: more would compete with training
        self.runs = [
            RunState(run, build_like(run.config.task, task), rows, Writer(thread)) for run in runs
        ]
        self.writers = ExitStack()
        for run in self.runs:
            self.writers.enter_context(run.writer)
        self.state = stack([run.start for run in self.runs]).map(lambda tensor: tensor.to(device))
        self.evaluator = Evaluator(model, compiled=compiled)
        self.device = device
        self._buffers = {name: t.to(device) for name, t in rows.buffers.items()}
        shape = Shape(configs[0].model.n_layers, configs[0].model.n_heads)
        of_runs = [flat_tensors(in_order(config.clamps), shape) for config in configs]
        self._clamps = [torch.stack(same).to(device) for same in zip(*of_runs, strict=True)]
        self._step: Step | None = None
        self.interrupted: Callable[[], bool] = lambda: False

    @property
    def active(self) -> bool:
        return any(run.active for run in self.runs)

    def prepare(self, *, updates: bool = True) -> None:
        """Compile the update and the evaluations; where one cannot be compiled, do both eagerly.

        This comes before any measurement: all numbers of a run come from its recorded engine.
        `updates=False` compiles the evaluations alone.
        """
        if not self.evaluator.compiled:
            return
        try:
            if self.active and updates:
                self._step = self._make_step(self.inputs())
            for place, run in enumerate(self.runs):
                self.evaluator.prepare(run, self.weights(place))
        except Exception as error:  # whatever a tracer or a compiler may raise
            if self.interrupted():  # Ctrl-C reaches the compiler too
                raise KeyboardInterrupt from error
            self._fall_back(error)

    def advance(self) -> Tensor:
        """Make one update of every run that is not finished; return the losses `[run]`."""
        inputs = self.inputs()
        if self._step is None:
            self._step = self._make_step(inputs)
        losses = self._step(self.state, inputs)
        for run in self.runs:
            run.step += run.active
        return losses

    def weights(self, place: int) -> Tensors:
        """Return one run's parameters, on the CPU."""
        return {name: tensor[place].cpu() for name, tensor in self.state.parameters.items()}

    def inputs(self) -> FleetInputs:
        """Return the inputs of the next update."""
        batches = [run.batch() for run in self.runs]
        gates = zip(*(run.gates() for run in self.runs), strict=True)
        return FleetInputs(
            sequences=tree_map(lambda *same: torch.stack(same).to(self.device), *batches),
            learning_rate=torch.tensor(
                [run.config.optimiser.rate(run.step) for run in self.runs], device=self.device
            ),
            clamps=self._clamps,
            gates=[torch.tensor(of_runs, device=self.device) for of_runs in gates],
            buffers=self._buffers,
        )

    def _make_step(self, inputs: FleetInputs) -> Step:
        config, clamps = self.runs[0].config, in_order(self.runs[0].config.clamps)
        model = build_model(self.runs[0].task, config.model)
        model.to(self.device, print_details=False)
        clamped = ClampedModel(model, clamps, self.runs[0].task)
        if self.evaluator.compiled:
            return traced_step(clamped, config.optimiser, self.state, inputs)
        seeds = [run.config.seeds.data for run in self.runs]
        return eager_step(clamped, config.optimiser, seeds)

    def _fall_back(self, error: Exception) -> None:
        """Warn and go on eagerly, unless a run has begun compiled: its numbers would differ."""
        names = ", ".join(run.config.name for run in self.runs)
        if any(run.step for run in self.runs):
            raise TrainingFailedError(
                f"{names} began compiled and cannot go on so here ({error}); what was saved is "
                "kept: repair the compiler and train again, or give them other names to train them "
                "eagerly from the start"
            ) from error
        warnings.warn(
            f"The update or the evaluation of {names} cannot be traced and compiled "
            f"({type(error).__name__}: {error}); both are done eagerly, which is slower.",
            stacklevel=2,
        )
        self.evaluator.compiled = False
        self._step = None
        for run in self.runs:
            record_engine(run.run, "eager")


def stack(states: Sequence[FleetState]) -> FleetState:
    """Join fleets of one run each into one fleet."""
    return tree_map(lambda *same: torch.cat(same), *states)
