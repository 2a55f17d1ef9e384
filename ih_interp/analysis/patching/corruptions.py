"""Corruptions of few-shot sequences, from which path patching takes activations.

Each keeps shapes and positions, and takes away one piece of information. The corrupted target is
what a perfect induction circuit would now say, or the clean one where the context no longer tells.
Effects are measured against the clean batch's target and context.
"""

from typing import Literal, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from ih_interp.analysis.checks import checked_in_plain_torch
from ih_interp.batch import Batch
from ih_interp.tasks.few_shot import FewShotTask, Split

Resampled: TypeAlias = Literal["query", "other"]
"""The pairs whose class is replaced: the query's copies in the context, or one other pair."""

MAX_DRAWS = 1_000  # rounds of sampling again where a class stands in the context already


@checked_in_plain_torch()
def swap_exemplars(batch: Batch) -> Batch:
    """Move the exemplars of the context to the pair before; labels and the query stay.

    This destroys the place and the label of the query's copy, and keeps the exemplars and labels
    that are shown. With two pairs, `x1 l1 x2 l2 x1` becomes `x2 l1 x1 l2 x1`. In general, a label
    gets the first exemplar of the next different label of the context, in cyclic order of first
    appearance, so that no copy of the query stays with its label. The target becomes the label that
    the query's class now stands with. Raises ValueError for a context with one label only.
    """
    labels = batch.context_labels
    following = _next_pair(labels)
    places = list(batch.layout.exemplars)
    tokens = batch.tokens.clone()
    tokens[:, places] = batch.tokens[:, places].gather(1, following)
    target = _label_where(batch.correct.gather(1, following), labels, batch.target)
    return batch.replace(tokens=tokens, targets=target)


@checked_in_plain_torch()
def swap_labels(batch: Batch) -> Batch:
    """Move the labels of the context to the pair before; exemplars and the query stay.

    This destroys the label of the query's copy, and keeps the places of exemplars and the labels
    that are shown. With two pairs, `x1 l1 x2 l2 x1` becomes `x1 l2 x2 l1 x1`. In general every
    label becomes the next different one, as in `swap_exemplars`, so that all copies of a class
    still share one; the target follows as there. Raises ValueError for a context with one label.
    """
    labels = batch.context_labels
    renamed = labels.gather(1, _next_pair(labels))
    tokens = batch.tokens.clone()
    tokens[:, list(batch.layout.labels)] = renamed
    target = _label_where(batch.correct, renamed, batch.target)
    return batch.replace(tokens=tokens, targets=target)


@checked_in_plain_torch()
def resample_class(
    task: FewShotTask,
    batch: Batch,
    generator: torch.Generator,
    *,
    which: Resampled = "query",
    split: Split = "train",
) -> Batch:
    """Replace a class of the context by one of the split that is not in it, drawn uniformly.

    `which="query"` replaces every copy of the query's class, so that nothing in the context matches
    the query; labels, positions and the other exemplars stay. `which="other"`, the control,
    replaces one of the other pairs, drawn uniformly. Exemplars are the split's. The target stays.

    Raises ValueError for a split with no further class and for a batch of another task's length.
    """
    if batch.layout.n_pairs != task.config.n_pairs:
        raise ValueError(
            f"batch: expected {task.config.n_pairs} pairs, as the task makes them, got "
            f"{batch.layout.n_pairs}; give the task that made the batch."
        )
    chosen = batch.correct
    if which == "other":  # the largest of uniform numbers at the other pairs
        draws = torch.rand(chosen.shape, generator=generator).to(chosen.device)
        best = draws.masked_fill(chosen, -1.0).argmax(dim=1, keepdim=True)
        chosen = torch.zeros_like(chosen).scatter(1, best, True) & ~chosen
    drawn = _unseen(task, batch, split, generator)
    # The n-th copy gets the n-th of the new class's exemplars.
    exemplar = drawn.gather(1, (chosen.cumsum(dim=1) - 1).clamp(min=0))
    places = list(batch.layout.exemplars)
    tokens = batch.tokens.clone()
    tokens[:, places] = torch.where(chosen, exemplar, tokens[:, places])
    return batch.replace(tokens=tokens)


def _next_pair(labels: Int[Tensor, "batch pair"]) -> Int[Tensor, "batch pair"]:
    """Return for every pair the first pair that has the next different label."""
    if bool((labels == labels[:, :1]).all(dim=1).any()):
        raise ValueError("A context holds one label only: expected two different ones to swap.")
    pairs = torch.arange(labels.shape[1], device=labels.device)
    same = labels[:, :, None] == labels[:, None, :]
    first = same.int().argmax(dim=-1)  # where a pair's label appears first
    later = (first == pairs)[:, None, :] & (pairs > first[:, :, None])
    return later.int().argmax(dim=-1)  # 0, the first label, where none is later


def _label_where(chosen: Tensor, labels: Tensor, target: Tensor) -> Int[Tensor, " batch"]:
    """Return the label of the first pair chosen; the target where there is none."""
    first = labels.gather(1, chosen.int().argmax(dim=1, keepdim=True))[:, 0]
    return torch.where(chosen.any(dim=1), first, target)


def _unseen(
    task: FewShotTask, batch: Batch, split: Split, generator: torch.Generator
) -> Int[Tensor, "batch copy"]:
    """Draw, per sequence, exemplar tokens `[batch, copy]` of one class that its context lacks."""
    unseen = split == "test_exemplars"
    n_classes = task.n_test_classes if unseen else task.config.n_train_classes
    if n_classes <= task.config.n_context_classes:
        raise ValueError(
            f"split={split!r} has {n_classes} classes: expected more than the "
            f"{task.config.n_context_classes} of a context."
        )

    def class_of(tokens: Tensor) -> Tensor:
        return (tokens - task.n_labels) // task.exemplars.n_exemplars

    shown = class_of(batch.tokens[:, list(batch.layout.exemplars)])
    found = torch.zeros(len(batch), task.config.n_copies, dtype=batch.tokens.dtype)
    open_rows = torch.arange(len(batch))
    for _ in range(MAX_DRAWS):
        other = task.sample(split, len(open_rows), generator=generator)
        exemplars = other.tokens[:, list(other.layout.exemplars)]
        copies = exemplars[other.correct].reshape(len(open_rows), -1)
        clash = (class_of(copies[:, :1]) == shown[open_rows.to(shown.device)].cpu()).any(dim=1)
        found[open_rows[~clash]] = copies[~clash]
        open_rows = open_rows[clash]
        if len(open_rows) == 0:
            return found.to(batch.tokens.device)
    raise ValueError(f"No class of {split!r} was found that {len(open_rows)} contexts lack.")
