"""Scores of heads from their attention patterns.

Every score is `[layer, head]`, or `[batch, layer, head]` with `per_sequence=True`, and has a chance
level: what a head that attends evenly to all it can see would get. All work on the model as it
stands, under clamps and other people's hooks, and leave both as they were.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

from ih_interp.types import Batch, Layout, Pattern, Tokens, expect

PerHeadScore: TypeAlias = Float[Tensor, "layer head"] | Float[Tensor, "batch layer head"]
Rows: TypeAlias = Literal["all", "labels"]
"""Rows that a score averages: every one that has a choice, or those of the labels."""

Score: TypeAlias = Callable[[Tensor, slice], Tensor]
"""From a layer's pattern, and which sequences these are, to `[batch, head]`."""

CHUNK = 1_024  # sequences a pass: the activations of more leave the processor's cache


@torch.no_grad()
def induction_strength(
    model: HookedTransformer, batch: Batch, *, per_sequence: bool = False
) -> PerHeadScore:
    """Attention from the query to the correct labels minus to the others, in [-1, 1]; chance 0.

    `mean over correct labels of A[query, label] - mean over the others`, which with two pairs is
    the measure of Singh et al. (2024), Figure 3b; 0 when a head does not tell the labels apart, and
    2 s - 1 under `InductionAttention(strength=s)` with two pairs.

    Shape `[layer, head]`, the mean over sequences, or `[batch, layer, head]`. Raises ValueError for
    sequences whose context lacks the target, or holds nothing else.
    """
    expect(model, HookedTransformer, "The model", "a run's is run.model(step)")
    expect(batch, Batch, "The batch", "give the Batch itself, not its tokens")
    correct = batch.correct
    if not bool((correct.any(dim=1) & ~correct.all(dim=1)).all()):
        raise ValueError(
            "Induction strength compares correct labels with others: every context needs both."
        )
    layout = batch.layout

    def score(pattern: Pattern, rows: slice) -> Float[Tensor, "batch head"]:
        to_labels = pattern[:, :, layout.query, list(layout.labels)]
        right = correct[rows, None].to(to_labels)
        wrong = 1 - right
        return (to_labels * (right / right.sum(-1, keepdim=True))).sum(-1) - (
            to_labels * (wrong / wrong.sum(-1, keepdim=True))
        ).sum(-1)

    return _scores(model, batch.tokens, score, per_sequence)


@torch.no_grad()
def previous_token_score(
    model: HookedTransformer,
    batch: Batch | Tokens,
    *,
    rows: Rows = "all",
    per_sequence: bool = False,
) -> PerHeadScore:
    """Mean attention from a token to the one before it, in [0, 1].

    `mean over rows i of A[i, i-1]`: with `rows="all"` every row but the first, which has no choice
    (Olsson et al. 2022, for any sequences); with `rows="labels"` those of the labels, which the
    induction circuit reads. Chance: `previous_token_chance`.
    """
    tokens = _tokens(batch)
    queries = _score_rows(tokens.shape[1], rows)
    keys = [query - 1 for query in queries]

    def score(pattern: Pattern, _: slice) -> Float[Tensor, "batch head"]:
        return pattern[:, :, queries, keys].mean(dim=-1)

    return _scores(model, tokens, score, per_sequence)


def previous_token_chance(n_positions: int, rows: Rows = "all") -> float:
    """Score of a head that attends evenly: mean over the rows i of 1 / (i + 1).

    >>> previous_token_chance(5, "labels")
    0.375
    """
    queries = _score_rows(n_positions, rows)
    return sum(1 / (query + 1) for query in queries) / len(queries)


@torch.no_grad()
def attention_entropy(
    model: HookedTransformer, batch: Batch | Tokens, *, per_sequence: bool = False
) -> PerHeadScore:
    """Entropy of the last row of the pattern, the query's, in nats, in [0, ln of the positions].

    `- sum over keys of A[query, key] ln A[query, key]`; 0 attends to one token. Chance, and the
    largest: `ln n_positions` (`entropy_chance`).
    """

    def score(pattern: Pattern, _: slice) -> Float[Tensor, "batch head"]:
        return torch.special.entr(pattern[:, :, -1]).sum(dim=-1)

    return _scores(model, _tokens(batch), score, per_sequence)


def entropy_chance(n_positions: int) -> float:
    """Entropy of even attention from the last row: ln n_positions."""
    return float(torch.tensor(float(n_positions)).log())


