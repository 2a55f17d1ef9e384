"""Clamps that set whole activations: to zero, or to what an unclamped pass has."""

from functools import partial
from typing import Literal, TypeAlias

from ih_interp import hooks
from ih_interp.clamps._active import unclamped
from ih_interp.clamps.base import (
    EMBEDDING,
    AbstractClamp,
    GradientMode,
    HeadClamp,
    Hook,
    OnceEach,
    Setting,
    Shape,
    Site,
)

Preserved: TypeAlias = Literal["patterns", "values", "queries", "keys"]
HOOKS: dict[str, str] = {"patterns": "pattern", "values": "v", "queries": "q", "keys": "k"}
"""What is preserved, and the hook that holds it."""


class AblateHeads(HeadClamp):
    """The heads' values are 0 at every position, so they write nothing; their patterns stay.

    Where heads share values (grouped-query attention), their z is 0 instead. Clamps on the patterns
    of these heads remain in force, to no effect on the logits.
    """

    kind: Literal["ablate_heads"] = "ablate_heads"
    stage, needs_batch, sets = 20, False, "v"

    def hooks(self, setting: Setting) -> list[Hook]:
        shared = setting.model.cfg.n_key_value_heads is not None
        return self.at_each_layer(setting, "hook_z" if shared else "hook_v", hooks.zero_heads)


class AblateEmbedding(AbstractClamp):
    """The token embedding is 0, which silences all that `preserve` does not hold."""

    kind: Literal["ablate_embedding"] = "ablate_embedding"
    stage, needs_batch = 10, False

    def sites(self, shape: Shape) -> frozenset[Site]:
        return frozenset({Site("embed", EMBEDDING)})

    def hooks(self, setting: Setting) -> list[Hook]:
        return [("hook_embed", hooks.zero)]


class Preserve(AbstractClamp):
    """Patterns, values, queries or keys of every layer stay what they are without clamps.

    Other clamps come on top: an ablated head is ablated though values are preserved. Preserving
    queries and keys fixes the scores, and so the pattern but for clamps on the scores. As in the
    paper, gradient flows into the unclamped pass; `gradient="block"` stops it.
    """

    kind: Literal["preserve"] = "preserve"
    stage, needs_batch, reads_pass = 0, True, True
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
        return [(name, partial(hooks.replace, value=clean[name])) for name in names]
