"""The clamps that are on a model now, their hooks, and passes of the model without them."""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ih_interp._expect import values_are_known
from ih_interp._stock import parts_of, refuse_other_names
from ih_interp.batch import Batch
from ih_interp.clamps.base import AbstractClamp, GradientMode, Hook
from ih_interp.hooked_model import HookedModel


class _Off:
    """A stand-in for a clamp's hook on a copy of the model: it does nothing."""

    def __call__(self, *called: Any) -> None:
        pass


@dataclass(eq=False)
class _OurHook:
    """A hook of PyTorch's on one module, and not on copies of it, pickled or not.

    TransformerLens's own hooks act on copies too, and `model.reset_hooks` takes them off.
    """

    name: str
    module: nn.Module
    function: Callable[[Any], Tensor | None]
    """Called with the module's output, or before it runs with its inputs."""
    handle: Any = None

    def __call__(self, module: nn.Module, *passed: Any) -> Tensor | None:
        return self.function(passed[-1]) if module is self.module else None

    def __reduce__(self) -> tuple[type[_Off], tuple[()]]:
        return (_Off, ())

    def is_on(self, model: HookedModel) -> bool:
        """Return whether the model still has the module, and the module this hook."""
        hooks: Any = self.handle.hooks_dict_ref()
        here: Any = model
        for part in self.name.split("."):
            here = getattr(here, part, None)
        return here is self.module and hooks is not None and self.handle.id in hooks


