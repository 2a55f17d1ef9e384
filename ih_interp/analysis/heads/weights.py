"""The weights of heads as circuits read them, with the LayerNorms around them.

Scores of weights (`composition`, `copying`, `matching`) run nothing: clamps and hooks do not matter
to them. A LayerNorm is `x -> (x - mean x) / scale(x) * w + b`. Of its parts, centring and gain `w`
are linear and can be counted among the weights that read after it (`folded`); its division depends
on the vector, and is known only where that is (`embedded`); its shift `b`, like all biases, is the
same for every token and left out. Vectors are rows, as in TransformerLens: `x @ W`.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp._stock import runs_own_code, wrong_norm
from ih_interp.analysis.patching._last_layer import final_norm
from ih_interp.model import FewShotEmbed
from ih_interp.types import expect

NORMS = (None, "LN", "LNPre", "RMS", "RMSPre")


def refuse_other_models(model: HookedTransformer) -> None:
    """TypeError or ValueError for what has no weights that can be read as these scores do."""
    expect(model, HookedTransformer, "The model", "a run's is run.model(step)")
    if model.cfg.normalization_type not in NORMS:
        raise ValueError(
            f"normalization_type={model.cfg.normalization_type!r} is no norm that weights can be "
            f"read through; one of {', '.join(map(str, NORMS))} was expected."
        )
    for number, block in enumerate(model.blocks):
        if not runs_own_code(block.attn, "forward", "calculate_qkv_matrices"):
            raise ValueError(
                f"Attention in layer {number} ({type(block.attn).__name__}) makes queries, keys "
                "or values by code of its own: its weights alone do not say what its heads read "
                "and write. Use scores of patterns, or path_patch."
            )
    norms = [*(block.ln1 for block in model.blocks), *final_norm(model)]
    wrong = [norm for norm in norms if wrong_norm(norm, model.cfg)]
    if wrong:
        raise ValueError(
            f"A norm has the type {type(wrong[0]).__name__}, which is not what normalization_type="
            f"{model.cfg.normalization_type!r} says; weights cannot be read through it."
        )
    if len({parameter.dtype for parameter in model.parameters()}) > 1:
        raise ValueError("The weights have several dtypes; convert them, model.to(torch.float32).")


def folded(
    model: HookedTransformer, norm: Any, weight: Float[Tensor, "*heads d_model out"]
) -> Float[Tensor, "*heads d_model out"]:
    """The weight with the centring and gain of the norm before it.

    `C diag(w) W`, with C the centring (none for RMS); as TransformerLens's `fold_layer_norm`.
    """
    # Norms that TransformerLens has folded already ("LNPre", "RMSPre") have no gain of their own.
    gain = getattr(norm, "w", None)
    weight = weight if gain is None else gain[:, None] * weight
    if model.cfg.normalization_type in ("LN", "LNPre"):
        weight = weight - weight.mean(dim=-2, keepdim=True)
    return weight


def inputs(
    model: HookedTransformer, name: str, layer: int, *, layer_norm: bool
) -> Float[Tensor, "head d_model d_head"]:
    """`W_Q`, `W_K` or `W_V` of a layer; with `layer_norm` its norm's linear part counted in."""
    block = model.blocks[layer]
    weight = getattr(block.attn, name)
    if not layer_norm or model.cfg.normalization_type is None:
        return weight
    return folded(model, block.ln1, weight)


def embedded(
    model: HookedTransformer, tokens: Int[Tensor, " token"], layer: int, *, layer_norm: bool
) -> Float[Tensor, "token d_model"]:
    """What heads of a layer read at a token whose residual stream is its embedding alone.

    Its row of `W_E`; with `layer_norm` as that layer's norm makes it, division included, shift not.
    Positions are not in it.
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


def unembedding(
    model: HookedTransformer, *, layer_norm: bool
) -> Float[Tensor, "d_model d_vocab_out"]:
    """`W_U`, with `layer_norm` the final norm's centring and gain counted in.

    Its division is left out: it depends on the whole sequence, and scales all logits alike.
    Raises ValueError where a soft cap stands behind it, through which logits are no sum.
    """
    if model.cfg.output_logits_soft_cap > 0:
        raise ValueError(
            f"output_logits_soft_cap={model.cfg.output_logits_soft_cap}: capped logits are no sum "
            "of what heads write, and no circuit of weights leads to them; set it to 0 for the "
            "logits before the cap."
        )
    if not layer_norm or model.cfg.normalization_type is None:
        return model.W_U
    return folded(model, model.ln_final, model.W_U)


def copied_tokens(
    model: HookedTransformer, tokens: Int[Tensor, " token"] | None
) -> Int[Tensor, " token"]:
    """Tokens that are outputs too: those given, or all; in few-shot models the labels.

    ValueError where the model's outputs are not its tokens and none are given, or for tokens that
    are not outputs.
    """
    n_tokens, n_outputs = model.cfg.d_vocab, model.cfg.d_vocab_out
    if tokens is None:
        if n_tokens != n_outputs and not isinstance(model.embed, FewShotEmbed):
            raise ValueError(
                f"The model has {n_tokens} tokens and {n_outputs} outputs; say with tokens= which "
                "tokens are outputs of the same number."
            )
        return torch.arange(n_outputs, device=model.W_U.device)
    return checked_tokens(tokens.to(model.W_U.device), min(n_tokens, n_outputs), "outputs")


def checked_tokens(
    tokens: Int[Tensor, " token"], size: int, what: str = "tokens"
) -> Int[Tensor, " token"]:
    """Two or more different tokens of a vocabulary; ValueError for others."""
    if tokens.ndim != 1 or tokens.is_floating_point():
        raise ValueError(
            f"{what} are {tokens.dtype} of shape {tuple(tokens.shape)}; integers [token] were "
            "expected."
        )
    if len(tokens) < 2 or len(tokens.unique()) < len(tokens):
        raise ValueError(
            f"{len(tokens)} tokens, {len(tokens.unique())} of them different, came; "
            "two or more were expected, each once."
        )
    if not (int(tokens.min()) >= 0 and int(tokens.max()) < size):
        raise ValueError(
            f"Tokens run from {int(tokens.min())} to {int(tokens.max())}; the {what} are "
            f"0 to {size - 1}."
        )
    return tokens
