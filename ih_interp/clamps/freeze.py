"""The clamp that holds parameters in training, instead of activations."""

import re
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ih_interp._expect import once_each, values_are_known
from ih_interp.clamps.base import EMBEDDING, AbstractClamp, Hook, Setting, Shape, Site, head_mask
from ih_interp.clamps.schedules import Metrics
from ih_interp.hooked_model import HookedModel, is_bridge
from ih_interp.model import trained_parameters
from ih_interp.types import HeadField

WEIGHTS = ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V")
"""Parameters of attention whose first axis is that of heads."""

OF_HEADS = re.compile(rf"blocks\.(\d+)\.attn\.({'|'.join(WEIGHTS)})")


class Freeze(AbstractClamp):
    """Parameters keep their values, bit for bit, and optimisers their moments of them.

    In `ih.train` that holds while its schedule is on, 0 or 1; in a loop of your own their gradients
    are 0 inside `ih.clamped`. Activations stay what the parameters make of them.
    """

    kind: Literal["freeze"] = "freeze"
    stage, needs_batch = 0, False
    parameters: tuple[str, ...] = ()
    """Names as the model has them, or patterns of them: `["blocks.0.attn.W_Q", "embed.*"]`."""
    heads: tuple[HeadField, ...] = ()
    """Heads whose weights are held, as `["L1H3"]`."""
    parts: str = Field(default="qkvo", pattern="^[qkvo]+$")
    """Which of the heads' weights, and biases where they have some: q, k, v and o."""

    @model_validator(mode="after")
    def _holds_something(self) -> "Freeze":
        for name in ("parameters", "heads", "parts"):
            once_each(getattr(self, name), name)
        if not (self.parameters or self.heads):
            raise ValueError('expected parameters=["embed.*"] or heads=["L0H3"], got neither.')
        return self

    def sites(self, shape: Shape) -> frozenset[Site]:
        of_heads = {Site(f"frozen {part}", *head) for head in self.heads for part in self.parts}
        return frozenset({Site(f"frozen {name}", EMBEDDING) for name in self.parameters} | of_heads)

    def tensors(self, shape: Shape) -> dict[str, Tensor]:
        held = {  # masks and not names, so that runs that hold others share a trace
            weight: head_mask(self.heads if weight[-1].lower() in self.parts else (), shape)
            for weight in WEIGHTS
        }
        for match in filter(None, map(OF_HEADS.fullmatch, self.parameters)):
            held[match[2]][int(match[1]) : int(match[1]) + 1] = True  # none if there is no layer
        return held

    def structure(self) -> Any:
        return {"kind": self.kind, "parameters": self._others()}

    def gate(self, step: int, metrics: Metrics | None = None) -> float:
        gate = super().gate(step, metrics)
        if gate not in (0, 1):
            raise ValueError(
                f"{self} has the gate {gate:g} at step {step}: parameters are frozen or not, use "
                "during, pulses or from_level."
            )
        return gate

    def prepare(self, model: HookedModel) -> None:
        if is_bridge(model):
            raise ValueError(
                f"{self} holds parameters by TransformerLens's names, under which a "
                "TransformerBridge has none: expected a HookedTransformer. In a loop of your own, "
                "call requires_grad_(False) of those in model.named_parameters()."
            )
        if self.heads and {*self.parts} & {*"kv"} and model.cfg.n_key_value_heads is not None:
            raise ValueError(
                f"{self}: groups of heads share keys and values, cfg.n_key_value_heads="
                f'{model.cfg.n_key_value_heads}, so that none are a head\'s: use parts="qo".'
            )
        trained = trained_parameters(model)
        for wanted in (*self.parameters, *self._of_heads()):
            if not any(fnmatchcase(name, wanted) for name in trained):
                raise ValueError(
                    f"{self}: {wanted!r} is no trained parameter: expected some of "
                    f"{', '.join(trained)}."
                )

    def hooks(self, setting: Setting) -> list[Hook]:
        return []

    def frozen(self, setting: Setting) -> dict[str, Tensor]:
        others, held = self._others(), dict[str, Tensor]()
        for name, parameter in trained_parameters(setting.model).items():
            if any(fnmatchcase(name, pattern) for pattern in others):
                held[name] = torch.ones((), dtype=torch.bool, device=parameter.device)
            elif match := OF_HEADS.fullmatch(name):
                of_layer = setting.tensors[match[2]][int(match[1])]
                # In a trace each mask is an input: another run of the graph holds other weights.
                if not values_are_known() or of_layer.any():
                    held[name] = of_layer.reshape(-1, *[1] * (parameter.ndim - 1))
        return held

    def _others(self) -> list[str]:
        """Return the parameters, or patterns of some, that have no axis of heads."""
        return [name for name in self.parameters if not OF_HEADS.fullmatch(name)]

    def _of_heads(self) -> dict[str, int]:
        """Return the weights of the heads, with their layers."""
        layers = {head.layer for head in self.heads}
        return {f"blocks.{n}.attn.W_{p.upper()}": n for n in sorted(layers) for p in self.parts}
