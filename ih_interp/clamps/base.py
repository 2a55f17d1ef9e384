"""The base of clamps: interventions as data, which give hook functions for a model and a batch."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Shaped
from pydantic import AfterValidator, BeforeValidator, field_validator
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ih_interp._config_base import Frozen
from ih_interp._expect import Entry, once_each
from ih_interp._reprs import short_repr
from ih_interp.batch import Batch
from ih_interp.clamps.schedules import AbstractSchedule, Always, Metrics
from ih_interp.hooked_model import HookedModel, is_bridge
from ih_interp.model import FewShotEmbed
from ih_interp.registry import AnyOf, Kinded
from ih_interp.types import Head, HeadField, HeadName

HookFunction: TypeAlias = Callable[..., Tensor | None]
Hook: TypeAlias = tuple[str, HookFunction]
"""A hook point's name and the function for it, as TransformerLens takes them."""

Row: TypeAlias = Literal["labels", "asked"]
"""Rows of the pattern: those of few-shot labels, or those at which something is asked."""

GradientMode: TypeAlias = Literal["flow", "block"]
"""Whether gradient passes into the unclamped pass that a clamp reads; "flow" in the paper."""

EMBEDDING = -1  # the embedding's place among the layers


class Shape(NamedTuple):
    """The size of a model, as far as clamps must know it before they meet a batch."""

    n_layers: int
    n_heads: int
    aliases: tuple[tuple[str, str], ...] = ()
    """A bridge's own names of hook points, each with TransformerLens's."""

    @classmethod
    def of(cls, model: HookedModel) -> "Shape":
        points = model.hook_dict.items() if is_bridge(model) else ()
        aliases = tuple((str(p.name), name) for name, p in points if p.name != name)
        return cls(model.cfg.n_layers, model.cfg.n_heads, aliases)


class Site(NamedTuple):
    """One thing that a clamp sets. Two clamps that set the same thing refuse each other.

    Two sites are the same where point, layer, head and row agree; None stands for every head or
    row, and "scores" for every "scores:...". A point is a hook's name without "hook_", such as
    "embed" (of layer -1), "resid_pre", "q", "v", "z", "pattern" or "logits" (of layer `n_layers`),
    or one of these:

        scores:CHANGE      one of several changes of the scores, as "scores:temperature"
        scores read        scores that serve as logits
        preserved POINT    what it is without clamps; other clamps of POINT come on top
        frozen PARAMETERS  held in training

    What sets a pattern makes changes of its scores void, and is void itself where scores of its
    layer are read. `AbstractClamp.voids` gives layers that make other sites void.
    """

    point: str
    layer: int
    head: int | None = None
    row: Row | None = None

    def overlaps(self, other: "Site") -> bool:
        """Return whether the two have something in common."""
        short, long = sorted((self.point, other.point), key=len)
        pairs = ((self.head, other.head), (self.row, other.row))
        return (
            self.layer == other.layer
            and (short == long or long.startswith(f"{short}:"))
            and all(one == two or None in (one, two) for one, two in pairs)
        )


@short_repr
@dataclass(frozen=True)
class Setting:
    """A model about to run on a batch, and what may differ between runs that share one trace."""

    model: HookedModel
    batch: Batch | None
    tensors: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """As `AbstractClamp.tensors` gives them."""
    gate: Tensor | float | None = None
    """From 0 (free) to 1 (clamped), by which the library blends; None without a schedule."""

    @property
    def sequences(self) -> Batch:
        """The batch; ValueError where there is none."""
        if self.batch is None:
            raise ValueError("This clamp depends on the sequences: pass the batch to clamped().")
        return self.batch

    @property
    def candidates(self) -> Bool[Tensor, "batch row key"]:
        """The candidates of the rows at which something is asked; ValueError where no task says."""
        batch = self.sequences
        return self.at_queries(batch.candidates & batch.asked[..., None])

    def at_queries(self, rows: Shaped[Tensor, "batch pos *e"]) -> Shaped[Tensor, "batch row *e"]:
        """Return the rows that may be asked: the last alone where targets are `[batch]`."""
        return rows[:, -1:] if self.sequences.given_targets.ndim == 1 else rows

    @property
    def embed(self) -> FewShotEmbed:
        """The few-shot embedding, for clamps that look at raw features or labels."""
        return few_shot_embed(self.model)


def few_shot_embed(model: HookedModel) -> FewShotEmbed:
    """Return the embedding of a model that `build_model` made; ValueError for others."""
    embed = model.embed
    if not isinstance(embed, FewShotEmbed):
        raise ValueError("This clamp needs a few-shot model, as build_model makes them.")
    return embed


