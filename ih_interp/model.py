"""A `HookedTransformer` for a task: its embedding, hook point at the logits, and first weights."""

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import einops
import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from ih_interp import _jax_random as jax_random
from ih_interp._config_base import Frozen
from ih_interp._expect import as_indices, expect, integer, values_are_known, with_article
from ih_interp._torch_state import plain_torch
from ih_interp.hooked_model import HookedTransformer, expect_hooked_transformers
from ih_interp.tasks.base import AbstractTask, Task
from ih_interp.tasks.exemplars import Exemplars
from ih_interp.tasks.pairs import PairsTask, features_by_token

ATTENTION_BIASES = ("b_Q", "b_K", "b_V", "b_O")  # the paper's model has none: zero, never trained
TRUNCATION = 0.87962566103423978  # standard deviation of a normal cut at two sigma
MAX_WEIGHTS = 10**9  # 4 GB, and training takes four times that


class ModelConfig(Frozen):
    """Shape of the transformer, in TransformerLens's words; defaults are the paper's."""

    n_layers: int = Field(default=2, ge=1)
    """Layers, each of attention, and of an MLP with `attn_only=False`."""
    d_model: int = Field(default=64, ge=1)
    """Width of the residual stream."""
    n_heads: int = Field(default=8, ge=1)
    """Attention heads per layer."""
    d_head: int = Field(default=8, ge=1)
    """Width of a head's queries, keys and values; even with rotary positions."""
    attn_only: bool = True
    """Whether there are no MLPs."""
    d_mlp: int | None = Field(default=None, ge=1)
    """Width of the MLPs, 4 x d_model where None; only with `attn_only=False`."""
    act_fn: Literal["gelu", "gelu_new", "relu", "silu"] = "gelu"
    """The MLPs' nonlinearity; "gelu_new" is GELU by tanh, as in the published code."""
    normalization_type: Literal["LN", "RMS"] | None = "LN"
    """LayerNorm or RMSNorm before each part of a layer and before the output; None for neither."""
    eps: float = Field(default=1e-5, gt=0)
    """Added to the variance by which the norms divide."""
    positional_embedding_type: Literal["rotary", "standard"] = "rotary"
    """Rotary over the whole head in adjacent pairs, or learned ("standard")."""
    rotary_base: int = Field(default=10_000, gt=1, lt=2**31)
    """Pair k of d_head / 2 turns by `rotary_base ** (-2 k / d_head)` radians per position."""

    @model_validator(mode="after")
    def _fits(self) -> "ModelConfig":
        per_unit = 4 * self.n_heads * self.d_head + 2 * (self.d_mlp or 4 * self.d_model)
        n_weights = self.n_layers * self.d_model * per_unit
        if n_weights > MAX_WEIGHTS:
            raise ValueError(
                f"n_layers={self.n_layers}, d_model={self.d_model}, n_heads={self.n_heads}, d_head="
                f"{self.d_head} make {n_weights:,} weights, more than {MAX_WEIGHTS:,}; lower one."
            )
        if self.positional_embedding_type == "rotary" and self.d_head % 2:
            raise ValueError(f"Rotary positions turn pairs: d_head={self.d_head} must be even.")
        if self.attn_only and self.d_mlp is not None:
            raise ValueError(f"d_mlp={self.d_mlp} needs attn_only=False.")
        return self


