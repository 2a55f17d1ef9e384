"""Scores of every head over the checkpoints of a run, each with its chance level."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from ih_interp.analysis.dynamics.trace import trace
from ih_interp.analysis.heads.attention import (
    duplicate_token_chance,
    duplicate_token_score,
    induction_strength,
    previous_token_chance,
    previous_token_score,
)
from ih_interp.analysis.heads.repeated_tokens import prefix_matching_chance, prefix_matching_score
from ih_interp.batch import Batch
from ih_interp.hooked_model import HookedModel
from ih_interp.page.subject import Subject, chosen_steps

MOST_STEPS = 50
"""Checkpoints at which scores are measured."""

REPEATED = 64
"""Repeated random sequences, for tasks that do not say where answers stand."""


class Score(NamedTuple):
    """A score of heads: 1 for a head that does this alone."""

    name: str
    words: str
    measure: Callable[[HookedModel, Batch], Tensor]
    chance: Callable[[], float]


def scores_of(subject: Subject) -> list[Score]:
    """Return the scores that may be measured of a run."""
    batch, n_ctx = subject.batch, subject.run.task.n_ctx
    induction = Score(
        "induction",
        "mean attention to an answer minus to another candidate, from -1 to 1; attention to n "
        "answers alone gives 1 / n",
        induction_strength,
        lambda: 0.0,
    )
    if batch.is_few_shot:
        n_positions = batch.tokens.shape[1]
        previous = partial(previous_token_score, rows="labels")
        words = "mean attention from a label to the exemplar before it, from 0 to 1"
        chance = partial(previous_token_chance, n_positions, "labels")
        return [Score("previous token", words, previous, chance), induction]
    previous = Score(
        "previous token",
        "mean attention from a token to the one before it, from 0 to 1",
        previous_token_score,
        partial(previous_token_chance, batch),
    )
    duplicate = Score(
        "duplicate token",
        "mean attention from a repeated token to its earlier copies, from 0 to 1",
        duplicate_token_score,
        partial(duplicate_token_chance, batch),
    )
    if not _says_answers(batch):
        period = max(2, min(25, n_ctx // 2, subject.run.task.d_vocab))
        words = "attention on repeated random tokens to what followed a token before, from 0 to 1"
        measure = partial(_prefix_matching, period=period)
        chance = partial(prefix_matching_chance, period)
        induction = Score("prefix matching", words, measure, chance)
    return [previous, induction, duplicate]


def measured_scores(subject: Subject) -> tuple[pd.DataFrame, list[str]]:
    """Return the scores over checkpoints, and a sentence for each that could not be measured.

    Columns `step`, `sequences`, `score`, `name` (the head), `value`, `chance`. Raises ValueError
    where none could be measured.
    """
    parts: list[pd.DataFrame] = []
    missing: list[str] = []
    steps = chosen_steps(subject.run.steps, MOST_STEPS)
    for score in scores_of(subject):
        try:
            chance = score.chance()
            table = trace(subject.run, score.measure, batch=subject.batch, steps=steps)
        except ValueError as error:
            missing.append(f"The score {score.name!r} was not measured: {error}")
            continue
        parts.append(table.assign(score=score.name, chance=chance))
    if not parts:
        raise ValueError(" ".join(missing))
    columns = ["step", "sequences", "score", "name", "value", "chance"]
    return pd.concat(parts, ignore_index=True)[columns], missing


def _prefix_matching(model: HookedModel, batch: Batch, period: int) -> Tensor:
    del batch  # it has random sequences of its own
    generator = torch.Generator().manual_seed(0)
    return prefix_matching_score(model, generator=generator, n_sequences=REPEATED, period=period)


def _says_answers(batch: Batch) -> bool:
    try:
        return bool(batch.answers.any())
    except ValueError:
        return False
