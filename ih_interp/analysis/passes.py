"""Passes of a model in which chosen edges between heads carry another run's activations.

The model's own modules and hooks do the work. What an edge changes is put where it enters a hook
point, before anybody's hooks: clamps and other people's hooks act on it as on any other value.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES

from ih_interp.analysis.scores import CHUNK
from ih_interp.clamps.active import active, pass_size
from ih_interp.clamps.base import Shape, head_mask
from ih_interp.types import Head, Residual

Input: TypeAlias = Literal["q", "k", "v"]
"""Through which of its inputs a head is reached."""

HeadName: TypeAlias = str | tuple[int, int] | Head
Written: TypeAlias = Float[Tensor, "batch pos _head d"]
"""What heads write: z, d_head wide, or where `use_attn_result` is on the result, d_model wide."""

HeadsOf: TypeAlias = Mapping[int, Sequence[int]]
"""Heads by layer."""

POSITIONS = "hook_pos_embed"

CUTS = ("attn_out", "resid_mid", "resid_post", "resid_pre")
"""Points at which a clamp that replaces the stream cuts every path through it."""


def chunk_size(model: HookedTransformer, n_sequences: int) -> int:
    """Return how many sequences go through a pass of the analysis."""
    return pass_size(model, n_sequences, CHUNK)


def is_hooked(*modules: torch.nn.Module) -> bool:
    """Whether anybody's hooks would see a pass through these modules."""
    return any(
        getattr(part, "_forward_hooks", None) or getattr(part, "_forward_pre_hooks", None)
        for module in modules
        for part in module.modules()
    )


def inputs_named(via: str | Sequence[str]) -> tuple[Input, ...]:
    """`"k"` or `("q", "k")`, checked."""
    names = tuple(via)
    wrong = [name for name in names if name not in get_args(Input)]
    if wrong or not names or len(set(names)) < len(names):
        raise ValueError(f"via={via!r}; name some of q, k and v, each once.")
    return names  # pyright: ignore[reportReturnType]


def by_layer(heads: Iterable[HeadName], model: HookedTransformer) -> dict[int, list[int]]:
    """Heads by layer, in order; ValueError for one the model lacks or that is named twice."""
    parsed = [Head.parse(head) for head in heads]
    if len(set(parsed)) < len(parsed):
        raise ValueError(f"{', '.join(map(str, parsed))} names a head twice.")
    chosen = head_mask(parsed, Shape.of(model))
    return {
        layer: row.nonzero()[:, 0].tolist() for layer, row in enumerate(chosen) if bool(row.any())
    }


def refuse_shape(model: HookedTransformer) -> None:
    """Refuse models in which an edge is no sum of head outputs (ValueError)."""
    cfg = model.cfg
    reasons = {
        "shares keys and values among heads (grouped-query attention), which have no edge of "
        "their own": cfg.n_key_value_heads is not None,
        "normalises what attention writes, so that heads do not add up": bool(
            cfg.use_normalization_before_and_after
        )
        or cfg.original_architecture in POST_NORM_ARCHITECTURES,
        "has use_split_qkv_input or use_attn_in on; set them to False, edges need neither": bool(
            cfg.use_split_qkv_input or cfg.use_attn_in
        ),
        "has weights in 4 bits": bool(cfg.load_in_4bit),
    }
    for reason, applies in reasons.items():
        if applies:
            raise ValueError(f"Paths cannot be patched: the model {reason}.")


def refuse_cuts(model: HookedTransformer, first: int, last: int) -> None:
    """Refuse clamps that replace the stream above layer `first` and up to layer `last`."""
    for clamp, points, *_ in active(model):
        for point in points:
            parts = point.split(".")
            kind = parts[-1].removeprefix("hook_")
            if len(parts) != 3 or kind not in CUTS:
                continue
            if first + (kind == "resid_pre") <= int(parts[1]) < last + (kind == "resid_pre"):
                raise ValueError(
                    f"{clamp} replaces {point}, which every path from layer {first} to layer "
                    f"{last} crosses: there is no edge to patch. Take the clamp off."
                )


def written_at(model: HookedTransformer, layer: int) -> str:
    """The hook point that holds what each head of a layer writes."""
    return f"blocks.{layer}.attn.hook_{'result' if model.cfg.use_attn_result else 'z'}"


def written_points(model: HookedTransformer, layers: Iterable[int]) -> list[str]:
    """Those of several layers."""
    return [written_at(model, layer) for layer in layers]


def positions_point(model: HookedTransformer) -> list[str]:
    """Where positions that queries and keys alone read are found, if the model has such."""
    return [POSITIONS] if model.cfg.positional_embedding_type == "shortformer" else []


def into_stream(
    model: HookedTransformer, layer: int, heads: Sequence[int], written: Written
) -> Float[Tensor, "batch pos head d_model"]:
    """What the heads add to the residual stream, each."""
    if model.cfg.use_attn_result:
        return written
    return torch.einsum("bphd,hdm->bphm", written, model.blocks[layer].attn.W_O[list(heads)])


