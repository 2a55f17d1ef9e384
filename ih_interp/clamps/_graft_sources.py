"""Checkpoints of other runs, frozen, for grafts: read once, and refused where they do not fit."""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

import ih_interp as ih  # a run has clamps and these clamps read runs: `ih.Run` is found when used
from ih_interp._config_base import short
from ih_interp._reprs import short_repr
from ih_interp._torch_state import plain_torch
from ih_interp.clamps.base import AbstractClamp, few_shot_embed
from ih_interp.clamps.context import in_order
from ih_interp.model import ModelConfig, empty_model, trained_parameters
from ih_interp.storage import run_files


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


class Target(NamedTuple):
    """The shape and the place that a source has to have, by the model to clamp."""

    n_labels: int
    n_ctx: int
    rows: int
    n_features: int
    device: torch.device

    @classmethod
    def of(cls, model: HookedTransformer) -> "Target":
        cfg, weights = model.cfg, few_shot_embed(model).W_in
        return cls(cfg.d_vocab_out, cfg.n_ctx, cfg.d_vocab, len(weights), weights.device)


def opened(folder: Path) -> "ih.Run":
    """Open the run that layers are taken from, after every check that `Run` makes of its files."""
    try:
        return ih.Run(folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error} A graft needs the run that it takes layers from, named by a path that holds "
            f"in this folder, {Path.cwd()}."
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
    del written  # which tells readings apart
    run = opened(folder)
    if step not in run.steps:
        raise FileNotFoundError(
            f"{folder} has no checkpoint at step {step}; it has {short(run.steps)}."
        )
    weights, facts = run.read_weights(step)
    clamps = in_order(run.clamps)
    rows = run.rows(before=0) if (folder / run_files.METRICS).is_file() else None
    gates = tuple(clamp.schedule.gate(step, rows) for clamp in clamps)
    sha256 = run_files.digest_of(weights, facts)
    return Source(folder, weights, run.config.model, clamps, gates, sha256)


@functools.lru_cache(maxsize=16)
@plain_torch()
def frozen_model(source: Source, target: Target) -> HookedTransformer:
    """Return a checkpoint's model over the features of the model to clamp, made once."""
    folder, weights = source.folder, source.weights
    features = torch.zeros(target.rows - target.n_labels, target.n_features)
    model = empty_model(features, source.config, n_labels=target.n_labels, n_ctx=target.n_ctx)
    trained, config = trained_parameters(model), f"the model in its {run_files.CONFIG}"
    differing = sorted(set(weights) ^ set(trained))
    if differing:
        raise ValueError(
            f"The checkpoint in {folder} and {config} do not have the same weights: "
            f"{short(differing)} are in one of them only."
        )
    _refuse_other_sizes(folder, weights, target)
    wrong = [name for name, weight in weights.items() if weight.shape != trained[name].shape]
    if wrong:
        raise ValueError(
            f"The checkpoint in {folder} and {config} have other shapes of {short(wrong)}."
        )
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
