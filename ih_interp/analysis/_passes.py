"""Passes of a model on other sequences or with heads set, and records of what its heads write.

The model's own modules and hooks do the work. Models in which they do not show what a head writes
are refused.
"""

import re
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from ih_interp._stock import n_hooks, other_module
from ih_interp.clamps._active import active
from ih_interp.clamps.base import Shape, head_mask
from ih_interp.hooked_model import HookedModel
from ih_interp.types import HeadName, parse_heads

Input: TypeAlias = Literal["q", "k", "v"]
"""The input of a head through which it is reached."""

Ablation: TypeAlias = Literal["zero", "mean", "resample"]
"""What replaces the output of an ablated head: zero, a mean over sequences, another sequence's."""

Written: TypeAlias = Float[Tensor, "batch pos _head d"]
"""The outputs of heads: z, d_head wide, or with `use_attn_result` the result, d_model wide."""

HeadsOf: TypeAlias = Mapping[int, Sequence[int]]
"""Heads by layer."""

Means: TypeAlias = Mapping[int, tuple[Sequence[int], Tensor]]
"""Heads of a layer, and what they are set to, `[pos, head, d]`."""

SCALE = "ln_final.hook_scale"
EDITED = "A forward hook edited hook_scale"
"""A bridge's warning that a norm with another scale is computed by other code than its own."""

CUT = re.compile(r"blocks\.(?P<layer>\d+)\.hook_(attn_out|resid_(?P<kind>mid|post|pre))")
"""Points at which a clamp that replaces the stream cuts every path through it."""


def inputs_named(via: str | Sequence[str]) -> tuple[Input, ...]:
    """Return the inputs named by "k", "qk" or `("q", "k")`."""
    names = tuple(via)
    if not names or not {*names} <= {*get_args(Input)} or len(set(names)) < len(names):
        raise ValueError(f"via={via!r}: expected some of q, k and v, each once.")
    return names  # pyright: ignore[reportReturnType]


def by_layer(heads: Iterable[HeadName], model: HookedModel) -> dict[int, list[int]]:
    """Return heads by layer, in order; ValueError for a head that is missing or named twice."""
    chosen = head_mask(parse_heads(heads), Shape.of(model))
    return {
        layer: row.nonzero()[:, 0].tolist() for layer, row in enumerate(chosen) if bool(row.any())
    }


def refuse_shape(model: HookedModel) -> None:
    """Refuse models in which what heads write does not add up (ValueError)."""
    cfg: Any = model.cfg
    reason = ""
    if (
        getattr(cfg, "use_normalization_before_and_after", False)
        or hasattr(model.blocks[0], "ln1_post")
        or cfg.original_architecture in POST_NORM_ARCHITECTURES
    ):
        reason = "normalises what attention writes, so that heads do not add up"
    if getattr(cfg, "load_in_4bit", False):
        reason = "has weights in 4 bits"
    if reason:
        raise ValueError(f"Paths cannot be patched: the model {reason}.")


def heads_per_key(model: HookedModel) -> int:
    """Return how many heads read the same keys and values at `hook_k` and `hook_v`."""
    cfg: Any = model.cfg
    ungrouped = getattr(cfg, "ungroup_grouped_query_attention", False)
    if cfg.n_key_value_heads is None or ungrouped:
        return 1
    return cfg.n_heads // cfg.n_key_value_heads


def written_at(model: HookedModel, layer: int) -> str:
    """Return the hook point that holds what each head of a layer writes."""
    return f"blocks.{layer}.attn.hook_{'result' if model.cfg.use_attn_result else 'z'}"


def written_points(model: HookedModel, layers: Iterable[int]) -> list[str]:
    """Return `written_at` of layers, and `hook_attn_out` where attention may add something else."""
    points = [written_at(model, layer) for layer in layers]
    for layer in layers:
        block = model.blocks[layer]
        hooked = n_hooks(block.attn) + n_hooks(block.hook_attn_out)
        if hooked or other_module(model, block.attn):
            points.append(f"blocks.{layer}.hook_attn_out")
    return points


def written_by(
    model: HookedModel, kept: Mapping[str, Tensor], heads: HeadsOf
) -> dict[int, Written]:
    """Return what the heads wrote in a pass that kept `written_points`, by layer.

    Raises ValueError where that does not add up to what attention adds to the stream.
    """
    for layer in heads:
        added = kept.get(f"blocks.{layer}.hook_attn_out")
        if added is not None:
            written = kept[written_at(model, layer)]
            each = into_stream(model, layer, range(model.cfg.n_heads), written)
            bias: Any = model.blocks[layer].attn.b_O
            refuse_unequal(
                each.sum(dim=2) + (0 if bias is None else bias),
                added,
                f"What attention in layer {layer} adds to the residual stream is not the sum of "
                "what its heads write, z W_O",
            )
    return {layer: kept[written_at(model, layer)][:, :, list(heads[layer])] for layer in heads}


def refuse_unequal(
    expected: Tensor, found: Tensor, what: str, dtype: torch.dtype | None = None
) -> None:
    """Raise ValueError, beginning with `what`, where two tensors differ by more than rounding.

    `dtype` is that in which they were computed, if they have been converted since.
    """
    types = (expected.dtype, found.dtype, dtype or found.dtype)
    coarse = max(torch.finfo(each).eps for each in types)
    expected, found = expected.detach().double(), found.detach().double()
    allowed = coarse**0.7 * max(float(expected.abs().max()), float(found.abs().max()))
    if not bool(((expected - found).abs() <= allowed).all()):
        raise ValueError(
            f"{what}: other code or hooks stand between, and their part cannot be told apart. "
            "Take them off, or run the model itself under hooks."
        )


