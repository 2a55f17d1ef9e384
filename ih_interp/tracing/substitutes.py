"""What a trace records instead of TransformerLens's own code: the same values for less work."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import einops
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.utilities.attention import simple_attn_linear

from ih_interp.model import FewShotEmbed

WORTH_A_TABLE = 2  # rows a token up to which reading a table is less work than token by token


@contextmanager
def substituted(model: HookedTransformer, *, gradient: bool) -> Generator[None]:
    """Inside, passes of the model give the same values to rounding, by way of these.

    What depends on a token alone, the embedding, the first LayerNorm and the first queries, keys
    and values, is computed once a token and read from a table: there are five labels and a few
    dozen exemplars against thousands of positions. Blocks normalise their input once, where
    TransformerLens does so for queries, keys and values each.

    TransformerLens rotates queries and keys by writing into slices, which compilers cannot
    vectorise. With `gradient` they are rotated by a product with zeros and ones, which is the same
    to the last bit. Without, by rotating the weights that make them, once a position: a gradient
    through that would cost more than it saves.
    """
    with _Replaced() as replaced:
        known = _Known()
        if isinstance(model.embed, FewShotEmbed):
            replaced.put(model.embed, "forward", _embed_once(model.embed, known))
        for number, block in enumerate(model.blocks):
            attention: Any = block.attn
            if hasattr(block, "ln1"):
                norm: Any = block.ln1
                reads = number == 0 and model.cfg.normalization_type is not None
                forward = _normalise_once(norm, known) if reads else norm.forward
                replaced.put(norm, "forward", _remembering_last(forward))
            projection = _Projection(attention, known if number == 0 else None)
            replaced.put(attention, "calculate_qkv_matrices", projection.calculate)
            if model.cfg.positional_embedding_type == "rotary":
                if gradient:
                    matrix = attention.rotate_every_two(torch.eye(attention.cfg.rotary_dim))
                    turn = _times(matrix.to(attention.rotary_sin.device))
                    replaced.put(attention, "rotate_every_two", turn)
                else:
                    replaced.put(attention, "apply_rotary", projection.rotate)
        yield


class _Replaced:
    """Methods of instances, replaced inside the block; the classes' own are back after it."""

    def __init__(self) -> None:
        self._changed: list[tuple[Any, str]] = []

    def put(self, module: Any, name: str, function: Callable[..., Any]) -> None:
        setattr(module, name, function)
        self._changed.append((module, name))

    def __enter__(self) -> "_Replaced":
        return self

    def __exit__(self, *_: object) -> None:
        for module, name in self._changed:
            delattr(module, name)


class _Lookup(NamedTuple):
    """A tensor that was read from a table: `result = table[tokens]`."""

    result: Tensor
    table: Float[Tensor, "row d_model"]
    tokens: Int[Tensor, "batch pos"]

    @classmethod
    def read(cls, table: Tensor, tokens: Tensor) -> "_Lookup":
        return cls(table[tokens], table, tokens)


class _Known:
    """The pass's embedding and first LayerNorm, where they were read from a table."""

    embedded: _Lookup | None = None
    normalised: _Lookup | None = None


def _embed_once(embed: FewShotEmbed, known: _Known) -> Callable[[Tensor], Tensor]:
    def embedded(tokens: Tensor) -> Tensor:
        if len(embed.features) > WORTH_A_TABLE * tokens.numel():
            known.embedded = None
            return embed.one_by_one(tokens)  # `forward` asks which occur: no trace can know
        known.embedded = _Lookup.read(embed.W_E, tokens)
        return known.embedded.result

    return embedded


def _normalise_once(norm: Any, known: _Known) -> Callable[[Tensor], Tensor]:
    forward = norm.forward

    def normalised(x: Tensor) -> Tensor:
        found, known.normalised = known.embedded, None
        hooked = norm.hook_scale.fwd_hooks or norm.hook_normalized.fwd_hooks
        if found is None or found.result is not x or hooked:  # a hook on the way gives another x
            return forward(x)
        known.normalised = _Lookup.read(forward(found.table[None])[0], found.tokens)
        return known.normalised.result

    return normalised


class _Projection:
    """Queries, keys and values of one layer, and the first two rotated."""

    def __init__(self, attention: Any, known: _Known | None) -> None:
        self._attention = attention
        self._known = known
        self._plain = attention.calculate_qkv_matrices
        self._plain_rotary = attention.apply_rotary
        self._made: list[tuple[Tensor, Tensor, str]] = []
        self._unbiased = [name for name in "QK" if not bool(getattr(attention, f"b_{name}").any())]

    def calculate(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As TransformerLens's `calculate_qkv_matrices`."""
        found = self._found
        made = self._plain(*inputs) if found is None else self._read(found)
        self._made = [
            each
            for each in zip(made, inputs, "QK", strict=False)
            if not getattr(self._attention, f"hook_{each[2].lower()}").fwd_hooks
        ]
        return made

    def rotate(self, x: Tensor, offset: int = 0, attention_mask: Tensor | None = None) -> Tensor:
        """As TransformerLens's `apply_rotary`."""
        own = next((made for made in self._made if made[0] is x), None)  # None: it was hooked
        if own is None or own[2] not in self._unbiased or offset or attention_mask is not None:
            return self._plain_rotary(x, offset, attention_mask)
        _, source, name = own
        weights, found = self._rotated_weights(name, x.shape[1]), self._found
        if found is not None and len(found.table) <= len(x):
            table = einops.einsum(
                found.table, weights, "row model, pos model head d -> pos row head d"
            )
            place = torch.arange(len(weights), device=x.device) * len(found.table) + found.tokens
            return table.flatten(end_dim=1)[place]
        return einops.einsum(
            source, weights, "batch pos model, pos model head d -> batch pos head d"
        )

    @property
    def _found(self) -> _Lookup | None:
        """What the LayerNorm read from a table, which goes straight into the attention."""
        return None if self._known is None else self._known.normalised

    def _rotated_weights(self, name: str, n_positions: int) -> Float[Tensor, "pos model head d"]:
        """A position's rotation of the weights: it is linear, and so the same as of the product."""
        weights = einops.rearrange(
            getattr(self._attention, f"W_{name}"), "head model d -> model 1 head d"
        )
        rotated = self._plain_rotary(weights.expand(-1, n_positions, -1, -1))
        return einops.rearrange(rotated, "model pos head d -> pos model head d")

    def _read(self, found: _Lookup) -> tuple[Tensor, Tensor, Tensor]:
        attention = self._attention
        queries, keys, values = (
            simple_attn_linear(
                found.table[None],
                getattr(attention, f"W_{name}"),
                getattr(attention, f"b_{name}"),
            )[0][found.tokens]
            for name in "QKV"
        )
        return attention.hook_q(queries), attention.hook_k(keys), attention.hook_v(values)


def _remembering_last(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    last: list[Tensor] = []

    def remembering(x: Tensor) -> Tensor:
        if not last or last[0] is not x:
            last[:] = [x, function(x)]
        return last[1]

    return remembering


def _times(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x @ matrix