class AbstractClamp(Kinded):
    """A named intervention: its fields are JSON, and `hooks` gives the functions that do it.

        class Halve(ih.clamps.HeadClamp):
            kind: Literal["halve"] = "halve"
            sets = "z"

            def hooks(self, setting):
                return self.at_each_layer(setting, "hook_z", halve)

    `halve(z, hook, heads)` returns the clamped activation. The library blends it with the free one
    by the schedule's gate; a function that takes `gate` is given it and blends itself.
    """

    family: ClassVar[str] = "clamp"
    stage: ClassVar[int] = 100
    """Where its hooks come among those of one hook point, ascending: from 0 what reads a free pass,
    from 10 the embedding, 20 heads, 30 patterns, 40 scores, 50 outputs; by default last."""
    needs_batch: ClassVar[bool | None] = None
    """Whether it reads the sequences and so serves its own batch alone; None: it does not say."""
    roles: ClassVar[tuple[Literal["answers", "candidates"], ...]] = ()
    """What the sequences' task has to define."""
    reads_pass: ClassVar[bool] = False
    """Whether `hooks` runs a pass without clamps, which holds for the weights of that moment."""

    schedule: AnyOf[AbstractSchedule] = Always()
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
        """Return functions `(activation, hook) -> clamped activation` with their hook points.

        What differs between runs is in `setting.tensors`.
        """

    def frozen(self, setting: Setting) -> dict[str, Tensor]:
        """Return bool masks, by name, of trained parameters that do not change while it is on."""
        return {}

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
    def is_scheduled(self) -> bool:
        """Return whether the clamp has a gate: its schedule is not `always`."""
        return not isinstance(self.schedule, Always)

    def gate(self, step: int, metrics: Metrics | None = None) -> float:
        """Return the schedule's gate at an update; ValueError for one outside [0, 1]."""
        gate = self.schedule.gate(step, metrics)
        if not (isinstance(gate, Real) and 0 <= float(gate) <= 1):
            raise ValueError(
                f"{self}: its schedule {self.schedule.kind} gives {gate!r} at step {step}: "
                "expected a number from 0 (free) to 1 (clamped)."
            )
        return float(gate)

    def prepare(self, model: HookedModel) -> None:
        """Refuse, before anything runs, what the clamp cannot do to this model."""

    def refuse_batch(self, batch: Batch) -> None:
        """Refuse, before anything runs, sequences that the clamp cannot act on."""
        for role in self.roles:
            getattr(batch, role)  # a ValueError in words where no task says

    @property
    def identity(self) -> "AbstractClamp":
        """Return what the numbers depend on, without the paths of files whose digests it has."""
        return self

    def pinned(self) -> "AbstractClamp":
        """Return the clamp with digests of the files that it reads, for a run to record."""
        return self

    def __str__(self) -> str:
        """Return the kind and the fields that differ from their defaults."""
        fields = self.model_dump(mode="json", exclude_defaults=True, exclude={"kind"})
        return f"{self.kind}({', '.join(f'{name}={value}' for name, value in fields.items())})"


def flat_tensors(clamps: Sequence[AbstractClamp], shape: Shape) -> list[Tensor]:
    """Return what may differ between runs that share one trace: the clamps' trees, flattened."""
    return tree_leaves([clamp.tensors(shape) for clamp in clamps])


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
    """What it sets of its heads, the `point` of a `Site`: "z" where it acts at `hook_z`."""
    rows: ClassVar[Row | None] = None
    """The rows of the pattern or the scores that it sets; None for all, or where there are none."""
    numbers: ClassVar[tuple[str, ...]] = ()
    """Fields that may differ between runs which share one trace."""

    heads: OnceEach[HeadField]
    """The heads that it acts on, as `["L1H3"]` or `[(1, 3)]`; layers and heads count from 0."""

    @property
    def layers(self) -> list[int]:
        return sorted({head.layer for head in self.heads})

    def sites(self, shape: Shape) -> frozenset[Site]:
        if not self.sets:
            raise TypeError(
                f"{type(self).__name__}: expected what it sets of its heads, by which conflicts "
                'are found, and none came: write sets = "z" in the class where it acts at hook_z, '
                'sets = "pattern" where at hook_pattern, or a method sites(shape).'
            )
        return frozenset(Site(self.sets, *head, self.rows) for head in self.heads)

    def tensors(self, shape: Shape) -> dict[str, Tensor]:
        tensors = {"heads": head_mask(self.heads, shape)}
        for name in self.numbers:
            tensors[name] = torch.tensor(getattr(self, name), dtype=torch.float32, device="cpu")
        return tensors

    def structure(self) -> Any:
        excluded = {"schedule", "heads", *self.numbers}
        return {**self.model_dump(mode="json", exclude=excluded), "layers": self.layers}

    def at_each_layer(
        self, setting: Setting, point: str, function: HookFunction, **given: Any
    ) -> list[Hook]:
        """Return `function(activation, hook, heads=mask, **given)` for each layer with such a head.

        `point` is a hook of attention, "hook_pattern"; the mask is True for the layer's heads.
        Raises ValueError for keys and values that groups of heads share.
        """
        if point in ("hook_k", "hook_rot_k", "hook_v"):
            self._refuse_shared(setting.model.cfg)
        heads, function = setting.tensors["heads"], partial(function, **given)
        return [
            (f"blocks.{layer}.attn.{point}", partial(function, heads=heads[layer]))
            for layer in self.layers
        ]

    def _refuse_shared(self, cfg: Any) -> None:
        """Refuse single heads of grouped-query attention, where keys and values are of groups."""
        n_shared, whole = cfg.n_key_value_heads, (None, cfg.n_heads)
        if n_shared not in whole and not getattr(cfg, "ungroup_grouped_query_attention", False):
            raise ValueError(
                f"{self} acts on keys or values of single heads, and groups of heads share them: "
                f"cfg.n_key_value_heads={n_shared} for {cfg.n_heads} heads. Expected queries, "
                "patterns or z (hook_z), which each head has."
            )


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
