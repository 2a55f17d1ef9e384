"""Passes in which chosen edges between heads carry another run's activations.

Each layer of receivers has a pass of its own, which reads the patched stream up to their queries,
keys and values; the last pass has these in place. The model's own modules and hooks do the work,
and a change enters before all other hooks, so that these act on it as on any other value.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

from torch import Tensor

from ih_interp.analysis._passes import (
    HeadsOf,
    Input,
    Written,
    acting_first,
    heads_per_key,
    into_stream,
    written_at,
)
from ih_interp.hooked_model import HookedModel
from ih_interp.types import Residual


@dataclass(frozen=True)
class Edges:
    """Edges to patch, from all senders to all receivers above them."""

    senders: HeadsOf
    receivers: HeadsOf
    via: tuple[Input, ...]
    middle: HeadsOf = field(default_factory=dict[int, Sequence[int]])
    to_output: bool = False
    """Whether the final residual stream is a receiver."""

    def above(self, model: HookedModel) -> list[int]:
        """Return the receivers' layers, of the final stream the number of layers."""
        return [*self.receivers, *[model.cfg.n_layers] * self.to_output]

    def inputs(self, model: HookedModel) -> dict[tuple[int, Input], list[int]]:
        """Return which queries, keys and values read patched edges, from the lowest layer up."""
        shared = heads_per_key(model)
        groups = ((self.middle, get_args(Input)), (self.receivers, self.via))
        return {
            (layer, letter): sorted({h // (1 if letter == "q" else shared) for h in heads})
            for layer, heads, via in sorted(
                (n, of, via) for of_all, via in groups for n, of in of_all.items()
            )
            for letter in via
        }


@dataclass
class Patch:
    """Edges of one pass that carry what senders wrote in another run, `source`, by layer.

    `frozen` holds what all heads of middle layers write in the base run: what middle heads compute
    from patched inputs goes along patched edges only. `changes` collects what patched edges carry
    minus what the pass itself has there; give it instead of `source` where it is known before the
    pass. `reads` are the queries, keys and values of layers as passes on patched streams make them,
    before all hooks on them; give them where they are known.
    """

    model: HookedModel
    edges: Edges
    source: Mapping[int, Written] = field(default_factory=dict[int, Tensor])
    frozen: Mapping[int, Written] = field(default_factory=dict[int, Tensor])
    changes: dict[int, Residual] = field(default_factory=dict[int, Tensor])
    reads: dict[tuple[int, Input], Tensor] = field(default_factory=dict[tuple[int, Input], Tensor])

    def unread(self) -> list[int]:
        """Return the layers whose receivers or middle heads have yet to read, the lowest first."""
        places = self.edges.inputs(self.model).keys() - self.reads.keys()
        return sorted({layer for layer, _ in places})

    @contextmanager
    def applied(self, reading: int | None = None) -> Generator[None]:
        """Patch the model's passes in the block, as far as `reads` goes.

        With a layer to read, the block is one pass, which fills its `reads` and ends there.
        """
        edges, top = self.edges, self.model.cfg.n_layers - 1
        first, last = list[Any](), list[Any]()
        for (layer, letter), heads in edges.inputs(self.model).items():
            point = f"blocks.{layer}.attn.hook_{letter}"
            if layer == reading:
                first.append((point, partial(self._keep, place=(layer, letter))))
            elif (layer, letter) in self.reads:
                value = self.reads[layer, letter]
                first.append((point, partial(_put, heads=heads, value=value)))
        for layer in sorted({*self.source, *edges.middle}):
            last.append((written_at(self.model, layer), partial(self._carry, layer=layer)))
        if reading is not None:
            last.append((f"blocks.{reading}.hook_resid_pre", partial(self._add, layer=reading)))
        elif edges.to_output:
            last.append((f"blocks.{top}.hook_resid_post", partial(self._add, layer=top + 1)))
        with suppress(_Enough), acting_first(self.model, first), self.model.hooks(fwd_hooks=last):
            yield
        if reading in self.unread():
            kind = type(self.model.blocks[reading].attn).__name__
            raise ValueError(
                f"Paths cannot be patched: {kind} does not pass its queries, keys and values "
                "through hook_q, hook_k and hook_v."
            )

    def _keep(self, activation: Tensor, *, place: tuple[int, Input], **_: Any) -> None:
        self.reads[place] = activation
        if place[0] not in self.unread():
            raise _Enough

    def _add(self, resid: Residual, *, layer: int, **_: Any) -> Residual:
        return resid + self._before(layer)

    def _before(self, layer: int) -> Tensor | float:
        """Return the change of a layer's input by the patched edges."""
        return sum((c for below, c in self.changes.items() if below < layer), 0.0)

    def _carry(self, written: Written, *, layer: int, **_: Any) -> Tensor | None:
        """Store what senders and middle heads change, and have middle heads write as before."""
        changes: list[Tensor] = []
        before = self.frozen.get(layer, written)
        for heads, new in (
            (list(self.edges.senders.get(layer, ())), self.source.get(layer)),
            (list(self.edges.middle.get(layer, ())), None),
        ):
            if heads:
                now = written[:, :, heads] if new is None else new
                changes.append(
                    into_stream(self.model, layer, heads, now - before[:, :, heads]).sum(dim=2)
                )
        self.changes[layer] = sum(changes[1:], changes[0])
        return before if layer in self.frozen else None


class _Enough(Exception):
    """A signal that ends a pass once the queries, keys and values that it is for are known."""


def _put(activation: Tensor, *, heads: list[int], value: Tensor, **_: Any) -> Tensor:
    changed = activation.clone()
    changed[:, :, heads] = value[:, :, heads].to(activation)
    return changed
