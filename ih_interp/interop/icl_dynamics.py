"""The published code's files (icl-dynamics, JAX): `.eqx` checkpoints, and `.h5` logs.

An `.eqx` file is numpy arrays one after the other, in tree order, without names: the iteration, the
model, the optimiser's state, the seeds. Nothing is unpickled. Features in `.h5` are read by
`Exemplars.load`.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import einops
import h5py
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp._config_base import short
from ih_interp._torch_state import plain_torch
from ih_interp.model import FewShotEmbed, ModelConfig, empty_model
from ih_interp.storage import run_files
from ih_interp.storage.atomic import PathLike, as_path
from ih_interp.storage.feature_files import (
    UNREADABLE,
    RefusedError,
    h5_item,
    h5_numbers,
    opened_h5,
    read_npy,
)
from ih_interp.tasks.few_shot import FewShotTask, features_by_token
from ih_interp.types import expect

UNSUPPORTED = {"not_causal": False, "data_type": "file"}
"""Options whose other values would be another model."""

WANTED = ("depth", "d_model", "num_heads", "pos_embedding_type", "no_norm", "mlp_ratio")
"""Options that say which model it is."""

KINDS: dict[str, tuple[type, ...]] = {
    "depth": (int,),
    "d_model": (int,),
    "num_heads": (int,),
    "mlp_ratio": (int, float, type(None)),
    "sin_time": (int, float),
    "no_norm": (bool,),
}
"""What those options, and the rotary base, have to be."""


SMALL_MODEL = 1_000_000  # weights; larger ones are not made before the checkpoint holds as many


@plain_torch()
def load_icl_dynamics(
    checkpoint: PathLike, config: PathLike, task: FewShotTask
) -> HookedTransformer:
    """The published code's checkpoint as a `HookedTransformer` for the task.

    `config` is the `config.json` beside it. The task's exemplars and labels must be those it was
    trained with: shapes are checked, values cannot be. Raises FileNotFoundError for a missing file,
    ValueError for one that is cut short or holds another model.
    """
    checkpoint = as_path(checkpoint, "checkpoint, the path of a file,")
    config = as_path(config, "config, the path of a file,")
    expect(task, FewShotTask, "The task", "make it with ih.FewShotTask(exemplars)")
    options = _read_options(config)
    try:
        shape = _model_config(options)
    except ValueError as error:
        raise ValueError(f"{config} describes no model that can be made: {error}") from error
    arrays = _read_arrays(checkpoint)
    _refuse_huge(config, options, sum(array.size for array in arrays))
    model = empty_model(
        features_by_token(task.exemplars),
        shape,
        n_labels=task.n_labels,
        n_ctx=task.layout.n_positions,
    )
    try:
        with torch.no_grad():
            _copy_arrays(model, iter(arrays))
    except StopIteration:
        raise ValueError(f"{checkpoint} ends before its model does; it is cut short.") from None
    except ValueError as error:
        raise ValueError(f"{checkpoint} does not fit {config} and the task: {error}") from error
    return model


def read_icl_dynamics_log(path: PathLike) -> pd.DataFrame:
    """Return the means over sequences of the published code's `log.h5`, by evaluation and split.

    Columns: `sequences` (its "eval_iter"), `split` as it is named there, one column per metric.
    Raises FileNotFoundError for a missing file, ValueError for one of another layout; as in
    `Exemplars.load` no link is followed and no size is believed.
    """
    path = as_path(path, "The path of a log")
    if not path.is_file():
        raise FileNotFoundError(f"There is no log at {path}.")
    with opened_h5(path) as file:
        iterations = h5_item(file, "eval_iter")
        if not isinstance(iterations, h5py.Dataset):
            raise RefusedError(f"has no 'eval_iter'; it holds {short(list(file))}")
        sequences = h5_numbers(iterations)
        if sequences.ndim != 1:
            raise RefusedError(f"has 'eval_iter' of shape {sequences.shape}; one axis was expected")
        items = {name: h5_item(file, name) for name in map(str, file)}
        groups = {name: item for name, item in items.items() if isinstance(item, h5py.Group)}
        if not groups:
            raise RefusedError("holds no evaluator's group")
        tables = [_log_table(name, group, sequences) for name, group in groups.items()]
        return pd.concat(tables, ignore_index=True)


def _log_table(name: str, group: h5py.Group, sequences: np.ndarray) -> pd.DataFrame:
    means: dict[str, np.ndarray] = {}
    for metric in map(str, group):
        item = h5_item(group.file, f"{name}/{metric}")
        if not isinstance(item, h5py.Dataset):
            raise RefusedError(f"has {name}/{metric}, which is no dataset; numbers were expected")
        values = h5_numbers(item, "fiub")
        if values.shape[:1] != sequences.shape or values.size == 0:
            raise RefusedError(
                f"has {name}/{metric} of shape {values.shape} for {len(sequences)} evaluations; "
                "it may be cut short"
            )
        means[metric] = values.reshape(len(values), -1).mean(axis=1, dtype=np.float64)
    return pd.DataFrame({"sequences": sequences, "split": name, **means})


def _read_options(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no configuration at {path}.")
    options = run_files.read_json(path)
    missing = [name for name in WANTED if name not in options]
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; it is no configuration of icl-dynamics."
        )
    for name, expected in UNSUPPORTED.items():
        if options.get(name, expected) != expected:
            raise ValueError(f"{path}: {name}={options[name]!r} is not read, only {expected!r}.")
    if options["pos_embedding_type"] not in ("rope", "ape"):
        raise ValueError(
            f"{path}: pos_embedding_type={options['pos_embedding_type']!r} is not read, "
            "only 'rope' and 'ape'."
        )
    _refuse_other_kinds(path, options)
    d_model, n_heads, base = options["d_model"], options["num_heads"], _rotary_base(options)
    if d_model % n_heads:
        raise ValueError(f"{path}: d_model={d_model} is no multiple of num_heads={n_heads}.")
    if base != int(base):
        raise ValueError(f"{path}: sin_time={base} is not read, only whole numbers.")
    return options


def _refuse_other_kinds(path: Path, options: dict[str, Any]) -> None:
    """Refuse what JSON can hold and a model cannot: text, NaN, sizes below one."""
    for name, kinds in KINDS.items():
        value = options.get(name, 10_000.0)  # only the rotary base may be missing
        if type(value) not in kinds:
            expected = " or ".join(kind.__name__ for kind in kinds)
            raise ValueError(f"{path}: {name}={value!r} has to be {expected}.")
        if type(value) in (int, float) and not 0 < value < 2**31:
            raise ValueError(f"{path}: {name}={value!r} has to lie between 0 and 2^31.")


def _refuse_huge(path: Path, options: dict[str, Any], n_values: int) -> None:
    """Refuse a model far larger than its checkpoint, before memory is taken for it."""
    width, ratio = options["d_model"], options["mlp_ratio"] or 0
    due = options["depth"] * (100 + width * width * (4 + 2 * ratio))  # attention and MLPs
    if due > max(SMALL_MODEL, n_values):
        raise ValueError(
            f"{path} describes a model of more than {due:,.0f} weights, and the checkpoint holds "
            f"{n_values:,} numbers."
        )


def _rotary_base(options: dict[str, Any]) -> float:
    return options.get("sin_time", 10_000.0)


def _model_config(options: dict[str, Any]) -> ModelConfig:
    d_model, n_heads, ratio = options["d_model"], options["num_heads"], options["mlp_ratio"]
    rope = options["pos_embedding_type"] == "rope"
    return ModelConfig(
        n_layers=options["depth"],
        d_model=d_model,
        n_heads=n_heads,
        d_head=d_model // n_heads,
        attn_only=ratio is None,
        d_mlp=None if ratio is None else int(d_model * ratio),
        act_fn="gelu_new",  # jax.nn.gelu, which approximates by tanh unless told not to
        normalization_type=None if options["no_norm"] else "LN",
        positional_embedding_type="rotary" if rope else "standard",
        rotary_base=int(_rotary_base(options)),
    )


def _read_arrays(path: Path) -> list[np.ndarray]:
    """All arrays with axes: sizes, rates and flags lie between them as scalars."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint at {path}.")
    with path.open("rb") as file:
        return [array for array in _arrays_in(file, path) if array.ndim > 0]


