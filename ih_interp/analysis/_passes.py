"""Passes of a model on other sequences or with heads set, and records of what its heads write.

The model's own modules and hooks do the work. Models in which they do not show what a head writes
are refused.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from ih_interp._stock import is_hooked, other_module
from ih_interp.analysis.heads.pattern_scores import CHUNK
from ih_interp.clamps._active import active, pass_size
from ih_interp.clamps.base import Shape, head_mask
from ih_interp.types import HeadName, parse_heads

Input: TypeAlias = Literal["q", "k", "v"]
"""The input of a head through which it is reached."""

Ablation: TypeAlias = Literal["zero", "mean", "resample"]
"""What replaces the output of an ablated head: zero, a mean over sequences, another sequence's."""

Written: TypeAlias = Float[Tensor, "batch pos _head d"]
"""The outputs of heads: z, d_head wide, or with `use_attn_result` the result, d_model wide."""

HeadsOf: TypeAlias = Mapping[int, Sequence[int]]
"""Heads by layer."""

CUTS = ("attn_out", "resid_mid", "resid_post", "resid_pre")
"""Points at which a clamp that replaces the stream cuts every path through it."""


def chunk_size(model: HookedTransformer, n_sequences: int) -> int:
    """Return how many sequences go through a pass of the analysis."""
    return pass_size(model, n_sequences, CHUNK)


def inputs_named(via: str | Sequence[str]) -> tuple[Input, ...]:
    """Return the inputs named by "k", "qk" or `("q", "k")`."""
    names = tuple(via)
    if not names or not {*names} <= {*get_args(Input)} or len(set(names)) < len(names):
        raise ValueError(f"via={via!r}: expected some of q, k and v, each once.")
    return names  # pyright: ignore[reportReturnType]


def by_layer(heads: Iterable[HeadName], model: HookedTransformer) -> dict[int, list[int]]:
    """Return heads by layer, in order; ValueError for a head that is missing or named twice."""
    chosen = head_mask(parse_heads(heads), Shape.of(model))
    return {
        layer: row.nonzero()[:, 0].tolist() for layer, row in enumerate(chosen) if bool(row.any())
    }


def refuse_shape(model: HookedTransformer) -> None:
    """Refuse models in which what heads write does not add up (ValueError)."""
    cfg = model.cfg
    normalised = cfg.use_normalization_before_and_after or (
        cfg.original_architecture in POST_NORM_ARCHITECTURES
    )
    reasons = {
        "shares keys and values among heads (grouped-query attention), so that heads have no "
        "edges of their own": cfg.n_key_value_heads is not None,
        "normalises what attention writes, so that heads do not add up": normalised,
        "has use_split_qkv_input or use_attn_in on; set them to False, edges need neither": (
            cfg.use_split_qkv_input or cfg.use_attn_in
        ),
        "has weights in 4 bits": cfg.load_in_4bit,
    }
    for reason, applies in reasons.items():
        if applies:
            raise ValueError(f"Paths cannot be patched: the model {reason}.")


def refuse_cuts(model: HookedTransformer, first: int, last: int) -> None:
    """Refuse clamps that replace the stream above layer `first` and up to layer `last`."""
    for one in active(model):
        for point in one.points:
            parts = point.split(".")
            kind = parts[-1].removeprefix("hook_")
            if len(parts) != 3 or kind not in CUTS:
                continue
            if first + (kind == "resid_pre") <= int(parts[1]) < last + (kind == "resid_pre"):
                raise ValueError(
                    f"{one.clamp} replaces {point}, which every path from layer {first} to layer "
                    f"{last} crosses: there is no edge to patch. Take the clamp off."
                )


def written_at(model: HookedTransformer, layer: int) -> str:
    """Return the hook point that holds what each head of a layer writes."""
    return f"blocks.{layer}.attn.hook_{'result' if model.cfg.use_attn_result else 'z'}"


def written_points(model: HookedTransformer, layers: Iterable[int]) -> list[str]:
    """Return `written_at` of layers, and `hook_attn_out` where attention may add something else."""
    points = [written_at(model, layer) for layer in layers]
    for layer in layers:
        block = model.blocks[layer]
        hooked = is_hooked(block.attn) or is_hooked(block.hook_attn_out)
        if hooked or other_module(model, block.attn):
            points.append(f"blocks.{layer}.hook_attn_out")
    return points