@torch.no_grad()
def prefix_matching_score(
    model: HookedTransformer,
    *,
    generator: torch.Generator,
    n_sequences: int = 64,
    period: int | None = None,
    repeats: int = 2,
    offset: int = 1,
    per_sequence: bool = False,
) -> PerHeadScore:
    """Attention from repeated random tokens to what followed their last occurrence, in [0, 1].

    Sequences are `period` different random tokens said `repeats` times; the score is the mean over
    positions i from the second time on of `A[i, i - period + offset]`. `offset=1` is the successor,
    which an induction head attends to (Olsson et al. 2022, appendix; their prose says "preceded",
    their mechanism and later code say successor); 0 the token itself, a duplicate-token head; -1
    its predecessor. A perfect head scores 1. Chance: `prefix_matching_chance`.

    For any HookedTransformer; no tokenizer and no BOS token. By default `period` fills the context,
    up to 25. Raises ValueError for sequences longer than the context or than the vocabulary allows.
    """
    period = min(25, model.cfg.n_ctx // repeats) if period is None else period
    if period < 2 or repeats < 2 or period * repeats > model.cfg.n_ctx:
        raise ValueError(
            f"{repeats} times {period} tokens do not fit: at least 2 x 2 and at most "
            f"{model.cfg.n_ctx} tokens (n_ctx) are needed."
        )
    if period > model.cfg.d_vocab:
        raise ValueError(f"period={period} needs as many tokens; d_vocab={model.cfg.d_vocab}.")
    if not -period < offset < period:
        raise ValueError(f"offset={offset} must lie within one period of {period}.")
    draws = torch.rand(n_sequences, model.cfg.d_vocab, generator=generator)
    tokens = draws.argsort(dim=1)[:, :period].repeat(1, repeats)
    queries = list(_prefix_rows(period, repeats, offset))
    keys = [query - period + offset for query in queries]

    def score(pattern: Pattern, _: slice) -> Float[Tensor, "batch head"]:
        return pattern[:, :, queries, keys].mean(dim=-1)

    return _scores(model, tokens.to(model.cfg.device), score, per_sequence)


def prefix_matching_chance(period: int, repeats: int = 2, offset: int = 1) -> float:
    """Score of even attention: mean over the scored rows i of 1 / (i + 1).

    >>> round(prefix_matching_chance(2), 6)
    0.291667
    """
    rows = _prefix_rows(period, repeats, offset)
    return sum(1 / (row + 1) for row in rows) / len(rows)


def _prefix_rows(period: int, repeats: int, offset: int) -> range:
    """From the second saying on, the rows whose key stands in the sequence.

    Before the first token there is none to match: a negative offset scores that many rows fewer.
    """
    return range(max(period, period - offset), period * repeats)


def _scores(
    model: HookedTransformer,
    tokens: Tokens,
    score: Score,
    per_sequence: bool,
) -> PerHeadScore:
    """Apply a score to every layer's pattern, chunk by chunk."""
    if len(tokens) == 0:
        raise ValueError("There are no sequences to score; give at least one.")
    # Clamps made for a batch refuse other sequences, so under them it stays whole.
    size = len(tokens) if getattr(model.embed, "_forward_pre_hooks", None) else CHUNK
    parts: list[Tensor] = []
    for start in range(0, len(tokens), size):
        rows = slice(start, start + size)
        found: dict[int, Tensor] = {}

        def keep(
            pattern: Pattern,
            hook: HookPoint,
            found: dict[int, Tensor] = found,
            rows: slice = rows,
        ) -> None:
            found[hook.layer()] = score(pattern, rows)

        names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
        with model.hooks(fwd_hooks=[(name, keep) for name in names]):
            model(tokens[rows])
        parts.append(torch.stack([found[layer] for layer in range(model.cfg.n_layers)], dim=1))
    values = torch.cat(parts)
    return values if per_sequence else values.double().mean(dim=0).float()


def _tokens(batch: Batch | Tokens) -> Tokens:
    return batch.tokens if isinstance(batch, Batch) else batch


def _score_rows(n_positions: int, rows: Rows) -> list[int]:
    if rows not in get_args(Rows):
        raise ValueError(f"rows={rows!r}; choose from {', '.join(get_args(Rows))}.")
    if rows == "labels":
        return list(Layout.of(torch.empty(n_positions)).labels)
    if n_positions < 2:
        raise ValueError("One token has no previous token; pass sequences of two or more.")
    return list(range(1, n_positions))
