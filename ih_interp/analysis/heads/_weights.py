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
from ih_interp._torch_state import in_single
from ih_interp.analysis._passes import recording, refuse_unequal
from ih_interp.analysis.patching._last_layer import final_norm
from ih_interp.clamps._active import paused
from ih_interp.hooked_model import HookedModel
from ih_interp.model import FewShotEmbed

OF_BLOCK = (
    *("hook_resid_pre", "attn.hook_q", "attn.hook_k", "attn.hook_v", "attn.hook_z"),
    *("hook_mlp_out", "hook_resid_post"),
)
"""Hook points of a block that tell what it does with its weights."""

MAY_LACK = ("hook_pos_embed", "hook_mlp_out")
REASON = "weights alone do not say what other code reads and writes; use scores of patterns"
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
        if len({parameter.dtype for parameter in model.parameters()}) > 1:
            raise ValueError("model: expected weights of one dtype; use model.to(torch.float32).")
        self.model, self.normed = model, layer_norm and cfg.normalization_type is not None
        self.centred = self.normed and cfg.normalization_type in ("LN", "LNPre")
        if wraps_other_code(model):
            _check_against_a_pass(self)
        else:
            _refuse_other_modules(model)

    def of(self, name: str, layer: int) -> Float[Tensor, "head rows columns"]:
        """Return `W_Q`, `W_K`, `W_V` or `W_O` of a layer, one per query head, as it is.

        Heads that share keys and values have the same. In single precision at least.
        """
        weight = in_single(getattr(self.model.blocks[layer].attn, name))
        return weight.repeat_interleave(self.model.cfg.n_heads // len(weight), dim=0)

    def folded(self, norm: Any, weight: Float[Tensor, "*any d_model out"]) -> Tensor:
        """Return `C diag(w) W`, the weight with the centring C and gain w of the norm before it.

        RMS norms do not centre, as in TransformerLens's `fold_layer_norm`.
        """
        # Norms that TransformerLens has folded ("LNPre", "RMSPre") have no gain of their own.
        gain = getattr(norm, "w", None) if self.normed else None
        weight = in_single(weight)
        weight = weight if gain is None else in_single(gain)[:, None] * weight
        return weight - weight.mean(dim=-2, keepdim=True) if self.centred else weight

    def inputs(self, name: str, layer: int) -> Float[Tensor, "head d_model d_head"]:
        """Return `W_Q`, `W_K` or `W_V` of a layer, through its norm."""
        return self.folded(self.model.blocks[layer].ln1, self.of(name, layer))

    def embedded(self, tokens: Int[Tensor, " token"], layer: int) -> Float[Tensor, "token d_model"]:
        """Return what heads of a layer read at a token whose residual stream is its row of `W_E`.

        It is normalised as the layer's norm would, but without the shift. Where the model has a
        norm between embeddings and stream, it comes first.
        """
        rows = in_single(self.model.W_E[tokens])
        if not self.normed:
            return rows
        if self.model.cfg.post_embedding_ln:
            rows = in_single(self.model.embed.ln(rows[None].to(self.model.W_E))[0])
        return normalised(self.model, rows, self.model.blocks[layer].ln1)

    def written(
        self, tokens: Int[Tensor, " token"], layer: int
    ) -> Float[Tensor, "head token d_model"]:
        """Return what each head of a layer writes where it attends to a token, as `embedded`."""
        return self.embedded(tokens, layer) @ self.of("W_V", layer) @ self.of("W_O", layer)

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


def wraps_other_code(model: HookedModel) -> bool:
    """Return whether attention is another library's, with hook points around it."""
    return all(getattr(block.attn, "original_component", None) for block in model.blocks)


def _refuse_other_modules(model: HookedModel) -> None:
    """Refuse modules which do something else with their weights than TransformerLens's own."""
    cfg: Any = model.cfg
    for number, block in enumerate(model.blocks):
        if not runs_own_code(block.attn, "forward", "calculate_qkv_matrices"):
            raise ValueError(
                f"blocks.{number}.attn is a {type(block.attn).__name__}: expected "
                f"TransformerLens's own code, as {REASON}."
            )
    if cfg.use_normalization_before_and_after:
        raise ValueError(f"use_normalization_before_and_after: expected False, as {REASON}.")
    for module in (*(block.ln1 for block in model.blocks), *final_norm(model)):
        if wrong_norm(module, cfg):
            norm, came = f"normalization_type={cfg.normalization_type!r}", type(module).__name__
            raise ValueError(f"{norm}: expected norms of that type, got a {came}.")


def normalised(
    model: HookedModel, rows: Float[Tensor, "*any d_model"], norm: Any
) -> Float[Tensor, "*any d_model"]:
    """Return what one of the model's norms makes of vectors, but for its shift."""
    if model.cfg.normalization_type is None:
        return rows
    if model.cfg.normalization_type in ("LN", "LNPre"):
        rows = rows - rows.mean(dim=-1, keepdim=True)
    eps = getattr(norm, "eps", model.cfg.eps)
    rows = rows / (rows.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    gain = getattr(norm, "w", None)
    return rows if gain is None else rows * in_single(gain)


def _check_against_a_pass(weights: Weights) -> None:
    """Refuse a model whose weights are not what a pass on four tokens computes (ValueError).

    Embeddings, queries, keys and values (before they are turned), what heads write and what blocks
    add to the stream, and the logits are compared with those of the weights.
    """
    model, cfg, own = weights.model, weights.model.cfg, weights.model.W_U.dtype
    tokens = torch.arange(min(4, cfg.d_vocab, cfg.n_ctx), device=model.W_U.device)[None]
    layers, every = range(cfg.n_layers), ("hook_pos_embed", "ln_final.hook_in")
    names = [*every, *(f"blocks.{layer}.{name}" for layer in layers for name in OF_BLOCK)]
    with paused(model), recording(model, [n for n in names if n in model.hook_dict]) as kept:
        logits = model(tokens)
    if missing := [n for n in names if n not in kept and not n.endswith(MAY_LACK)]:
        raise ValueError(f"A pass shows no {missing[0]}, so that {REASON}.")
    kept = {name: in_single(values) for name, values in kept.items()}
    start = in_single(model.W_E[tokens]) + kept.get("hook_pos_embed", 0)
    refuse_unequal(
        start, kept["blocks.0.hook_resid_pre"], "The stream does not begin with W_E", own
    )
    for layer in layers:
        _check_block(weights, layer, {n: kept.get(f"blocks.{layer}.{n}") for n in OF_BLOCK})
    last = _with_shift(model, kept["ln_final.hook_in"], getattr(model, "ln_final", None))
    found = last @ in_single(model.W_U) + in_single(model.unembed.b_U)
    if cfg.output_logits_soft_cap <= 0:
        refuse_unequal(found, logits, "The logits are not the last norm's output times W_U", own)


def _check_block(weights: Weights, layer: int, kept: dict[str, Any]) -> None:
    """Refuse a block that computes something else than its weights say (ValueError)."""
    model, block, own = weights.model, weights.model.blocks[layer], weights.model.W_U.dtype
    read = _with_shift(model, kept["hook_resid_pre"], block.ln1)
    for letter in "QKV":
        found = torch.einsum("bpd,hdk->bphk", read, weights.of(f"W_{letter}", layer))
        bias, there = getattr(block.attn, f"b_{letter}"), kept[f"attn.hook_{letter.lower()}"]
        n_copies = model.cfg.n_heads // there.shape[2]
        if bias is not None:
            found = found + in_single(bias).repeat_interleave(model.cfg.n_heads // len(bias), dim=0)
        what = f"What heads of layer {layer} read is not the norm's output times W_{letter}"
        refuse_unequal(found, there.repeat_interleave(n_copies, dim=2), what, own)
    added = torch.einsum("bphk,hkd->bpd", kept["attn.hook_z"], weights.of("W_O", layer))
    added = added if block.attn.b_O is None else added + in_single(block.attn.b_O)
    after = kept["hook_resid_pre"] + added
    if kept["hook_mlp_out"] is not None:
        after = after + kept["hook_mlp_out"]
    what = f"What layer {layer} adds to the stream is not z W_O and the MLP's output"
    refuse_unequal(after, kept["hook_resid_post"], what, own)


def _with_shift(model: HookedModel, rows: Tensor, norm: Any) -> Tensor:
    shift = getattr(norm, "b", None)
    rows = normalised(model, rows, norm)
    return rows if shift is None else rows + in_single(shift)
