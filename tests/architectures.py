"""Small models of many architectures, with random weights, for laws that hold on all of them."""

import torch
from made_models import randomised
from transformer_lens import HookedTransformer, HookedTransformerConfig

SIZES = {"n_layers": 3, "d_model": 24, "n_heads": 4, "d_head": 6, "n_ctx": 12, "d_vocab": 30}
MLP = {"act_fn": "gelu_new", "d_mlp": 40}
GPT2 = {**MLP, "normalization_type": "LN"}
ROTARY = {"positional_embedding_type": "rotary", "rotary_dim": 6}
NEOX = {**GPT2, **ROTARY, "rotary_dim": 4, "act_fn": "gelu", "parallel_attn_mlp": True}
LLAMA = {**MLP, **ROTARY, "normalization_type": "RMS", "act_fn": "silu", "gated_mlp": True}
LLAMA = {**LLAMA, "final_rms": True}
GROUPED = {**LLAMA, "n_key_value_heads": 2}
LOCAL = {"use_local_attn": True, "window_size": 4}

ARCHITECTURES = {
    "attention only": {"attn_only": True, "normalization_type": "LN"},
    "attention only, no norm": {"attn_only": True, "normalization_type": None},
    "attention only, rms": {"attn_only": True, "normalization_type": "RMS"},
    "attention only, shortformer": {
        **{"attn_only": True, "normalization_type": "LN"},
        **{"positional_embedding_type": "shortformer"},
    },
    "gpt2": GPT2,
    "gpt2, norms without weights": {**GPT2, "normalization_type": "LNPre"},
    "gpt2, no norm": {**GPT2, "normalization_type": None},
    "gpt2, solu": {**GPT2, "act_fn": "solu_ln"},
    "gpt2, other outputs": {**GPT2, "d_vocab_out": 7},
    "gpt2, inverse layers": {**GPT2, "scale_attn_by_inverse_layer_idx": True},
    "gpt2, unscaled": {**GPT2, "use_attn_scale": False},
    "gpt2, one layer": {**GPT2, "n_layers": 1},
    "opt": {**GPT2, "act_fn": "relu"},
    "gpt neo": {**GPT2, **LOCAL, "attn_types": ["global", "local", "global"]},
    "gpt-j": {**NEOX, "rotary_adjacent_pairs": True},
    "neox": NEOX,
    "neox, not parallel": {**NEOX, "parallel_attn_mlp": False},
    "bloom": {**GPT2, "positional_embedding_type": "alibi", "post_embedding_ln": True},
    "llama": LLAMA,
    "llama, norms without weights": {**LLAMA, "normalization_type": "RMSPre"},
    "llama, grouped": GROUPED,
    "llama, one key-value head": {**LLAMA, "n_key_value_heads": 1},
    "llama, ungrouped": {**GROUPED, "ungroup_grouped_query_attention": True},
    "mistral": {**GROUPED, **LOCAL, "attn_types": ["local"] * 3},
    "qwen3": {**GROUPED, "use_qk_norm": True},
    "gemma": {**LLAMA, "act_fn": "gelu_new", "n_key_value_heads": 1},
    "gemma 2, caps": {**GROUPED, "attn_scores_soft_cap": 5.0, "output_logits_soft_cap": 8.0},
    "gemma 2": {
        **{**GROUPED, "use_normalization_before_and_after": True, "act_fn": "gelu_new"},
        **{"attn_scores_soft_cap": 5.0, "output_logits_soft_cap": 8.0},
    },
    "results kept": {**GPT2, "use_attn_result": True},
    "split inputs": {**GPT2, "use_split_qkv_input": True},
}


def architecture(name, *, dtype=torch.float32, seed=0, **fields):
    """A model of this kind, whose weights, biases and norms are drawn anew."""
    given = {"init_weights": False, "device": "cpu", **SIZES, **ARCHITECTURES[name], **fields}
    cfg = HookedTransformerConfig(**given, dtype=dtype)
    model = HookedTransformer(cfg, move_to_device=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    randomised(model, seed)
    return model if dtype == torch.float32 else model.to(dtype)
