"""Logits and metrics of a model with subsets of its heads ablated, chunk by chunk.

Heads of the last layer take no pass of their own where the model `is_linear`: nothing but the final
norm and the unembedding then reads what they write. With 0/1 numbers m_0 = 1 for all the rest and
m_i for head i, the residual stream at an asked position is sum_i m_i p_i, so that logits before
division by the norm's scale are linear in m, and the scale's square is m' G m / d_model + eps, G
the Gram matrix of the (centred) parts. Both are matrix products over subsets. On the paper's model,
for all 256 subsets of 8 heads and 784 sequences, that takes 0.2 s in place of 22 s.
"""

import math
import re
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from ih_interp._stock import not_plain, parts_of
from ih_interp._torch_state import in_single
from ih_interp.analysis._passes import EDITED, SCALE, Ablation, put_heads, recording
from ih_interp.analysis.ablation._replacements import Replacement, replacement
from ih_interp.analysis.patching._last_layer import final_norm
from ih_interp.batch import Batch
from ih_interp.clamps._active import CHUNK, rows_per_pass
from ih_interp.clamps.base import Hook, Shape, head_mask
from ih_interp.evaluation import Metric, at_asked, measured
from ih_interp.hooked_model import HookedModel
from ih_interp.types import Head

Columns: TypeAlias = Int[ndarray, " subset"]
Block: TypeAlias = tuple[slice, Columns, Float[Tensor, "subset asked token"]]
"""Sequences, subsets, and their logits at the asked positions."""

HEADS = 'give heads, as ["L0H1", "L1H3"], and the rest by name'
BLOCK = 2**19  # logits at once, 4 MiB: more leave the processor's cache
MOST_LOGITS = 2**27  # of parts at once, 1 GiB
MOST_BYTES = 2 * 2**30

BEFORE_Z = re.compile(
    r"hook_(resid_pre|attn_in|[qkv]_input)|ln1(\.hook_\w+)?"
    r"|attn\.hook_((rot_)?[qk]|v|attn_scores|pattern|z)"
)
"""Modules of a block up to the heads' output; hooks on them leave the rest of it linear."""


def is_linear(model: HookedModel) -> bool:
    """Return whether logits are known to be linear in the last `hook_z`, but for a norm's scale.

    They are in an attention-only model with one of TransformerLens's norms or none, unless a hook
    stands after the last `hook_z`.
    """
    if not model.cfg.attn_only:
        return False
    last = dict(model.blocks[-1].named_modules())
    before = [part for name, part in last.items() if BEFORE_Z.fullmatch(name)]
    skipped = [*last.values(), *parts_of(*final_norm(model), model.unembed)]
    return not_plain(model, skipped, may_be_hooked=before, after_z=True) is None


class _Pass(NamedTuple):
    """Activations of one pass: z of the last layer, its input, and the final norm's scale."""

    logits: Float[Tensor, "asked token"]
    z: Float[Tensor, "asked head d_head"]
    resid: Float[Tensor, "asked d_model"]
    scale: Float[Tensor, "batch pos 1"] | None


class Readout(NamedTuple):
    """The logits at asked positions, in parts; part 0 is always on. Float64."""

    unnormalised: Float[Tensor, "part asked token"]
    """Logits that each part adds, before division by the scale."""
    gram: Float[Tensor, "pair asked"] | None
    """Inner products of the parts i <= j, over d_model, twice for i < j; None without a norm."""
    bias: Float[Tensor, " token"]
    eps: float

    def scale(self, on: Float[Tensor, "subset part"]) -> Float[Tensor, "subset asked"] | None:
        """Return the final norm's scale for every subset; None without a norm."""
        if self.gram is None:
            return None
        i, j = torch.triu_indices(on.shape[1], on.shape[1])
        squares = times(on[:, i] * on[:, j], self.gram)
        return (squares.clamp(min=0) + self.eps).sqrt()  # rounding may fall below 0

    def logits(
        self, on: Float[Tensor, "subset part"], scale: Float[Tensor, "#subset asked"] | None = None
    ) -> Float[Tensor, "subset asked token"]:
        """Return the logits of every subset, by their own scale or a given one."""
        flat = self.unnormalised.flatten(start_dim=1)
        total = times(on, flat).reshape(len(on), *self.unnormalised.shape[1:])
        scale = self.scale(on) if scale is None else scale
        return (total if scale is None else total / scale[..., None]) + self.bias


