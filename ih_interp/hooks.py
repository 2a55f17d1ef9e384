"""Hook functions: pure `(activation, hook, *, ...) -> activation`, for plain TransformerLens too.

    from functools import partial
    hook = partial(hooks.previous_token_attention, heads=hooks.mask([2], 8), strength=1.0)
    logits = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_pattern", hook)])

Each returns a new tensor and never writes into the one it was given. `gate` goes from 0, the free
activation, to 1, the clamped one; None is 1 without the arithmetic. Constants carry no gradient;
values handed in carry theirs.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from ih_interp.types import Logits, Pattern, PerHead, Residual, Scores

MASKED = -1e9
"""Stands for minus infinity in scores and logits: its exp is exactly 0, and 0 times it no NaN."""

Gate: TypeAlias = Float[Tensor, ""] | float | None
Strength: TypeAlias = Float[Tensor, ""] | float


def mask(heads: Sequence[int], n_heads: int) -> Bool[Tensor, " head"]:
    """Which of a layer's heads are meant."""
    chosen = torch.zeros(n_heads, dtype=torch.bool)
    chosen[list(heads)] = True
    return chosen


def blend(
    free: Float[Tensor, "*shape"], clamped: Float[Tensor, "*shape"], gate: Gate
) -> Float[Tensor, "*shape"]:
    """`free + gate * (clamped - free)`, exact at both ends."""
    if gate is None:
        return clamped
    return torch.lerp(free, clamped, torch.as_tensor(gate, dtype=free.dtype, device=free.device))


def replace(
    activation: Float[Tensor, "*shape"],
    hook: HookPoint,
    *,
    value: Float[Tensor, "*shape"],
    gate: Gate = None,
) -> Float[Tensor, "*shape"]:
    """The given value instead of the activation."""
    del hook
    return blend(activation, value, gate)


def zero(
    activation: Float[Tensor, "*shape"], hook: HookPoint, *, gate: Gate = None
) -> Float[Tensor, "*shape"]:
    """Zeros instead of the activation."""
    del hook
    return blend(activation, torch.zeros_like(activation), gate)


def zero_heads(
    v: PerHead, hook: HookPoint, *, heads: Bool[Tensor, " head"], gate: Gate = None
) -> PerHead:
    """The heads' values set to zero at every position: they write nothing."""
    del hook
    clamped = torch.where(heads[:, None].to(v.device), torch.zeros_like(v), v)
    return blend(v, clamped, gate)


def previous_token_pattern(n_positions: int, strength: Strength) -> Float[Tensor, "query key"]:
    """Row i: `strength` on i-1 and the rest on i; row 0 on itself.

    >>> previous_token_pattern(3, 0.75).tolist()
    [[1.0, 0.0, 0.0], [0.75, 0.25, 0.0], [0.0, 0.75, 0.25]]
    """
    own = torch.eye(n_positions)
    previous = own.roll(-1, dims=1).tril()
    first = torch.zeros(n_positions, n_positions)
    first[0, 0] = 1.0
    if isinstance(strength, Tensor):
        own, previous, first = (part.to(strength.device) for part in (own, previous, first))
    return strength * previous + (1 - strength) * (own - first) + first


def previous_token_attention(
    pattern: Pattern,
    hook: HookPoint,
    *,
    heads: Bool[Tensor, " head"],
    strength: Strength = 1.0,
    rows: Sequence[int] | None = None,
    gate: Gate = None,
) -> Pattern:
    """The heads' rows (all, or those given) attend to the previous token; see the pattern above."""
    del hook
    n_positions = pattern.shape[-1]
    target = previous_token_pattern(n_positions, strength).to(pattern)
    chosen = heads[:, None, None].to(pattern.device) & _rows(rows, n_positions, pattern.device)
    return blend(pattern, torch.where(chosen, target, pattern), gate)


def forbid_previous_token(
    scores: Scores,
    hook: HookPoint,
    *,
    heads: Bool[Tensor, " head"],
    rows: Sequence[int] | None = None,
    gate: Gate = None,
) -> Scores:
    """Scores at (i, i-1) masked, so that the softmax shares the weight among the others.

    A gate g below 1 multiplies that entry's odds by 1 - g instead.
    """
    del hook
    n_positions = scores.shape[-1]
    previous = torch.eye(n_positions, dtype=torch.bool).roll(-1, dims=1).tril().to(scores.device)
    chosen = heads[:, None, None].to(scores.device) & previous
    return _mask_scores(scores, chosen & _rows(rows, n_positions, scores.device), gate)


def attend_only(
    scores: Scores,
    hook: HookPoint,
    *,
    heads: Bool[Tensor, " head"],
    keys: Sequence[int],
    gate: Gate = None,
) -> Scores:
    """The last row's scores masked except at the given positions; gate as in the one above."""
    del hook
    n_positions = scores.shape[-1]
    other = torch.ones(n_positions, dtype=torch.bool)
    other[list(keys)] = False
    chosen = heads[:, None, None].to(scores.device) & other.to(scores.device)
    return _mask_scores(scores, chosen & _rows([n_positions - 1], n_positions, scores.device), gate)


