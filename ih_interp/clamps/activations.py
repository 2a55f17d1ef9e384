"""Clamps that set whole activations: to zero, or to what an unclamped pass has."""

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import PlainSerializer

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
from ih_interp.hooked_model import HookedModel, is_bridge

Preserved: TypeAlias = Literal["patterns", "values", "queries", "keys"]
HOOKS: dict[str, str] = {"patterns": "pattern", "values": "v", "queries": "q", "keys": "k"}
"""What is preserved, and the hook that holds it."""


class AblateHeads(HeadClamp):
    """The heads' values are 0 at every position, so they write nothing; their patterns stay.

    Where heads share values (grouped-query attention), and in a TransformerBridge, their z is 0
    instead. Clamps on the patterns of these heads remain in force, to no effect on the logits.
    """

    kind: Literal["ablate_heads"] = "ablate_heads"
    stage, needs_batch, sets = 20, False, "v"

    def hooks(self, setting: Setting) -> list[Hook]:
        model = setting.model
        shared = model.cfg.n_key_value_heads is not None or is_bridge(model)
        return self.at_each_layer(setting, "hook_z" if shared else "hook_v", hooks.zero_heads)


class AblateEmbedding(AbstractClamp):
    """The token embedding is 0, which silences all that `preserve` does not hold."""

    kind: Literal["ablate_embedding"] = "ablate_embedding"
    stage, needs_batch = 10, False

    def sites(self, shape: Shape) -> frozenset[Site]:
        return frozenset({Site("embed", EMBEDDING)})

    def hooks(self, setting: Setting) -> list[Hook]:
        return [("hook_embed", hooks.zero)]


class Function(AbstractClamp):
    """A hook function of TransformerLens, blended by a schedule; for `ih.clamped`, not for files.

        ih.clamps.Function(point="blocks.*.attn.hook_pattern", function=f)

    `f(activation, hook)` returns the clamped activation, or None for the free one.
    """

    kind: Literal["function"] = "function"
    needs_batch = False
    point: str
    """A hook point, or a pattern of several."""
    function: Annotated[Callable[..., Any], PlainSerializer(lambda f: getattr(f, "__name__", "?"))]
    """What is called at each of them."""

    def sites(self, shape: Shape) -> frozenset[Site]:
        usual = [name for own, name in shape.aliases if fnmatchcase(own, self.point)]
        return frozenset(
            site for point in usual or [self.point] for site in self._sites_of(point, shape)
        )

    def _sites_of(self, point: str, shape: Shape) -> list[Site]:
        parts = point.split(".")
        in_block = parts[0] == "blocks" and len(parts) > 2
        layers: Iterable[int] = range(EMBEDDING, shape.n_layers + 1)
        name = parts[-1].removeprefix("hook_").removeprefix("attn_")
        if name in ("in", "out"):  # of a bridge's modules, any of which has both
            name = ".".join(parts[2:] if in_block else parts)
        if in_block:
            layers = [n for n in range(shape.n_layers) if fnmatchcase(str(n), parts[1])]
        elif "*" not in point:
            is_embedding = parts[0].removeprefix("hook_") in ("embed", "pos_embed")
            layers = [EMBEDDING if is_embedding else shape.n_layers]
        return [Site("logits" if name == "unembed" else name, layer) for layer in layers]

    def prepare(self, model: HookedModel) -> None:
        if not self._points(model):
            raise ValueError(
                f"point={self.point!r}: no hook point of this model has this name; expected one of "
                "model.hook_dict, or a pattern such as 'blocks.*.attn.hook_pattern'."
            )

    def _points(self, model: HookedModel) -> list[str]:
        found: dict[Any, str] = {}  # each point once, though a bridge has several names for it
        for name, point in model.hook_dict.items():
            if fnmatchcase(name, self.point):
                found.setdefault(point, name)
        return list(found.values())

    def hooks(self, setting: Setting) -> list[Hook]:
        return [(name, self.function) for name in self._points(setting.model)]

    @classmethod
    def refuse(cls, clamps: Iterable[object]) -> None:
        """Refuse functions where clamps have to be written to a file."""
        for clamp in clamps:
            if isinstance(clamp, cls):
                raise ValueError(
                    f"{clamp} holds a function, which no file can: expected a class of your own, "
                    "ih.clamps.AbstractClamp. Functions serve in ih.clamped, evaluate and trace."
                )


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
