"""Checkpoints of the published code, written as it writes them."""

import io
from collections.abc import Iterator
from typing import Any

import einops
import numpy as np
import torch
from transformer_lens import HookedTransformer

from ih_interp.model import ModelConfig, build_model
from ih_interp.tasks.few_shot import FewShotTask

SHAPE = ModelConfig(n_layers=2, d_model=8, n_heads=2, d_head=4)
OPTIONS: dict[str, Any] = {
    "depth": 2,
    "d_model": 8,
    "num_heads": 2,
    "mlp_ratio": None,
    "pos_embedding_type": "rope",
    "sin_time": 10000.0,
    "no_norm": False,
    "not_causal": False,
    "data_type": "file",
    "train_seed": 0,
}
WORLDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "the paper's": ({}, {}),
    "three layers": ({"n_layers": 3}, {"depth": 3}),
    "learned positions": ({"positional_embedding_type": "standard"}, {"pos_embedding_type": "ape"}),
    "no LayerNorm": ({"normalization_type": None}, {"no_norm": True}),
    "another rotary base": ({"rotary_base": 100}, {"sin_time": 100.0}),
    "MLPs": ({"attn_only": False, "d_mlp": 20, "act_fn": "gelu_new"}, {"mlp_ratio": 2.5}),
    "MLPs, no LayerNorm": (
        {"attn_only": False, "d_mlp": 16, "act_fn": "gelu_new", "normalization_type": None},
        {"mlp_ratio": 2.0, "no_norm": True},
    ),
}


def random_model(task: FewShotTask, config: ModelConfig) -> HookedTransformer:
    """Every trained weight different from every other."""
    model = build_model(task, config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    return model


def leaves(model: HookedTransformer) -> Iterator[np.ndarray | float | int | bool]:
    """A published checkpoint up to the optimiser, in tree order; linear weights are [out, in]."""
    yield 1_000  # iteration
    yield from (model.cfg.d_model, model.cfg.d_vocab_out)
    yield model.embed.W_in.T
    yield model.embed.b_in
    yield from (0.0, False)  # dropout
    yield model.embed.W_label.T
    if model.cfg.positional_embedding_type == "standard":
        table = torch.zeros(model.cfg.d_model, 32)
        table[:, : model.cfg.n_ctx] = model.pos_embed.W_pos.T
        yield from (table, 0.0, False)
    yield model.cfg.d_model
    for block in model.blocks:
        attention = block.attn
        if model.cfg.normalization_type is not None:
            yield from (block.ln1.w, block.ln1.b)
        yield from (model.cfg.n_heads, True, True, 10_000.0, model.cfg.d_head**-0.5)
        qkv = torch.stack([attention.W_Q, attention.W_K, attention.W_V])
        yield einops.rearrange(qkv, "three head model d_head -> (three head d_head) model")
        yield from (0.0, False)
        yield einops.rearrange(attention.W_O, "head d_head model -> model (head d_head)")
        yield from (0.0, False)
        if not model.cfg.attn_only:
            if model.cfg.normalization_type is not None:
                yield from (block.ln2.w, block.ln2.b)
            yield from (block.mlp.W_in.T, block.mlp.b_in, 0.0, False)
            yield from (block.mlp.W_out.T, block.mlp.b_out, 0.0, False)
    if model.cfg.normalization_type is not None:
        yield from (model.ln_final.w, model.ln_final.b)
    yield False
    yield from (model.unembed.W_U.T, model.unembed.b_U)


OPTIMISER = (7, torch.full((8, 8), 9.0), np.array([0, 1], dtype=np.uint32))  # ... and a seed


def as_bytes(*arrays: Any) -> bytes:
    """Plain numpy arrays one after the other; objects are pickled, as numpy would."""
    file = io.BytesIO()
    for array in arrays:
        array = array.detach().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
        np.lib.format.write_array(file, array, allow_pickle=array.dtype == object)
    return file.getvalue()
