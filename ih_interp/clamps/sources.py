"""Checkpoints of other runs, frozen, for grafts: read once, and refused where they do not fit."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp import store
from ih_interp.clamps.applied import in_order
from ih_interp.clamps.base import AbstractClamp, few_shot_embed
from ih_interp.files import as_path
from ih_interp.model import ModelConfig, empty_model, trained_parameters
from ih_interp.reprs import short_repr
from ih_interp.torch_state import plain_torch


@short_repr
class Source(NamedTuple):
    """A checkpoint, with the clamps it was trained under."""

    weights: dict[str, Tensor]
    config: ModelConfig
    clamps: tuple[AbstractClamp, ...]
    gates: tuple[float, ...]
    """Of those clamps, at the checkpoint's step."""
    sha256: str


class Target(NamedTuple):
    """What of the model to clamp decides the shape and the place of a source."""

    n_labels: int
    n_ctx: int
    rows: int
    n_features: int
    device: torch.device

    @classmethod
    def of(cls, model: HookedTransformer) -> "Target":
        cfg, weights = model.cfg, few_shot_embed(model).W_in
        return cls(cfg.d_vocab_out, cfg.n_ctx, cfg.d_vocab, len(weights), weights.device)


def recorded_run(folder: Path) -> dict[str, Any]:
    """What a run's `config.json` says."""
    path = folder / store.CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no run at {folder}: {store.CONFIG} is missing. A graft "
            "needs the run that it takes layers from, named by a path that holds in this folder, "
            f"{Path.cwd()}."
        )
    recorded = store.read_json(path)
    if recorded.get("format") != store.FORMAT:
        raise ValueError(
            f"{path} has format {recorded.get('format')!r}; this version grafts {store.FORMAT}. "
            "Train that run again with this version."
        )
    return recorded


def recorded_clamps(folder: Path) -> tuple[AbstractClamp, ...]:
    """The clamps a run was trained under, in the order of their hooks."""
    from ih_interp.clamps import parse

    return in_order(parse(recorded_run(folder)["run"]["clamps"]))


def read_weights(folder: Path, step: int) -> tuple[dict[str, Tensor], str]:
    """A checkpoint's weights and digest; ValueError for one that is not this run's."""
    recorded, path = recorded_run(folder), store.checkpoint_path(folder, step)
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no checkpoint at step {step}; it has {store.checkpoint_steps(folder)}."
        )
    weights, facts = store.load_tensors(path)
    belongs, expected = (facts.get("run"), facts.get("step")), (recorded["fingerprint"], step)
    if belongs != expected:
        raise ValueError(
            f"{path} belongs to run {belongs[0]} at step {belongs[1]}, not to {expected[0]} at "
            f"step {step}; it was copied from elsewhere."
        )
    return weights, store.digest_of(weights, facts)


def read_source(run: str, step: int) -> Source:
    """A checkpoint, read once, and again where its run was written anew."""
    folder = as_path(run, "run")
    return _read_source(folder.resolve(), step, _written(folder, step))


def frozen_model(run: str, step: int, target: Target) -> HookedTransformer:
    """A checkpoint's model over the features of the model that it is grafted to, made once."""
    folder = as_path(run, "run")
    return _frozen_model(folder.resolve(), step, target, _written(folder, step))


def _written(folder: Path, step: int) -> tuple[int, ...]:
    """When a run's files were written; tells readings of them apart."""
    paths = (folder / store.CONFIG, folder / store.METRICS, store.checkpoint_path(folder, step))
    return tuple(path.stat().st_mtime_ns for path in paths if path.is_file())


@functools.lru_cache(maxsize=16)
@plain_torch()
def _read_source(folder: Path, step: int, written: tuple[int, ...]) -> Source:
    del written
    weights, sha256 = read_weights(folder, step)
    recorded, metrics = recorded_run(folder), None
    if (folder / store.METRICS).is_file():
        metrics = store.read_metrics(folder, seal_due="sha256" in recorded)
    clamps = recorded_clamps(folder)
    gates = tuple(clamp.schedule.gate(step, metrics) for clamp in clamps)
    config = ModelConfig.model_validate(recorded["run"]["model"])
    return Source(weights, config, clamps, gates, sha256)


@functools.lru_cache(maxsize=16)
@plain_torch()
def _frozen_model(
    folder: Path, step: int, target: Target, written: tuple[int, ...]
) -> HookedTransformer:
    source = _read_source(folder, step, written)
    weights, config = source.weights, source.config
    features = torch.zeros(target.rows - target.n_labels, target.n_features)
    model = empty_model(features, config, n_labels=target.n_labels, n_ctx=target.n_ctx)
    differing = sorted(set(weights) ^ set(trained_parameters(model)))
    if differing:
        raise ValueError(
            f"The checkpoint in {folder} and the model in its {store.CONFIG} do not have the same "
            f"weights: {', '.join(differing)} are in one of them only."
        )
    _refuse_other_sizes(folder, weights, target)
    # Not strict: what a checkpoint lacks are the attention's biases, which are never trained and
    # which the empty model has at zero, and buffers. The names of all else were compared above.
    model.load_state_dict(weights, strict=False)
    model.requires_grad_(False)
    return model.to(target.device, print_details=False)


def _refuse_other_sizes(folder: Path, weights: dict[str, Tensor], target: Target) -> None:
    n_features, n_labels = len(weights["embed.W_in"]), len(weights["embed.W_label"])
    if (n_features, n_labels) != (target.n_features, target.n_labels):
        raise ValueError(
            f"{folder} has {n_features} features and {n_labels} labels, the model to clamp "
            f"{target.n_features} and {target.n_labels}; a graft needs the same."
        )
    positions = weights.get("pos_embed.W_pos")
    if positions is not None and len(positions) != target.n_ctx:
        raise ValueError(
            f"{folder} has learned positions for {len(positions)} tokens, the model to clamp for "
            f"{target.n_ctx}; a graft needs the same."
        )