def times(
    on: Float[Tensor, "subset part"], parts: Float[Tensor, "part any"]
) -> Float[Tensor, "subset any"]:
    """Return `on @ parts`, where a part that is off adds 0 even if it is infinite or NaN."""
    finite = parts.isfinite()
    if bool(finite.all()):
        return on @ parts
    added = on @ torch.where(finite, parts, torch.zeros_like(parts))
    return added.masked_fill(on.abs() @ (~finite).to(on) > 0, torch.nan)


def subset_values(
    model: HookedModel,
    batch: Batch,
    heads: Sequence[Head],
    on: Bool[ndarray, "subset head"],
    metrics: Sequence[Metric],
    ablation: Ablation = "zero",
    reference: Batch | None = None,
    *,
    freeze_ln: bool = False,
    per_sequence: bool = True,
    seed: int = 0,
) -> tuple[Float[ndarray, "metric subset"], Float[ndarray, "metric batch subset"] | None]:
    """Return metrics with chosen subsets of heads on: means, and values of every sequence."""
    head_mask(heads, Shape.of(model))  # refuses heads that the model lacks
    if freeze_ln and model.cfg.normalization_type is not None and SCALE not in model.hook_dict:
        raise ValueError(f"freeze_ln=True: expected a model with {SCALE}; this one has none.")
    mean = np.zeros((len(metrics), len(on)))
    shape = (len(metrics), len(batch), len(on))
    if per_sequence and 4 * math.prod(shape) > MOST_BYTES:
        raise ValueError(
            "{:,} metrics x {:,} sequences x {:,} subsets need ".format(*shape)
            + f"{4 * math.prod(shape) / 2**30:.1f} GiB: expected at most {MOST_BYTES / 2**30:g}; "
            "take fewer sequences, heads or metrics."
        )
    each = np.empty(shape, dtype=np.float32) if per_sequence else None
    given = replacement(model, batch, heads, ablation, reference, seed)
    size = rows_per_pass(model, batch.tokens)
    for start, part in zip(range(0, len(batch), size), batch.split(size), strict=True):
        chunk = _Chunk(model, part, heads, on, given[start : start + size], freeze_ln)
        for rows, columns, logits in chunk.blocks():
            found = [measured(metric, logits, part[rows]).double() for metric in metrics]
            values = torch.stack(found)
            mean[:, columns] += values.sum(dim=-1).cpu().numpy()
            if each is not None:
                here = slice(start + rows.start, start + min(rows.stop, len(part)))
                each[:, here, columns] = values.transpose(1, 2).cpu().numpy()
    return mean / len(batch), each


