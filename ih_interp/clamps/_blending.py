"""The library blends what clamps give with what the model has, by the gates of their schedules."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ih_interp import hooks
from ih_interp.batch import Batch
from ih_interp.clamps.base import AbstractClamp, Hook, HookFunction, Setting
from ih_interp.hooked_model import HookedModel
from ih_interp.hooks import Gate


def hooks_of_all(
    model: HookedModel,
    batch: Batch,
    clamps: Sequence[AbstractClamp],
    tensors: Sequence[Mapping[str, Any]],
    gates: Sequence[Tensor | float | None],
) -> list[Hook]:
    """Return the hooks of several clamps, each with its tensors and its gate."""
    return [
        hook
        for clamp, given, gate in zip(clamps, tensors, gates, strict=True)
        for hook in blended(clamp, clamp.hooks(Setting(model, batch, given, gate)), gate)
    ]


def frozen_by(
    model: HookedModel,
    clamps: Sequence[AbstractClamp],
    tensors: Sequence[Mapping[str, Any]],
    gates: Sequence[Tensor | float | None],
) -> dict[str, Tensor]:
    """Return which elements of which parameters the clamps hold now, as bool masks by name."""
    held: dict[str, Tensor] = {}
    for clamp, given, gate in zip(clamps, tensors, gates, strict=True):
        for name, mask in clamp.frozen(Setting(model, None, given, gate)).items():
            on = mask if gate is None else mask & (torch.as_tensor(gate, device=mask.device) > 0)
            on = on.expand_as(model.get_parameter(name))
            held[name] = held[name] | on if name in held else on
    return held


def blended(clamp: AbstractClamp, hooks: Iterable[Hook], gate: Gate) -> list[Hook]:
    """Return a clamp's hooks so that they blend what they give with the free activation."""
    return [(name, _gated(clamp, function, gate)) for name, function in hooks]


def _gated(clamp: AbstractClamp, function: HookFunction, gate: Gate) -> HookFunction:
    if _takes_gate(function):  # it blends itself
        function, gate = partial(function, gate=gate), None

    def act(activation: Tensor, hook: Any) -> Tensor | None:
        # Blended with what it was, which a function of the user's may write into.
        given = activation if gate is None else activation.clone()
        try:
            clamped = function(given, hook=hook)
        except Exception as error:
            error.add_note(
                f"It was raised by the function of {clamp} at {hook.name}, for an activation of "
                f"shape {tuple(activation.shape)}."
            )
            raise
        if gate is None and clamped is None:
            return None
        clamped = given if clamped is None else clamped
        _refuse_unlike(clamp, clamped, activation, hook)
        return clamped if gate is None else _blend(activation, clamped.to(activation), gate)

    return act


def _takes_gate(function: Any) -> bool:
    while isinstance(function, partial):
        function = function.func
    code = getattr(inspect.unwrap(function), "__code__", None)
    return (
        code is not None and "gate" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    )


def _blend(free: Tensor, clamped: Tensor, gate: Gate) -> Tensor:
    """Return `hooks.blend`, exact at both ends; infinities count in full while the gate is on."""
    g = torch.as_tensor(gate, dtype=free.dtype, device=free.device)
    on = torch.where((g == 1) | clamped.isinf(), clamped, hooks.blend(free, clamped, g))
    return torch.where((g == 0) | (clamped == free), free, on)


def _refuse_unlike(clamp: AbstractClamp, result: Any, like: Tensor, hook: Any) -> None:
    if not (
        isinstance(result, Tensor)
        and result.shape == like.shape
        and result.is_floating_point()
        and result.device == like.device
        and result.layout == like.layout
    ):
        raise ValueError(
            f"{clamp} gives {getattr(result, 'dtype', type(result).__name__)} of shape "
            f"{tuple(getattr(result, 'shape', ()))} at {hook.name}: expected None, or a floating-"
            f"point tensor like the activation, of shape {tuple(like.shape)} on {like.device}."
        )