def _arrays_in(file: io.BufferedIOBase, path: Path) -> Iterator[np.ndarray]:
    size = path.stat().st_size
    while file.tell() < size:
        try:
            yield read_npy(file, size - file.tell())
        except UNREADABLE as error:
            raise ValueError(
                f"{path} is no .eqx file, or it is cut short after {file.tell()} bytes: {error}"
            ) from error


def _copy_arrays(model: HookedTransformer, arrays: Iterator[np.ndarray]) -> None:
    """Take the model's arrays in tree order; linear weights are [out, in] there."""
    embed, cfg = model.embed, model.cfg
    assert isinstance(embed, FewShotEmbed)
    _take(arrays, embed.W_in, "model feature -> feature model")
    _take(arrays, embed.b_in)
    _take(arrays, embed.W_label, "model label -> label model")
    if cfg.positional_embedding_type == "standard":
        table = _weights(arrays)[..., : cfg.n_ctx]  # 32 positions there
        _check_shape(table, (cfg.d_model, cfg.n_ctx))
        model.pos_embed.W_pos.copy_(table.T)
    blocks: Any = model.blocks
    final: Any = model.ln_final if cfg.normalization_type is not None else None
    for block in blocks:
        if cfg.normalization_type is not None:
            _take(arrays, block.ln1.w)
            _take(arrays, block.ln1.b)
        _take_attention(arrays, block.attn)
        if not cfg.attn_only:
            if cfg.normalization_type is not None:
                _take(arrays, block.ln2.w)
                _take(arrays, block.ln2.b)
            _take(arrays, block.mlp.W_in, "mlp model -> model mlp")
            _take(arrays, block.mlp.b_in)
            _take(arrays, block.mlp.W_out, "model mlp -> mlp model")
            _take(arrays, block.mlp.b_out)
    if final is not None:
        _take(arrays, final.w)
        _take(arrays, final.b)
    _take(arrays, model.unembed.W_U, "label model -> model label")
    _take(arrays, model.unembed.b_U)