@dataclass(frozen=True)
class _Chunk:
    """Sequences that go through a pass together, and the subsets of heads to leave on."""

    model: HookedModel
    batch: Batch
    heads: Sequence[Head]
    on: Bool[ndarray, "subset head"]
    given: Replacement
    freeze_ln: bool

    def blocks(self) -> Generator[Block]:
        """Yield logits after one pass per subset of those heads that cannot be read linearly."""
        last, linear = self.model.cfg.n_layers - 1, is_linear(self.model)
        by_pass = np.array([head.layer < last or not linear for head in self.heads])
        patterns, group = np.unique(self.on[:, by_pass], axis=0, return_inverse=True)
        whole = self._run([])
        frozen: list[Hook] = []
        if self.freeze_ln and whole.scale is not None:
            frozen = [(SCALE, lambda _, **__: whole.scale)]
        for place, pattern in enumerate(patterns):
            off = np.flatnonzero(by_pass)[~pattern].tolist()
            found = self._run(off, frozen) if off else whole
            columns = np.flatnonzero(group == place)
            if by_pass.all():
                yield slice(0, len(self.batch)), columns, found.logits[None]
            else:
                yield from self._read(~by_pass, columns, found, whole)

    def _run(self, off: Sequence[int], hooks: Sequence[Hook] = ()) -> _Pass:
        """Run one pass with some of the heads ablated."""
        model, heads, last = self.model, self.heads, self.model.cfg.n_layers - 1
        z, resid = f"blocks.{last}.attn.hook_z", f"blocks.{last}.hook_resid_pre"
        ablate: list[Any] = []
        for layer in sorted({heads[i].layer for i in off}):
            here = [i for i in off if heads[i].layer == layer]
            which, value = [heads[i].head for i in here], self.given[:, :, here]
            put = partial(put_heads, heads=which, value=value)
            ablate.append((f"blocks.{layer}.attn.hook_z", put))
        names = [name for name in (z, resid, SCALE) if name in model.hook_dict]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=EDITED)
            with model.hooks(fwd_hooks=[*ablate, *hooks]), recording(model, names) as kept:
                logits = model(self.batch.tokens)
        of_z = _heads_at_asked(kept[z], self.batch)
        logits, resid = (at_asked(values, self.batch) for values in (logits, kept[resid]))
        return _Pass(in_single(logits), of_z, resid, kept.get(SCALE))

    def _read(
        self, heads: Bool[ndarray, " head"], columns: Columns, found: _Pass, whole: _Pass
    ) -> Generator[Block]:
        """Yield logits of subsets that differ in these heads alone, from one pass."""
        on = torch.from_numpy(self.on[columns][:, heads]).to(found.resid).double()
        on = torch.cat([torch.ones_like(on[:, :1]), on], dim=1)
        places = np.flatnonzero(heads).tolist()
        n_rows = self._rows_at_once(len(places))
        for start in range(0, len(self.batch), n_rows):
            rows = slice(start, start + n_rows)
            parts, scale = self._parts(found, rows, places), None
            if self.freeze_ln:
                scale = self._parts(whole, rows, places).scale(torch.ones_like(on[:1]))
            size = max(1, BLOCK // max(1, parts.unnormalised[0].numel()))
            for first in range(0, len(on), size):
                here = slice(first, first + size)
                yield rows, columns[here], parts.logits(on[here], scale)

    def _rows_at_once(self, n_heads: int) -> int:
        """Return how many sequences are read at once: few where logits are many."""
        most = int(self.batch.asked.sum(dim=1).max())
        per_sequence = (1 + n_heads) * max(1, most) * self.model.cfg.d_vocab_out
        return min(CHUNK, max(1, MOST_LOGITS // per_sequence))

    def _parts(self, found: _Pass, rows: slice, places: list[int]) -> Readout:
        """Return a pass's logits in parts, one for each of these heads."""
        attn, batch = self.model.blocks[-1].attn, self.batch[rows]
        heads = [self.heads[place].head for place in places]
        before = int(self.batch.asked[: rows.start].sum())
        asked = slice(before, before + int(batch.asked.sum()))
        w_o, z = attn.W_O.double(), found.z[asked].double()
        off = z.clone()
        off[:, heads] = _heads_at_asked(self.given[rows][:, :, places], batch).to(z)
        # A sum of what stays, not all minus heads: one with large output would leave rounding.
        rest = found.resid[asked].double() + attn.b_O.double()
        rest = rest + torch.einsum("bhk,hkd->bd", off, w_o)
        changed = (z - off)[:, heads]
        parts = torch.cat([rest[None], torch.einsum("bhk,hkd->hbd", changed, w_o[heads])])
        return self._readout(parts)

    def _readout(self, parts: Float[Tensor, "part asked d_model"]) -> Readout:
        """Return what parts of the stream add to the logits, and the products for their scale."""
        model = self.model
        w_u, bias = model.unembed.W_U.double(), model.unembed.b_U.double()
        kind = model.cfg.normalization_type  # which `is_linear` has compared with the module
        if kind is None:
            return Readout(parts @ w_u, None, bias, 0.0)
        norm: Any = model.ln_final
        if kind in ("LN", "LNPre"):
            parts = parts - parts.mean(dim=-1, keepdim=True)
        if kind == "LN":
            bias = bias + norm.b.double() @ w_u
        if kind in ("LN", "RMS"):
            w_u = norm.w.double()[:, None] * w_u
        i, j = torch.triu_indices(len(parts), len(parts))
        by_row = parts.transpose(0, 1)
        inner = (by_row @ by_row.mT)[:, i, j].T / parts.shape[-1]
        gram = inner * torch.where(i == j, 1.0, 2.0).to(inner)[:, None]
        return Readout(parts @ w_u, gram, bias, norm.eps)


def _heads_at_asked(
    values: Float[Tensor, "batch pos head d_head"], batch: Batch
) -> Float[Tensor, "asked head d_head"]:
    """Return what heads have at asked positions."""
    return at_asked(values.flatten(start_dim=2), batch).unflatten(1, values.shape[2:])
