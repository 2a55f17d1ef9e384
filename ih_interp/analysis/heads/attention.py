"""Scores of heads from their attention patterns.

Every score is `[layer, head]`, the mean over sequences, or `[batch, layer, head]` with
`per_sequence=True`. Queries in the padding, by a batch's `lengths`, are left out. Chance is the
score of a head that attends evenly to all it can see. Scores work on the model as it stands, under
clamps and other people's hooks, and leave both as they were.
"""

from typing import Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.special import entr

from ih_interp.analysis.checks import Positions, checked_in_plain_torch
from ih_interp.analysis.heads.pattern_scores import (
    SEQUENCES,
    PerHeadScore,
    Sequences,
    entry_chance,
    entry_score,
    layer_scores,
    mean_over_lengths,
    present_in,
    tokens_of,
)
from ih_interp.batch import Answers, Batch, Layout
from ih_interp.hooked_model import HookedModel
from ih_interp.types import Pattern

Rows: TypeAlias = Literal["all", "labels"]
"""Query rows that a score averages: every one that has a choice, or those of the labels."""

CHANCE = "give the number of positions, or the sequences, without the model"


@checked_in_plain_torch("give a batch that says where its answers are, as task.sample does")
def induction_strength(
    model: HookedModel, batch: Batch, *, per_sequence: bool = False
) -> PerHeadScore:
    """Return attention to the answers minus to the other candidates, in [-1, 1]; chance 0.

    `mean over answers k of A[query, k] - mean over the other candidates`, averaged over the asked
    queries that have both; a head that attends to n answers alone has 1 / n. Few-shot sequences
    have one query, whose candidates are the context's labels: with two pairs it is the measure of
    Singh et al. (2024), Figure 3b, and 2 s - 1 under `InductionAttention(strength=s)`.

    Raises ValueError for sequences that do not say where their answers stand, and for a sequence
    without a query that has an answer and another candidate.
    """
    answers, others, asks = answered_queries(batch)
    if not bool(asks.any(dim=1).all()):
        raise ValueError(
            "batch: expected a query with an answer and another candidate in every context."
        )
    queries = asks.any(dim=0).nonzero()[:, 0]

    def score(pattern: Pattern, _: int, rows: slice) -> Float[Tensor, "batch head"]:
        right, wrong = (keys[rows][:, queries].float() for keys in (answers, others))
        contrast = right / right.sum(-1, keepdim=True) - wrong / wrong.sum(-1, keepdim=True)
        asked = asks[rows][:, queries]
        weights = torch.where(asked[..., None], contrast, 0) / asked.sum(-1)[:, None, None]
        return torch.einsum("bhqk,bqk->bh", pattern[:, :, queries], weights.to(pattern))

    return layer_scores(model, batch, score, per_sequence=per_sequence)


def answered_queries(batch: Batch) -> tuple[Answers, Answers, Bool[Tensor, "batch query"]]:
    """Return the answers, the other candidates, and the queries that have both."""
    answers, candidates = batch.answers, batch.candidates
    others = candidates & ~answers
    return answers, others, batch.present & answers.any(dim=2) & others.any(dim=2)


@checked_in_plain_torch(SEQUENCES)
def previous_token_score(
    model: HookedModel, batch: Sequences, *, rows: Rows = "all", per_sequence: bool = False
) -> PerHeadScore:
    """Return the mean attention from a token to the one before it, in [0, 1].

    `mean over rows i of A[i, i-1]`: with `rows="all"` every row but the first, which has no choice
    (Olsson et al. 2022, for any sequences); with `rows="labels"` those of the labels, which the
    induction circuit reads. Chance: `previous_token_chance`.
    """
    queries = _score_rows(tokens_of(batch).shape[1], rows)
    keys = [query - 1 for query in queries]
    return entry_score(model, batch, queries, keys, per_sequence=per_sequence)


@checked_in_plain_torch(SEQUENCES)
def current_token_score(
    model: HookedModel, batch: Sequences, *, rows: Rows = "all", per_sequence: bool = False
) -> PerHeadScore:
    """Return the mean attention from a token to itself, in [0, 1].

    `mean over rows i of A[i, i]`, rows as in `previous_token_score`; chance `current_token_chance`.
    """
    queries = _score_rows(tokens_of(batch).shape[1], rows)
    return entry_score(model, batch, queries, queries, per_sequence=per_sequence)


