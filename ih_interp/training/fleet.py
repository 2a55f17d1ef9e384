"""Which runs train together, and what they share: one trace, one table of features."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ih_interp.clamps import Shape, in_order
from ih_interp.config import RunConfig
from ih_interp.model import build_model, trained_parameters
from ih_interp.task import FewShotTask, features_by_token
from ih_interp.training.step import FleetState, Tensors, is_scheduled
from ih_interp.types import Batch

CHUNK = 64  # updates whose sequences are drawn at once


def fleets(configs: Sequence[RunConfig], size: int) -> list[list[RunConfig]]:
    """Runs that can share a trace, in groups of at most `size`; order is kept."""
    groups: defaultdict[str, list[RunConfig]] = defaultdict(list)
    for config in configs:
        groups[trace_key(config)].append(config)
    return [
        group[start : start + size]
        for group in groups.values()
        for start in range(0, len(group), size)
    ]


def trace_key(config: RunConfig) -> str:
    """What must be equal for two runs to share one trace and one table of features; JSON."""
    adam = config.optimiser.model_dump(mode="json", exclude={"learning_rate"})
    key: dict[str, Any] = {
        "exemplars": config.exemplars.model_dump(mode="json"),
        "task": config.task.model_dump(mode="json", exclude={"label_split_seed", "n_test_classes"}),
        "model": config.model.model_dump(mode="json"),
        "adam": adam,
        "batch_size": config.batch_size,
        "clamps": [[clamp.structure(), is_scheduled(clamp)] for clamp in in_order(config.clamps)],
    }
    return json.dumps(key, sort_keys=True)


@dataclass(frozen=True)
class TrainingRows:
    """The rows of the feature table that training can meet, and tokens renumbered to them.

    The whole table holds thousands of exemplars and training uses dozens: projecting those few is
    less work than gathering every sequence's.
    """

    features: Float[Tensor, "row feature"]
    renumber: Int[Tensor, " token"]

    @classmethod
    def of(cls, task: FewShotTask) -> "TrainingRows":
        """Training classes x training drawings."""
        config = task.config
        of_class = torch.arange(config.n_train_classes)[:, None] * task.exemplars.n_exemplars
        rows = (of_class + torch.arange(config.n_train_exemplars)).flatten()
        renumber = torch.full((task.d_vocab,), -1)
        renumber[: task.n_labels] = torch.arange(task.n_labels)
        renumber[task.n_labels + rows] = task.n_labels + torch.arange(len(rows))
        return cls(features_by_token(task.exemplars)[rows].clone(), renumber)


class TrainingData:
    """A run's sequences as a function of (seed, step): resuming needs no generator's state."""

    def __init__(self, task: FewShotTask, config: RunConfig, rows: TrainingRows) -> None:
        self._task, self._config, self._rows = task, config, rows
        self._chunk: tuple[int, Batch] | None = None

    def at(self, step: int) -> Batch:
        """The batch of update `step`, its tokens renumbered."""
        number, offset = divmod(step, CHUNK)
        if self._chunk is None or self._chunk[0] != number:
            self._chunk = (number, self._draw(number))
        size = self._config.batch_size
        return self._chunk[1][offset * size : (offset + 1) * size]

    def _draw(self, number: int) -> Batch:
        batch = training_sequences(self._task, self._config, number)
        return Batch(self._rows.renumber[batch.tokens], batch.target)


def training_sequences(task: FewShotTask, config: RunConfig, chunk: int) -> Batch:
    """The sequences of updates `64 * chunk` to `64 * chunk + 63`."""
    seed = int(np.random.SeedSequence((config.seeds.data, chunk)).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(seed)
    return task.sample("train", CHUNK * config.batch_size, generator=generator)


def initial_state(task: FewShotTask, config: RunConfig) -> FleetState:
    """A run before its first update, as a fleet of one."""
    model = build_model(task, config.model, seed=config.seeds.init)
    weights = {n: p.detach()[None].clone() for n, p in trained_parameters(model).items()}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    moments = {name: tensor.clone() for name, tensor in zeros.items()}
    return FleetState(weights, zeros, moments, count=torch.zeros(1))


def stack(states: Sequence[FleetState]) -> FleetState:
    """Fleets of one become one fleet."""

    def together(groups: Sequence[Tensors]) -> Tensors:
        return {name: torch.cat([group[name] for group in groups]) for name in groups[0]}

    return FleetState(
        together([state.parameters for state in states]),
        together([state.first_moments for state in states]),
        together([state.second_moments for state in states]),
        count=torch.cat([state.count for state in states]),
    )


def clamp_tensors(configs: Sequence[RunConfig]) -> list[Tensors]:
    """Of every clamp of a fleet's runs, what differs between them, stacked."""
    shapes = [Shape(config.model.n_layers, config.model.n_heads) for config in configs]
    of_runs = [
        [clamp.tensors(shape) for clamp in in_order(config.clamps)]
        for config, shape in zip(configs, shapes, strict=True)
    ]
    return [
        {name: torch.stack([given[name] for given in same]) for name in same[0]}
        for same in zip(*of_runs, strict=True)
    ]
