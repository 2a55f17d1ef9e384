"""The clamps that are on a model now, their hooks, and passes of the model without them."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ih_interp import hooks
from ih_interp._expect import values_are_known
from ih_interp._stock import parts_of, refuse_other_names
from ih_interp.batch import Batch
from ih_interp.clamps.base import AbstractClamp, GradientMode, Hook
from ih_interp.hooked_model import HookedModel, is_bridge

CHUNK = 1_024  # sequences per pass: the activations of more leave the processor's cache
LARGEST = 2**28  # numbers in an activation of a pass, 1 GiB in single precision


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
        registered: Any = self.handle.hooks_dict_ref()
        here: Any = model
        for part in self.name.split("."):
            here = getattr(here, part, None)
        is_there = registered is not None and self.handle.id in registered
        return here is self.module and is_there


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
    passing: set[str] = field(default_factory=set[str])
    """Points that have fired in this pass, until their layer's hook_z is reached."""
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
        points = model.hook_dict
        for name, function in self.given:
            module = self._module(model, points, name)
            act = partial(self._act, name, function, module)
            self._put(stack, _OurHook(name, module, act), module.register_forward_hook)
            attention, _, point = name.rpartition(".")
            if is_bridge(model) and point in ("hook_attn_scores", "hook_pattern"):
                z = self._module(model, points, f"{attention}.hook_z")
                comes_first = partial(self._refuse_late, name)
                after = _OurHook(getattr(z, "name", name), z, comes_first)
                self._put(stack, after, z.register_forward_hook)
        for name, mask in self.frozen.items():
            kept = partial(_without, mask)
            stack.callback(model.get_parameter(name).register_hook(kept).remove)
        if batch is not None and self.is_bound:
            read = weights_of(model) if self.clamp.reads_pass else None
            guard, embed = partial(_refuse_other_pass, model, batch.tokens, read), model.embed
            self._put(stack, _OurHook("embed", embed, guard), embed.register_forward_pre_hook)

    def _module(self, model: HookedModel, points: Mapping[str, Any], name: str) -> Any:
        """Return a hook point, or a module of another kind; ValueError where there is none."""
        try:
            return points[name] if name in points else model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(
                f"{self.clamp} acts at {name!r}, and this model has no such hook point: expected "
                "one of model.hook_dict."
            ) from error

    def _refuse_late(self, name: str, z: Tensor) -> None:
        """Refuse an attention that has computed z by the time it shows its pattern."""
        if not self.is_paused and name not in self.passing:
            raise ValueError(
                f"{self.clamp} acts at {name}, which this TransformerBridge only shows: its "
                "attention runs inside the wrapped model, and what a hook returns there has no "
                "effect. Expected an attention that TransformerLens computes, as in bridges of "
                "GPT-2, GPT-NeoX or Llama; clamp queries, keys, values or z instead."
            )
        self.passing.discard(name)

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
        self.passing.add(name)
        # A bridge's own shape is another than the one that TransformerLens shows to functions.
        conversion = getattr(module, "hook_conversion", None)
        shown = output if conversion is None else conversion.convert(output)
        before = _version(shown)
        result = function(shown, hook=module)
        self.changed |= _version(shown) != before  # a function of the user's may write into it
        if result is None:
            return None
        self.changed = self.changed or not (
            values_are_known() and torch.equal(result.detach(), shown.detach())
        )
        return result if conversion is None else conversion.revert(result)


def by_own_names(model: HookedModel, clamp: AbstractClamp, given: Sequence[Hook]) -> list[Hook]:
    """Return hooks with each point's own name, by which clamps meet; a bridge has others, too."""
    points = model.hook_dict
    for name, _ in given:
        if is_bridge(model) and name.endswith(".hook_resid_mid"):
            raise ValueError(
                f"{clamp} acts at {name}, which in a TransformerBridge is what the MLP reads and "
                "not the residual stream: what comes after would not change. Expected another "
                "point; write ln2.hook_in if the MLP's input is meant, hook_resid_post if not."
            )
    return [(points[n].name or n if n in points else n, function) for n, function in given]


_ACTIVE: WeakKeyDictionary[HookedModel, tuple[Active, ...]] = WeakKeyDictionary()
"""The one record of which clamps are on which model; copies of a model are not in it."""


def active(model: HookedModel) -> tuple[Active, ...]:
    """Return the clamps of every `clamped` block that the model is in, outer blocks first."""
    return _ACTIVE.get(model, ())


def rows_per_pass(model: HookedModel, tokens: Tensor, most: int | None = None) -> int:
    """Return how many sequences go through one pass: at most so many, fewer that are long.

    Fewer too where logits are many; all of them under clamps made for a batch.
    """
    if any(one.is_bound for one in active(model)):
        return len(tokens)
    cfg, n_positions = model.cfg, tokens.shape[1]
    widest = n_positions * max(cfg.d_vocab_out, cfg.n_heads * n_positions)
    return min(CHUNK if most is None else most, max(1, LARGEST // widest))


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
    tokens: Tensor,
    names: Sequence[str],
    gradient: GradientMode,
    *,
    resid_pre: tuple[int, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return activations of a pass without clamps, with their graph unless gradient is "block".

    `resid_pre` is a layer and what it reads instead; then activations of that layer alone are kept.
    """
    refuse_other_names(model)
    kept: dict[str, Tensor] = {}

    def keep(activation: Tensor, hook: Any, name: str) -> None:
        kept[name] = activation.detach() if gradient == "block" else activation

    keeping: list[Hook] = [(name, partial(keep, name=name)) for name in names]
    with paused(model), model.hooks(fwd_hooks=[*keeping]):
        if resid_pre is None:
            model(tokens)
            return kept
        layer, resid = resid_pre
        if not is_bridge(model):
            model(resid, start_at_layer=layer, stop_at_layer=layer + 1)
            return kept
        # A bridge cannot start at a layer; it runs whole, with another input of that layer.
        given = partial(hooks.replace, value=resid)
        with model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_resid_pre", given)]):
            model(tokens)
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
