"""Hook functions: pure `(activation, hook, *, ...) -> activation`, for plain TransformerLens too.

    from functools import partial
    hook = partial(hooks.previous_token_attention, heads=hooks.mask([2], 8), strength=1.0)
    logits = model.run_with_hooks(tokens, fwd_hooks=[("blocks.0.attn.hook_pattern", hook)])

Each returns a new tensor and never writes into the one it was given. `heads` are those of the layer
that are meant, as `mask` gives them. `gate` goes from 0, the free activation, to 1, the clamped
one; None is 1 without the arithmetic. Constants carry no gradient; values handed in carry theirs.
"""

import operator
from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from ih_interp._expect import values_are_known
from ih_interp.types import Logits, Pattern, PerHead, Residual, Scores

MASKED = -1e9
"""Stands for minus infinity in scores and logits: its exp is exactly 0, and 0 times it is not NaN.
In float16, which does not hold it, the dtype's lowest number stands instead."""

COLDEST, HOTTEST = 1e-30, 1e30
"""Temperatures between which float32 holds both 1/temperature and what it scales."""

Activation: TypeAlias = Float[Tensor, "*shape"]
Heads: TypeAlias = Bool[Tensor, " head"]
Gate: TypeAlias = Float[Tensor, ""] | float | None
Strength: TypeAlias = Float[Tensor, ""] | float


def mask(heads: Sequence[int], n_heads: int) -> Heads:
    """Return True for these of `n_heads` heads or positions; ValueError for others, and for bools.

    A negative number would count from the end, and True be 1, in silence.
    """
    chosen = torch.zeros(n_heads, dtype=torch.bool, device="cpu")
    for head in heads:
        if isinstance(head, bool) or not 0 <= operator.index(head) < n_heads:
            raise ValueError(f"{list(heads)}: expected numbers from 0 to {n_heads - 1}.")
        chosen[operator.index(head)] = True
    return chosen


def blend(free: Activation, clamped: Activation, gate: Gate) -> Activation:
    """Return `free + gate * (clamped - free)`, exact at both ends, in the dtype of `free`.

    Raises ValueError for two shapes, as of passes on different sequences: one would broadcast.
    """
    if clamped.shape != free.shape:
        raise ValueError(
            f"A clamp has values of shape {tuple(clamped.shape)} for an activation of shape "
            f"{tuple(free.shape)}; expected the same: run what it was made for, whole."
        )
    clamped = clamped.to(free)
    if gate is None:
        return clamped
    return torch.lerp(free, clamped, torch.as_tensor(gate, dtype=free.dtype, device=free.device))


def replace(
    activation: Activation, hook: HookPoint, *, value: Activation, gate: Gate = None
) -> Activation:
    """Return the given value instead of the activation."""
    return blend(activation, value, gate)


def zero(activation: Activation, hook: HookPoint, *, gate: Gate = None) -> Activation:
    """Return zeros instead of the activation."""
    return blend(activation, torch.zeros_like(activation), gate)


def zero_heads(v: PerHead, hook: HookPoint, *, heads: Heads, gate: Gate = None) -> PerHead:
    """Set the heads' values to zero at every position, so that they write nothing."""
    clamped = torch.where(_chosen(heads, v.transpose(1, 2))[..., 0], torch.zeros_like(v), v)
    return blend(v, clamped, gate)


def previous_token_pattern(n_positions: int, strength: Strength) -> Float[Tensor, "query key"]:
    """Return the pattern whose row i has `strength` on i-1 and the rest on i; row 0 is on itself.

    >>> previous_token_pattern(3, 0.75).tolist()
    [[1.0, 0.0, 0.0], [0.75, 0.25, 0.0], [0.0, 0.75, 0.25]]
    """
    device = strength.device if isinstance(strength, Tensor) else "cpu"
    own = torch.eye(n_positions, dtype=torch.float32, device=device)
    previous = own.roll(-1, dims=1).tril(-1)
    first = torch.zeros(n_positions, n_positions, dtype=torch.float32, device=device)
    first[0, 0] = 1.0
    return strength * previous + (1 - strength) * (own - first) + first


