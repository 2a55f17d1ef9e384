"""Replacements of the z of ablated heads: zero, a mean over sequences, or another sequence's."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ih_interp.analysis._passes import Ablation, recording
from ih_interp.batch import Batch
from ih_interp.clamps._active import rows_per_pass
from ih_interp.hooked_model import HookedModel
from ih_interp.types import Head

Replacement: TypeAlias = Float[Tensor, "batch pos head d_head"]


def replacement(
    model: HookedModel,
    batch: Batch,
    heads: Sequence[Head],
    ablation: Ablation,
    reference: Batch | None,
    seed: int,
) -> Replacement:
    """Return what replaces z of the heads in every sequence; ValueError for an unfit reference."""
    (n, n_positions), source = batch.tokens.shape, batch if reference is None else reference
    if ablation == "zero":
        if reference is not None:
            raise ValueError(
                "reference: expected None with ablation='zero', which reads none; drop it, or "
                "write ablation='mean' or 'resample'."
            )
        zeros = torch.zeros(1, n_positions, len(heads), model.cfg.d_head)
        return zeros.to(batch.tokens.device).expand(n, -1, -1, -1)
    rows = n if ablation == "resample" else len(source)
    if source.tokens.shape != (rows, n_positions):
        raise ValueError(
            f"reference: expected {rows} sequences of {n_positions} tokens, to replace z position "
            f"by position, got {len(source)} of {source.tokens.shape[1]}."
        )
    take = None
    if ablation == "resample":
        take = _others(batch, seed) if reference is None else _same_lengths(batch, reference)
    points, parts = [f"blocks.{head.layer}.attn.hook_z" for head in heads], list[Tensor]()
    for part in source.split(rows_per_pass(model, source.tokens)):
        with recording(model, points) as kept:
            model(part.tokens)
        each = [kept[point][:, :, head.head] for point, head in zip(points, heads, strict=True)]
        parts.append(torch.stack(each, dim=2))
    z = torch.cat(parts)
    if take is None:
        return _means(z, source, batch).to(z).expand(n, -1, -1, -1)
    return z[take]


def _means(z: Replacement, source: Batch, batch: Batch) -> Float[Tensor, "1 pos head d_head"]:
    """Return the mean of z at each position over the sequences that reach it."""
    if source.given_lengths is None:
        return z.double().mean(dim=0, keepdim=True)
    there, needed = source.present, batch.present.any(dim=0)
    if missing := (needed & ~there.any(dim=0)).nonzero().flatten().tolist():
        raise ValueError(
            f"reference: no sequence reaches position {missing[0]}, where the batch has tokens: "
            "expected sequences as long as the batch's longest."
        )
    total = torch.where(there[..., None, None], z.double(), 0).sum(dim=0, keepdim=True)
    return total / there.sum(dim=0).clamp(min=1)[:, None, None]


def _same_lengths(batch: Batch, reference: Batch) -> slice:
    """Return all rows of the reference; ValueError where one has another length than its row."""
    if not torch.equal(batch.present, reference.present):
        raise ValueError(
            "reference: expected each sequence to be as long as that of its row in the batch, "
            "whose z it replaces; give sequences of the same lengths."
        )
    return slice(None)


def _others(batch: Batch, seed: int) -> Int[Tensor, " batch"]:
    """Return for each sequence another of its length, each once, drawn from the seed."""
    lengths, taken = batch.present.sum(dim=1), torch.arange(len(batch))
    for length in lengths.unique().tolist():
        rows = (lengths == length).nonzero()[:, 0].cpu()
        if len(rows) < 2:
            raise ValueError(
                f"batch: expected two sequences or more of each length to resample from, or a "
                f"reference; got 1 of length {length}."
            )
        taken[rows] = rows[one_cycle(len(rows), seed)]
    return taken


def one_cycle(n: int, seed: int) -> Int[Tensor, " batch"]:
    """Return for each of n places the next one on a random cycle through all of them."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(int(seed)))
    return torch.empty_like(order).scatter_(0, order, order.roll(1))