@checked_in_plain_torch(SEQUENCES)
def first_token_score(
    model: HookedModel, batch: Sequences, *, rows: Rows = "all", per_sequence: bool = False
) -> PerHeadScore:
    """Return the mean attention to the first token, in [0, 1]: 1 for a head that rests there.

    `mean over rows i of A[i, 0]`, rows as in `previous_token_score`. In language models most heads
    attend to the first token, a sink, where they find nothing to do (Xiao et al. 2023,
    arXiv:2309.17453). Chance: `first_token_chance`.
    """
    queries = _score_rows(tokens_of(batch).shape[1], rows)
    return entry_score(model, batch, queries, [0] * len(queries), per_sequence=per_sequence)


@checked_in_plain_torch(CHANCE)
def previous_token_chance(n_positions: Positions | Sequences, rows: Rows = "all") -> float:
    """Return the score of a head that attends evenly: the mean over the rows i of 1 / (i + 1).

    Given sequences, it is the mean over them, by their lengths.

    >>> previous_token_chance(5, "labels")
    0.375
    """
    return mean_over_lengths(n_positions, lambda n: entry_chance(_score_rows(n, rows)))


current_token_chance = previous_token_chance
first_token_chance = previous_token_chance


def _score_rows(n_positions: int, rows: Rows) -> list[int]:
    if rows == "labels":
        return list(Layout.of(n_positions).labels)
    if n_positions < 2:
        raise ValueError(f"n_positions={n_positions}: expected two or more, to have a choice.")
    return list(range(1, n_positions))


@checked_in_plain_torch(SEQUENCES)
def duplicate_token_score(
    model: HookedModel, batch: Sequences, *, per_sequence: bool = False
) -> PerHeadScore:
    """Return the mean attention from a repeated token to its earlier copies, in [0, 1].

    `sum over j < i with token j = token i of A[i, j]`, averaged over the queries i of a sequence
    that have such a j, then over sequences. (TransformerLens's detector of `duplicate_token_head`
    averages over the other queries too, and so cannot reach 1.) Raises ValueError for sequences
    that repeat no token, such as few-shot sequences whose query is another drawing than the one in
    the context. Chance: `duplicate_token_chance`.
    """
    copies = _earlier_copies(batch)
    n_queries = copies.any(dim=2).sum(dim=1)

    def score(pattern: Pattern, _: int, rows: slice) -> Float[Tensor, "batch head"]:
        attended = torch.einsum("bhqk,bqk->bh", pattern, copies[rows].to(pattern))
        return attended / n_queries[rows, None].to(pattern)

    return layer_scores(model, batch, score, per_sequence=per_sequence)


@checked_in_plain_torch("give the sequences alone")
def duplicate_token_chance(batch: Sequences) -> float:
    """Return the score of even attention: the mean over queries i of (earlier copies) / (i + 1).

    The mean is taken within each sequence first, as in the score.

    >>> round(duplicate_token_chance(torch.tensor([[7, 8, 7, 7]])), 6)  # mean of 1/3 and 2/4
    0.416667
    """
    copies = _earlier_copies(batch).double()
    n_visible = torch.arange(1, copies.shape[1] + 1, device=copies.device)
    shares = copies.sum(dim=2) / n_visible
    return float((shares.sum(dim=1) / (shares > 0).sum(dim=1)).mean())


def _earlier_copies(batch: Sequences) -> Bool[Tensor, "batch query key"]:
    """Return which keys hold the query's token and stand before it."""
    tokens = torch.where(present_in(batch), tokens_of(batch), -1)
    copies = (tokens >= 0)[:, :, None] & (tokens[:, :, None] == tokens[:, None, :]).tril(
        diagonal=-1
    )
    without = int((~copies.flatten(start_dim=1).any(dim=1)).sum())
    if without:
        what = f"{without} of {len(tokens)} sequences repeat no token"
        raise ValueError(f"{what}: expected a copy to attend to in each; leave the others out.")
    return copies


@checked_in_plain_torch(SEQUENCES)
def attention_entropy(
    model: HookedModel, batch: Sequences, *, per_sequence: bool = False
) -> PerHeadScore:
    """Return the entropy of the row of a sequence's last token, the query's, in nats.

    `- sum over keys of A[query, key] ln A[query, key]`, from 0, for attention to one token, to
    `ln n_positions`, chance (`entropy_chance`).
    """
    last = present_in(batch).sum(dim=1) - 1

    def score(pattern: Pattern, _: int, rows: slice) -> Float[Tensor, "batch head"]:
        return entr(pattern[torch.arange(len(pattern)), :, last[rows]]).sum(dim=-1)

    return layer_scores(model, batch, score, per_sequence=per_sequence)


@checked_in_plain_torch(CHANCE)
def entropy_chance(n_positions: Positions | Sequences) -> float:
    """Return the entropy of even attention from the last row: ln n_positions.

    Given sequences, it is the mean over them, by their lengths.
    """
    return mean_over_lengths(n_positions, lambda n: float(torch.tensor(float(n)).log()))
