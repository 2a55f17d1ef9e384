"""Clamps that join the model to another, frozen one: its lower layers, or its upper ones."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call

import ih_interp as ih  # a run has clamps and these clamps read runs: `ih.Run` is found when used
from ih_interp import hooks
from ih_interp._config_base import short
from ih_interp._reprs import short_repr
from ih_interp._torch_state import plain_torch
from ih_interp.batch import Batch
from ih_interp.clamps._blending import hooks_of_all
from ih_interp.clamps.base import (
    EMBEDDING,
    AbstractClamp,
    Hook,
    Setting,
    Shape,
    Site,
    few_shot_embed,
)
from ih_interp.clamps.context import in_order
from ih_interp.hooked_model import HookedModel
from ih_interp.model import ModelConfig, few_shot_model, named_for_model, trained_parameters
from ih_interp.storage import run_files
from ih_interp.storage.atomic import PathLike, as_path
from ih_interp.tasks.exemplars import features_digest
from ih_interp.types import Logits, Residual


@short_repr
@dataclass(frozen=True, eq=False)
class Source:
    """A checkpoint, with the clamps it was trained under."""

    folder: Path
    weights: dict[str, Tensor]
    config: ModelConfig
    clamps: tuple[AbstractClamp, ...]
    gates: tuple[float, ...]
    """Of those clamps, at the checkpoint's step."""
    sha256: str


def opened(folder: Path) -> "ih.Run":
    """Open the run that layers are taken from, with every check that `Run` makes of its files."""
    try:
        return ih.Run(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} Weights are taken from this run: give a path that is right in this folder, "
            f"{Path.cwd()}."
        ) from error


def read_source(folder: Path, step: int) -> Source:
    """Read a checkpoint once, and again where its run was written anew."""
    checkpoint = run_files.checkpoint_path(folder, step)
    paths = (folder / run_files.CONFIG, folder / run_files.METRICS, checkpoint)
    written = tuple(path.stat().st_mtime_ns for path in paths if path.is_file())
    return _read_source(folder.resolve(), step, written)


@functools.lru_cache(maxsize=16)
@plain_torch()
def _read_source(folder: Path, step: int, written: tuple[int, ...]) -> Source:
    del written  # it only tells one reading from another
    run = opened(folder)
    if step not in run.steps:
        raise FileNotFoundError(
            f"{folder} has no checkpoint at step {step}; it has {short(run.steps)}."
        )
    weights, facts = run.read_weights(step)
    clamps = in_order(run.clamps)
    rows = run.rows(before=0) if (folder / run_files.METRICS).is_file() else None
    gates = tuple(clamp.gate(step, rows) for clamp in clamps)
    sha256 = run_files.digest_of(weights, facts)
    return Source(folder, weights, run.config.model, clamps, gates, sha256)


@functools.lru_cache(maxsize=16)
@plain_torch()
def frozen_model(
    source: Source, n_labels: int, n_ctx: int, features: tuple[int, int], device: torch.device
) -> HookedModel:
    """Return a checkpoint's model with the sizes of the model to clamp, made once."""
    folder, weights = source.folder, source.weights
    model = few_shot_model(torch.zeros(features), source.config, n_labels=n_labels, n_ctx=n_ctx)
    trained = trained_parameters(model)
    both = f"The checkpoint in {folder} and the model in its {run_files.CONFIG}"
    if differing := sorted(set(weights) ^ set(trained)):
        raise ValueError(f"{both} have other weights: one of them lacks {short(differing)}.")
    positions = weights.get("pos_embed.W_pos", range(n_ctx))
    for what, size, own in (
        ("{} features", len(weights["embed.W_in"]), features[1]),
        ("{} labels", len(weights["embed.W_label"]), n_labels),
        ("learned positions for {} tokens", len(positions), n_ctx),
    ):
        refuse_other_size(folder, what, size, own)
    if wrong := [name for name, weight in weights.items() if weight.shape != trained[name].shape]:
        raise ValueError(f"{both} have other shapes of {short(wrong)}.")
    # Not strict: checkpoints lack buffers, and the attention's biases, which are never trained and
    # which the empty model has at zero. The names of all else were compared above.
    model.load_state_dict(weights, strict=False)
    model.requires_grad_(False)
    return model.to(device, print_details=False)


def refuse_other_size(run: PathLike, what: str, size: int, own: int) -> None:
    """Refuse a run of another size than the model to clamp."""
    if size != own:
        has = what.format(size)
        raise ValueError(f"{run} has {has}, the model to clamp {own}; a graft needs the same.")


