"""What a trace records instead of TransformerLens's own code: the same values for less work."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer


@contextmanager
def substituted(model: HookedTransformer) -> Generator[None]:
    """Inside, blocks normalise their input once, and rotary embeddings rotate by a product.

    TransformerLens normalises the inputs of queries, keys and values each; they are one tensor
    unless the model splits them. It rotates by writing into slices, which compilers cannot
    vectorise; a product with zeros and ones is the same to the last bit.
    """
    changed: list[tuple[Any, str]] = []
    for block in model.blocks:
        if hasattr(block, "ln1"):
            norm: Any = block.ln1
            norm.forward = _remembering_last(norm.forward)
            changed.append((norm, "forward"))
        if model.cfg.positional_embedding_type == "rotary":
            attention: Any = block.attn
            matrix = attention.rotate_every_two(torch.eye(attention.cfg.rotary_dim))
            attention.rotate_every_two = _times(matrix.to(attention.rotary_sin.device))
            changed.append((attention, "rotate_every_two"))
    try:
        yield
    finally:
        for module, name in changed:
            delattr(module, name)  # the class's own is back


def _remembering_last(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    last: list[Tensor] = []

    def remembering(x: Tensor) -> Tensor:
        if not last or last[0] is not x:
            last[:] = [x, function(x)]
        return last[1]

    return remembering


def _times(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x @ matrix