def attention_temperature(
    scores: Scores,
    hook: HookPoint,
    *,
    heads: Bool[Tensor, " head"],
    temperature: Strength,
    gate: Gate = None,
) -> Scores:
    """The heads' scores divided by a temperature: below 1 sharper, above 1 flatter."""
    del hook
    inverse = 1 / torch.as_tensor(temperature, dtype=scores.dtype, device=scores.device)
    one = torch.ones((), dtype=scores.dtype, device=scores.device)
    # The factor is blended, not the scores: those above the diagonal are infinite.
    factor = torch.where(heads.to(scores.device), blend(one, inverse, gate), one)
    return scores * factor[:, None, None]


def query_attention(
    pattern: Pattern,
    hook: HookPoint,
    *,
    heads: Bool[Tensor, " head"],
    weights: Float[Tensor, "batch key"],
    gate: Gate = None,
) -> Pattern:
    """The heads' last row, the query's, set to given attention weights."""
    del hook
    n_positions = pattern.shape[-1]
    chosen = heads[:, None, None].to(pattern.device) & _rows(
        [n_positions - 1], n_positions, pattern.device
    )
    return blend(pattern, torch.where(chosen, weights[:, None, None, :], pattern), gate)


def induction_weights(
    correct: Bool[Tensor, "batch pair"], strength: Strength
) -> Float[Tensor, "batch pair"]:
    """`strength` shared by the correct labels, `1 - strength` by the others; rows sum to 1."""
    right = correct.float()
    wrong = 1 - right
    return strength * right / right.sum(-1, keepdim=True) + (1 - strength) * wrong / wrong.sum(
        -1, keepdim=True
    )


def match_weights(
    similarity: Float[Tensor, "batch pair"], temperature: Strength, *, hard: bool
) -> Float[Tensor, "batch pair"]:
    """Softmax of similarity / temperature; `hard` is its limit at 0, which ties share."""
    if hard:
        largest = (similarity == similarity.amax(-1, keepdim=True)).to(similarity)
        return largest / largest.sum(-1, keepdim=True)
    return (similarity / temperature).softmax(-1)


def at_labels(weights: Float[Tensor, "batch pair"], n_positions: int) -> Float[Tensor, "batch key"]:
    """Weights of the pairs, laid out at the positions of their labels; 0 elsewhere."""
    row = torch.stack([torch.zeros_like(weights), weights], dim=-1).flatten(start_dim=1)
    return torch.nn.functional.pad(row, (0, n_positions - row.shape[-1]))


def copied_logits(
    scores: Float[Tensor, "batch pair"], labels: Int[Tensor, "batch pair"], n_labels: int
) -> Float[Tensor, "batch label"]:
    """Logit of a context label: log of the summed exp of its pairs' scores; others masked.

    With each label once in the context that is the score itself.
    """
    shown = labels[..., None] == torch.arange(n_labels, device=labels.device)
    each = torch.where(shown, scores[..., None], torch.full((), MASKED).to(scores))
    return each.logsumexp(dim=-2)


def query_logits(
    logits: Logits, hook: HookPoint, *, value: Float[Tensor, "batch label"], gate: Gate = None
) -> Logits:
    """The last row of the logits, the query's, set to a given value.

    Where that is masked, a gate g multiplies the label's odds by 1 - g; elsewhere logits are
    blended.
    """
    del hook
    free = logits[:, -1]
    row = blend(free, value, gate)
    if gate is not None:
        row = torch.where(value <= MASKED / 2, _lower_odds(free, gate), row)
    return torch.cat([logits[:, :-1], row[:, None]], dim=1)


def previous_token_input(resid: Residual) -> Residual:
    """The previous position's vector at every position but the first and the last, the query."""
    return torch.cat([resid[:, :1], resid[:, :-2], resid[:, -1:]], dim=1)


def _rows(
    rows: Sequence[int] | None, n_positions: int, device: torch.device
) -> Bool[Tensor, "query 1"]:
    if rows is None:
        return torch.ones(n_positions, 1, dtype=torch.bool, device=device)
    return mask(rows, n_positions)[:, None].to(device)


def _mask_scores(scores: Scores, chosen: Tensor, gate: Gate) -> Scores:
    if gate is None:
        return torch.where(chosen, torch.full((), MASKED).to(scores), scores)
    return torch.where(chosen, _lower_odds(scores, gate), scores)


def _lower_odds(
    free: Float[Tensor, "*shape"], gate: Float[Tensor, ""] | float
) -> Float[Tensor, "*shape"]:
    """Logarithms of odds that are multiplied by 1 - gate; `MASKED` where that is 0."""
    g = torch.as_tensor(gate, dtype=free.dtype, device=free.device)
    # The logarithm is never taken of 0, where a gradient would be no number.
    lowered = free + torch.log1p(-torch.where(g < 1, g, torch.zeros_like(g)))
    return torch.where(g < 1, lowered, torch.full((), MASKED).to(free))
