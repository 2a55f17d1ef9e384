"""Clamps that join the model to another, frozen one: its lower layers, or its upper ones."""

from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call
from transformer_lens import HookedTransformer

from ih_interp import hooks
from ih_interp.clamps.base import (
    EMBEDDING,
    AbstractClamp,
    Hook,
    Setting,
    Shape,
    Site,
    few_shot_embed,
)
from ih_interp.clamps.sources import (
    Source,
    Target,
    read_source,
    read_weights,
    recorded_clamps,
    recorded_run,
)
from ih_interp.types import Batch, Logits, Residual


class Graft(AbstractClamp):
    """A clamp that reads a checkpoint of another run on the same exemplars and labels."""

    run: str = Field(pattern=r"^[^\x00]+$")
    """The run's folder, anywhere on this machine: its configuration, metrics and checkpoints are
    read, numbers all, and written nowhere. `sha256` says which checkpoint it has to be."""
    step: int = Field(ge=0)
    layer: int = Field(ge=0)
    sha256: str | None = None
    """Digest of the checkpoint, of which others are refused; None takes what lies there."""

    def prepare(self, model: HookedTransformer) -> None:
        """Read the checkpoint; ValueError where it does not fit the model."""
        source = self.source(model).model
        exemplars = few_shot_embed(model).exemplars
        if exemplars is None:
            raise ValueError(
                "A graft compares exemplars, and this model does not say which it embeds: "
                "make it with build_model, or set model.embed.exemplars to the task's."
            )
        if exemplars.sha256 != recorded_run(Path(self.run)).get("features_sha256"):
            raise ValueError(
                f"{self.run} was trained on other exemplar features than this model; "
                "a graft needs the same ones."
            )
        for name, other in (("model", source), ("model to clamp", model)):
            if self.layer >= other.cfg.n_layers:
                raise ValueError(
                    f"layer={self.layer}, but the {name} has {other.cfg.n_layers} layers, from 0."
                )
        if source.cfg.d_model != model.cfg.d_model:
            raise ValueError(
                f"{self.run} has d_model {source.cfg.d_model}, this model {model.cfg.d_model}; "
                "a graft needs the same."
            )

    @property
    def identity(self) -> "AbstractClamp":
        return self if self.sha256 is None else self.model_copy(update={"run": ""})

    def pinned(self) -> "AbstractClamp":
        _, sha256 = read_weights(Path(self.run), self.step)
        self._refuse_other(sha256)
        return self.model_copy(update={"sha256": sha256})

    def source(self, model: HookedTransformer) -> Source:
        """The checkpoint, to be joined to a model."""
        source = read_source(self.run, self.step, Target.of(model))
        self._refuse_other(source.sha256)
        return source

    def _refuse_other(self, sha256: str) -> None:
        if self.sha256 is not None and self.sha256 != sha256:
            raise ValueError(
                f"Step {self.step} of {self.run} has the digest {sha256}, and {self.sha256} is to "
                "be grafted: restore that checkpoint, or leave sha256 out to take this one."
            )


class GraftIn(Graft):
    """The residual stream after `layer` is that of another, frozen run on the same sequences.

    The other model runs under its own clamps. Below and at `layer` nothing of this model matters;
    its embedding and those layers get no gradient.
    """

    needs_batch: ClassVar[bool] = True
    kind: Literal["graft_in"] = "graft_in"

    def sites(self, shape: Shape) -> frozenset[Site]:
        del shape
        return frozenset({Site("resid_pre", self.layer + 1)})

    def voids(self, shape: Shape) -> range:
        del shape
        return range(EMBEDDING, self.layer + 1)

    def refuse_batch(self, batch: Batch) -> None:
        for clamp in recorded_clamps(Path(self.run)):
            clamp.refuse_batch(batch)

    def hooks(self, setting: Setting) -> list[Hook]:
        name = f"blocks.{self.layer}.hook_resid_post"
        with torch.no_grad():
            value = _residual(self.source(setting.model), setting, name)
        return [(name, partial(hooks.replace, value=value, gate=setting.gate))]


class GraftOut(Graft):
    """Everything above `layer` is another, frozen model's, without its clamps.

    The logits are the other model's on this model's residual stream; gradient passes through it.
    """

    kind: Literal["graft_out"] = "graft_out"

    def sites(self, shape: Shape) -> frozenset[Site]:
        return frozenset({Site("logits", shape.n_layers)})

    def voids(self, shape: Shape) -> range:
        return range(self.layer + 1, shape.n_layers)

    def hooks(self, setting: Setting) -> list[Hook]:
        source = self.source(setting.model).model
        seen: dict[str, Residual] = {}

        def keep(resid: Residual, hook: object) -> None:
            del hook
            seen["resid"] = resid

        def write(logits: Logits, hook: object) -> Logits:
            del hook
            value = source(seen["resid"], start_at_layer=self.layer + 1)
            # In training only the query's row of the logits is computed.
            return hooks.blend(logits, value[:, -logits.shape[1] :], setting.gate)

        return [(f"blocks.{self.layer}.hook_resid_post", keep), ("unembed.hook_logits", write)]


def _residual(source: Source, setting: Setting, name: str) -> Tensor:
    """An activation of the source, run on this model's sequences under the source's own clamps."""
    model, batch = source.model, setting.sequences
    runner = _Runner(model, source, batch, name)
    features = {"model.embed.features": setting.embed.features}  # rows may be fewer in training
    return functional_call(runner, features, (batch.tokens,))


class _Runner(torch.nn.Module):
    """One clamped pass of a source that returns one activation."""

    def __init__(self, model: HookedTransformer, source: Source, batch: Batch, name: str) -> None:
        super().__init__()
        self.model = model
        self._call = (source, batch, name)

    def forward(self, tokens: Tensor) -> Tensor:
        source, batch, name = self._call
        kept: dict[str, Tensor] = {}

        def keep(activation: Tensor, hook: object) -> None:
            del hook
            kept[name] = activation

        shape = Shape.of(self.model)
        applied = [
            hook
            for clamp, gate in zip(source.clamps, source.gates, strict=True)
            for hook in clamp.hooks(
                Setting(self.model, batch, clamp.tensors(shape), None if gate == 1 else gate)
            )
        ]
        with self.model.hooks(fwd_hooks=[*applied, (name, keep)]):
            self.model(tokens)
        return kept[name]