def written_by(
    model: HookedTransformer, kept: Mapping[str, Tensor], heads: HeadsOf
) -> dict[int, Written]:
    """Return what the heads wrote in a pass that kept `written_points`, by layer.

    Raises ValueError where that does not add up to what attention adds to the stream.
    """
    for layer in heads:
        added = kept.get(f"blocks.{layer}.hook_attn_out")
        if added is not None:
            written = kept[written_at(model, layer)]
            each = into_stream(model, layer, range(model.cfg.n_heads), written)
            refuse_unequal(
                each.sum(dim=2) + model.blocks[layer].attn.b_O,
                added,
                f"What attention in layer {layer} adds to the residual stream is not the sum of "
                "what its heads write, z W_O",
            )
    return {layer: kept[written_at(model, layer)][:, :, list(heads[layer])] for layer in heads}


def refuse_unequal(expected: Tensor, found: Tensor, what: str) -> None:
    """Raise ValueError, beginning with `what`, where two tensors differ by more than rounding."""
    coarse = max(torch.finfo(expected.dtype).eps, torch.finfo(found.dtype).eps)
    expected, found = expected.double(), found.double()
    allowed = coarse**0.7 * max(float(expected.abs().max()), float(found.abs().max()))
    if not bool(((expected - found).abs() <= allowed).all()):
        raise ValueError(
            f"{what}: other code or hooks stand between, and their part cannot be told apart. "
            "Take them off, or run the model itself under hooks."
        )


def into_stream(
    model: HookedTransformer, layer: int, heads: Sequence[int], written: Written
) -> Float[Tensor, "batch pos head d_model"]:
    """Return what each of the heads adds to the residual stream."""
    if model.cfg.use_attn_result:
        return written
    w_o = model.blocks[layer].attn.W_O[list(heads)]
    return torch.einsum("bphd,hdm->bphm", written.to(w_o.dtype), w_o)


@contextmanager
def reading(model: HookedTransformer, tokens: Int[Tensor, "batch pos"]) -> Generator[None]:
    """Have passes in the block read the embedding of these tokens instead of their own.

    Clamps that were made for a batch then act as they do there, although the sequences differ.
    """
    embedded = model.embed.forward(tokens)
    # Before all other hooks.
    handle = model.embed.register_forward_hook(lambda *_: embedded, prepend=True)
    try:
        yield
    finally:
        handle.remove()


def put_heads(written: Written, *, heads: Sequence[int], value: Tensor, **_: Any) -> Written:
    """Return what heads write with that of the given heads replaced: a hook function."""
    changed = written.clone()
    changed[:, :, list(heads)] = value.to(written)
    return changed


@contextmanager
def set_heads(
    model: HookedTransformer, values: Mapping[int, tuple[Sequence[int], Tensor]]
) -> Generator[None]:
    """Have heads in the block write given values `[pos, head, d]`, by layer."""
    hooks: list[Any] = [
        (written_at(model, layer), partial(put_heads, heads=heads, value=value))
        for layer, (heads, value) in values.items()
    ]
    with model.hooks(fwd_hooks=hooks):
        yield


@contextmanager
def whole_blocks(model: HookedTransformer, first: int, last: int) -> Generator[None]:
    """Refuse passes in the block in which the stream is not the sum of what blocks write to it.

    Blocks from `first` up to `last`, where receivers read, are checked.
    """
    written: dict[int, Tensor] = {}

    def note(_block: Any, _inputs: Any, output: Tensor, number: int) -> None:
        written[number] = output

    def compare(_block: Any, _inputs: Any, output: Tensor, number: int) -> None:
        what = f"A hook on blocks.{number} changes what it gives the next layer"
        refuse_unequal(written[number], output, what)

    with ExitStack() as stack:
        for number in range(first, min(last + 1, model.cfg.n_layers)):
            block: Any = model.blocks[number]
            reason = other_module(model, block)
            if reason:
                raise ValueError(
                    f"Paths cannot be patched: blocks.{number} {reason}, and what its heads read "
                    "and write is not known."
                )
            if is_hooked(block) and number < last:
                for module, hook in ((block.hook_resid_post, note), (block, compare)):
                    handle = module.register_forward_hook(partial(hook, number=number))
                    stack.callback(handle.remove)
        yield


@contextmanager
def recording(model: HookedTransformer, names: Iterable[str]) -> Generator[dict[str, Tensor]]:
    """Have passes in the block store named activations, as hooks left them, in the result."""
    kept: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        kept[hook.name] = activation

    with model.hooks(fwd_hooks=[(name, keep) for name in dict.fromkeys(names)]):
        yield kept
