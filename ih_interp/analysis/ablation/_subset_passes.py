"""Passes of a model with subsets of its heads ablated, chunk by chunk; `coalitions` says what."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp._stock import starts_late
from ih_interp.analysis._passes import Entered, chunk_size, entering
from ih_interp.analysis.ablation._linear_readout import Readout, is_linear, readout
from ih_interp.analysis.heads.pattern_scores import CHUNK
from ih_interp.clamps.base import Shape, head_mask
from ih_interp.evaluation import Metric, measured
from ih_interp.types import Batch, Head, PerHead, Tokens

Ablation: TypeAlias = Literal["zero", "mean", "resample"]
Hook: TypeAlias = tuple[str, Callable[..., Tensor | None]]

Block: TypeAlias = tuple[slice, Int[ndarray, " subset"], Float[Tensor, "subset batch label"]]
"""Which sequences and which subsets, and their logits at the last position."""

BLOCK = 2**19  # logits at once, 4 MiB: more leave the processor's cache


@dataclass(frozen=True)
class Replacement:
    """What stands in place of an ablated head's z."""

    values: Float[Tensor, "row pos head d_head"]
    donor: Int[Tensor, " batch"] | None = None
    """The row that each sequence takes; None where there is one row for all."""

    def of(self, rows: slice) -> Float[Tensor, "row pos head d_head"]:
        return self.values if self.donor is None else self.values[self.donor[rows]]


class _Pass(NamedTuple):
    """What one pass left at the last position."""

    logits: Float[Tensor, "batch label"]
    z: Float[Tensor, "batch head d_head"]
    """Of the last layer."""
    resid: Float[Tensor, "batch d_model"]
    """Before it."""
    scale: Float[Tensor, "batch pos 1"] | None
    """The final norm's."""
    start: Entered
    """What the layer of the lowest head is given."""


@dataclass(frozen=True)
class _Plan:
    """Heads, subsets of them, and how their logits are to be had."""

    model: HookedTransformer
    heads: Sequence[Head]
    on: Bool[ndarray, "subset head"]
    freeze_ln: bool
    may_start_late: bool

    @property
    def last(self) -> int:
        return self.model.cfg.n_layers - 1

    @property
    def lowest(self) -> int:
        return min(head.layer for head in self.heads)


def measured_subsets(
    model: HookedTransformer,
    batch: Batch,
    heads: Sequence[Head],
    on: Bool[ndarray, "subset head"],
    *,
    metrics: Sequence[Metric],
    ablation: Ablation,
    reference: Batch | None,
    freeze_ln: bool,
    seed: int,
) -> Generator[tuple[slice, Int[ndarray, " subset"], Float[Tensor, "metric subset batch"]]]:
    """Metrics of some sequences and subsets at a time, until all of both have been."""
    head_mask(heads, Shape.of(model))  # refuses heads that the model lacks
    replacement = _replacement(model, batch, heads, ablation, reference, seed)
    linear = is_linear(model) and any(head.layer == model.cfg.n_layers - 1 for head in heads)
    plan = _Plan(model, heads, on, freeze_ln, starts_late(model))
    logits_of = _from_parts if linear else _from_passes
    size = chunk_size(model, len(batch))
    for start, part in zip(range(0, len(batch), size), batch.split(size), strict=True):
        given = replacement.of(slice(start, start + size))
        for rows, columns, logits in logits_of(plan, part.tokens, given):
            values = [measured(metric, logits, part[rows]).double() for metric in metrics]
            here = slice(start + rows.start, start + min(rows.stop, len(part)))
            yield here, columns, torch.stack(values)


def _from_passes(
    plan: _Plan, tokens: Tokens, given: Float[Tensor, "row pos head d_head"]
) -> Generator[Block]:
    """One pass a subset, from the residual stream at the lowest head where that is the same."""
    full = _run(plan, tokens, given, [])
    frozen: list[Hook] = []
    if plan.freeze_ln and full.scale is not None:
        frozen = [("ln_final.hook_scale", partial(_instead, value=full.scale))]
    for subset, members in enumerate(plan.on):
        off = np.flatnonzero(~members).tolist()
        found = _run(plan, tokens, given, off, full=full, hooks=frozen)
        yield slice(0, len(tokens)), np.array([subset]), found.logits[None]