def previous_token_attention(
    pattern: Pattern,
    hook: HookPoint,
    *,
    heads: Heads,
    strength: Strength = 1.0,
    rows: Sequence[int] | None = None,
    gate: Gate = None,
) -> Pattern:
    """Have the heads' rows, all or those given, attend as in `previous_token_pattern`.

    With keys in a cache, rows are still positions of the whole sequence. Padding on the left has no
    pattern and keeps none; the token after it attends to itself, as a first one does.
    """
    target = _last(previous_token_pattern(pattern.shape[-1], strength), pattern).to(pattern)
    chosen = _chosen(heads, pattern) & _rows(rows, pattern)
    if values_are_known() and not bool(pattern[:, :, 0].any(dim=-1).all()):
        shown = pattern.any(dim=-1, keepdim=True)
        after = torch.cat([torch.ones_like(shown[:, :, :1]), shown[:, :, :-1]], dim=2)
        own = previous_token_pattern(pattern.shape[-1], 0.0)
        target = torch.where(after, target, _last(own, pattern).to(pattern))
        chosen = chosen & shown
    return blend(pattern, torch.where(chosen, target, pattern), gate)


def forbid_previous_token(
    scores: Scores,
    hook: HookPoint,
    *,
    heads: Heads,
    rows: Sequence[int] | None = None,
    gate: Gate = None,
) -> Scores:
    """Mask the scores at (i, i-1), so that the softmax shares the weight among the others.

    A gate g below 1 multiplies that entry's odds by 1 - g instead.
    """
    previous = torch.eye(scores.shape[-1], dtype=torch.bool, device="cpu").roll(-1, dims=1).tril(-1)
    chosen = _chosen(heads, scores) & _last(previous, scores).to(scores.device)
    return _mask_scores(scores, chosen & _rows(rows, scores), gate)


def attend_only(
    scores: Scores,
    hook: HookPoint,
    *,
    heads: Heads,
    keys: Sequence[int] | Bool[Tensor, "batch row key"],
    gate: Gate = None,
) -> Scores:
    """Mask scores except at some keys, of the last row alone or of every row that has keys.

    Gates act as in `forbid_previous_token`.
    """
    given = keys if isinstance(keys, Tensor) else mask(keys, scores.shape[-1])[None, None]
    shown = given[:, None].to(scores.device)
    chosen = _chosen(heads, scores) & ~shown & shown.any(dim=-1, keepdim=True)
    return _mask_scores(scores, chosen & _rows(shown.shape[2], scores), gate)


def attention_temperature(
    scores: Scores, hook: HookPoint, *, heads: Heads, temperature: Strength, gate: Gate = None
) -> Scores:
    """Divide the heads' scores by a temperature in [1e-30, 1e30]: below 1 sharper, above 1 flatter.

    In half precision, where quotients might be infinite, the row's largest score is taken off
    first, which does not change the softmax.
    """
    _refuse_extreme(temperature)
    wide, chosen = widened(scores), _chosen(heads, scores)
    inverse = 1 / torch.as_tensor(temperature, dtype=wide.dtype, device=scores.device)
    one = torch.ones((), dtype=wide.dtype, device=scores.device)
    # The factor is blended, not the scores: those above the diagonal are infinite.
    factor = torch.where(chosen, blend(one, inverse, gate), one)
    if wide is scores:
        return scores * factor
    shown = scores > torch.finfo(scores.dtype).min / 2  # of a key that a mask does not hide
    most = torch.where(shown, wide, _masked(scores).to(wide)).amax(dim=-1, keepdim=True)
    return torch.where(chosen & shown, ((wide - most) * factor).to(scores), scores)


