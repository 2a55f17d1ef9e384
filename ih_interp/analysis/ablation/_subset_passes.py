"""Logits and metrics of a model with subsets of its heads ablated, chunk by chunk.

Heads of the last layer take no pass of their own where `_linear_readout.is_linear`. On the paper's
model, for all 256 subsets of 8 heads and 784 sequences, that takes 0.2 s in place of 22 s.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp.analysis._passes import Ablation, chunk_size, put_heads, recording
from ih_interp.analysis.ablation._linear_readout import Readout, is_linear, readout
from ih_interp.analysis.heads.pattern_scores import CHUNK
from ih_interp.clamps.base import Hook, Shape, head_mask
from ih_interp.evaluation import Metric, measured
from ih_interp.types import Batch, Head, Tokens

Block: TypeAlias = tuple[slice, Int[ndarray, " subset"], Float[Tensor, "subset batch label"]]
"""Sequences, subsets, and their logits at the last position."""

Replacement: TypeAlias = Float[Tensor, "batch pos head d_head"]

BLOCK = 2**19  # logits at once, 4 MiB: more leave the processor's cache
SCALE = "ln_final.hook_scale"


@dataclass(frozen=True)
class _Chunk:
    """Sequences that go through a pass together, and the subsets of heads to leave on."""

    model: HookedTransformer
    tokens: Tokens
    heads: Sequence[Head]
    on: Bool[ndarray, "subset head"]
    given: Replacement
    freeze_ln: bool


class _Pass(NamedTuple):
    """Activations of one pass: z of the last layer, its input, and the final norm's scale."""

    logits: Float[Tensor, "batch label"]
    z: Float[Tensor, "batch head d_head"]
    resid: Float[Tensor, "batch d_model"]
    scale: Float[Tensor, "batch pos 1"] | None


def measured_subsets(
    model: HookedTransformer,
    batch: Batch,
    heads: Sequence[Head],
    on: Bool[ndarray, "subset head"],
    metrics: Sequence[Metric],
    ablation: Ablation = "zero",
    reference: Batch | None = None,
    *,
    freeze_ln: bool = False,
    seed: int = 0,
) -> Generator[tuple[slice, Int[ndarray, " subset"], Float[Tensor, "metric subset batch"]]]:
    """Yield metrics of some sequences and subsets at a time, until all are done."""
    head_mask(heads, Shape.of(model))  # refuses heads that the model lacks
    given = _replacement(model, batch, heads, ablation, reference, seed)
    size = chunk_size(model, len(batch))
    for start, part in zip(range(0, len(batch), size), batch.split(size), strict=True):
        chunk = _Chunk(model, part.tokens, heads, on, given[start : start + size], freeze_ln)
        for rows, columns, logits in _blocks(chunk):
            values = [measured(metric, logits, part[rows]).double() for metric in metrics]
            of_batch = slice(start + rows.start, start + min(rows.stop, len(part)))
            yield of_batch, columns, torch.stack(values)


def _blocks(chunk: _Chunk) -> Generator[Block]:
    """Yield logits after one pass per subset of those heads that cannot be read linearly."""
    model, last = chunk.model, chunk.model.cfg.n_layers - 1
    linear = is_linear(model)
    by_pass = np.array([head.layer < last or not linear for head in chunk.heads])
    patterns, group = np.unique(chunk.on[:, by_pass], axis=0, return_inverse=True)
    whole = _run(chunk, [])
    frozen: list[Hook] = []
    if chunk.freeze_ln and whole.scale is not None:
        frozen = [(SCALE, lambda _, **__: whole.scale)]
    for place, pattern in enumerate(patterns):
        off = np.flatnonzero(by_pass)[~pattern].tolist()
        found = _run(chunk, off, frozen) if off else whole
        columns = np.flatnonzero(group == place)
        if by_pass.all():
            yield slice(0, len(chunk.tokens)), columns, found.logits[None]
        else:
            yield from _read_linearly(chunk, found, whole, columns, ~by_pass)


