"""Small `TransformerBridge`s over Hugging Face models with random weights, and their twins.

`bridge(name)` runs with TransformerLens 3.9 and 4.3; `twins(name)` also gives a HookedTransformer
with the same weights, which 4.0 removed. Nothing is loaded from anywhere.
"""

import importlib
from importlib.metadata import version

import pytest
import torch
import transformers
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

HAS_TWINS = version("transformer-lens").startswith("3.")
needs_twins = pytest.mark.skipif(not HAS_TWINS, reason="needs a HookedTransformer")

N_LAYERS, N_HEADS, D_MODEL, D_HEAD, D_MLP, N_CTX, D_VOCAB = 3, 4, 24, 6, 40, 12, 30

GPT2 = {
    **{"n_layer": N_LAYERS, "n_head": N_HEADS, "n_embd": D_MODEL, "n_inner": D_MLP},
    **{"n_positions": N_CTX, "vocab_size": D_VOCAB, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    **{"attn_pdrop": 0.0, "tie_word_embeddings": False},
}
SIZES = {
    **{"num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS, "hidden_size": D_MODEL},
    **{"intermediate_size": D_MLP, "max_position_embeddings": N_CTX, "vocab_size": D_VOCAB},
}
LLAMA = {**SIZES, "head_dim": D_HEAD, "num_key_value_heads": 2, "rms_norm_eps": 1e-5}
LLAMA |= {"tie_word_embeddings": False, "pad_token_id": None}
LLAMA |= {"bos_token_id": None, "eos_token_id": None}
NEOX = {**SIZES, "rotary_pct": 0.67, "attention_dropout": 0.0, "hidden_dropout": 0.0}

LOCAL = {"sliding_window": 4, "layer_types": ["sliding_attention"] * N_LAYERS}
GEMMA2 = {**LLAMA, "query_pre_attn_scalar": D_HEAD, "attn_logit_softcapping": 5.0}
GEMMA2 |= {"final_logit_softcapping": 8.0, "hidden_activation": "gelu_pytorch_tanh"}
GEMMA2 |= {"layer_types": ["full_attention"] * N_LAYERS}
OPT = {"num_hidden_layers": N_LAYERS, "num_attention_heads": N_HEADS, "hidden_size": D_MODEL}
OPT |= {"ffn_dim": D_MLP, "word_embed_proj_dim": D_MODEL, "max_position_embeddings": N_CTX}
OPT |= {"vocab_size": D_VOCAB, "dropout": 0.0, "tie_word_embeddings": False}
OPT |= {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
BLOOM = {"n_layer": N_LAYERS, "n_head": N_HEADS, "hidden_size": D_MODEL, "vocab_size": D_VOCAB}
BLOOM |= {"seq_length": N_CTX}
BLOOM |= {"tie_word_embeddings": False, "hidden_dropout": 0.0, "attention_dropout": 0.0}

# The class at Hugging Face, without its ending, and the fields of its configuration.
CONFIGURATIONS = {
    "gpt2": ("GPT2", GPT2),
    "neox": ("GPTNeoX", NEOX),
    "llama": ("Llama", {**LLAMA, "num_key_value_heads": N_HEADS}),
    "llama, grouped": ("Llama", LLAMA),
    "llama, one key-value head": ("Llama", {**LLAMA, "num_key_value_heads": 1}),
    "mistral": ("Mistral", {**LLAMA, **LOCAL}),
    "qwen3": ("Qwen3", LLAMA),
    "gemma 2": ("Gemma2", GEMMA2),
    "opt": ("OPT", OPT),
    "bloom": ("Bloom", BLOOM),
}
OTHERS = ("mistral", "qwen3", "gemma 2", "opt", "bloom")
"""With local attention, norms of queries, caps, attention that is only shown, and ALiBi."""
TWINS = tuple(name for name in CONFIGURATIONS if name not in OTHERS)
BRIDGES = (*TWINS, "native")
"""The names that `bridge` takes, with `OTHERS`; `twins` takes all but "native"."""


def hugging_face(name, *, seed=0):
    """A model of Hugging Face whose weights, biases and norms are drawn anew."""
    kind, fields = CONFIGURATIONS[name]
    ending = "LMHeadModel" if kind == "GPT2" else "ForCausalLM"
    config = getattr(transformers, f"{kind}Config")(**fields, attn_implementation="eager")
    model = getattr(transformers, f"{kind}{ending}")(config).eval()
    return _randomised(model, seed)


def bridge(name, *, dtype=torch.float32, seed=0):
    """A bridge of this kind; "native" is TransformerLens's own, which no attention clamp fits."""
    if name == "native":
        return _native(dtype, seed)
    return _over(hugging_face(name, seed=seed).to(dtype))


def twins(name, *, dtype=torch.float32, seed=0):
    """A HookedTransformer and a bridge with the same weights; only with TransformerLens 3."""
    from architectures import architecture

    model = hugging_face(name, seed=seed).to(dtype)
    sizes = {"d_mlp": 4 * D_MODEL} if name == "bloom" else {}  # which it has at Hugging Face
    hooked = architecture(name, dtype=dtype, **sizes)
    kind = CONFIGURATIONS[name][0].lower()
    kind = {"gptneox": "neox", "gemma2": "gemma"}.get(kind, kind)
    path = f"transformer_lens.pretrained.weight_conversions.{kind}"
    converted = getattr(importlib.import_module(path), f"convert_{kind}_weights")(model, hooked.cfg)
    state = {k: v.detach().clone().to(dtype) for k, v in converted.items()}
    state.setdefault("unembed.b_U", torch.zeros(D_VOCAB, dtype=dtype))
    missing, unexpected = hooked.load_state_dict(state, strict=False)
    weights = {key for key, _ in hooked.named_parameters()}
    assert not unexpected, unexpected
    unused = {"pos_embed.W_pos"} if name == "bloom" else set()
    assert weights & {*missing} <= unused, missing
    return hooked, _over(model)


def tokens_for(model, n_sequences=3, n_positions=9, *, seed=0):
    """Random tokens, `[batch, pos]`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.cfg.d_vocab, (n_sequences, n_positions), generator=generator)


def _over(model):
    kind = type(model).__name__
    return build_bridge_from_module(model, kind, hf_config=model.config, model_name=kind)


def _native(dtype, seed):
    from transformer_lens.config import TransformerBridgeConfig

    sizes = {"n_layers": N_LAYERS, "n_heads": N_HEADS, "d_model": D_MODEL, "d_head": D_HEAD}
    sizes |= {"d_mlp": D_MLP, "n_ctx": N_CTX, "d_vocab": D_VOCAB, "act_fn": "gelu_new"}
    made = TransformerBridge.boot_native(TransformerBridgeConfig(**sizes, seed=seed), dtype=dtype)
    made.eval()
    return made


def _randomised(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            gain = "norm" in name or "ln" in name
            is_gain = gain and name.endswith("weight")
            parameter.copy_(1 + 0.3 * noise if is_gain else 0.3 * noise)
    return model