@dataclass(eq=False)
class Active:
    """A clamp on a model: its hooks, whether they have fired, and whether they changed anything."""

    clamp: AbstractClamp
    given: list[Hook]
    is_bound: bool = False
    """Whether it was made for a batch and refuses other sequences."""
    is_paused: bool = False
    """Whether the model runs without it, for a pass that another clamp reads."""
    fired: set[str] = field(default_factory=set[str])
    changed: bool = False
    frozen: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Masks of parameters that get no gradient."""
    placed: list[_OurHook] = field(default_factory=list[_OurHook])

    @property
    def points(self) -> frozenset[str]:
        """The hook points at which the clamp acts."""
        return frozenset(name for name, _ in self.given)

    def place(self, stack: ExitStack, model: HookedModel, batch: Batch | None) -> None:
        """Put the hooks on the model until the stack is closed."""
        for name, function in self.given:
            try:
                module = model.get_submodule(name)
            except AttributeError as error:
                raise ValueError(f"{name!r}: expected the name of a hook point.") from error
            act = partial(self._act, name, function, module)
            self._put(stack, _OurHook(name, module, act), module.register_forward_hook)
        for name, mask in self.frozen.items():
            kept = partial(_without, mask)
            stack.callback(model.get_parameter(name).register_hook(kept).remove)
        if batch is not None and self.is_bound:
            read = weights_of(model) if self.clamp.reads_pass else None
            guard, embed = partial(_refuse_other_pass, model, batch.tokens, read), model.embed
            self._put(stack, _OurHook("embed", embed, guard), embed.register_forward_pre_hook)

    def _put(self, stack: ExitStack, hook: _OurHook, register: Callable[..., Any]) -> None:
        hook.handle = register(hook)
        stack.callback(hook.handle.remove)
        self.placed.append(hook)

    def _act(
        self, name: str, function: Callable[..., Any], module: nn.Module, output: Tensor
    ) -> Tensor | None:
        if self.is_paused:
            return None
        self.fired.add(name)
        before = _version(output)
        result = function(output, hook=module)
        self.changed |= _version(output) != before  # a function of the user's may write into it
        if result is None:
            return None
        self.changed = self.changed or not (
            values_are_known() and torch.equal(result.detach(), output.detach())
        )
        return result


_ACTIVE: WeakKeyDictionary[HookedModel, tuple[Active, ...]] = WeakKeyDictionary()
"""The one record of which clamps are on which model; copies of a model are not in it."""


def active(model: HookedModel) -> tuple[Active, ...]:
    """Return the clamps of every `clamped` block that the model is in, outer blocks first."""
    return _ACTIVE.get(model, ())


def pass_size(model: HookedModel, n_sequences: int, most: int) -> int:
    """Return how many sequences go through one pass: all, under clamps made for a batch."""
    return n_sequences if any(one.is_bound for one in active(model)) else most


def refuse_removed(model: HookedModel) -> None:
    """Refuse clamps that lost a hook inside their block, or the module that it is on."""
    for one in active(model):
        gone = [hook.name for hook in one.placed if not hook.is_on(model)]
        if gone:
            raise ValueError(
                f"{one.clamp} is no longer on the model at {', '.join(gone)}: inside clamped() its "
                "hook was taken off or the module replaced, and passes since then were without it. "
                "Expected modules and their hooks to stay (`model.reset_hooks` leaves clamps on)."
            )


@contextmanager
def activated(model: HookedModel, added: Sequence[Active]) -> Generator[None]:
    """Have these clamps on the model too, inside the block."""
    _ACTIVE[model] = (*active(model), *added)
    try:
        yield
    finally:  # blocks may be left in another order than they were entered
        _ACTIVE[model] = tuple(one for one in active(model) if one not in added)


@contextmanager
def paused(model: HookedModel) -> Generator[None]:
    """Have the clamps on the model do nothing, inside the block."""
    on = [one for one in active(model) if not one.is_paused]
    for one in on:
        one.is_paused = True
    try:
        yield
    finally:
        for one in on:
            one.is_paused = False


def unclamped(
    model: HookedModel,
    inputs: Tensor,
    names: Sequence[str],
    gradient: GradientMode,
    *,
    layers: tuple[int | None, int | None] = (None, None),
) -> dict[str, Tensor]:
    """Return activations of a pass without clamps, with their graph unless gradient is "block".

    `layers` are the first that runs, and the one before which the pass stops.
    """
    refuse_other_names(model)
    kept: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any) -> None:
        kept[hook.name] = activation.detach() if gradient == "block" else activation

    with paused(model), model.hooks(fwd_hooks=[(name, keep) for name in names]):
        model(inputs, start_at_layer=layers[0], stop_at_layer=layers[1])
    return kept


def weights_of(model: HookedModel) -> list[tuple[Tensor, int]]:
    """Return a model's weights, and how often each was written into."""
    found = (p for module in parts_of(model) for p in vars(module)["_parameters"].values())
    return [(p, _version(p)) for p in found if p is not None]


def _refuse_other_pass(
    model: HookedModel, own: Tensor, read: list[tuple[Tensor, int]] | None, inputs: tuple[Tensor]
) -> None:
    """Refuse other sequences than the batch's, and other weights than a clamp has read."""
    (tokens,) = inputs
    if read is not None:
        then, now = ([(id(p), n) for p, n in found] for found in (read, weights_of(model)))
        if then != now:
            raise ValueError(
                "A clamp has read a pass with the weights that the model had when clamped() was "
                "entered, and now it has others: enter clamped() anew after every change."
            )
    if torch._C._functorch.is_functorch_wrapped_tensor(tokens):  # pyright: ignore
        raise ValueError(
            "These clamps were made for a batch, with which tokens inside vmap cannot be "
            "compared: map over weights alone, and run the model on batch.tokens."
        )
    if tokens.shape != own.shape or not torch.equal(tokens.to(own.device).long(), own):
        raise ValueError(
            "These clamps were made for another batch: inside clamped(model, clamps, batch) "
            "run the model on batch.tokens."
        )


def _without(mask: Tensor, gradient: Tensor) -> Tensor:
    """Return a parameter's gradient, 0 where the mask holds it."""
    return torch.where(mask, torch.zeros_like(gradient), gradient)


def _version(tensor: Tensor) -> int:
    """Return how often a tensor was written into, as far as torch counts."""
    return 0 if tensor.is_inference() else tensor._version