def into_stream(
    model: HookedModel, layer: int, heads: Sequence[int], written: Written
) -> Float[Tensor, "batch pos head d_model"]:
    """Return what each of the heads adds to the residual stream."""
    if model.cfg.use_attn_result:
        return written
    w_o = model.blocks[layer].attn.W_O[list(heads)]
    return torch.einsum("bphd,hdm->bphm", written.to(w_o.dtype), w_o)


def put_heads(written: Written, *, heads: Sequence[int], value: Tensor, **_: Any) -> Written:
    """Return what heads write with that of the given heads replaced: a hook function."""
    changed = written.clone()
    changed[:, :, list(heads)] = value.to(written)
    return changed


def set_heads(model: HookedModel, values: Means) -> AbstractContextManager[Any]:
    """Return a block in which heads write given values."""
    hooks: list[Any] = [
        (written_at(model, layer), partial(put_heads, heads=heads, value=value))
        for layer, (heads, value) in values.items()
    ]
    return model.hooks(fwd_hooks=hooks)


@contextmanager
def embedding_of(model: HookedModel, tokens: Int[Tensor, "batch pos"]) -> Generator[None]:
    """Have passes in the block embed other tokens than they are given, before all other hooks."""
    embed: Any = model.embed
    seen: list[Tensor] = []
    with acting_first(model, [("hook_embed", lambda embedded, **_: seen.append(embedded))]):
        embedded = embed.forward(tokens)
    if seen:  # the hook point stands inside the embedding
        with acting_first(model, [("hook_embed", lambda *_, **__: seen[0])]):
            yield
        return
    handle = embed.register_forward_hook(lambda *_: embedded, prepend=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def whole_blocks(model: HookedModel, first: int, last: int) -> Generator[None]:
    """Refuse, inside a `with`, passes whose stream is not the sum of what layers write to it.

    Blocks from `first` up to `last`, where receivers read, are checked, and clamps between them.
    """
    for one in active(model):
        for cut in filter(None, map(CUT.fullmatch, one.points)):
            if first <= int(cut["layer"]) - (cut["kind"] == "pre") < last:
                raise ValueError(
                    f"{one.clamp} replaces {cut[0]}, which every path from layer {first} to layer "
                    f"{last} crosses: there is no edge to patch. Take the clamp off."
                )

    numbers = range(first, min(last, model.cfg.n_layers))
    foreign = [number for number in numbers if other_module(model, model.blocks[number])]
    suspect = [
        n
        for n in numbers[: model.cfg.n_layers - 1 - first]
        if n in foreign or n_hooks(model.blocks[n])
    ]
    with ExitStack() as stack:
        left = stack.enter_context(recording(model, _points(model, suspect, "resid_post")))
        parts = _points(model, foreign, "resid_pre", "attn_out", "mlp_out")
        added = stack.enter_context(recording(model, parts))
        ends: list[Any] = [
            (end, partial(_refuse_no_sum, number=number, parts=added))
            for number in foreign
            for end in _points(model, [number], "resid_post")
        ]
        stack.enter_context(acting_first(model, ends))
        for number in suspect:
            hook = partial(_refuse_change, number=number, left=left)
            stack.callback(model.blocks[number].register_forward_hook(hook).remove)
        yield


def _refuse_change(
    _block: Any, _inputs: Any, output: Any, *, number: int, left: Mapping[str, Tensor]
) -> None:
    """Refuse a block that gives the next layer other than its `hook_resid_post`."""
    output = output[0] if isinstance(output, tuple) else output
    what = f"A hook on blocks.{number} changes what it gives the next layer"
    refuse_unequal(left[f"blocks.{number}.hook_resid_post"], output, what)


def _refuse_no_sum(resid: Tensor, *, number: int, parts: Mapping[str, Tensor], **_: Any) -> None:
    """Refuse a block whose output is not its input and what attention and MLP add."""
    kinds = ("resid_pre", "attn_out", "mlp_out")
    each = [parts[n] for kind in kinds if (n := f"blocks.{number}.hook_{kind}") in parts]
    what = f"blocks.{number} does not add what attention and MLP write to what it reads"
    refuse_unequal(sum(each[1:], each[0]), resid, what)


def _points(model: HookedModel, layers: Iterable[int], *kinds: str) -> list[str]:
    names = [f"blocks.{layer}.hook_{kind}" for layer in layers for kind in kinds]
    return [name for name in names if name in model.hook_dict]


@contextmanager
def recording(model: HookedModel, names: Iterable[str]) -> Generator[dict[str, Tensor]]:
    """Have passes in the block store named activations, as hooks left them, in the result."""
    kept: dict[str, Tensor] = {}

    def keep(activation: Tensor, name: str, **_: Any) -> None:
        kept[name] = activation

    hooks: Any = [(name, partial(keep, name=name)) for name in dict.fromkeys(names)]
    with model.hooks(fwd_hooks=hooks):
        yield kept


@contextmanager
def acting_first(model: HookedModel, hooks: Sequence[tuple[str, Any]]) -> Generator[None]:
    """Have hook functions act on activations in the block before all other hooks do."""
    given: Any = list(hooks)
    with model.hooks(fwd_hooks=given):
        points: Any = model.hook_dict
        for name, _ in hooks:
            point = points[name]
            vars(point)["_forward_hooks"].move_to_end(point.fwd_hooks[-1].hook.id, last=False)
        yield