def query_attention(
    pattern: Pattern,
    hook: HookPoint,
    *,
    heads: Heads,
    weights: Float[Tensor, "batch key"] | Float[Tensor, "batch row key"],
    gate: Gate = None,
) -> Pattern:
    """Set the heads' rows to given attention weights: the last row, the query's, or all rows.

    Rows whose weights are all 0 stay as they are. ValueError for weights of another shape.
    """
    weights = weights[:, None] if weights.ndim == 2 else weights
    n_sequences, _, n_rows, n_positions = pattern.shape
    if weights.shape not in [(n_sequences, n, n_positions) for n in (1, n_rows)]:
        raise ValueError(
            f"The query's weights have shape {tuple(weights.shape)}; expected "
            f"{(n_sequences, n_rows, n_positions)}, or one row per sequence for the last."
        )
    rows = weights[:, None].to(pattern)
    given = _rows(rows.shape[2], pattern) & rows.any(dim=-1, keepdim=True)
    chosen = _chosen(heads, pattern) & given
    return blend(pattern, torch.where(chosen, rows, pattern), gate)


def induction_weights(
    answers: Bool[Tensor, "*any key"],
    strength: Strength,
    candidates: Bool[Tensor, "*any key"] | None = None,
) -> Float[Tensor, "*any key"]:
    """Return `strength` shared among the answers, the rest among other candidates (all keys).

    Rows sum to 1; they are 0 where there is no answer, or no other candidate to take the rest.
    """
    right = answers.float()
    wrong = (1 - right) if candidates is None else (candidates & ~answers).float()
    n_right, n_wrong = (each.sum(-1, keepdim=True) for each in (right, wrong))
    rest = 1 - strength
    weights = strength * right / n_right.clamp(min=1) + rest * wrong / n_wrong.clamp(min=1)
    fits = (n_right > 0) & ((n_wrong > 0) | (torch.as_tensor(rest, device=right.device) == 0))
    return torch.where(fits, weights, torch.zeros_like(weights))


def match_weights(
    similarity: Float[Tensor, "batch pair"], temperature: Strength, *, hard: bool
) -> Float[Tensor, "batch pair"]:
    """Return the softmax of similarity / temperature, at least in float32.

    Temperatures lie in [1e-30, 1e30]; `hard` is the limit at 0, which ties share.
    """
    similarity = widened(similarity)
    if hard:
        largest = (similarity == similarity.amax(-1, keepdim=True)).to(similarity)
        return largest / largest.sum(-1, keepdim=True)
    _refuse_extreme(temperature)
    return (similarity / temperature).softmax(-1)


def at_labels(weights: Float[Tensor, "batch pair"], n_positions: int) -> Float[Tensor, "batch key"]:
    """Lay the pairs' weights out at the positions of their labels; 0 elsewhere."""
    row = torch.stack([torch.zeros_like(weights), weights], dim=-1).flatten(start_dim=1)
    return torch.nn.functional.pad(row, (0, n_positions - row.shape[-1]))


def copied_logits(
    scores: Float[Tensor, "*any key"],
    tokens: Int[Tensor, "*#any key"],
    n_tokens: int,
    candidates: Bool[Tensor, "*any key"] | None = None,
) -> Float[Tensor, "*any token"]:
    """Return each token's logit: logsumexp of the scores at candidates (all keys) that hold it.

    A token at one candidate has the score itself; tokens at none are masked.
    """
    shown = tokens[..., None] == torch.arange(n_tokens, device=tokens.device)
    shown = shown if candidates is None else shown & candidates[..., None]
    return torch.where(shown, scores[..., None], _masked(scores)).logsumexp(dim=-2)


