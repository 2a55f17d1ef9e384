"""The last layer of an attention-only model, at the one position that is measured.

The model's own norms, weights, rotation and unembedding act on many inputs at once, in axes in
front. The result is the model's only where the layer `stands_alone`; elsewhere the model must run.
"""

from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ih_interp._stock import not_plain, parts_of
from ih_interp.hooked_model import HookedModel

Stream: TypeAlias = Float[Tensor, "*any pos d_model"]
PerHead: TypeAlias = Float[Tensor, "*any pos head d_head"]


def stands_alone(model: HookedModel, layer: int) -> bool:
    """Return whether a layer is the last, without MLP, and computes what `LastRow` does by hand."""
    if layer != model.cfg.n_layers - 1 or not model.cfg.attn_only:
        return False
    modules = parts_of(model.blocks[layer], *final_norm(model), model.unembed)
    return not_plain(model, modules) is None


def final_norm(model: HookedModel) -> tuple[nn.Module, ...]:
    """Return the final norm, if the model has one."""
    return () if model.cfg.normalization_type is None else (model.ln_final,)


class LastRow:
    """The last layer, final norm and unembedding of a model; `*any` are axes in front."""

    def __init__(self, model: HookedModel) -> None:
        self.model = model
        self.block = model.blocks[-1]
        self.attn = self.block.attn

    def read(self, resid: Stream) -> Stream:
        """Return the stream after LN1, which queries, keys and values read."""
        return self.block.ln1(resid.flatten(end_dim=-3)).view(resid.shape)

    def project(self, read: Stream, letter: str) -> Float[Tensor, "*any query head d_head"]:
        """Return "q" of the last position, or "k" or "v" of all, rotated as attention does."""
        last = read.shape[-2] - 1
        read = read[..., last:, :] if letter == "q" else read
        weight, bias = (getattr(self.attn, f"{kind}_{letter.upper()}") for kind in "Wb")
        heads = read.reshape(-1, read.shape[-1]) @ weight.movedim(0, 1).flatten(start_dim=1)
        heads = (heads + bias.flatten()).view(*read.shape[:-1], *bias.shape)
        if letter == "v" or self.model.cfg.positional_embedding_type != "rotary":
            return heads
        offset = last if letter == "q" else 0
        return self.attn.apply_rotary(heads.flatten(end_dim=-4), offset).view(heads.shape)

    def pattern(self, q: Tensor, k: Tensor) -> Float[Tensor, "*any pos head"]:
        """Return the pattern's last row, 0 where it is NaN; axes before `q` and `k` broadcast."""
        pattern = ((q * k).sum(dim=-1) / self.attn.attn_scale).softmax(dim=-2)
        return torch.where(pattern.isnan(), torch.zeros((), device="cpu").to(pattern), pattern)

    def z(self, pattern: Tensor, v: Tensor) -> Float[Tensor, "*any head d_head"]:
        """Return values mixed by the pattern."""
        return (pattern[..., None] * v).sum(dim=-3)

    def written(self, z: Float[Tensor, "*any head d_head"]) -> Float[Tensor, "head *any d_model"]:
        """Return what each head adds to the stream; heads come first."""
        by_head = z.movedim(-2, 0)
        flat = by_head.reshape(len(by_head), -1, z.shape[-1]) @ self.attn.W_O
        return flat.view(*by_head.shape[:-1], -1)

    def logits(self, resid: Float[Tensor, "*any d_model"]) -> Float[Tensor, "*any label"]:
        """Return the logits of the last position's stream."""
        flat = resid.reshape(-1, 1, resid.shape[-1])
        for norm in final_norm(self.model):
            flat = norm(flat)
        return self.model.unembed(flat).view(*resid.shape[:-1], -1)
