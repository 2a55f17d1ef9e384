"""Scores of heads on repeated random tokens: prefix matching and induction.

Sequences are random tokens said several times, so that nothing but the context tells what comes
next. Scores are `[layer, head]`, or `[batch, layer, head]` with `per_sequence=True`. Scores of
`attention` take the same sequences: `duplicate_token_score(model, repeated_tokens(model, ...))`.
"""

from typing import Annotated, Literal, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from ih_interp._sequences import refuse_outside
from ih_interp.analysis.checks import Positive, Within, checked_in_plain_torch
from ih_interp.analysis.heads.pattern_scores import PerHeadScore, entry_chance, entry_score
from ih_interp.hooked_model import HookedModel
from ih_interp.types import Tokens

Convention: TypeAlias = Literal["matched", "diagonal", "mul"]
"""What the attention to successors is divided by; `induction_score` defines each."""

Several: TypeAlias = Annotated[int, Within(2, 10**6)]
Token: TypeAlias = Annotated[int, Within(0, 2**31)]

GENERATOR = (
    "it draws its own sequences: give generator=torch.Generator().manual_seed(0); for yours use "
    "previous_token_score, duplicate_token_score or pattern_scores"
)


@checked_in_plain_torch(GENERATOR)
def repeated_tokens(
    model: HookedModel,
    generator: torch.Generator,
    n_sequences: Positive = 64,
    period: Several | None = None,
    repeats: Several = 2,
    bos: Token | None = None,
    vocabulary: Int[Tensor, " token"] | None = None,
) -> Tokens:
    """Return `period` different random tokens said `repeats` times, after `bos` if it is given.

    Tokens are drawn evenly without repetition from `vocabulary`, by default all of the model's, but
    never `bos`, and lie on its device. By default `period` fills the context, up to 25. Raises
    ValueError for sequences longer than the context, and for fewer different tokens than `period`.
    """
    room = model.cfg.n_ctx - (bos is not None)
    repeats = int(repeats)  # uint8 would overflow
    period = min(25, room // repeats) if period is None else int(period)
    if period < 2 or period * repeats > room:
        raise ValueError(
            f"period={period}, repeats={repeats}: expected at least 2 x 2 and at most {room} tokens"
            f" (n_ctx{'' if bos is None else ' without the BOS token'})."
        )
    choice = torch.arange(model.cfg.d_vocab) if vocabulary is None else vocabulary.cpu().unique()
    refuse_outside("vocabulary: expected tokens", choice, model.cfg.d_vocab)
    choice = choice if bos is None else choice[choice != bos]
    if period > len(choice):
        raise ValueError(
            f"period={period}: expected at most {len(choice)}, as many different tokens as there "
            f"are to draw from (d_vocab={model.cfg.d_vocab})."
        )
    draws = torch.rand(n_sequences, len(choice), generator=generator)
    tokens = choice[draws.topk(period, dim=1).indices].repeat(1, repeats)
    if bos is not None:
        tokens = torch.cat([torch.full((n_sequences, 1), bos), tokens], dim=1)
    return tokens.to(model.cfg.device)


@checked_in_plain_torch(GENERATOR)
def prefix_matching_score(
    model: HookedModel,
    *,
    generator: torch.Generator,
    n_sequences: Positive = 64,
    period: Several | None = None,
    repeats: Several = 2,
    offset: int = 1,
    bos: Token | None = None,
    vocabulary: Int[Tensor, " token"] | None = None,
    per_sequence: bool = False,
) -> PerHeadScore:
    """Return attention from repeated random tokens to what followed their last occurrence.

    Sequences are `repeated_tokens`; the score is the mean over positions i from the second time on
    of `A[i, i - period + offset]`, in [0, 1]; 1 for a perfect head. `offset=1` is the successor,
    which an induction head attends to (Olsson et al. 2022, arXiv:2209.11895, appendix: BOS, then 25
    tokens 4 times; they write "preceded", but their mechanism and later code take the successor); 0
    is the token itself, as for a duplicate-token head, and -1 its predecessor, where there is one
    in the sequence. Chance: `prefix_matching_chance`. Raises ValueError as `repeated_tokens` does,
    and for an offset beyond one period.
    """
    tokens = repeated_tokens(model, generator, n_sequences, period, repeats, bos, vocabulary)
    period = (tokens.shape[1] - (bos is not None)) // int(repeats)
    queries = _prefix_rows(period, repeats, offset, bos is not None)
    keys = [query + int(offset) - period for query in queries]
    return entry_score(model, tokens, queries, keys, per_sequence=per_sequence)


@checked_in_plain_torch()
def prefix_matching_chance(
    period: Several, repeats: Several = 2, offset: int = 1, *, bos: bool = False
) -> float:
    """Return the score of even attention: the mean over the scored rows i of 1 / (i + 1).

    >>> round(prefix_matching_chance(2), 6)
    0.291667
    """
    return entry_chance(_prefix_rows(period, repeats, offset, bos))


@checked_in_plain_torch(GENERATOR)
def induction_score(
    model: HookedModel,
    *,
    generator: torch.Generator,
    n_sequences: Positive = 64,
    period: Several | None = None,
    bos: Token | None = None,
    vocabulary: Int[Tensor, " token"] | None = None,
    convention: Convention = "matched",
    per_sequence: bool = False,
) -> PerHeadScore:
    """Return attention to the successor of a token's copy on `[BOS,] r, r`, in [0, 1].

    With P = `period` different tokens in r, every token of the second r, at position i, has one
    copy, P before it; the score reads the entries `A[i, i - P + 1]` of the diagonal -(P - 1).

        matched   mean over the P queries of the second r; a perfect head gets 1
        diagonal  mean of the whole diagonal, `pattern.diagonal(-P + 1).mean()` (ARENA); it begins
                  before the second r, with 2 queries that have no copy (1 without BOS). A perfect
                  head that else attends to the first token gets (P + 1) / (P + 2) (1 without BOS)
        mul       sum over the matched queries divided by all attention, one per position (the "mul"
                  of TransformerLens's `detect_head`); a perfect head gets P / (2 P + 1) (1/2
                  without BOS): 0.455 at P = 5, 0.488 at 20, 0.495 at 50

    "matched" equals `prefix_matching_score` with two repeats and `offset=1`. By default P fills the
    context, min(25, n_ctx // 2). Chance is `induction_chance(P)` with the call's `bos` and
    `convention`: 0.027 at P = 25, and 0.292 by default in a few-shot model of two pairs, whose 5
    positions allow P = 2. There tokens are labels and exemplars alike; on the task's own sequences
    use `induction_strength`. Raises ValueError as `repeated_tokens` does. Over checkpoints:

        def score(model, batch):
            return ih.induction_score(model, generator=torch.Generator().manual_seed(0))

        ih.trace(run, score)
    """
    tokens = repeated_tokens(model, generator, n_sequences, period, 2, bos, vocabulary)
    period = tokens.shape[1] // 2
    queries, divisor = _induction_rows(period, bos is not None, convention)
    keys = [query + 1 - period for query in queries]
    return entry_score(model, tokens, queries, keys, divisor=divisor, per_sequence=per_sequence)


@checked_in_plain_torch()
def induction_chance(
    period: Several, *, bos: bool = False, convention: Convention = "matched"
) -> float:
    """Return the score of even attention, 1 / (i + 1) from query i, under the same convention.

    >>> round(induction_chance(2, bos=True), 6)  # mean of 1/4 and 1/5
    0.225
    """
    return entry_chance(*_induction_rows(period, bos, convention))


def _prefix_rows(period: int, repeats: int, offset: int, bos: bool) -> list[int]:
    """Return the rows, from the second period on, whose key stands in the sequence."""
    period, repeats, offset = int(period), int(repeats), int(offset)  # uint8 would overflow
    if not -period < offset < period:
        raise ValueError(f"offset={offset}: expected less than one period of {period}.")
    return [row + bos for row in range(max(period, period - offset), period * repeats)]


def _induction_rows(period: int, bos: bool, convention: Convention) -> tuple[list[int], int]:
    """Return the queries to sum, and the divisor of the sum."""
    period = int(period)  # uint8 would overflow
    n_positions = 2 * period + bos
    rows = list(range(period - 1 if convention == "diagonal" else period + bos, n_positions))
    return rows, n_positions if convention == "mul" else len(rows)
