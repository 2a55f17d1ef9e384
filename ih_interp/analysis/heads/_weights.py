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
from transformer_lens import HookedTransformer

from ih_interp._stock import runs_own_code, wrong_norm
from ih_interp.analysis.patching._last_layer import final_norm
from ih_interp.evaluation import refuse_outside
from ih_interp.model import FewShotEmbed

NORMS = (None, "LN", "LNPre", "RMS", "RMSPre")


def refuse_other_models(model: HookedTransformer) -> None:
    """Refuse a model whose weights cannot be read as these scores do (ValueError)."""
    if model.cfg.normalization_type not in NORMS:
        raise ValueError(
            f"normalization_type={model.cfg.normalization_type!r}: expected one of "
            f"{', '.join(map(str, NORMS))}, through which weights can be read."
        )
    for number, block in enumerate(model.blocks):
        if not runs_own_code(block.attn, "forward", "calculate_qkv_matrices"):
            raise ValueError(
                f"blocks.{number}.attn is a {type(block.attn).__name__}: expected "
                "TransformerLens's own code, as weights alone do not say what other code reads "
                "and writes. Use scores of patterns, or path_patch."
            )
    norms = [*(block.ln1 for block in model.blocks), *final_norm(model)]
    wrong = [norm for norm in norms if wrong_norm(norm, model.cfg)]
    if wrong:
        raise ValueError(
            f"normalization_type={model.cfg.normalization_type!r}: expected norms of that type, "
            f"got a {type(wrong[0]).__name__}."
        )
    if len({parameter.dtype for parameter in model.parameters()}) > 1:
        raise ValueError("model: expected weights of one dtype; use model.to(torch.float32).")


def folded(
    model: HookedTransformer, norm: Any, weight: Float[Tensor, "*any d_model out"], layer_norm: bool
) -> Float[Tensor, "*any d_model out"]:
    """Return `C diag(w) W`, the weight with the centring C and gain w of the norm before it.

    RMS norms do not centre, as in TransformerLens's `fold_layer_norm`. Without `layer_norm` the
    weight is returned as it is.
    """
    if not layer_norm or model.cfg.normalization_type is None:
        return weight
    # Norms that TransformerLens has folded already ("LNPre", "RMSPre") have no gain of their own.
    gain = getattr(norm, "w", None)
    weight = weight if gain is None else gain[:, None] * weight
    if model.cfg.normalization_type in ("LN", "LNPre"):
        weight = weight - weight.mean(dim=-2, keepdim=True)
    return weight


def inputs(
    model: HookedTransformer, name: str, layer: int, *, layer_norm: bool
) -> Float[Tensor, "head d_model d_head"]:
    """Return `W_Q`, `W_K` or `W_V` of a layer, with `layer_norm` through its norm (`folded`)."""
    block = model.blocks[layer]
    return folded(model, block.ln1, getattr(block.attn, name), layer_norm)


def embedded(
    model: HookedTransformer, tokens: Int[Tensor, " token"], layer: int, *, layer_norm: bool
) -> Float[Tensor, "token d_model"]:
    """Return what heads of a layer read at a token whose residual stream is its row of `W_E`.

    With `layer_norm` it is normalised as the layer's norm would, but without the shift.
    """
    rows = model.W_E[tokens]
    if not layer_norm or model.cfg.normalization_type is None:
        return rows
    if model.cfg.normalization_type in ("LN", "LNPre"):
        rows = rows - rows.mean(dim=-1, keepdim=True)
    norm: Any = model.blocks[layer].ln1
    rows = rows / (rows.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt()
    gain = getattr(norm, "w", None)
    return rows if gain is None else rows * gain


def written(
    model: HookedTransformer, tokens: Int[Tensor, " token"], layer: int, *, layer_norm: bool
) -> Float[Tensor, "head token d_model"]:
    """Return what each head of a layer writes where it attends to a token, read as `embedded`."""
    attention = model.blocks[layer].attn
    read = embedded(model, tokens, layer, layer_norm=layer_norm)
    return read @ attention.W_V @ attention.W_O


def unembedding(model: HookedTransformer, layer_norm: bool) -> Float[Tensor, "d_model output"]:
    """Return `W_U`, with `layer_norm` the final norm's centring and gain counted in.

    Its division, which depends on the whole sequence and scales all logits alike, is left out.
    Raises ValueError where a soft cap follows.
    """
    if model.cfg.output_logits_soft_cap > 0:
        raise ValueError(
            f"output_logits_soft_cap={model.cfg.output_logits_soft_cap}: expected 0, as capped "
            "logits are not the sum of what heads write."
        )
    return folded(model, getattr(model, "ln_final", None), model.W_U, layer_norm)


def copied_tokens(
    model: HookedTransformer, tokens: Int[Tensor, " token"] | None
) -> Int[Tensor, " token"]:
    """Return tokens that are outputs too: those given, or all; in few-shot models the labels.

    Raises ValueError where none are given and outputs are not tokens, or for others than outputs.
    """
    n_tokens, n_outputs = model.cfg.d_vocab, model.cfg.d_vocab_out
    if tokens is not None:
        return different_tokens(model, tokens, min(n_tokens, n_outputs))
    if n_tokens != n_outputs and not isinstance(model.embed, FewShotEmbed):
        raise ValueError(
            f"tokens=None: expected tokens which are outputs of the same number, as the model has "
            f"{n_tokens} tokens and {n_outputs} outputs."
        )
    return torch.arange(n_outputs, device=model.W_U.device)


def different_tokens(
    model: HookedTransformer, tokens: Int[Tensor, " token"], size: int
) -> Int[Tensor, " token"]:
    """Return two or more different tokens below `size`, on the model's device, or ValueError."""
    n_different = len(tokens.unique())
    if tokens.ndim != 1 or len(tokens) < 2 or n_different < len(tokens):
        raise ValueError(
            f"tokens: expected [token], two or more, each once, got shape {tuple(tokens.shape)} "
            f"with {n_different} different ones."
        )
    refuse_outside("tokens: expected tokens", tokens, size)
    return tokens.to(model.W_U.device)
