"""Slow, obvious versions of what the package computes fast: loops, no TransformerLens."""

import math

import torch
from torch import Tensor, nn


def literal_forward(model: nn.Module, tokens: Tensor) -> Tensor:
    """Logits [pos, label] of one sequence [pos], in float64, from the model's weights alone.

    Reads names and sizes from the model; no attention biases, as the paper's has none.
    """
    weights = {name: value.detach().double() for name, value in model.named_parameters()}
    config = model.cfg
    stream = [_embedding(model, weights, int(token)) for token in tokens]
    if config.positional_embedding_type == "standard":
        stream = [x + weights["pos_embed.W_pos"][i] for i, x in enumerate(stream)]
    for layer in range(config.n_layers):
        block = {
            name.removeprefix(f"blocks.{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"blocks.{layer}.")
        }
        read = [_norm(x, block, "ln1", config) for x in stream]
        for head in range(config.n_heads):
            written = _attention_head(read, block, head, config)
            stream = [x + update for x, update in zip(stream, written, strict=True)]
        if not config.attn_only:
            stream = [x + _mlp(_norm(x, block, "ln2", config), block, config) for x in stream]
    final = [_norm(x, weights, "ln_final", config) for x in stream]
    return torch.stack([x @ weights["unembed.W_U"] + weights["unembed.b_U"] for x in final])


def _embedding(model: nn.Module, weights: dict[str, Tensor], token: int) -> Tensor:
    n_labels = len(weights["embed.W_label"])
    if token < n_labels:
        return weights["embed.W_label"][token]
    feature = model.embed.features[token - n_labels].double()
    return feature @ weights["embed.W_in"] + weights["embed.b_in"]


def _attention_head(
    read: list[Tensor], block: dict[str, Tensor], head: int, config
) -> list[Tensor]:
    """What one head writes at every position."""
    query, key, value = (
        [x @ block[f"attn.{name}"][head] for x in read] for name in ("W_Q", "W_K", "W_V")
    )
    if config.positional_embedding_type == "rotary":
        query = [_rotated(q, position, config.rotary_base) for position, q in enumerate(query)]
        key = [_rotated(k, position, config.rotary_base) for position, k in enumerate(key)]
    written = []
    for i in range(len(read)):
        scores = [float(query[i] @ key[j]) / math.sqrt(config.d_head) for j in range(i + 1)]
        weights = [math.exp(score - max(scores)) for score in scores]
        mixed = torch.zeros(config.d_head, dtype=torch.float64)
        for j in range(i + 1):
            mixed += weights[j] / sum(weights) * value[j]
        written.append(mixed @ block["attn.W_O"][head])
    return written


def _rotated(vector: Tensor, position: int, base: float) -> Tensor:
    """Neighbouring entries turned by position * base^(-2i/n), as in RoFormer."""
    turned = vector.clone()
    for i in range(len(vector) // 2):
        angle = position * base ** (-2 * i / len(vector))
        x, y = float(vector[2 * i]), float(vector[2 * i + 1])
        turned[2 * i] = x * math.cos(angle) - y * math.sin(angle)
        turned[2 * i + 1] = y * math.cos(angle) + x * math.sin(angle)
    return turned


def _norm(x: Tensor, weights: dict[str, Tensor], name: str, config) -> Tensor:
    if config.normalization_type is None:
        return x
    if config.normalization_type == "LN":
        x = x - x.mean()
    scaled = x / math.sqrt(float((x * x).mean()) + config.eps) * weights[f"{name}.w"]
    return scaled + weights[f"{name}.b"] if config.normalization_type == "LN" else scaled


def _mlp(x: Tensor, block: dict[str, Tensor], config) -> Tensor:
    before = x @ block["mlp.W_in"] + block["mlp.b_in"]
    after = torch.tensor([_activation(float(h), config.act_fn) for h in before]).double()
    return after @ block["mlp.W_out"] + block["mlp.b_out"]


def _activation(x: float, name: str) -> float:
    return {
        "relu": max(x, 0.0),
        "gelu": x * (1 + math.erf(x / math.sqrt(2))) / 2,
        "gelu_new": x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
        "silu": x / (1 + math.exp(-x)),
    }[name]
