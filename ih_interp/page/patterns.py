"""Attention patterns of example sequences at checkpoints of a run."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ih_interp.analysis.dynamics.trace import trace
from ih_interp.analysis.heads.pattern_scores import each_chunk
from ih_interp.batch import NOT_ASKED, Batch
from ih_interp.hooked_model import HookedModel
from ih_interp.page.subject import Subject, chosen_steps
from ih_interp.tasks.base import Task
from ih_interp.tasks.pairs import PairsTask

EXAMPLES, MOST_STEPS, MOST_WEIGHTS = 4, 11, 400_000
"""Sequences, checkpoints, and attention weights that a page holds of a run."""


@dataclass(frozen=True)
class Patterns:
    """Attention weights of some sequences at some checkpoints, and the sequences in words."""

    steps: list[int]
    weights: Float[Tensor, "step batch layer head query key"]
    tokens: list[list[str]]
    targets: list[str]
    """What is asked of each sequence, and where its answer stands."""


def measured_patterns(subject: Subject) -> Patterns:
    """Return the patterns of the first sequences; ValueError where one is too long for a page.

    Fewer checkpoints, and then fewer sequences, are taken of long sequences.
    """
    config, n = subject.run.config.model, subject.batch.tokens.shape[1]
    each = config.n_layers * config.n_heads * n * (n + 1) // 2
    n_steps = min(MOST_STEPS, max(2, MOST_WEIGHTS // (each * EXAMPLES)))
    n_examples = min(EXAMPLES, MOST_WEIGHTS // (each * n_steps))
    if n_examples == 0:
        raise ValueError(
            f"Patterns of {config.n_layers * config.n_heads} heads over {n} tokens have {each:,} "
            f"weights per sequence and checkpoint: expected at most {MOST_WEIGHTS // 2:,}, which a "
            "page can hold."
        )
    steps, batch = chosen_steps(subject.run.steps, n_steps), subject.batch[:n_examples]
    found: list[Tensor] = []

    def keep(model: HookedModel, part: Batch) -> float:
        found.extend(each_chunk(model, part.tokens, "attn.hook_pattern", _unchanged))
        return 0.0

    trace(subject.run, keep, batch=batch, steps=steps)
    name = token_names(subject.run.task)
    return Patterns(
        steps,
        torch.stack(found).cpu(),
        [[name(token) for token in row] for row in batch.tokens.tolist()],
        targets_in_words(batch, name),
    )


def _unchanged(pattern: Tensor, *_: object) -> Tensor:
    return pattern.detach().clone()


def token_names(task: Task) -> Callable[[int], str]:
    """Return a function from a token to its name, as "label 3", "class 12" or its number.

    A class that has several exemplars in training is followed by the exemplar's number.
    """

    def word(token: int) -> str:
        if not isinstance(task, PairsTask):
            return str(token)
        if token < task.n_labels:
            return f"label {token}"
        which, exemplar = divmod(token - task.n_labels, task.exemplars.n_exemplars)
        return f"class {which}" + (f" #{exemplar}" if task.config.n_train_exemplars > 1 else "")

    return word


def targets_in_words(batch: Batch, name: Callable[[int], str]) -> list[str]:
    """Return what is asked of each sequence, and which keys hold the last answer."""
    try:
        answers = batch.answers
    except ValueError:  # the task does not say
        answers = None
    words: list[str] = []
    for row, targets in enumerate(batch.targets.tolist()):
        asked = [place for place, target in enumerate(targets) if target != NOT_ASKED]
        last = asked[-1]
        where = "" if len(asked) == 1 else f"The last of {len(asked)} asked positions is {last}. "
        sentence = f"{where}The answer to position {last} is {name(targets[last])}"
        keys = [] if answers is None else answers[row, last].nonzero()[:, 0].tolist()
        stands = f", which stands at {', '.join(map(str, keys))}" if keys else ""
        words.append(f"{sentence}{stands}.")
    return words
