"""The sequences that an update reads: a function of the seed and the step."""

import numpy as np
import torch

from ih_interp.config import RunConfig
from ih_interp.engine.feature_table import Rows
from ih_interp.tasks.few_shot import FewShotTask
from ih_interp.types import Batch

CHUNK = 64  # updates whose sequences are drawn at once


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
