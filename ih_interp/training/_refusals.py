"""Refusals of runs that could not be trained as they are configured, before anything is written."""

from collections.abc import Iterator, Sequence

import torch

from ih_interp._config_base import canonical_json
from ih_interp.clamps import AbstractClamp, check
from ih_interp.config import RunConfig
from ih_interp.engine.compiled_forward import Sequences
from ih_interp.evaluation import evaluation_sets, metric_names
from ih_interp.hooked_model import HookedModel
from ih_interp.model import build_model
from ih_interp.tasks.base import Task, drawn
from ih_interp.tasks.pairs import build_like
from ih_interp.training.evaluating import head_scores, levels_of


def tasks_of(configs: Sequence[RunConfig]) -> list[Task]:
    """Return the runs' tasks; ValueError for runs that could not be trained."""
    built: dict[str, Task] = {}
    tasks: list[Task] = []
    for config in configs:
        source = canonical_json(getattr(config.task, "exemplars", config.task))
        other = built.get(source)
        task = config.task.build() if other is None else build_like(config.task, other)
        built[source] = task
        model = build_model(task, config.model)
        check(model, config.clamps)
        _refuse_task(config, task)
        _refuse_schedules(config, task)
        _refuse_measures(config, model, task)
        tasks.append(task)
    return tasks


def _refuse_task(config: RunConfig, task: Task) -> None:
    """Raise ValueError for a task that samples what it has not declared, or no answers it needs."""
    for split in task.splits:
        batch = drawn(task, split, 8, generator=torch.Generator().manual_seed(0))
        Sequences.of(batch, task, config.clamps)
        for clamp in config.clamps:
            clamp.refuse_batch(batch)


def _refuse_schedules(config: RunConfig, task: Task) -> None:
    """Raise ValueError for a schedule outside [0, 1], or a clamp that would never be on."""
    for clamp in config.clamps:
        for level in clamp.schedule.levels:
            own = metric_names(task)
            if level.split not in task.splits or (level.head is None and level.metric not in own):
                raise ValueError(
                    f"{config.name}: {clamp} waits for {level.metric!r} on {level.split!r}, which "
                    f"this task does not have; choose from {', '.join(own)} on "
                    f"{', '.join(task.splits)}."
                )
        gates = list(_gates_without_metrics(clamp, config.n_steps))
        if clamp.schedule.by_step and not any(gates):
            raise ValueError(
                f"{config.name}: {clamp} is off at every one of {config.n_steps} updates; begin "
                "its schedule earlier, train longer, or leave the clamp out."
            )


def _refuse_measures(config: RunConfig, model: HookedModel, task: Task) -> None:
    """Raise ValueError for a level of a head that the run's evaluations cannot measure."""
    sets = evaluation_sets(task, config.replace(evaluation_size=8))
    for level in levels_of(config):
        if level.under not in config.evaluate:
            raise ValueError(
                f"{config.name}: a clamp waits for {level.column} {level.under}, and evaluate="
                f"{config.evaluate}: add {level.under!r} to it."
            )
        try:
            head_scores(model, config, level.under, sets, 0, [])
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(
                f"{config.name}: {level.column} cannot be measured: {error}; expected a function "
                "of ih.heads that gives every head a number, and a head that is there."
            ) from error


def _gates_without_metrics(clamp: AbstractClamp, n_steps: int) -> Iterator[float]:
    """Go through a clamp's gates, as far as they need no metrics."""
    for step in range(n_steps if clamp.is_scheduled else 0):
        try:
            clamp.schedule.gate(step, [])
        except Exception:  # whatever a schedule of the user's raises where no row is
            return
        yield clamp.gate(step, [])
