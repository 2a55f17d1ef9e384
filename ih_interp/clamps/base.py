"""What a clamp is: a named intervention, as data; hook functions once it meets model and batch."""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias, cast

import torch
from jaxtyping import Bool
from pydantic import Field, field_validator
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp._config_base import Frozen
from ih_interp._reprs import short_repr
from ih_interp.clamps.schedules import Always, Schedule
from ih_interp.model import FewShotEmbed
from ih_interp.types import Batch, Head, HeadField, expect, parse_heads

HookFunction: TypeAlias = Callable[..., Tensor | None]
Hook: TypeAlias = tuple[str, HookFunction]
"""A hook point's name and the function for it, as TransformerLens takes them."""

Role: TypeAlias = Literal["exemplars", "labels", "query"]
ROLES: tuple[Role, ...] = ("exemplars", "labels", "query")

GradientMode: TypeAlias = Literal["flow", "block"]
"""Whether gradient passes into the unclamped pass that a clamp reads; "flow" in the paper."""


EMBEDDING = -1  # the embedding's place among the layers


class Shape(NamedTuple):
    """What a clamp must know of a model before it meets a batch."""

    n_layers: int
    n_heads: int

    @classmethod
    def of(cls, model: HookedTransformer) -> "Shape":
        return cls(model.cfg.n_layers, model.cfg.n_heads)


class Site(NamedTuple):
    """One thing that a clamp sets. Two clamps that set an equal site refuse each other."""

    what: str
    """The activation in hook-name words: "v", "pattern", "scores:temperature", "resid_post" ..."""
    layer: int
    head: int | None = None
    row: Role | None = None


@short_repr
@dataclass(frozen=True)
class Setting:
    """A model about to run on a batch, and what may differ between runs that share one trace."""

    model: HookedTransformer
    batch: Batch | None
    tensors: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    gate: Tensor | float | None = None

    @property
    def sequences(self) -> Batch:
        """The batch, for clamps that need one."""
        if self.batch is None:
            raise ValueError("This clamp depends on the sequences: pass the batch to clamped().")
        return self.batch

    @property
    def embed(self) -> FewShotEmbed:
        """The few-shot embedding, for clamps that look at raw features or labels."""
        return few_shot_embed(self.model)


def few_shot_embed(model: HookedTransformer) -> FewShotEmbed:
    """The embedding of a model that `build_model` made; ValueError for others."""
    embed = model.embed
    if not isinstance(embed, FewShotEmbed):
        raise ValueError("This clamp needs a few-shot model, as build_model makes them.")
    return embed


class AbstractClamp(Frozen):
    """A named intervention. Fields are JSON; `hooks` says what it does."""

    needs_batch: ClassVar[bool] = False
    reads_pass: ClassVar[bool] = False
    """Whether `hooks` runs a pass without clamps: it holds for the weights of that moment."""

    kind: str
    """Which clamp it is, in JSON."""
    schedule: Schedule = Always()
    """When it is on, in updates: `always()`, `during(...)`, `pulses(...)`, `ramp(...)` or
    `from_level(...)` of `ih.clamps`."""

    @field_validator("schedule", mode="before")
    @classmethod
    def _a_schedule(cls, schedule: object) -> object:
        if not isinstance(schedule, Frozen | Mapping):
            raise ValueError(
                f"schedule={schedule!r} is no schedule; write during(0, 100), pulses(...), "
                "ramp(...) or from_level(...) of ih.clamps."
            )
        return schedule

    @abstractmethod
    def sites(self, shape: Shape) -> frozenset[Site]:
        """Everything the clamp sets."""

    @abstractmethod
    def hooks(self, setting: Setting) -> list[Hook]:
        """Hook functions for one pass; what differs between runs comes from `setting.tensors`."""

    def tensors(self, shape: Shape) -> dict[str, Tensor]:
        """What may differ between runs that share one trace: head masks, strengths."""
        del shape
        return {}

    def structure(self) -> Any:
        """What must be equal for two clamps to share one trace; JSON."""
        return self.model_dump(mode="json", exclude={"schedule"})

    def voids(self, shape: Shape) -> range:
        """Layers whose activations no longer matter under this clamp."""
        del shape
        return range(0)

    @property
    def is_own(self) -> bool:
        """Whether a user wrote the class: it acts as it does, but no file can name it."""
        return not type(self).__module__.startswith("ih_interp.clamps.")

    @property
    def is_scheduled(self) -> bool:
        """Whether the clamp has a gate; one that is always on does without."""
        return not isinstance(self.schedule, Always)

    def prepare(self, model: HookedTransformer) -> None:
        """Refuse, before anything runs, what the clamp cannot do to this model."""
        del model

    def refuse_batch(self, batch: Batch) -> None:
        """Refuse, before anything runs, sequences that the clamp cannot act on."""
        del batch

    @property
    def identity(self) -> "AbstractClamp":
        """What its numbers depend on: without the places of files of which it knows the digest."""
        return self

    def pinned(self) -> "AbstractClamp":
        """The same clamp with digests of the files that it reads, for a run to record."""
        return self

    def refuse_own(self) -> None:
        """Refuse a class of the user's own where a file has to name it."""
        if self.is_own:
            raise ValueError(
                f"{self} is a clamp of your own ({type(self).__name__}), which no file can name: "
                "expected one of ih.clamps. Yours serves in ih.clamped, evaluate and trace."
            )

    def __str__(self) -> str:
        """Kind and the fields that differ from their defaults."""
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
        return f"{self.kind}({', '.join(f'{name}={value}' for name, value in fields.items())})"