class FewShotEmbed(nn.Module):
    """Labels by a learned table, exemplars by a learned projection of their frozen features.

    `W_E` is the whole effective embedding `[d_vocab, d_model]`, so that full QK and OV circuits
    read as usual.
    """

    features: Float[Tensor, "row feature"]
    exemplars: Exemplars | None = None
    """The exemplars with these features, where `build_model` made it; grafts compare digests."""

    def __init__(self, features: Float[Tensor, "row feature"], n_labels: int, d_model: int) -> None:
        super().__init__()
        self.n_labels = n_labels
        self.register_buffer("features", features, persistent=False)
        self.W_in = nn.Parameter(torch.empty(features.shape[1], d_model))
        self.b_in = nn.Parameter(torch.empty(d_model))
        self.W_label = nn.Parameter(torch.empty(n_labels, d_model))

    @property
    def W_E(self) -> Float[Tensor, "d_vocab d_model"]:
        return torch.cat([self.W_label, self.features @ self.W_in + self.b_in])

    def rows(self, tokens: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape feature"]:
        """Return the raw features of exemplar tokens."""
        return self.features[tokens - self.n_labels]

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch pos d_model"]:
        tokens = as_indices(tokens, "tokens")
        # Whichever is less work: to project every exemplar once, or only those that occur. Once
        # each is possible only where no trace or gradient's graph depends on their number.
        if len(self.features) <= tokens.numel():
            return self.W_E[tokens]
        if not torch.is_grad_enabled() and values_are_known():
            shown, place = tokens.unique(return_inverse=True)
            return self.one_by_one(shown)[place]
        return self.one_by_one(tokens)

    def one_by_one(self, tokens: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape d_model"]:
        """Return the vectors that `forward` returns, computed for each token by itself."""
        is_label = (tokens < self.n_labels)[..., None]
        labels = self.W_label[tokens.clamp(max=self.n_labels - 1)]
        exemplars = self.rows(tokens.clamp(min=self.n_labels)) @ self.W_in + self.b_in
        return torch.where(is_label, labels, exemplars)


@plain_torch(gradient=True)
def build_model(
    task: Task | AbstractTask, config: ModelConfig | None = None, *, seed: int = 5
) -> HookedTransformer:
    """Build a transformer for the task with the published code's initial weights.

    They are drawn with JAX's generator through the published code's tree of keys, so that `seed=5`
    is the network of the paper's main text (66,629 trained parameters): weights are truncated
    normals of variance 1/fan-in, the table of labels 0.02 times a normal cut at two sigma, a table
    of tokens that normal itself (at 0.02 repeated tokens take ten times as many updates), biases
    zero, LayerNorms identities. Parts that the published code lacks (learned
    positions, MLPs of other widths) are drawn alike from unused keys. Only the parameters that the
    paper trains require gradients. Global random state is neither read nor changed. Raises
    ImportError with TransformerLens 4, which has no HookedTransformer.
    """
    expect_hooked_transformers("build_model")
    task = task.build() if isinstance(task, AbstractTask) else task
    if not all(hasattr(task, name) for name in ("sample", "d_vocab", "d_vocab_out", "n_ctx")):
        what = "make it with ih.FewShotTask(exemplars), or take one of ih.tasks"
        raise TypeError(
            f"The task: expected a task, got {with_article(type(task).__name__)}; {what}."
        )
    if config is not None:
        expect(config, ModelConfig, "The model's shape", "write ih.ModelConfig(...)")
    seed = integer(seed, f"seed={seed!r}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: expected at least 0 and below 2^32.")
    config = config or ModelConfig()
    if isinstance(task, PairsTask):
        features = features_by_token(task.exemplars)
        model = few_shot_model(features, config, n_labels=task.n_labels, n_ctx=task.n_ctx)
        assert isinstance(model.embed, FewShotEmbed)
        model.embed.exemplars = task.exemplars
    else:
        sizes = {name: getattr(task, name) for name in ("d_vocab", "d_vocab_out", "n_ctx")}
        model = _with_hook_at_logits(config, **sizes)
    with torch.no_grad():
        _initialise(model, seed)
    return model


@plain_torch(gradient=True)
def few_shot_model(
    features: Float[Tensor, "row feature"], config: ModelConfig, *, n_labels: int, n_ctx: int
) -> HookedTransformer:
    """Build the modules of a model that embeds exemplars; its weights are still to be written."""
    expect_hooked_transformers("A few-shot model")
    embed = FewShotEmbed(features, n_labels, config.d_model)
    sizes = {"d_vocab": n_labels + len(features), "d_vocab_out": n_labels, "n_ctx": n_ctx}
    return _with_hook_at_logits(config, embed, **sizes)


def _with_hook_at_logits(
    config: ModelConfig, embed: nn.Module | None = None, **sizes: Any
) -> HookedTransformer:
    from transformer_lens import HookedTransformerConfig

    from ih_interp import _few_shot_transformer as own  # which TransformerLens 4 cannot import

    kind = HookedTransformer if embed is None else own.FewShotTransformer
    fields: dict[str, Any] = config.model_dump()
    if config.attn_only:
        del fields["act_fn"]
    else:
        fields["d_mlp"] = config.d_mlp or 4 * config.d_model
    cfg = HookedTransformerConfig(
        **fields,
        **sizes,
        rotary_dim=config.d_head if config.positional_embedding_type == "rotary" else None,
        rotary_adjacent_pairs=True,
        init_weights=False,
        device="cpu",
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "HookedTransformer is deprecated", DeprecationWarning)
        model = kind(cfg, move_to_device=False)
    if embed is not None:
        model.add_module("embed", embed)
    model.add_module("unembed", own.UnembedWithHook(cfg))
    model.setup()  # finds the new hook points and names the new modules
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not is_zero_bias(name))
    return model


def is_zero_bias(name: str) -> bool:
    """Return whether a parameter is one of attention's biases, which stay zero."""
    return ".attn." in name and name.endswith(ATTENTION_BIASES)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def named_for_model(*groups: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights and buffers by the names that they have in a module with a `model` in it."""
    return {f"model.{name}": tensor for group in groups for name, tensor in group.items()}


def _initialise(model: HookedTransformer, seed: int) -> None:
    for name, parameter in model.named_parameters():
        parameter.fill_(1.0 if name.endswith(".w") else 0.0)  # ".w": gains of norms
    embed_key, label_key, transformer_key, unembed_key = jax_random.split(jax_random.key(seed), 4)
    embed, cfg = model.embed, model.cfg
    if isinstance(embed, FewShotEmbed):
        _draw(embed_key, embed.W_in.T)
        _draw(label_key, embed.W_label.T, 0.02)
    else:
        _draw(label_key, embed.W_E.T, 1.0)
    _draw(unembed_key, model.unembed.W_U.T)
    keys = jax_random.split(transformer_key, cfg.n_layers + 3)
    if cfg.positional_embedding_type == "standard":
        _draw(keys[0], model.pos_embed.W_pos, 0.02)
    for block, key in zip(model.blocks, keys[2:], strict=False):
        attention_key, mlp_key = jax_random.split(key)
        _initialise_attention(block.attn, *jax_random.split(attention_key))
        if not cfg.attn_only:
            in_key, out_key = jax_random.split(mlp_key)
            _draw(in_key, block.mlp.W_in.T)
            _draw(out_key, block.mlp.W_out.T)


def _initialise_attention(attention: Any, qkv_key: jax_random.Key, out_key: jax_random.Key) -> None:
    n_heads, d_model, d_head = attention.W_Q.shape
    qkv = torch.empty(3 * n_heads * d_head, d_model)
    _draw(qkv_key, qkv)
    parts = einops.rearrange(qkv, "(three head d) model -> three head model d", three=3, d=d_head)
    for weight, part in zip((attention.W_Q, attention.W_K, attention.W_V), parts, strict=True):
        weight.copy_(part)
    out = torch.empty(d_model, n_heads * d_head)
    _draw(out_key, out)
    attention.W_O.copy_(einops.rearrange(out, "model (head d) -> head d model", d=d_head))


def _draw(
    key: jax_random.Key, weight: Float[Tensor, "fan_out fan_in"], scale: float | None = None
) -> None:
    """Write a normal that is cut at two sigma, times `scale` or rescaled to variance 1/fan_in."""
    n_out, n_in = weight.shape
    drawn = torch.from_numpy(jax_random.truncated_normal(jax_random.split(key)[0], (n_out, n_in)))
    weight.copy_(drawn * scale if scale else drawn / (TRUNCATION * math.sqrt(n_in)))
