"""The parts of a run that the page measures: sequences, checkpoints, a metric and a corruption."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ih_interp.analysis.patching.corruptions import swap_exemplars
from ih_interp.batch import Batch
from ih_interp.clamps import clamped
from ih_interp.hooked_model import HookedModel
from ih_interp.runs import Run
from ih_interp.tasks.few_shot import FewShotTask

MOST_TOKENS, MOST_SEQUENCES, FEWEST_SEQUENCES = 4_096, 512, 32
"""Tokens and sequences that are measured at each checkpoint: a page takes under a minute."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A run with the sequences on which the page measures it."""

    run: Run
    split: str
    batch: Batch
    last: int
    """The last checkpoint's step."""

    @property
    def said(self) -> str:
        """Return a phrase that says which sequences are measured."""
        return f"{len(self.batch)} sequences of {self.split!r}, drawn from seed 0"

    @property
    def swaps(self) -> bool:
        """Return whether paths are patched from swapped exemplars, and not from means."""
        return isinstance(self.run.task, FewShotTask)

    @property
    def corrupt(self) -> Callable[[Batch], Batch]:
        """Return the corruption of path patching."""
        return swap_exemplars if self.swaps else _unchanged

    @property
    def patching(self) -> dict[str, Any]:
        """Return the options of path patching."""
        if self.swaps:
            return {"metric": "logit_difference", "ablation": "resample"}
        return {"metric": "loss", "ablation": "mean"}

    @property
    def patched(self) -> tuple[str, str]:
        """Return the unit of effects, and a phrase that says what a path is patched with."""
        if self.swaps:
            return "logit difference", "what it carries with the context's exemplars swapped"
        return "nats of loss", "its mean at that position over sequences"

    @contextmanager
    def at_end(self) -> Generator[HookedModel]:
        """Give the last checkpoint's model under the run's clamps, as they are at that step."""
        run, step = self.run, self.last
        rows = run.rows(before=step) if any(clamp.is_scheduled for clamp in run.clamps) else None
        model = run.model(step)
        with clamped(model, run.clamps, self.batch, step=step, metrics=rows):
            yield model


def subject_of(run: Run) -> Subject:
    """Return a run with sequences of its first split; ValueError where it has no checkpoint.

    Raises FileNotFoundError where the files of its task are gone.
    """
    steps = run.steps
    if not steps:
        raise ValueError("The run has no checkpoints yet: train it, and make the page again.")
    task, n = run.task, MOST_TOKENS // run.task.n_ctx
    n = min(MOST_SEQUENCES, max(FEWEST_SEQUENCES, n))
    split = task.splits[0]
    drawn: Any = task  # every task takes a seed in place of a generator
    return Subject(run=run, split=split, batch=drawn.sample(split, n, seed=0), last=steps[-1])


def chosen_steps(steps: list[int], most: int) -> list[int]:
    """Return at most so many of the steps, evenly in their order, with both ends.

    >>> chosen_steps([0, 10, 20, 30, 40], 3)
    [0, 20, 40]
    """
    places = np.linspace(0, len(steps) - 1, min(most, len(steps))).round().astype(int)
    return [steps[place] for place in np.unique(places).tolist()]


def _unchanged(batch: Batch) -> Batch:
    return batch
