"""Passes in which chosen edges between heads carry another run's activations.

The model's own modules and hooks do the work. A change enters at a hook point before all other
hooks, so that clamps and users' hooks act on it as on any other value.
"""

from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

from jaxtyping import Float
from torch import Tensor, nn

from ih_interp.analysis._passes import HeadsOf, Input, Written, into_stream, recording, written_at
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


@dataclass
class Patch:
    """Edges of one pass that carry what senders wrote in another run, `source`, by layer.

    `frozen` holds what middle heads write in the base run: what they compute from patched inputs
    goes along patched edges only. `changes` collects what patched edges carry minus what the pass
    itself has there; give it instead of `source` where it is known before the pass.
    """

    model: HookedModel
    edges: Edges
    source: Mapping[int, Written] = field(default_factory=dict[int, Tensor])
    frozen: Mapping[int, Written] = field(default_factory=dict[int, Tensor])
    changes: dict[int, Residual] = field(default_factory=dict[int, Tensor])

    @contextmanager
    def applied(self) -> Generator[None]:
        """Patch the model's passes in the block."""
        edges, top = self.edges, self.model.cfg.n_layers - 1
        readers = [
            (layer, list(heads), via)
            for group, via in ((edges.middle, get_args(Input)), (edges.receivers, edges.via))
            for layer, heads in group.items()
        ]
        hooks: list[Any] = [
            (written_at(self.model, layer), partial(self._carry, layer=layer))
            for layer in sorted({*self.source, *edges.middle})
        ]
        if edges.to_output:
            end = f"blocks.{top}.hook_resid_post"
            hooks.append((end, lambda resid, **_: resid + self._before(top + 1)))
        with ExitStack() as stack:
            points = [f"blocks.{layer}.hook_resid_pre" for layer, *_ in readers]
            seen = stack.enter_context(recording(self.model, points))
            for reader in readers:
                self._read_patched(*reader, seen, stack)
            stack.enter_context(self.model.hooks(fwd_hooks=hooks))
            yield

    def _before(self, layer: int) -> Tensor | float:
        """Return the change of a layer's input by the patched edges."""
        return sum((c for below, c in self.changes.items() if below < layer), 0.0)

    def _read_patched(
        self,
        layer: int,
        heads: list[int],
        via: Sequence[Input],
        seen: Mapping[str, Tensor],
        stack: ExitStack,
    ) -> None:
        """Have heads of a layer compute q, k or v from their patched input, until the stack ends.

        Attention runs twice: first, cut short, on the patched input to get these heads' q, k and v,
        then on its own input with these in place.
        """
        block: Any = self.model.blocks[layer]
        made, positions = dict[str, Tensor](), list[Tensor | None]()
        is_first = False

        def note(_block: Any, _inputs: Any, keywords: dict[str, Any]) -> None:
            positions[:] = [keywords.get("shortformer_pos_embed")]  # not read by values

        def compute(attention: Any, _inputs: Any, keywords: dict[str, Any]) -> None:
            nonlocal is_first
            if is_first:
                return
            read = block.ln1(seen[f"blocks.{layer}.hook_resid_pre"] + self._before(layer))
            also = read if positions[0] is None else read + positions[0]
            given = {"query_input": also, "key_input": also, "value_input": read}
            made.clear()
            is_first = True
            found = _projected(attention, keywords | given, heads, via)
            is_first = False
            made.update(found)

        def put(_point: Any, inputs: tuple[Tensor], letter: str) -> tuple[Tensor] | None:
            if letter not in made:
                return None
            value = inputs[0].clone()
            value[:, :, heads] = made[letter].to(value)
            return (value,)

        handles = [
            block.register_forward_pre_hook(note, with_kwargs=True),
            block.attn.register_forward_pre_hook(compute, with_kwargs=True, prepend=True),
        ]
        for letter in via:
            point = getattr(block.attn, f"hook_{letter}")
            handles += [point.register_forward_pre_hook(partial(put, letter=letter), prepend=True)]
        for handle in handles:
            stack.callback(handle.remove)

    def _carry(self, written: Written, *, layer: int, **_: Any) -> Tensor | None:
        """Store what senders and middle heads change, and have middle heads write as before."""
        changes: list[Tensor] = []
        if layer in self.source:
            heads = list(self.edges.senders[layer])
            new = self.source[layer] - written[:, :, heads]
            changes += [into_stream(self.model, layer, heads, new).sum(dim=2)]
        middle = list(self.edges.middle.get(layer, ()))
        if middle:
            new = written[:, :, middle] - self.frozen[layer]
            changes += [into_stream(self.model, layer, middle, new).sum(dim=2)]
            written = written.clone()
            written[:, :, middle] = self.frozen[layer]
        self.changes[layer] = sum(changes[1:], changes[0])
        return written if middle else None


class _Enough(Exception):
    """A signal that ends a pass of attention once its queries, keys and values are known."""


def _projected(
    attention: Any, inputs: Mapping[str, Any], heads: list[int], via: Sequence[Input]
) -> dict[str, Float[Tensor, "batch pos head d_head"]]:
    """Return these heads' q, k or v as attention makes them, before all hooks on them.

    Modules without hooks replace hook_q, hook_k and hook_v meanwhile: users' hooks there may expect
    one call per pass.
    """
    found = dict[str, Tensor]()

    def keep(_point: Any, arriving: tuple[Tensor], letter: str) -> None:
        found[letter] = arriving[0][:, :, heads]
        if all(wanted in found for wanted in via):
            raise _Enough

    with ExitStack() as stack:
        for letter in get_args(Input):
            name, stand_in = f"hook_{letter}", nn.Identity()
            stack.callback(setattr, attention, name, getattr(attention, name))
            stand_in.register_forward_pre_hook(partial(keep, letter=letter))
            setattr(attention, name, stand_in)
        with suppress(_Enough):
            attention(**inputs)
    if not all(letter in found for letter in via):
        raise ValueError(
            f"Paths cannot be patched: {type(attention).__name__} does not pass its queries, "
            "keys and values through hook_q, hook_k and hook_v."
        )
    return {letter: found[letter] for letter in via}