def _take_attention(arrays: Iterator[np.ndarray], attention: torch.nn.Module) -> None:
    parameters = dict(attention.named_parameters())
    for name in ("b_Q", "b_K", "b_V", "b_O"):
        parameters[name].zero_()
    n_heads, d_model, d_head = parameters["W_Q"].shape
    qkv = _weights(arrays)
    _check_shape(qkv, (3 * n_heads * d_head, d_model))
    split = einops.rearrange(
        qkv, "(three head d_head) model -> three head model d_head", three=3, head=n_heads
    )
    for name, weight in zip(("W_Q", "W_K", "W_V"), split, strict=True):
        parameters[name].copy_(weight)
    out = _weights(arrays)
    _check_shape(out, (d_model, n_heads * d_head))
    parameters["W_O"].copy_(
        einops.rearrange(out, "model (head d_head) -> head d_head model", head=n_heads)
    )


def _take(arrays: Iterator[np.ndarray], parameter: Tensor, pattern: str | None = None) -> None:
    value = _weights(arrays)
    if pattern is not None and value.ndim == 2:
        value = einops.rearrange(value, pattern)
    _check_shape(value, tuple(parameter.shape))
    parameter.copy_(value)


def _weights(arrays: Iterator[np.ndarray]) -> Tensor:
    array = next(arrays)
    if array.dtype.kind != "f":
        raise ValueError(f"an array of {array.dtype} lies where weights were expected")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and so refused
        weights = torch.from_numpy(array.astype(np.float32))
    if not bool(torch.isfinite(weights).all()):
        raise ValueError("an array of weights holds NaN or infinity")
    return weights


def _check_shape(value: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(value.shape) != expected:
        raise ValueError(f"an array has shape {tuple(value.shape)} where {expected} was expected")
