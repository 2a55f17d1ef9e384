"""What a trace records instead of an attention layer's own code: the same values for less work."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import einops
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.utilities.attention import simple_attn_linear

from ih_interp.engine.graph_passes import TINY
from ih_interp.types import Pattern, Scores

MAX_SPELLED_OUT = 2**14  # numbers a sequence: a trace of 2,000 has them all in memory, 130 MB

Vectors: TypeAlias = Float[Tensor, "batch pos head d_head"]
"""Queries, keys, values or mixtures of values, as TransformerLens shapes them."""


class Lookup(NamedTuple):
    """A tensor that was read from a table: `result = table[tokens]`."""

    result: Tensor
    table: Float[Tensor, "row d_model"]
    tokens: Int[Tensor, "batch pos"]

    @classmethod
    def read(cls, table: Tensor, tokens: Tensor) -> "Lookup":
        """The rows of these tokens."""
        return cls(table[tokens], table, tokens)


class Known:
    """The pass's embedding and first LayerNorm, where they were read from a table."""

    embedded: Lookup | None = None
    normalised: Lookup | None = None


class Projection:
    """Queries, keys and values of one layer: of the first, once a token where there is a table.

    TransformerLens rotates queries and keys by writing into slices, which compilers cannot
    vectorise: here a product with zeros and ones does, which is the same to the last bit.
    """

    def __init__(self, attention: Any, known: Known | None) -> None:
        self._attention = attention
        self._known = known
        self._plain = attention.calculate_qkv_matrices

    @property
    def methods(self) -> dict[str, Callable[..., Any]]:
        """What to put in the place of the layer's methods of these names."""
        if self._attention.cfg.positional_embedding_type != "rotary":
            return {"calculate_qkv_matrices": self.calculate}
        return {"calculate_qkv_matrices": self.calculate, "rotate_every_two": self._turned()}

    def calculate(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As TransformerLens's `calculate_qkv_matrices`."""
        attention = self._attention
        if any(x.ndim != 3 for x in inputs):  # heads have inputs of their own
            return self._plain(*inputs)
        queries, keys, values = (
            self._project(x, name)
            if (found := self._found(x)) is None
            else self._project(found.table[None], name)[0][found.tokens]
            for x, name in zip(inputs, "QKV", strict=True)
        )
        return attention.hook_q(queries), attention.hook_k(keys), attention.hook_v(values)

    def _found(self, x: Tensor) -> Lookup | None:
        """Where an input was read from a table by the LayerNorm before."""
        found = None if self._known is None else self._known.normalised
        return None if found is None or found.result is not x else found

    def _turned(self) -> Callable[[Tensor], Tensor]:
        """As TransformerLens's `rotate_every_two`."""
        pairs = torch.eye(self._attention.cfg.rotary_dim).to(self._attention.rotary_sin)
        matrix = self._attention.rotate_every_two(pairs)
        return lambda x: x @ matrix

    def _project(self, x: Float[Tensor, "batch pos d_model"], name: str) -> Vectors:
        return simple_attn_linear(x, *self._weight_and_bias(name))

    def _weight_and_bias(self, name: str) -> tuple[Tensor, Tensor]:
        return getattr(self._attention, f"W_{name}"), getattr(self._attention, f"b_{name}")


class HeadsInnermost(Projection):
    """One layer's attention with its heads side by side in memory, for passes without gradient.

    Eight heads fill a vector of the processor, five positions do not. Queries and keys are rotated
    by rotating the weights that make them, once a position. Measured: an evaluation takes 0.8 of
    the time, an update of training 1.1.
    """

    def __init__(self, attention: Any, known: Known | None) -> None:
        super().__init__(attention, known)
        self._plain_rotary = attention.apply_rotary
        self._made: list[tuple[Vectors, Tensor, str]] = []
        self._biased = [name for name in "QKV" if bool(self._weight_and_bias(name)[1].any())]

    @property
    def methods(self) -> dict[str, Callable[..., Any]]:
        rotary = self._attention.cfg.positional_embedding_type == "rotary"
        return {
            "calculate_qkv_matrices": self.calculate,
            "calculate_attention_scores": self.scores,
            "calculate_z_scores": self.mixed,
            **({"apply_rotary": self.rotate} if rotary else {}),
        }

    @classmethod
    def suits(cls, cfg: Any) -> bool:
        """Whether a head's products are so small that no library is faster, nor large in all."""
        spelled_out = cfg.n_ctx**2 * cfg.n_heads * cfg.d_head
        return max(cfg.n_ctx, cfg.d_head) <= TINY and spelled_out <= MAX_SPELLED_OUT

    def calculate(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        made = super().calculate(*inputs)
        self._made = [
            each
            for each in zip(made, inputs, "QK", strict=False)
            if each[1].ndim == 3
            and not getattr(self._attention, f"hook_{each[2].lower()}").fwd_hooks
        ]
        return made

    def rotate(self, x: Vectors, offset: int = 0, attention_mask: Tensor | None = None) -> Vectors:
        """As TransformerLens's `apply_rotary`."""
        own = next((made for made in self._made if made[0] is x), None)  # None: it was hooked
        if own is None or own[2] in self._biased or offset or attention_mask is not None:
            return self._plain_rotary(x, offset, attention_mask)
        _, source, name = own
        weights, found = self._rotated_weights(name, x.shape[1]), self._found(source)
        if found is not None and len(found.table) <= len(x):
            table = einops.einsum(found.table, weights, "row model, pos model out -> pos row out")
            place = torch.arange(len(weights), device=x.device) * len(found.table) + found.tokens
            return self._by_head(table.flatten(end_dim=1)[place])
        return self._by_head(
            einops.einsum(source, weights, "batch pos model, pos model out -> batch pos out")
        )

    def scores(self, q: Vectors, k: Vectors) -> Scores:
        """As TransformerLens's `calculate_attention_scores`."""
        products = (q[:, :, None] * k[:, None]).sum(dim=-1) / self._attention.attn_scale
        return einops.rearrange(products, "batch query key head -> batch head query key")

    def mixed(self, v: Vectors, pattern: Pattern) -> Vectors:
        """As TransformerLens's `calculate_z_scores`."""
        weight = einops.rearrange(pattern, "batch head query key -> batch query key head 1")
        return self._attention.hook_z((weight * v[:, None]).sum(dim=2))

    def _project(self, x: Float[Tensor, "batch pos d_model"], name: str) -> Vectors:
        weight, bias = self._weight_and_bias(name)
        made = self._by_head(x @ einops.rearrange(weight, "head model d -> model (d head)"))
        return made + bias if name in self._biased else made

    def _by_head(self, x: Float[Tensor, "*shape out"]) -> Float[Tensor, "*shape head d_head"]:
        """Views by head of a product whose columns are `(d_head head)`."""
        return x.unflatten(-1, (self._attention.cfg.d_head, -1)).transpose(-1, -2)

    def _rotated_weights(self, name: str, n_positions: int) -> Float[Tensor, "pos model out"]:
        """A position's rotation of the weights: it is linear, and so the same as of the product."""
        weight, _ = self._weight_and_bias(name)
        one = einops.rearrange(weight, "head model d -> model 1 head d")
        rotated = self._plain_rotary(one.expand(-1, n_positions, -1, -1))
        return einops.rearrange(rotated, "model pos head d -> pos model (d head)")
