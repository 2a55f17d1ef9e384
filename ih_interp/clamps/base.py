"""The base of clamps: interventions as data, which give hook functions for a model and a batch."""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool
from pydantic import AfterValidator, BeforeValidator, field_validator
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformer_lens import HookedTransformer

from ih_interp._config_base import Frozen
from ih_interp._reprs import short_repr
from ih_interp.clamps.schedules import AbstractSchedule, Always
from ih_interp.model import FewShotEmbed
from ih_interp.registry import Kinded, any_of
from ih_interp.types import Batch, Entry, Head, HeadField, HeadName, expect, once_each

HookFunction: TypeAlias = Callable[..., Tensor | None]
Hook: TypeAlias = tuple[str, HookFunction]
"""A hook point's name and the function for it, as TransformerLens takes them."""

Role: TypeAlias = Literal["exemplars", "labels", "query"]
ROLES: tuple[Role, ...] = ("exemplars", "labels", "query")

GradientMode: TypeAlias = Literal["flow", "block"]
"""Whether gradient passes into the unclamped pass that a clamp reads; "flow" in the paper."""

EMBEDDING = -1  # the embedding's place among the layers


class Shape(NamedTuple):
    """The size of a model, as far as clamps must know it before they meet a batch."""

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
    tensors: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """As `AbstractClamp.tensors` gives them."""
    gate: Tensor | float | None = None
    """From 0 (free) to 1 (clamped); None for a clamp without a schedule."""

    @property
    def sequences(self) -> Batch:
        """The batch; ValueError where there is none."""
        if self.batch is None:
            raise ValueError("This clamp depends on the sequences: pass the batch to clamped().")
        return self.batch

    @property
    def embed(self) -> FewShotEmbed:
        """The few-shot embedding, for clamps that look at raw features or labels."""
        return few_shot_embed(self.model)


def few_shot_embed(model: HookedTransformer) -> FewShotEmbed:
    """Return the embedding of a model that `build_model` made; ValueError for others."""
    embed = model.embed
    if not isinstance(embed, FewShotEmbed):
        raise ValueError("This clamp needs a few-shot model, as build_model makes them.")
    return embed


class AbstractClamp(Kinded):
    """A named intervention: its fields are JSON, and `hooks` gives the functions that do it."""

    family: ClassVar[str] = "clamp"
    needs_batch: ClassVar[bool] = False
    reads_pass: ClassVar[bool] = False
    """Whether `hooks` runs a pass without clamps, which holds for the weights of that moment."""

    schedule: any_of(AbstractSchedule) = Always()
    """When it is on, in updates: `always()`, `during(...)`, `pulses(...)`, `ramp(...)` or
    `from_level(...)` of `ih.clamps`."""

    @field_validator("schedule", mode="before")
    @classmethod
    def _a_schedule(cls, schedule: object) -> object:
        if not isinstance(schedule, Frozen | Mapping):
            raise ValueError(
                f"schedule={schedule!r}: expected a schedule of ih.clamps, during(0, 100), "
                "pulses(...), ramp(...) or from_level(...)."
            )
        return schedule

    @abstractmethod
    def sites(self, shape: Shape) -> frozenset[Site]:
        """Return everything that the clamp sets."""

    @abstractmethod
    def hooks(self, setting: Setting) -> list[Hook]:
        """Return hook functions for one pass; what differs between runs is in `setting.tensors`."""

    def tensors(self, shape: Shape) -> dict[str, Any]:
        """Return what may differ between runs that share one trace: tensors, or trees of them."""
        return {}

    def structure(self) -> Any:
        """Return what must be equal for two clamps to share one trace; JSON."""
        return self.model_dump(mode="json", exclude={"schedule"})

    def voids(self, shape: Shape) -> range:
        """Return the layers whose activations no longer matter under this clamp."""
        return range(0)

    @property
    def is_own(self) -> bool:
        """Return whether a user wrote the class; no file can name such a class."""
        return not type(self).__module__.startswith("ih_interp.clamps.")

    @property
    def is_scheduled(self) -> bool:
        """Return whether the clamp has a gate: its schedule is not `always`."""
        return not isinstance(self.schedule, Always)

    def prepare(self, model: HookedTransformer) -> None:
        """Refuse, before anything runs, what the clamp cannot do to this model."""

    def refuse_batch(self, batch: Batch) -> None:
        """Refuse, before anything runs, sequences that the clamp cannot act on."""

    @property
    def identity(self) -> "AbstractClamp":
        """Return what the numbers depend on, without the paths of files whose digests it has."""
        return self

    def pinned(self) -> "AbstractClamp":
        """Return the clamp with digests of the files that it reads, for a run to record."""
        return self

    def refuse_own(self) -> None:
        """Refuse a class of the user's own where a file has to name it."""
        if self.is_own:
            raise ValueError(
                f"{self} is a clamp of your own ({type(self).__name__}), which no file can name: "
                "expected one of ih.clamps. Yours serves in ih.clamped, evaluate and trace."
            )

    def __str__(self) -> str:
        """Return the kind and the fields that differ from their defaults."""
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
        return f"{self.kind}({', '.join(f'{name}={value}' for name, value in fields.items())})"


