"""Faster layers for a trace to record instead of TransformerLens's own: the same values, less work.

The embedding, the first LayerNorm and the first queries, keys and values depend on the token alone.
They are computed once per token and read from a table where that is smaller than the batch, of
thousands of positions. Blocks normalise their input once, where TransformerLens does so for
queries, keys and values each.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.utilities.attention import simple_attn_linear

from ih_interp._stock import not_plain, parts_of
from ih_interp.hooked_model import HookedModel
from ih_interp.model import FewShotEmbed

WORTH_A_TABLE = 2  # rows per token up to which reading a table is less work than token by token

Vectors: TypeAlias = Float[Tensor, "batch pos head d_head"]
"""Queries, keys or values, as TransformerLens shapes them."""


class Lookup(NamedTuple):
    """A tensor that was read from a table: `result = table[tokens]`."""

    result: Tensor
    table: Float[Tensor, "row d_model"]
    tokens: Int[Tensor, "batch pos"]


class Known:
    """The pass's embedding and first LayerNorm, where they were read from a table.

    A layer recognises its input by identity: for a tensor that a hook put in its place, the table
    does not hold.
    """

    embedded: Lookup | None = None
    normalised: Lookup | None = None
    is_plain: bool = False
    """Whether it is TransformerLens's own embedding."""


@contextmanager
def substituted(model: HookedModel) -> Generator[None]:
    """Have passes of the model use these layers inside the block, equal to rounding.

    A model with other code than TransformerLens's own is left as it is.
    """
    if not_plain(model, parts_of(model), while_tracing=True) is not None:
        yield
        return
    changed: list[tuple[Any, str]] = []

    def put(module: Any, name: str, function: Callable[..., Any]) -> None:
        setattr(module, name, function)  # on the instance: the class keeps its own
        changed.append((module, name))

    try:
        known = Known()
        known.is_plain = not isinstance(model.embed, FewShotEmbed)
        if not model.cfg.post_embedding_ln:
            put(model.embed, "forward", _embed_once(model.embed, known))
        for number, block in enumerate(model.blocks):
            if hasattr(block, "ln1"):
                norm: Any = block.ln1
                reads = number == 0 and model.cfg.normalization_type is not None
                forward = _normalise_once(norm, known) if reads else norm.forward
                put(norm, "forward", lru_cache(maxsize=1)(forward))  # tensors hash by identity
            attention: Any = block.attn
            put(attention, "calculate_qkv_matrices", _project_once(attention, known, number == 0))
            if model.cfg.positional_embedding_type == "rotary":
                put(attention, "rotate_every_two", _turn_by_product(attention))
        yield
    finally:
        for module, name in changed:
            delattr(module, name)


def _embed_once(embed: Any, known: Known) -> Callable[[Tensor], Tensor]:
    is_few_shot = isinstance(embed, FewShotEmbed)
    most = WORTH_A_TABLE if is_few_shot else 1  # rows of other models need no making
    forward = embed.one_by_one if is_few_shot else embed.forward

    def embedded(tokens: Tensor) -> Tensor:
        n_rows = len(embed.features if is_few_shot else embed.W_E)
        if n_rows > most * tokens.numel():
            known.embedded = None
            return forward(tokens)
        table = embed.W_E
        known.embedded = Lookup(table[tokens], table, tokens)
        return known.embedded.result

    return embedded


def _normalise_once(norm: Any, known: Known) -> Callable[[Tensor], Tensor]:
    forward = norm.forward

    def normalised(x: Tensor) -> Tensor:
        found, known.normalised = known.embedded, None
        hooked = norm.hook_scale.fwd_hooks or norm.hook_normalized.fwd_hooks
        if found is None or found.result is not x or hooked:
            return forward(x)
        table = forward(found.table[None])[0]
        known.normalised = Lookup(table[found.tokens], table, found.tokens)
        return known.normalised.result

    return normalised


def _project_once(
    attention: Any, known: Known, is_first: bool
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Return a stand-in for `calculate_qkv_matrices` that reads the table if its input did."""
    plain = attention.calculate_qkv_matrices

    def project(x: Tensor, name: str) -> Vectors:
        weight, bias = getattr(attention, f"W_{name}"), getattr(attention, f"b_{name}")
        found = known.normalised if is_first else None
        if found is None or found.result is not x:
            return simple_attn_linear(x, weight, bias)
        return simple_attn_linear(found.table[None], weight, bias)[0][found.tokens]

    def calculate(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if any(x.ndim != 3 for x in inputs):  # heads have inputs of their own
            return plain(*inputs)
        # TransformerLens adds 0.0 to what queries and keys read, so that only values are known.
        if known.is_plain and inputs[2] is getattr(known.normalised, "result", None):
            inputs = (inputs[2],) * 3
        queries, keys, values = (project(x, name) for x, name in zip(inputs, "QKV", strict=True))
        return attention.hook_q(queries), attention.hook_k(keys), attention.hook_v(values)

    return calculate


def _turn_by_product(attention: Any) -> Callable[[Tensor], Tensor]:
    """Return a stand-in for `rotate_every_two`: a product with a matrix of zeros and ones.

    It is the same to the last bit. Compilers cannot vectorise TransformerLens's writing to slices.
    """
    pairs = torch.eye(attention.cfg.rotary_dim).to(attention.rotary_sin)
    matrix = attention.rotate_every_two(pairs)
    return lambda x: x @ matrix