def _read_linearly(
    chunk: _Chunk,
    found: _Pass,
    whole: _Pass,
    columns: Int[ndarray, " subset"],
    read: Bool[ndarray, " head"],
) -> Generator[Block]:
    """Yield logits of subsets that differ in the heads `read` alone, from one pass."""
    on = torch.from_numpy(chunk.on[columns][:, read]).to(found.resid).double()
    on = torch.cat([torch.ones_like(on[:, :1]), on], dim=1)
    for start in range(0, len(chunk.tokens), CHUNK):
        rows = slice(start, start + CHUNK)
        parts, scale = _parts(chunk, found, rows, read), None
        if chunk.freeze_ln:
            scale = _parts(chunk, whole, rows, read).scale(torch.ones_like(on[:1]))
        size = max(1, BLOCK // parts.unnormalised[0].numel())
        for first in range(0, len(on), size):
            here = slice(first, first + size)
            yield rows, columns[here], parts.logits(on[here], scale)


def _parts(chunk: _Chunk, found: _Pass, rows: slice, read: Bool[ndarray, " head"]) -> Readout:
    """Return a pass's logits in parts, one for each of the heads `read`."""
    places = np.flatnonzero(read).tolist()
    heads = [chunk.heads[place].head for place in places]
    ablated = chunk.given[rows, -1, places]
    return readout(chunk.model, heads, found.z[rows], ablated, found.resid[rows])


def _run(chunk: _Chunk, off: Sequence[int], hooks: Sequence[Hook] = ()) -> _Pass:
    """Run one pass with some of the heads ablated."""
    model, heads, last = chunk.model, chunk.heads, chunk.model.cfg.n_layers - 1
    z, resid = f"blocks.{last}.attn.hook_z", f"blocks.{last}.hook_resid_pre"
    ablate: list[Any] = []
    for layer in sorted({heads[i].layer for i in off}):
        here = [i for i in off if heads[i].layer == layer]
        put = partial(put_heads, heads=[heads[i].head for i in here], value=chunk.given[:, :, here])
        ablate.append((f"blocks.{layer}.attn.hook_z", put))
    names = [name for name in (z, resid, SCALE) if name in model.hook_dict]
    with model.hooks(fwd_hooks=[*ablate, *hooks]), recording(model, names) as kept:
        logits = model(chunk.tokens)
    return _Pass(logits[:, -1], kept[z][:, -1], kept[resid][:, -1], kept.get(SCALE))


def _replacement(
    model: HookedTransformer,
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
        return torch.zeros(1, n_positions, len(heads), model.cfg.d_head).expand(n, -1, -1, -1)
    rows = n if ablation == "resample" else len(source)
    if source.tokens.shape != (rows, n_positions):
        raise ValueError(
            f"reference: expected {rows} sequences of {n_positions} tokens, to replace z position "
            f"by position, got {len(source)} of {source.tokens.shape[1]}."
        )
    if ablation == "resample" and reference is None and n < 2:
        raise ValueError("batch: expected two sequences to resample from, or a reference; got 1.")
    z = _clean_z(model, source, heads)
    if ablation == "mean":
        return z.double().mean(dim=0).to(z).expand(n, -1, -1, -1)
    return z if reference is not None else z[one_cycle(n, seed)]


def one_cycle(n: int, seed: int) -> Int[Tensor, " batch"]:
    """Return for each of n places the next one on a random cycle through all of them."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(int(seed)))
    return torch.empty_like(order).scatter_(0, order, order.roll(1))


def _clean_z(
    model: HookedTransformer, batch: Batch, heads: Sequence[Head]
) -> Float[Tensor, "batch pos head d_head"]:
    """Return `hook_z` of the heads with every head on."""
    points = [f"blocks.{head.layer}.attn.hook_z" for head in heads]
    parts: list[Tensor] = []
    for part in batch.split(chunk_size(model, len(batch))):
        with recording(model, points) as kept:
            model(part.tokens)
        each = [kept[point][:, :, head.head] for point, head in zip(points, heads, strict=True)]
        parts.append(torch.stack(each, dim=2))
    return torch.cat(parts)
