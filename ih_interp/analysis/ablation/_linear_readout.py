"""The logits of every subset of the last layer's heads, from one pass.

In an attention-only model nothing but the final norm and the unembedding reads what the last
layer's heads write. With 0/1 numbers m_0 = 1 for all the rest and m_i for head i, the residual
stream at the last position is sum_i m_i p_i, so the logits before division by the norm's scale are
linear in m, and the scale's square is m' G m / d_model + eps, G the Gram matrix of the (centred)
parts. Both are matrix products over subsets; no `[subset, batch, d_model]` is ever made.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.components.layer_norm import LayerNorm
from transformer_lens.components.layer_norm_pre import LayerNormPre
from transformer_lens.components.rms_norm import RMSNorm

from ih_interp._stock import not_plain, parts_of
from ih_interp.analysis.patching._last_layer import final_norm

BEFORE_Z = frozenset(
    [f"hook_{name}" for name in ("resid_pre", "attn_in", "q_input", "k_input", "v_input")]
    + ["ln1", "ln1.hook_scale", "ln1.hook_normalized"]
    + [f"attn.hook_{name}" for name in ("q", "k", "v", "rot_q", "rot_k")]
    + [f"attn.hook_{name}" for name in ("attn_scores", "pattern", "z")]
)
"""Modules of a block up to the heads' output; hooks on them leave the rest of it linear."""


def is_linear(model: HookedTransformer) -> bool:
    """Return whether logits are known to be linear in the last `hook_z`, but for a norm's scale.

    They are in an attention-only model with one of TransformerLens's norms or none, unless a hook
    stands after the last `hook_z`.
    """
    if not model.cfg.attn_only:
        return False
    last = dict(model.blocks[-1].named_modules())
    before = [part for name, part in last.items() if name in BEFORE_Z]
    skipped = [*last.values(), *parts_of(*final_norm(model), model.unembed)]
    return not_plain(model, skipped, may_be_hooked=before, after_z=True) is None


class Readout(NamedTuple):
    """The last position's logits of some sequences, in parts; part 0 is always on. Float64."""

    unnormalised: Float[Tensor, "part batch label"]
    """Logits that each part adds, before division by the scale."""
    gram: Float[Tensor, "pair batch"] | None
    """Inner products of the parts i <= j, over d_model, twice for i < j; None without a norm."""
    bias: Float[Tensor, " label"]
    eps: float

    def scale(self, on: Float[Tensor, "subset part"]) -> Float[Tensor, "subset batch"] | None:
        """Return the final norm's scale for every subset; None without a norm."""
        if self.gram is None:
            return None
        i, j = torch.triu_indices(on.shape[1], on.shape[1])
        squares = times(on[:, i] * on[:, j], self.gram)
        return (squares.clamp(min=0) + self.eps).sqrt()  # rounding may fall below 0

    def logits(
        self, on: Float[Tensor, "subset part"], scale: Float[Tensor, "#subset batch"] | None = None
    ) -> Float[Tensor, "subset batch label"]:
        """Return the logits of every subset, by their own scale or a given one."""
        n_parts, n_sequences, n_labels = self.unnormalised.shape
        total = times(on, self.unnormalised.reshape(n_parts, -1))
        total = total.reshape(-1, n_sequences, n_labels)
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


def readout(
    model: HookedTransformer,
    heads: Sequence[int],
    z: Float[Tensor, "batch head d_head"],
    ablated: Float[Tensor, "batch chosen d_head"],
    resid: Float[Tensor, "batch d_model"],
) -> Readout:
    """Return the parts of the logits of a model that `is_linear`.

    `z` is `hook_z` of all heads of the last layer at the last position, `ablated` what replaces
    that of the chosen `heads`, and `resid` the residual stream before the layer.
    """
    attn = model.blocks[-1].attn
    w_o, z = attn.W_O.double(), z.double()
    off = z.clone()
    off[:, list(heads)] = ablated.to(z)
    # A sum of what stays, not all minus the heads: a head with large output would leave rounding.
    rest = resid.double() + attn.b_O.double() + torch.einsum("bhk,hkd->bd", off, w_o)
    changed = (z - off)[:, list(heads)]
    parts = torch.cat([rest[None], torch.einsum("bhk,hkd->hbd", changed, w_o[list(heads)])])
    w_u, bias = model.unembed.W_U.double(), model.unembed.b_U.double()
    if model.cfg.normalization_type is None:
        return Readout(parts @ w_u, None, bias, 0.0)
    norm: Any = model.ln_final
    if isinstance(norm, LayerNorm | LayerNormPre):
        parts = parts - parts.mean(dim=-1, keepdim=True)
    if isinstance(norm, LayerNorm):
        bias = bias + norm.b.double() @ w_u
    if isinstance(norm, LayerNorm | RMSNorm):
        w_u = norm.w.double()[:, None] * w_u
    i, j = torch.triu_indices(len(parts), len(parts))
    by_sequence = parts.transpose(0, 1)
    inner = (by_sequence @ by_sequence.mT)[:, i, j].T / parts.shape[-1]
    gram = inner * torch.where(i == j, 1.0, 2.0).to(inner)[:, None]
    return Readout(parts @ w_u, gram, bias, norm.eps)
