"""A clamp that keeps activations as they are in an unclamped pass of the same batch."""

from functools import partial
from typing import ClassVar, Literal, TypeAlias

from ih_interp import hooks
from ih_interp.clamps._active import unclamped
from ih_interp.clamps.base import AbstractClamp, GradientMode, Hook, OnceEach, Setting, Shape, Site

Preserved: TypeAlias = Literal["patterns", "values", "queries", "keys"]
HOOKS: dict[str, str] = {"patterns": "pattern", "values": "v", "queries": "q", "keys": "k"}
"""What is preserved, and the hook that holds it."""


class Preserve(AbstractClamp):
    """Patterns, values, queries or keys of every layer stay what they are without clamps.

    Other clamps come on top: an ablated head is ablated though values are preserved. Preserving
    queries and keys fixes the scores, and so the pattern but for clamps on the scores. As in the
    paper, gradient flows into the unclamped pass; `gradient="block"` stops it.
    """

    needs_batch: ClassVar[bool] = True
    reads_pass: ClassVar[bool] = True
    kind: Literal["preserve"] = "preserve"
    what: OnceEach[Preserved]
    """Which activations are kept."""
    gradient: GradientMode = "flow"
    """Whether gradient flows into the unclamped pass; "flow" in the paper."""

    def sites(self, shape: Shape) -> frozenset[Site]:
        return frozenset(
            Site(f"preserved {HOOKS[what]}", layer)
            for what in self.what
            for layer in range(shape.n_layers)
        )

    def hooks(self, setting: Setting) -> list[Hook]:
        layers = range(setting.model.cfg.n_layers)
        names = [f"blocks.{n}.attn.hook_{HOOKS[what]}" for what in self.what for n in layers]
        clean = unclamped(setting.model, setting.sequences.tokens, names, self.gradient)
        return [
            (name, partial(hooks.replace, value=clean[name], gate=setting.gate)) for name in names
        ]