def hooks_of(clamp: AbstractClamp, setting: Setting) -> list[Hook]:
    """What a clamp's `hooks` gives; of a user's own kind, TypeError unless it is that."""
    given: Any = clamp.hooks(setting)
    if not clamp.is_own:
        return given
    pairs = list(given) if isinstance(given, Iterable) else [given]
    for pair in pairs:
        try:
            name, function = pair
            inspect.signature(function).bind(None, hook=None)
            is_hook = isinstance(name, str)
        except (TypeError, ValueError):
            is_hook = False
        if not is_hook:
            raise TypeError(
                f"hooks() of {clamp} gives {pair!r}: expected pairs of a hook point's name and a "
                'function of (activation, hook), [("blocks.1.attn.hook_z", halve)].'
            )
    return pairs


def refuse_no_clamps(clamps: object) -> None:
    """TypeError in words where something else came than a list of clamps, as one clamp alone."""
    if isinstance(clamps, AbstractClamp):
        raise TypeError(f"clamps has to be a list and one clamp came, {clamps}; write [clamp].")
    remedy = "write [ih.clamps.match('L1H3')]"
    expect(clamps, Sequence, f"clamps={clamps!r}", remedy)
    for clamp in cast(Sequence[object], clamps):
        more = "; unpack several with a star" if isinstance(clamp, Sequence) else ""
        expect(clamp, AbstractClamp, f"Each of clamps, {clamp!r} here,", f"{remedy}{more}")


class HeadClamp(AbstractClamp):
    """A clamp on given heads."""

    heads: Annotated[tuple[HeadField, ...], Field(min_length=1)]
    """The heads that it acts on, as `["L1H3"]` or `[(1, 3)]`; layers and heads count from 0."""

    @field_validator("heads", mode="before")
    @classmethod
    def _in_order(cls, heads: object) -> object:
        if isinstance(heads, Iterable) and not isinstance(heads, Mapping):
            return sorted(parse_heads(cast(Iterable[object], heads)))
        return heads

    @property
    def layers(self) -> list[int]:
        return sorted({head.layer for head in self.heads})

    def tensors(self, shape: Shape) -> dict[str, Tensor]:
        return {"heads": head_mask(self.heads, shape)}

    def structure(self) -> Any:
        fields = self.model_dump(mode="json", exclude={"schedule", "heads", "strength"})
        return {**fields, "layers": self.layers}

    def head_sites(self, what: str, rows: Sequence[Role] | None = None) -> frozenset[Site]:
        """One site a head and row."""
        return frozenset(
            Site(what, head.layer, head.head, row) for head in self.heads for row in rows or (None,)
        )

    def at_each_layer(
        self, setting: Setting, point: str, function: HookFunction, **given: Any
    ) -> list[Hook]:
        """The function at an attention hook point of every layer that has one of the heads."""
        heads = setting.tensors["heads"]
        return [
            (
                f"blocks.{layer}.attn.{point}",
                partial(function, heads=heads[layer], gate=setting.gate, **given),
            )
            for layer in self.layers
        ]


def head_mask(heads: Sequence[Head], shape: Shape) -> Bool[Tensor, "layer head"]:
    """Which heads are meant; ValueError for one that the model does not have."""
    chosen = torch.zeros(shape.n_layers, shape.n_heads, dtype=torch.bool, device="cpu")
    for head in heads:
        if head.layer >= shape.n_layers or head.head >= shape.n_heads:
            raise ValueError(
                f"There is no head {head} in a model of {shape.n_layers} layers x "
                f"{shape.n_heads} heads; layers and heads count from 0."
            )
        chosen[head.layer, head.head] = True
    return chosen


def keep_only(*heads: str | tuple[int, int] | Head, n_heads: int) -> tuple[Head, ...]:
    """All other heads of the given heads' layers, `n_heads` each, to be ablated.

    >>> [str(head) for head in keep_only("L1H2", n_heads=4)]
    ['L1H0', 'L1H1', 'L1H3']
    """
    kept = {Head.parse(head) for head in heads}
    for head in sorted(kept):
        if head.head >= n_heads:
            raise ValueError(f"There is no head {head} to keep among {n_heads} heads a layer.")
    layers = sorted({head.layer for head in kept})
    return tuple(Head(l, h) for l in layers for h in range(n_heads) if Head(l, h) not in kept)  # noqa: E741
