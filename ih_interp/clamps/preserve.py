"""A clamp that keeps activations as they are in an unclamped pass of the same batch."""

from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal, TypeAlias

from pydantic import field_validator

from ih_interp import hooks
from ih_interp.clamps._active import unclamped
from ih_interp.clamps.base import AbstractClamp, GradientMode, Hook, Setting, Shape, Site

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
    what: tuple[Preserved, ...]
    """Which activations are kept."""
    gradient: GradientMode = "flow"
    """Whether gradient flows into the unclamped pass that it reads; "flow" in the paper."""

    @field_validator("what", mode="before")
    @classmethod
    def _several(cls, what: object) -> object:
        if isinstance(what, str) or (isinstance(what, Sequence) and len(what) == 0):
            raise ValueError('what is a list, as ["patterns", "values"], with at least one.')
        return what

    @field_validator("what", mode="after")
    @classmethod
    def _once_each(cls, what: tuple[Preserved, ...]) -> tuple[Preserved, ...]:
        if len(set(what)) < len(what):
            raise ValueError(f"{', '.join(what)} names one twice.")
        return tuple(sorted(what))

    def sites(self, shape: Shape) -> frozenset[Site]:
        return frozenset(
            Site(f"preserved {HOOKS[what]}", layer)
            for what in self.what
            for layer in range(shape.n_layers)
        )

    def hooks(self, setting: Setting) -> list[Hook]:
        names = [
            f"blocks.{layer}.attn.hook_{HOOKS[what]}"
            for what in self.what
            for layer in range(setting.model.cfg.n_layers)
        ]
        clean = unclamped(setting.model, setting.sequences.tokens, names, gradient=self.gradient)
        return [
            (name, partial(hooks.replace, value=clean[name], gate=setting.gate)) for name in names
        ]