def hooks_of(clamp: AbstractClamp, setting: Setting) -> list[Hook]:
    """Return a clamp's hooks; TypeError where a user's own kind gives anything else."""
    given: Any = clamp.hooks(setting)
    pairs = list(given) if isinstance(given, Iterable) else [given]
    for pair in pairs if clamp.is_own else ():
        try:
            name, function = pair
            inspect.signature(function).bind(None, hook=None)
            expect(name, str, "name")
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"hooks() of {clamp} gives {pair!r}: expected pairs of a hook point's name and a "
                'function of (activation, hook), [("blocks.1.attn.hook_z", halve)].'
            ) from error
    return pairs


def flat_tensors(clamps: Sequence[AbstractClamp], shape: Shape) -> list[Tensor]:
    """Return what may differ between runs that share one trace: the clamps' trees, flattened."""
    return tree_leaves([clamp.tensors(shape) for clamp in clamps])


def hooks_of_all(
    model: HookedTransformer,
    batch: Batch,
    clamps: Sequence[AbstractClamp],
    tensors: Sequence[Mapping[str, Any]],
    gates: Sequence[Tensor | float | None],
) -> list[Hook]:
    """Return the hooks of several clamps, each with its tensors and its gate."""
    return [
        hook
        for clamp, given, gate in zip(clamps, tensors, gates, strict=True)
        for hook in clamp.hooks(Setting(model, batch, given, gate))
    ]


def _a_list(values: object, info: Any) -> object:  # of a protocol, which beartype cannot check
    """Refuse an empty list, and one entry alone, which would be read letter by letter."""
    if isinstance(values, str | Head) or (isinstance(values, Sequence) and not len(values)):
        raise ValueError(f"{info.field_name}={values!r}: expected a list with at least one entry.")
    return values


def _once(values: tuple[Any, ...], info: Any) -> tuple[Any, ...]:
    return tuple(sorted(once_each(values, info.field_name)))


OnceEach: TypeAlias = Annotated[tuple[Entry, ...], BeforeValidator(_a_list), AfterValidator(_once)]
"""At least one entry, none twice; they are sorted."""


class HeadClamp(AbstractClamp):
    """A clamp on given heads."""

    sets: ClassVar[str] = ""
    """What it sets of its heads, as a `Site` names it."""
    rows: ClassVar[tuple[Role, ...]] = ()
    """The rows of the pattern or the scores that it sets; () where there are none."""
    numbers: ClassVar[tuple[str, ...]] = ()
    """Fields that may differ between runs which share one trace."""

    heads: OnceEach[HeadField]
    """The heads that it acts on, as `["L1H3"]` or `[(1, 3)]`; layers and heads count from 0."""

    @property
    def layers(self) -> list[int]:
        return sorted({head.layer for head in self.heads})

    def sites(self, shape: Shape) -> frozenset[Site]:
        if not self.sets:
            raise TypeError(f"{type(self).__name__}: expected a method sites(shape), none came.")
        return self.head_sites(self.sets, self.rows)

    def tensors(self, shape: Shape) -> dict[str, Tensor]:
        tensors = {"heads": head_mask(self.heads, shape)}
        for name in self.numbers:
            tensors[name] = torch.tensor(getattr(self, name), dtype=torch.float32, device="cpu")
        return tensors

    def structure(self) -> Any:
        excluded = {"schedule", "heads", *self.numbers}
        return {**self.model_dump(mode="json", exclude=excluded), "layers": self.layers}

    def head_sites(self, what: str, rows: Sequence[Role] | None = None) -> frozenset[Site]:
        """Return one site per head and row."""
        return frozenset(
            Site(what, head.layer, head.head, row) for head in self.heads for row in rows or (None,)
        )

    def at_each_layer(
        self, setting: Setting, point: str, function: HookFunction, **given: Any
    ) -> list[Hook]:
        """Return the function at an attention hook point of every layer that has such a head."""
        heads, function = setting.tensors["heads"], partial(function, gate=setting.gate, **given)
        return [
            (f"blocks.{layer}.attn.{point}", partial(function, heads=heads[layer]))
            for layer in self.layers
        ]


def head_mask(heads: Sequence[Head], shape: Shape) -> Bool[Tensor, "layer head"]:
    """Return which heads are meant; ValueError for one that the model does not have."""
    chosen = torch.zeros(shape.n_layers, shape.n_heads, dtype=torch.bool, device="cpu")
    for head in heads:
        if head.layer >= shape.n_layers or head.head >= shape.n_heads:
            raise ValueError(
                f"There is no head {head} in a model of {shape.n_layers} layers x "
                f"{shape.n_heads} heads; layers and heads count from 0."
            )
        chosen[head.layer, head.head] = True
    return chosen


def keep_only(*heads: HeadName, n_heads: int) -> tuple[Head, ...]:
    """Return all other heads of the given heads' layers, `n_heads` each, to be ablated.

    >>> [str(head) for head in keep_only("L1H2", n_heads=4)]
    ['L1H0', 'L1H1', 'L1H3']
    """
    kept = {Head.parse(head) for head in heads}
    for head in sorted(kept):
        if head.head >= n_heads:
            raise ValueError(f"There is no head {head} to keep among {n_heads} heads per layer.")
    layers = sorted({head.layer for head in kept})
    others = (Head(layer, head) for layer in layers for head in range(n_heads))
    return tuple(head for head in others if head not in kept)
