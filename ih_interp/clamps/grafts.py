"""Clamps that join the model to another, frozen one: its lower layers, or its upper ones."""

import functools
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.func import functional_call
from transformer_lens import HookedTransformer

from ih_interp import hooks, store
from ih_interp.clamps.applied import in_order
from ih_interp.clamps.base import (
    EMBEDDING,
    AbstractClamp,
    Claim,
    Hook,
    Setting,
    Shape,
)
from ih_interp.exemplars import features_digest
from ih_interp.model import FewShotEmbed, ModelConfig, empty_model
from ih_interp.types import Batch, Logits, Residual


class Source(NamedTuple):
    """A checkpoint, frozen, with the clamps it was trained under."""

    model: HookedTransformer
    clamps: tuple[AbstractClamp, ...]
    gates: tuple[float, ...]


class Graft(AbstractClamp):
    """A clamp that reads a checkpoint of another run on the same exemplars and labels."""

    run: str
    """The run's folder."""
    step: int = Field(ge=0)
    layer: int = Field(ge=0)

    def prepare(self, model: HookedTransformer) -> None:
        """Read the checkpoint; ValueError where it does not fit the model."""
        source = _source(self.run, self.step, _size(model)).model
        digest = store.read_json(Path(self.run) / store.CONFIG).get("features_sha256")
        if not _has_digest(model.embed.features, digest):
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

    def source(self, setting: Setting) -> Source:
        return _source(self.run, self.step, _size(setting.model))


class GraftIn(Graft):
    """The residual stream after `layer` is that of another, frozen run on the same sequences.

    The other model runs under its own clamps. Below and at `layer` nothing of this model matters;
    its embedding and those layers get no gradient.
    """

    needs_batch: ClassVar[bool] = True
    kind: Literal["graft_in"] = "graft_in"

    def claims(self, shape: Shape) -> frozenset[Claim]:
        del shape
        return frozenset({Claim("resid_pre", self.layer + 1)})

    def voids(self, shape: Shape) -> range:
        del shape
        return range(EMBEDDING, self.layer + 1)

    def hooks(self, setting: Setting) -> list[Hook]:
        name = f"blocks.{self.layer}.hook_resid_post"
        with torch.no_grad():
            value = _residual(self.source(setting), setting, name)
        return [(name, functools.partial(hooks.replace, value=value, gate=setting.gate))]


class GraftOut(Graft):
    """Everything above `layer` is another, frozen model's, without its clamps.

    The logits are the other model's on this model's residual stream; gradient passes through it.
    """

    kind: Literal["graft_out"] = "graft_out"

    def claims(self, shape: Shape) -> frozenset[Claim]:
        return frozenset({Claim("logits", shape.n_layers)})

    def voids(self, shape: Shape) -> range:
        return range(self.layer + 1, shape.n_layers)

    def hooks(self, setting: Setting) -> list[Hook]:
        source = self.source(setting).model
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


class _Size(NamedTuple):
    """What of the model to clamp decides the shape of a source."""

    n_labels: int
    n_ctx: int
    rows: int
    n_features: int


def _size(model: HookedTransformer) -> _Size:
    embed = model.embed
    if not isinstance(embed, FewShotEmbed):
        raise ValueError("A graft needs a few-shot model, as build_model makes them.")
    return _Size(model.cfg.d_vocab_out, model.cfg.n_ctx, model.cfg.d_vocab, embed.W_in.shape[0])


def _has_digest(rows: Float[Tensor, "row feature"], digest: str | None) -> bool:
    """Whether a run recorded these features, which it hashed as [class, exemplar, feature]."""
    sizes = (n for n in range(1, len(rows) + 1) if len(rows) % n == 0)
    return any(features_digest(rows.unflatten(0, (-1, n))) == digest for n in sizes)


def _source(run: str, step: int, size: _Size) -> Source:
    """Read a checkpoint once, and again if its run is written anew."""
    folder = Path(run)
    paths = (folder / store.CONFIG, folder / store.METRICS, store.checkpoint_path(folder, step))
    written = tuple(path.stat().st_mtime_ns for path in paths if path.is_file())
    return _read_source(run, step, size, written)


@functools.lru_cache(maxsize=16)
def _read_source(run: str, step: int, size: _Size, written: tuple[int, ...]) -> Source:
    """Features are those of the model that it is grafted to; `written` tells readings apart."""
    from ih_interp.clamps import parse

    del written
    folder = Path(run)
    if not (folder / store.CONFIG).is_file():
        raise FileNotFoundError(f"There is no run at {run}: {store.CONFIG} is missing.")
    recorded = store.read_json(folder / store.CONFIG)["run"]
    path = store.checkpoint_path(folder, step)
    if not path.is_file():
        raise FileNotFoundError(
            f"{run} has no checkpoint at step {step}; it has {store.checkpoint_steps(folder)}."
        )
    weights, _ = store.load_tensors(path)
    n_features = weights["embed.W_in"].shape[0]
    if (n_features, weights["embed.W_label"].shape[0]) != (size.n_features, size.n_labels):
        raise ValueError(
            f"{run} has {n_features} features and {len(weights['embed.W_label'])} labels, the "
            f"model to clamp {size.n_features} and {size.n_labels}; a graft needs the same."
        )
    positions = weights.get("pos_embed.W_pos")
    if positions is not None and len(positions) != size.n_ctx:
        raise ValueError(
            f"{run} has learned positions for {len(positions)} tokens, the model to clamp for "
            f"{size.n_ctx}; a graft needs the same."
        )
    features = torch.zeros(size.rows - size.n_labels, n_features)
    config = ModelConfig.model_validate(recorded["model"])
    model = empty_model(features, config, n_labels=size.n_labels, n_ctx=size.n_ctx)
    model.load_state_dict(weights, strict=False)
    model.requires_grad_(False)
    clamps = in_order(parse(recorded["clamps"]))
    metrics = store.read_metrics(folder)
    return Source(model, clamps, tuple(clamp.schedule.gate(step, metrics) for clamp in clamps))