class Graft(AbstractClamp):
    """A clamp that reads a checkpoint of another run on the same exemplars and labels."""

    run: str = Field(pattern=r"^[^\x00]+$")
    """The run's folder, anywhere on this machine: its configuration, metrics and checkpoints are
    read, and nothing of them is written anywhere."""
    step: int = Field(ge=0)
    """Which checkpoint of that run, in updates."""
    layer: int = Field(ge=0)
    """The last of the lower layers, from 0: what lies above it is joined to what lies below."""
    sha256: str | None = None
    """Digest of the checkpoint, which must be the same; None takes what is there."""

    def prepare(self, model: HookedModel) -> None:
        """Read the checkpoint; ValueError where it does not fit the model."""
        source, embed = self.model_for(model), few_shot_embed(model)
        if embed.exemplars is None:
            raise ValueError(
                "A graft compares exemplars, and this model does not say which it embeds: "
                "make it with build_model, or set model.embed.exemplars to the task's."
            )
        # Those of the model: the exemplars may have been changed in place since it was made.
        features = embed.features.view(embed.exemplars.features.shape)
        if features_digest(features.float()) != opened(self.folder).features_sha256:
            raise ValueError(
                f"{self.run} was trained on other exemplar features than this model; "
                "a graft needs the same ones."
            )
        for name, other in (("model", source), ("model to clamp", model)):
            if self.layer >= other.cfg.n_layers:
                raise ValueError(
                    f"layer={self.layer}, but the {name} has {other.cfg.n_layers} layers, from 0."
                )
        refuse_other_size(self.run, "d_model {}", source.cfg.d_model, model.cfg.d_model)

    @property
    def folder(self) -> Path:
        return as_path(self.run, "run")

    @property
    def identity(self) -> "AbstractClamp":
        return self if self.sha256 is None else self.model_copy(update={"run": ""})

    def pinned(self) -> "AbstractClamp":
        return self.model_copy(update={"sha256": self.source.sha256})

    @property
    def source(self) -> Source:
        """The checkpoint; ValueError where it has another digest."""
        source = read_source(self.folder, self.step)
        if self.sha256 not in (None, source.sha256):
            raise ValueError(
                f"Step {self.step} of {self.run} has the digest {source.sha256}: expected "
                f"{self.sha256}; restore that checkpoint, or leave sha256 out to take this one."
            )
        return source

    def model_for(self, model: HookedModel) -> HookedModel:
        """Return the checkpoint's model, frozen, to be joined to this one."""
        cfg, embed = model.cfg, few_shot_embed(model)
        shape, device = (cfg.d_vocab - cfg.d_vocab_out, len(embed.W_in)), embed.W_in.device
        return frozen_model(self.source, cfg.d_vocab_out, cfg.n_ctx, shape, device)

    def tensors(self, shape: Shape) -> dict[str, Any]:
        """Return the checkpoint's weights."""
        return {"weights": self.source.weights}

    def structure(self) -> Any:
        return {"kind": self.kind, "layer": self.layer, "model": self.source.config.model_dump()}


class GraftIn(Graft):
    """The residual stream after `layer` is that of another, frozen run on the same sequences.

    The other model runs under its own clamps. Below and at `layer` nothing of this model matters;
    its embedding and those layers get no gradient.
    """

    kind: Literal["graft_in"] = "graft_in"
    stage, needs_batch = 2, True

    def sites(self, shape: Shape) -> frozenset[Site]:
        return frozenset({Site("resid_pre", self.layer + 1)})

    def voids(self, shape: Shape) -> range:
        return range(EMBEDDING, self.layer + 1)

    def refuse_batch(self, batch: Batch) -> None:
        for clamp in opened(self.folder).clamps:
            clamp.refuse_batch(batch)

    def tensors(self, shape: Shape) -> dict[str, Any]:
        """Return the checkpoint's weights, and what its own clamps have."""
        own = [clamp.tensors(shape) for clamp in self.source.clamps]
        return {**super().tensors(shape), "clamps": own}

    def structure(self) -> Any:
        own = [clamp.structure() for clamp in self.source.clamps]
        return {**super().structure(), "clamps": own, "gates": self.source.gates}

    def hooks(self, setting: Setting) -> list[Hook]:
        model, source, batch = self.model_for(setting.model), self.source, setting.sequences
        name = f"blocks.{self.layer}.hook_resid_post"
        gates = [None if gate == 1 else gate for gate in source.gates]

        def residual() -> Residual:
            own = hooks_of_all(model, batch, source.clamps, setting.tensors["clamps"], gates)
            with model.hooks(fwd_hooks=[*own]):
                return model(batch.tokens, stop_at_layer=self.layer + 1)

        buffers = {"embed.features": setting.embed.features}  # in training fewer rows
        weights = named_for_model(setting.tensors["weights"], buffers)
        with torch.no_grad():
            # The source's own clamps may read a pass: their hooks are made under these weights too.
            value = functional_call(_Within(model, residual), weights, ())
        return [(name, partial(hooks.replace, value=value))]


class GraftOut(Graft):
    """Everything above `layer` is another, frozen model's, without its clamps.

    The logits are the other model's on this model's residual stream; gradient passes through it.
    """

    kind: Literal["graft_out"] = "graft_out"
    stage, needs_batch = 52, False

    def sites(self, shape: Shape) -> frozenset[Site]:
        return frozenset({Site("logits", shape.n_layers)})

    def voids(self, shape: Shape) -> range:
        return range(self.layer + 1, shape.n_layers)

    def hooks(self, setting: Setting) -> list[Hook]:
        source, weights = self.model_for(setting.model), dict(setting.tensors["weights"])
        seen: dict[str, Residual] = {}

        def keep(resid: Residual, hook: object) -> None:
            seen["resid"] = resid

        def write(logits: Logits, hook: object) -> Logits:
            above = {"start_at_layer": self.layer + 1}
            resid = seen["resid"].to(source.W_U.dtype)  # a checkpoint is float32
            value = functional_call(source, weights, (resid,), above)
            # In training only the query's row of the logits is computed.
            return value[:, -logits.shape[1] :].to(logits)

        return [(f"blocks.{self.layer}.hook_resid_post", keep), ("unembed.hook_logits", write)]


class _Within(torch.nn.Module):
    """A function as a module that holds the model, for `functional_call`."""

    def __init__(self, model: HookedModel, function: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model, self.forward = model, function
