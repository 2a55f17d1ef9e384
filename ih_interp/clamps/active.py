"""Which clamps are on a model now, and passes of it without them."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp.clamps.base import AbstractClamp, GradientMode


class Active(NamedTuple):
    """A clamp on a model, and the hook points at which it acts."""

    clamp: AbstractClamp
    points: frozenset[str]


_ACTIVE: WeakKeyDictionary[HookedTransformer, tuple[Active, ...]] = WeakKeyDictionary()
_PAUSED: WeakSet[HookedTransformer] = WeakSet()


def active(model: HookedTransformer) -> tuple[Active, ...]:
    """The clamps of every `clamped` block that the model is in, outer blocks first."""
    return _ACTIVE.get(model, ())


@contextmanager
def activated(model: HookedTransformer, added: Sequence[Active]) -> Generator[None]:
    """Inside, these clamps are on the model too."""
    before = active(model)
    _ACTIVE[model] = (*before, *added)
    try:
        yield
    finally:
        _ACTIVE[model] = before


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
    kept: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        kept[hook.name] = activation.detach() if gradient == "block" else activation

    with paused(model), model.hooks(fwd_hooks=[(name, keep) for name in names]):
        model(inputs, **forward)
    return kept