def query_logits(
    logits: Logits,
    hook: HookPoint,
    *,
    value: Float[Tensor, "batch label"] | Float[Tensor, "batch row label"],
    gate: Gate = None,
) -> Logits:
    """Set the last row of the logits, the query's, or as many of the last as have values.

    A gate g blends logits; where all is masked they stay, else it multiplies odds by 1 - g there.
    """
    value = value[:, None] if value.ndim == 2 else value
    first, free = logits[:, : -value.shape[1]], logits[:, -value.shape[1] :]
    masked = value <= lowest(value) / 2
    rows = blend(free, value, gate)
    if gate is not None:
        rows = torch.where(masked, _lower_odds(free, gate), rows)
    return torch.cat([first, torch.where(masked.all(dim=-1, keepdim=True), free, rows)], dim=1)


def previous_token_input(resid: Residual, own: Bool[Tensor, "batch pos"] | None = None) -> Residual:
    """Shift vectors by one position; the first keeps its own, and `own`, by default the last."""
    if own is None:
        return torch.cat([resid[:, :1], resid[:, :-2], resid[:, -1:]], dim=1)
    return torch.where(own[..., None], resid, torch.cat([resid[:, :1], resid[:, :-1]], dim=1))


def lowest(like: Tensor) -> float:
    """Return `MASKED`, or the tensor's dtype's lowest number where that is higher."""
    return max(MASKED, torch.finfo(like.dtype).min)


def widened(values: Activation) -> Activation:
    """Return half-precision values in float32, and others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def _masked(like: Tensor) -> Float[Tensor, ""]:
    """Return `lowest` as a tensor, made on the CPU whatever the default device is."""
    return torch.full((), lowest(like), device="cpu").to(like)


def _refuse_extreme(temperature: Strength) -> None:
    if isinstance(temperature, Tensor) and not values_are_known():
        return
    if not COLDEST * 0.99 <= float(temperature) <= HOTTEST * 1.01:  # float32 rounds the ends
        raise ValueError(
            f"temperature={float(temperature):g}: expected {COLDEST:g} to {HOTTEST:g}, beyond "
            "which quotients are infinite or NaN."
        )


def _chosen(
    heads: Heads, activation: Float[Tensor, "batch _head pos any"]
) -> Bool[Tensor, "head 1 1"]:
    """Return the heads' mask beside `[batch, head, pos, any]`; ValueError for another length."""
    if len(heads) != activation.shape[1]:
        raise ValueError(
            f"The mask names {len(heads)} heads and the activation has {activation.shape[1]}; "
            "expected as many (keys and values of grouped-query attention have fewer: use hook_z)."
        )
    return heads.to(activation.device)[:, None, None]


def _last(
    rows: Shaped[Tensor, "key any"], like: Float[Tensor, "batch head query key"]
) -> Shaped[Tensor, "query any"]:
    """Return one row per query, the last ones: earlier keys come from a cache."""
    n_queries = like.shape[-2]
    return rows if len(rows) == n_queries else rows[len(rows) - n_queries :]


def _rows(
    rows: Sequence[int] | int | None, like: Float[Tensor, "batch head query key"]
) -> Bool[Tensor, "query 1"]:
    """Return True for these rows, for so many of the last, or for all."""
    rows = range(like.shape[-1])[-rows:] if isinstance(rows, int) else rows
    if rows is None:
        return torch.ones(like.shape[-2], 1, dtype=torch.bool, device=like.device)
    return _last(mask(rows, like.shape[-1])[:, None], like).to(like.device)


def _mask_scores(scores: Scores, chosen: Tensor, gate: Gate) -> Scores:
    lowered = _masked(scores) if gate is None else _lower_odds(scores, gate)
    return torch.where(chosen, lowered, scores)


def _lower_odds(free: Activation, gate: Float[Tensor, ""] | float) -> Activation:
    """Return the logarithms of odds that are multiplied by 1 - gate; `lowest` where that is 0."""
    g = torch.as_tensor(gate, dtype=free.dtype, device=free.device)
    # The logarithm is never taken of 0, where a gradient would be NaN.
    lowered = free + torch.log1p(-torch.where(g < 1, g, torch.zeros_like(g)))
    return torch.where(g < 1, lowered, _masked(free))
