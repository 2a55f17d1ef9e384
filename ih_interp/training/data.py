"""What an update and an evaluation read: rows of the feature table, and sequences by step."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from ih_interp.config import RunConfig
from ih_interp.task import FewShotTask, features_by_token
from ih_interp.types import Batch

CHUNK = 64  # updates whose sequences are drawn at once


@dataclass(frozen=True)
class Rows:
    """Some rows of the feature table, and tokens renumbered to them.

    The whole table holds thousands of exemplars, training and evaluation use dozens: projecting
    those few once is less work than gathering every sequence's.
    """

    features: Float[torch.Tensor, "row feature"]
    renumber: Int[torch.Tensor, " token"]

    @classmethod
    def training(cls, task: FewShotTask) -> "Rows":
        """Training classes x training drawings."""
        config = task.config
        return cls._of(task, range(config.n_train_classes), range(config.n_train_exemplars))

    @classmethod
    def evaluation(cls, task: FewShotTask) -> "Rows":
        """Training and test classes x every drawing: what any split can show."""
        n_classes = task.exemplars.n_classes
        classes = sorted(
            {
                *range(task.config.n_train_classes),
                *range(n_classes - task.n_test_classes, n_classes),
            }
        )
        return cls._of(task, classes, range(task.exemplars.n_exemplars))

    @classmethod
    def _of(cls, task: FewShotTask, classes: Sequence[int], drawings: Sequence[int]) -> "Rows":
        starts = torch.tensor(classes)[:, None] * task.exemplars.n_exemplars
        rows = (starts + torch.tensor(drawings)).flatten()
        renumber = torch.full((task.d_vocab,), -1)
        renumber[: task.n_labels] = torch.arange(task.n_labels)
        renumber[task.n_labels + rows] = task.n_labels + torch.arange(len(rows))
        return cls(features_by_token(task.exemplars)[rows].clone(), renumber)

    def of(self, batch: Batch) -> Batch:
        """The sequences with their tokens renumbered."""
        tokens = self.renumber[batch.tokens]
        if bool((tokens < 0).any()):
            raise ValueError("The sequences show exemplars that are not among these rows.")
        return Batch(tokens, batch.target)


class TrainingData:
    """A run's sequences as a function of (seed, step): resuming needs no generator's state."""

    def __init__(self, task: FewShotTask, config: RunConfig, rows: Rows) -> None:
        self._task, self._config, self._rows = task, config, rows
        self._chunk: tuple[int, Batch] | None = None

    def at(self, step: int) -> Batch:
        """The batch of update `step`, its tokens renumbered."""
        number, offset = divmod(step, CHUNK)
        if self._chunk is None or self._chunk[0] != number:
            drawn = training_sequences(self._task, self._config, number)
            self._chunk = (number, self._rows.of(drawn))
        size = self._config.batch_size
        return self._chunk[1][offset * size : (offset + 1) * size]


def training_sequences(task: FewShotTask, config: RunConfig, chunk: int) -> Batch:
    """The sequences of updates `64 * chunk` to `64 * chunk + 63`."""
    seed = int(np.random.SeedSequence((config.seeds.data, chunk)).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(seed)
    return task.sample("train", CHUNK * config.batch_size, generator=generator)