def _from_parts(
    plan: _Plan, tokens: Tokens, given: Float[Tensor, "row pos head d_head"]
) -> Generator[Block]:
    """One pass for each subset of the lower heads; those of the last layer by linearity."""
    lower = np.array([head.layer < plan.last for head in plan.heads])
    patterns, group = np.unique(plan.on[:, lower], axis=0, return_inverse=True)
    full = _run(plan, tokens, given, [])
    for place, pattern in enumerate(patterns):
        off = np.flatnonzero(lower)[~pattern].tolist()
        found = full if not off else _run(plan, tokens, given, off, full=full)
        columns = np.flatnonzero(group == place)
        on = torch.from_numpy(plan.on[columns][:, ~lower]).to(found.resid).double()
        on = torch.cat([torch.ones_like(on[:, :1]), on], dim=1)
        for start in range(0, len(tokens), CHUNK):
            rows = slice(start, start + CHUNK)
            parts = _readout(plan, found, given, rows, ~lower)
            scale = None
            if plan.freeze_ln:
                whole = parts if found is full else _readout(plan, full, given, rows, ~lower)
                scale = whole.scale(torch.ones_like(on[:1]))
            size = max(1, BLOCK // parts.unnormalised[0].numel())
            for first in range(0, len(on), size):
                here = slice(first, first + size)
                yield rows, columns[here], parts.logits(on[here], scale)


def _readout(
    plan: _Plan,
    found: _Pass,
    given: Float[Tensor, "row pos head d_head"],
    rows: slice,
    of_last: Bool[ndarray, " head"],
) -> Readout:
    """A pass's logits in parts, one for each of the heads in the last layer."""
    heads = [head.head for head in plan.heads if head.layer == plan.last]
    ablated = given[:, -1, np.flatnonzero(of_last)]
    ablated = ablated if len(ablated) == 1 else ablated[rows]
    return readout(plan.model, heads, found.z[rows], ablated, found.resid[rows])


def _run(
    plan: _Plan,
    tokens: Tokens,
    given: Float[Tensor, "row pos head d_head"],
    off: Sequence[int],
    *,
    full: _Pass | None = None,
    hooks: Sequence[Hook] = (),
) -> _Pass:
    """One pass with some of the heads ablated."""
    kept: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        kept[hook.name] = activation

    z, resid = f"blocks.{plan.last}.attn.hook_z", f"blocks.{plan.last}.hook_resid_pre"
    scale = "ln_final.hook_scale"
    names = [z, resid] + [scale] * (scale in plan.model.hook_dict)
    ablate: list[Hook] = []
    for layer in sorted({plan.heads[i].layer for i in off}):
        here = [i for i in off if plan.heads[i].layer == layer]
        put = partial(_put, heads=[plan.heads[i].head for i in here], value=given[:, :, here])
        ablate.append((f"blocks.{layer}.attn.hook_z", put))
    added: list[Any] = [*ablate, *hooks, *((name, keep) for name in names)]
    with plan.model.hooks(fwd_hooks=added), entering(plan.model, plan.lowest) as entered:
        if full is not None and plan.may_start_late:
            start = full.start
            entering_it = start.resid.clone()  # a hook may write into it
            logits = plan.model(entering_it, start_at_layer=plan.lowest, **start.others)
        else:
            logits = plan.model(tokens)
    return _Pass(logits[:, -1], kept[z][:, -1], kept[resid][:, -1], kept.get(scale), entered[-1])


def _put(
    z: PerHead, hook: Any, *, heads: Sequence[int], value: Float[Tensor, "row pos chosen d_head"]
) -> PerHead:
    del hook
    replaced = z.clone()
    replaced[:, :, list(heads)] = value.to(z)
    return replaced


def _instead(activation: Tensor, hook: Any, *, value: Tensor) -> Tensor:
    del activation, hook
    return value


def _replacement(
    model: HookedTransformer,
    batch: Batch,
    heads: Sequence[Head],
    ablation: Ablation,
    reference: Batch | None,
    seed: int,
) -> Replacement:
    if ablation not in get_args(Ablation):
        raise ValueError(f"ablation={ablation!r}; choose from {', '.join(get_args(Ablation))}.")
    n, n_positions = batch.tokens.shape
    source = batch if reference is None else reference
    if ablation == "zero":
        if reference is not None:
            raise ValueError("Zero ablation reads no reference; drop it, or name the ablation.")
        return Replacement(
            torch.zeros(1, n_positions, len(heads), model.cfg.d_head).to(_device(model))
        )
    if source.tokens.shape[1] != n_positions:
        raise ValueError(
            f"The reference's sequences have {source.tokens.shape[1]} tokens and the batch's "
            f"{n_positions}; z is replaced position by position, so as many were expected."
        )
    z = _clean_z(model, source, heads)
    if ablation == "mean":
        return Replacement(z.double().mean(dim=0, keepdim=True).to(z))
    if reference is not None:
        if len(reference) != n:
            raise ValueError(
                f"The reference has {len(reference)} sequences and the batch {n}: resampling goes "
                "row by row, so as many were expected."
            )
        return Replacement(z, torch.arange(n))
    if n < 2:
        raise ValueError("One sequence has no other to resample from; give two, or a reference.")
    return Replacement(z, one_cycle(n, seed))


def one_cycle(n: int, seed: int) -> Int[Tensor, " batch"]:
    """A random cycle through n things: for each the next one, never itself."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(int(seed)))
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def _clean_z(
    model: HookedTransformer, batch: Batch, heads: Sequence[Head]
) -> Float[Tensor, "batch pos head d_head"]:
    """What `hook_z` of the heads is with every head on."""
    parts: list[Tensor] = []
    for part in batch.split(chunk_size(model, len(batch))):
        kept: dict[int, Tensor] = {}

        def keep(z: PerHead, hook: Any, kept: dict[int, Tensor] = kept) -> None:
            kept[hook.layer()] = z

        layers = sorted({head.layer for head in heads})
        with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", keep) for layer in layers]):
            model(part.tokens)
        parts.append(torch.stack([kept[head.layer][:, :, head.head] for head in heads], dim=2))
    return torch.cat(parts)


def _device(model: HookedTransformer) -> torch.device:
    return next(model.parameters()).device
