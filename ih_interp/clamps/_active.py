"""Which clamps are on a model now, and passes of it without them."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformer_lens import HookedTransformer

from ih_interp._stock import parts_of, refuse_other_names
from ih_interp.clamps.base import AbstractClamp, GradientMode


class Placed(NamedTuple):
    """A hook of ours on a module of a model."""

    name: str
    module: nn.Module
    handle: RemovableHandle

    def is_on(self, model: HookedTransformer) -> bool:
        """Whether the module is still that one, and has the hook."""
        hooks: Any = self.handle.hooks_dict_ref()
        here: Any = model
        for part in self.name.split("."):
            here = getattr(here, part, None)
        return here is self.module and hooks is not None and self.handle.id in hooks


class Active(NamedTuple):
    """A clamp on a model, and the hook points at which it acts."""

    clamp: AbstractClamp
    points: frozenset[str]
    is_bound: bool = False
    """Whether it was made for a batch, and refuses other sequences."""
    placed: tuple[Placed, ...] = ()


_ACTIVE: WeakKeyDictionary[HookedTransformer, tuple[Active, ...]] = WeakKeyDictionary()
_PAUSED: WeakSet[HookedTransformer] = WeakSet()


def active(model: HookedTransformer) -> tuple[Active, ...]:
    """The clamps of every `clamped` block that the model is in, outer blocks first."""
    return _ACTIVE.get(model, ())


def pass_size(model: HookedTransformer, n_sequences: int, most: int) -> int:
    """Return how many of `n_sequences` go through one pass: at most so many.

    Clamps on the model that were made for a batch refuse parts of it: under them it stays whole.
    """
    return n_sequences if any(one.is_bound for one in active(model)) else most


def refuse_removed(model: HookedTransformer) -> None:
    """Refuse clamps of which a hook was taken off inside their block, or its module replaced."""
    for one in active(model):
        gone = [placed.name for placed in one.placed if not placed.is_on(model)]
        if gone:
            raise ValueError(
                f"{one.clamp} is no longer on the model at {', '.join(gone)}: inside clamped() its "
                "hook was taken off or the module replaced, and passes since then were without it. "
                "Expected modules and their hooks to stay (`model.reset_hooks` leaves clamps on)."
            )


@contextmanager
def activated(model: HookedTransformer, added: Sequence[Active]) -> Generator[None]:
    """Inside, these clamps are on the model too."""
    _ACTIVE[model] = (*active(model), *added)
    try:
        yield
    finally:  # blocks that are left in another order than they were entered keep their own
        own = {*map(id, added)}
        _ACTIVE[model] = tuple(one for one in active(model) if id(one) not in own)


def is_paused(model: HookedTransformer) -> bool:
    """Whether the model runs without the clamps that are on it."""
    return model in _PAUSED


@contextmanager
def paused(model: HookedTransformer) -> Generator[None]:
    """Inside, clamps on the model do nothing: passes that a clamp reads from are unclamped."""
    _PAUSED.add(model)
    try:
        yield
    finally:
        _PAUSED.discard(model)


def unclamped(
    model: HookedTransformer,
    inputs: Tensor,
    names: Sequence[str],
    *,
    gradient: GradientMode = "flow",
    **forward: Any,
) -> dict[str, Tensor]:
    """Activations of a pass without clamps, attached to the graph unless gradient is "block"."""
    refuse_other_names(model)
    kept: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        kept[hook.name] = activation.detach() if gradient == "block" else activation

    with paused(model), model.hooks(fwd_hooks=[(name, keep) for name in names]):
        model(inputs, **forward)
    return kept


def weights_of(model: HookedTransformer) -> list[tuple[Tensor, int]]:
    """A model's weights, and how often each was written into."""
    modules = map(vars, parts_of(model))
    found = [p for own in modules for p in own["_parameters"].values() if p is not None]
    return [(p, version(p)) for p in found]


def are_same(before: Sequence[tuple[Tensor, int]], now: Sequence[tuple[Tensor, int]]) -> bool:
    """Whether these are the same tensors, and nobody wrote into them in between."""
    return len(before) == len(now) and all(
        one is other and version == later
        for (one, version), (other, later) in zip(before, now, strict=True)
    )


def version(tensor: Tensor) -> int:
    """How often a tensor was written into, as far as torch counts."""
    return 0 if tensor.is_inference() else tensor._version


def is_like(result: object, output: Tensor) -> bool:
    """Whether a hook's result may stand in the place of an activation."""
    return (
        isinstance(result, Tensor)
        and result.shape == output.shape
        and result.is_floating_point()
        and result.device == output.device
        and result.layout == output.layout
    )
