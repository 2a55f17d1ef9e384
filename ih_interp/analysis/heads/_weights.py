"""The weights of heads as circuits read them, with the LayerNorms around them.

Scores of weights run no model, and so see no clamps and no hooks. A LayerNorm is
`x -> (x - mean x) / scale(x) * w + b`. Its centring and gain `w` are linear and can be counted
among the weights that read after it (`folded`); its division depends on the vector, and is known
only where that is (`embedded`); its shift `b`, like all biases, is the same for every token and
left out. Vectors are rows, as in TransformerLens: `x @ W`.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ih_interp._sequences import refuse_outside
from ih_interp._stock import runs_own_code, wrong_norm
from ih_interp.analysis.patching._last_layer import final_norm
from ih_interp.hooked_model import HookedModel
from ih_interp.model import FewShotEmbed

NORMS = (None, "LN", "LNPre", "RMS", "RMSPre")


class Weights:
    """The weights of a model, with `layer_norm` its norms counted in, else as they are.

    Raises ValueError for a model whose weights cannot be read so.
    """

    def __init__(self, model: HookedModel, layer_norm: bool = True) -> None:
        cfg, norm = model.cfg, f"normalization_type={model.cfg.normalization_type!r}"
        if cfg.normalization_type not in NORMS:
            known = ", ".join(map(str, NORMS))
            raise ValueError(f"{norm}: expected one of {known}, through which weights can be read.")
        for number, block in enumerate(model.blocks):
            if not runs_own_code(block.attn, "forward", "calculate_qkv_matrices"):
                raise ValueError(
                    f"blocks.{number}.attn is a {type(block.attn).__name__}: expected "
                    "TransformerLens's own code, as weights alone do not say what other code reads "
                    "and writes. Use scores of patterns, or path_patch."
                )
        for module in (*(block.ln1 for block in model.blocks), *final_norm(model)):
            if wrong_norm(module, cfg):
                came = type(module).__name__
                raise ValueError(f"{norm}: expected norms of that type, got a {came}.")
        if len({parameter.dtype for parameter in model.parameters()}) > 1:
            raise ValueError("model: expected weights of one dtype; use model.to(torch.float32).")
        self.model, self.normed = model, layer_norm and cfg.normalization_type is not None
        self.centred = self.normed and cfg.normalization_type in ("LN", "LNPre")

    def folded(self, norm: Any, weight: Float[Tensor, "*any d_model out"]) -> Tensor:
        """Return `C diag(w) W`, the weight with the centring C and gain w of the norm before it.

        RMS norms do not centre, as in TransformerLens's `fold_layer_norm`.
        """
        # Norms that TransformerLens has folded ("LNPre", "RMSPre") have no gain of their own.
        gain = getattr(norm, "w", None) if self.normed else None
        weight = weight if gain is None else gain[:, None] * weight
        return weight - weight.mean(dim=-2, keepdim=True) if self.centred else weight

    def inputs(self, name: str, layer: int) -> Float[Tensor, "head d_model d_head"]:
        """Return `W_Q`, `W_K` or `W_V` of a layer, through its norm."""
        block = self.model.blocks[layer]
        return self.folded(block.ln1, getattr(block.attn, name))

    def embedded(self, tokens: Int[Tensor, " token"], layer: int) -> Float[Tensor, "token d_model"]:
        """Return what heads of a layer read at a token whose residual stream is its row of `W_E`.

        It is normalised as the layer's norm would, but without the shift.
        """
        rows = self.model.W_E[tokens]
        if self.centred:
            rows = rows - rows.mean(dim=-1, keepdim=True)
        if not self.normed:
            return rows
        norm: Any = self.model.blocks[layer].ln1
        rows = rows / (rows.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt()
        gain = getattr(norm, "w", None)
        return rows if gain is None else rows * gain

    def written(
        self, tokens: Int[Tensor, " token"], layer: int
    ) -> Float[Tensor, "head token d_model"]:
        """Return what each head of a layer writes where it attends to a token, as `embedded`."""
        attention = self.model.blocks[layer].attn
        return self.embedded(tokens, layer) @ attention.W_V @ attention.W_O

    def unembedding(self) -> Float[Tensor, "d_model output"]:
        """Return `W_U`, the final norm's centring and gain counted in.

        Its division, which depends on the whole sequence and scales all logits alike, is left out.
        Raises ValueError where a soft cap follows.
        """
        cap = self.model.cfg.output_logits_soft_cap
        if cap > 0:
            words = "expected 0, as capped logits are not the sum of what heads write"
            raise ValueError(f"output_logits_soft_cap={cap}: {words}.")
        return self.folded(getattr(self.model, "ln_final", None), self.model.W_U)

    def copied_tokens(self, tokens: Int[Tensor, " token"] | None) -> Int[Tensor, " token"]:
        """Return tokens that are outputs too: those given, or all; in few-shot models the labels.

        Raises ValueError where none are given and outputs are not tokens, or for others.
        """
        n_tokens, n_outputs = self.model.cfg.d_vocab, self.model.cfg.d_vocab_out
        if tokens is not None:
            return self.different_tokens(tokens, min(n_tokens, n_outputs))
        if n_tokens != n_outputs and not isinstance(self.model.embed, FewShotEmbed):
            raise ValueError(
                "tokens=None: expected tokens which are outputs of the same number, as the model "
                f"has {n_tokens} tokens and {n_outputs} outputs."
            )
        return torch.arange(n_outputs, device=self.model.W_U.device)

    def different_tokens(self, tokens: Int[Tensor, " token"], size: int) -> Int[Tensor, " token"]:
        """Return tokens on the model's device; ValueError for fewer than two, or one twice."""
        n_different = len(tokens.unique())
        if tokens.ndim != 1 or len(tokens) < 2 or n_different < len(tokens):
            raise ValueError(
                f"tokens: expected [token], two or more, each once, got shape "
                f"{tuple(tokens.shape)} with {n_different} different ones."
            )
        refuse_outside("tokens: expected tokens", tokens, size)
        return tokens.to(self.model.W_U.device)
