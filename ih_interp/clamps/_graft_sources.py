"""Checkpoints of other runs, frozen, for grafts: read once, and refused where they do not fit."""

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

import ih_interp as ih  # a run has clamps and these clamps read runs: `ih.Run` is found when used
from ih_interp._config_base import short
from ih_interp._reprs import short_repr
from ih_interp._torch_state import plain_torch
from ih_interp.clamps.base import AbstractClamp
from ih_interp.clamps.context import in_order
from ih_interp.model import ModelConfig, empty_model, trained_parameters
from ih_interp.storage import run_files
from ih_interp.storage.atomic import PathLike


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
def frozen_model(
    source: Source, n_labels: int, n_ctx: int, features: tuple[int, int], device: torch.device
) -> HookedTransformer:
    """Return a checkpoint's model with the sizes of the model to clamp, made once."""
    folder, weights = source.folder, source.weights
    model = empty_model(torch.zeros(features), source.config, n_labels=n_labels, n_ctx=n_ctx)
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
