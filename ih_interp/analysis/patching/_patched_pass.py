"""Passes of a model in which chosen edges between heads carry another run's activations.

The model's own modules and hooks do the work. What an edge changes is put where it enters a hook
point, before anybody's hooks: clamps and other people's hooks act on it as on any other value.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp._stock import is_hooked, other_module, unusual_process
from ih_interp.analysis._passes import HeadsOf, Input, Written, into_stream, written_at
from ih_interp.types import Residual


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

    @contextmanager
    def applied(self) -> Generator[None]:
        """Patch the passes of the model in the block."""
        edges, seen = self.edges, dict[str, Tensor]()
        hooks: list[Any] = []
        with ExitStack() as stack:
            for reads, via in ((edges.middle, get_args(Input)), (edges.receivers, edges.via)):
                for layer, heads in reads.items():
                    hooks.append((f"blocks.{layer}.hook_resid_pre", partial(_keep, seen=seen)))
                    stack.enter_context(self._reading_patched(layer, list(heads), via, seen))
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

    @contextmanager
    def _reading_patched(
        self, layer: int, heads: list[int], via: Sequence[Input], seen: Mapping[str, Tensor]
    ) -> Generator[None]:
        """Inside, heads of a layer compute q, k or v from their patched input."""
        block: Any = self.model.blocks[layer]
        made, positions = dict[str, Tensor](), list[Tensor | None]()

        def note(block: Any, inputs: Any, keywords: dict[str, Any]) -> None:
            del block, inputs
            positions[:] = [keywords.get("shortformer_pos_embed")]  # not read by values

        def compute(attention: Any, inputs: Any, keywords: dict[str, Any]) -> None:
            del inputs
            if made.keys() == {"inside"}:
                return
            read = block.ln1(seen[f"blocks.{layer}.hook_resid_pre"] + self._before(layer))
            also = read if positions[0] is None else read + positions[0]
            given = {"query_input": also, "key_input": also, "value_input": read}
            made.clear()
            made["inside"] = read
            found = projected(self.model, attention, keywords | given, heads, via)
            made.clear()
            made.update(found)

        def put(point: Any, inputs: tuple[Tensor], letter: str) -> tuple[Tensor] | None:
            del point
            if letter not in made:
                return None
            value = inputs[0].clone()
            value[:, :, heads] = made[letter].to(value)
            return (value,)

        with ExitStack() as stack:
            points = [getattr(block.attn, f"hook_{letter}") for letter in via]
            handles = [
                block.register_forward_pre_hook(note, with_kwargs=True),
                block.attn.register_forward_pre_hook(compute, with_kwargs=True, prepend=True),
                *(
                    point.register_forward_pre_hook(partial(put, letter=letter), prepend=True)
                    for point, letter in zip(points, via, strict=True)
                ),
            ]
            for handle in handles:
                stack.callback(handle.remove)
            yield

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


class _Enough(Exception):
    """Raised to end a pass of attention whose queries, keys and values are all that is wanted."""


def projected(
    model: HookedTransformer,
    attention: Any,
    inputs: Mapping[str, Any],
    heads: list[int],
    via: Sequence[Input],
) -> dict[str, Float[Tensor, "batch pos head d_head"]]:
    """What attention makes of its inputs: these heads' q, k or v, before anybody's hooks on them.

    By hand where attention is TransformerLens's own, and else by whatever code it has.
    """
    found = dict[str, Tensor]()
    own = other_module(model, attention) is None and not is_hooked(attention)
    if own and unusual_process(model.cfg) is None:
        names = {"q": "query_input", "k": "key_input", "v": "value_input"}
        for letter in via:
            weight, bias = (getattr(attention, f"{kind}_{letter.upper()}")[heads] for kind in "Wb")
            found[letter] = torch.einsum("bpm,hmd->bphd", inputs[names[letter]], weight) + bias
        return found

    def keep(point: Any, arriving: tuple[Tensor], letter: str) -> None:
        del point
        found[letter] = arriving[0][:, :, heads]
        if len(found) == len(via):
            raise _Enough

    with ExitStack() as stack:
        for letter in via:
            point = getattr(attention, f"hook_{letter}")
            handle = point.register_forward_pre_hook(partial(keep, letter=letter), prepend=True)
            stack.callback(handle.remove)
        with suppress(_Enough):
            attention(**inputs)
    if len(found) < len(via):
        raise ValueError(
            f"Paths cannot be patched: {type(attention).__name__} does not pass its queries, "
            "keys and values through hook_q, hook_k and hook_v."
        )
    return found


def _keep(activation: Tensor, hook: Any, *, seen: dict[str, Tensor]) -> None:
    seen[hook.name] = activation