@contextmanager
def reading(model: HookedTransformer, tokens: Int[Tensor, "batch pos"]) -> Generator[None]:
    """Inside, a pass reads these tokens' embedding, whichever tokens it is given.

    So clamps made for a batch are in force as they were made, though the sequences are others.
    """
    embedded = model.embed.forward(tokens)

    def replace(module: Any, inputs: Any, output: Any) -> Tensor:
        del module, inputs, output
        return embedded

    handle = model.embed.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def set_heads(
    model: HookedTransformer, values: Mapping[int, tuple[Sequence[int], Tensor]]
) -> Generator[None]:
    """Inside, heads write given values `[pos, head, d]`, at every edge that leaves them."""

    def replace(written: Tensor, hook: Any, heads: Sequence[int], value: Tensor) -> Tensor:
        del hook
        changed = written.clone()
        changed[:, :, list(heads)] = value.to(written)
        return changed

    hooks: list[Any] = [
        (written_at(model, layer), partial(replace, heads=heads, value=value))
        for layer, (heads, value) in values.items()
    ]
    with model.hooks(fwd_hooks=hooks):
        yield


@contextmanager
def recording(model: HookedTransformer, names: Iterable[str]) -> Generator[dict[str, Tensor]]:
    """Inside, passes write the named activations, as hooks have left them, into the result."""
    kept: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        kept[hook.name] = activation

    with model.hooks(fwd_hooks=[(name, keep) for name in dict.fromkeys(names)]):
        yield kept


@dataclass(frozen=True)
class Edges:
    """Which edges are patched: from all senders to all receivers above them."""

    senders: HeadsOf
    receivers: HeadsOf
    via: tuple[Input, ...]
    middle: HeadsOf = field(default_factory=dict[int, Sequence[int]])
    to_output: bool = False
    """Whether the final residual stream is a receiver."""


@dataclass
class Patch:
    """Edges of one pass that carry what senders wrote in another run.

    `source` holds it by layer. `frozen` holds what middle heads write in the base run: what they
    compute from patched inputs goes along patched edges only. `changes` collects, by layer, what
    patched edges carry minus what the pass itself has there; a pass that starts above the senders
    is given it.
    """

    model: HookedTransformer
    edges: Edges
    source: Mapping[int, Written] = field(default_factory=dict[int, Tensor])
    frozen: Mapping[int, Written] = field(default_factory=dict[int, Tensor])
    changes: dict[int, Residual] = field(default_factory=dict[int, Tensor])
    positions: Residual | None = None
    """Of shortformer models, which add them to the inputs of queries and keys."""

    @contextmanager
    def applied(self) -> Generator[None]:
        """Inside, passes of the model are patched."""
        edges, seen = self.edges, dict[str, Tensor]()
        hooks: list[Any] = []
        with ExitStack() as stack:
            for reads, via in ((edges.middle, get_args(Input)), (edges.receivers, edges.via)):
                for layer, heads in reads.items():
                    hooks.append((f"blocks.{layer}.hook_resid_pre", partial(_keep, seen=seen)))
                    for letter in via:
                        compute = partial(self._computed, seen, layer, list(heads), letter)
                        point = getattr(self.model.blocks[layer].attn, f"hook_{letter}")
                        handle = point.register_forward_pre_hook(compute)
                        stack.callback(handle.remove)
            for layer in sorted({*self.source, *edges.middle}):
                hooks.append((written_at(self.model, layer), partial(self._carry, layer=layer)))
            if edges.to_output:
                top = self.model.cfg.n_layers - 1
                hooks.append((f"blocks.{top}.hook_resid_post", self._add_to_output))
            stack.enter_context(self.model.hooks(fwd_hooks=hooks))
            yield

    def _before(self, layer: int) -> Tensor | float:
        """What the patched edges change in the input of a layer."""
        return sum((c for below, c in self.changes.items() if below < layer), 0.0)

    def _computed(
        self, seen: dict[str, Tensor], layer: int, heads: list[int], letter: str, *called: Any
    ) -> tuple[Tensor]:
        """q, k or v with the heads' slices computed from their patched input."""
        _, (value,) = called
        block = self.model.blocks[layer]
        read = block.ln1(seen[f"blocks.{layer}.hook_resid_pre"] + self._before(layer))
        if letter != "v" and self.positions is not None:
            read = read + self.positions
        weight = getattr(block.attn, f"W_{letter.upper()}")[heads]
        bias = getattr(block.attn, f"b_{letter.upper()}")[heads]
        patched = value.clone()
        patched[:, :, heads] = torch.einsum("bpm,hmd->bphd", read, weight) + bias
        return (patched,)

    def _carry(self, written: Written, hook: Any, *, layer: int) -> Tensor | None:
        """Note what senders and middle heads change, and let middle heads write as before."""
        del hook
        change: Tensor | float = 0.0
        if layer in self.source:
            heads = list(self.edges.senders[layer])
            new = self.source[layer] - written[:, :, heads]
            change = change + into_stream(self.model, layer, heads, new).sum(dim=2)
        middle = list(self.edges.middle.get(layer, ()))
        if middle:
            new = written[:, :, middle] - self.frozen[layer]
            change = change + into_stream(self.model, layer, middle, new).sum(dim=2)
            written = written.clone()
            written[:, :, middle] = self.frozen[layer]
        assert isinstance(change, Tensor)
        self.changes[layer] = change
        return written if middle else None

    def _add_to_output(self, resid: Residual, hook: Any) -> Residual:
        del hook
        return resid + self._before(self.model.cfg.n_layers)


def _keep(activation: Tensor, hook: Any, *, seen: dict[str, Tensor]) -> None:
    seen[hook.name] = activation
