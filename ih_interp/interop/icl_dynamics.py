"""A reader of the published code's files (icl-dynamics, JAX): `.eqx` checkpoints, `.h5` logs.

An `.eqx` file holds numpy arrays one after the other, in tree order, without names: the iteration,
the model, the optimiser's state, the seeds. Nothing is unpickled. `Exemplars.load` reads features.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import h5py
import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from ih_interp._config_base import explain, short
from ih_interp._expect import expect
from ih_interp._torch_state import plain_torch
from ih_interp.hooked_model import HookedTransformer
from ih_interp.model import FewShotEmbed, ModelConfig, few_shot_model
from ih_interp.storage import feature_files as files, run_files
from ih_interp.storage.atomic import PathLike, as_path
from ih_interp.storage.feature_files import RefusedError
from ih_interp.tasks.few_shot import FewShotTask
from ih_interp.tasks.pairs import features_by_token

SMALL_MODEL = 1_000_000  # weights; larger ones are not made before the checkpoint holds as many

Size: TypeAlias = Annotated[int, Field(gt=0, lt=2**31)]
Number: TypeAlias = Annotated[float, Field(gt=0, lt=2**31)]


class Options(BaseModel):
    """The options of the published code that say which model it is; others are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)

    depth: Size
    d_model: Size
    num_heads: Size
    mlp_ratio: Number | None
    pos_embedding_type: Literal["rope", "ape"]
    no_norm: bool
    sin_time: Number = 10_000.0
    not_causal: Literal[False] = False
    data_type: Literal["file"] = "file"

    @model_validator(mode="after")
    def _whole(self) -> "Options":
        if self.d_model % self.num_heads:
            raise ValueError(
                f"d_model={self.d_model}: expected a multiple of num_heads={self.num_heads}"
            )
        if self.sin_time != int(self.sin_time):
            raise ValueError(f"sin_time={self.sin_time}: expected a whole number")
        return self

    def shape(self) -> ModelConfig:
        """Return the model that they describe."""
        return ModelConfig(
            n_layers=self.depth,
            d_model=self.d_model,
            n_heads=self.num_heads,
            d_head=self.d_model // self.num_heads,
            attn_only=self.mlp_ratio is None,
            d_mlp=None if self.mlp_ratio is None else int(self.d_model * self.mlp_ratio),
            act_fn="gelu_new",  # jax.nn.gelu, which approximates by tanh unless told not to
            normalization_type=None if self.no_norm else "LN",
            positional_embedding_type="rotary" if self.pos_embedding_type == "rope" else "standard",
            rotary_base=int(self.sin_time),
        )


@plain_torch()
def load_icl_dynamics(
    checkpoint: PathLike, config: PathLike, task: FewShotTask
) -> HookedTransformer:
    """Return the published code's checkpoint as a `HookedTransformer` for the task.

    `config` is the `config.json` beside it. The task's exemplars and labels must be those it was
    trained with: shapes are checked, values cannot be. Raises FileNotFoundError for a missing file,
    ValueError for one that is cut short or holds another model.
    """
    config = _file(config, "configuration")
    expect(task, FewShotTask, "The task", "make it with ih.FewShotTask(exemplars)")
    try:
        options = Options.model_validate(run_files.read_json(config))
        shape = options.shape()
    except ValueError as error:
        what = explain(error) if isinstance(error, ValidationError) else str(error).rstrip(".")
        raise ValueError(f"{config} describes no model: {what}.") from error
    checkpoint = _file(checkpoint, "checkpoint")
    with checkpoint.open("rb") as file:  # sizes, rates and flags lie between arrays as scalars
        arrays = [array for array in _arrays_in(file, checkpoint) if array.ndim > 0]
    _refuse_huge(config, options, sum(array.size for array in arrays))
    sizes = {"n_labels": task.n_labels, "n_ctx": task.layout.n_positions}
    model = few_shot_model(features_by_token(task.exemplars), shape, **sizes)
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
    path = _file(path, "log")
    with files.opened_h5(path) as file:
        iterations = files.h5_item(file, "eval_iter")
        if not isinstance(iterations, h5py.Dataset):
            raise RefusedError(f"has no 'eval_iter'; it holds {short(list(file))}")
        sequences = files.h5_numbers(iterations)
        if sequences.ndim != 1:
            raise RefusedError(f"has 'eval_iter' of shape {sequences.shape}; one axis was expected")
        items = {name: files.h5_item(file, name) for name in map(str, file)}
        groups = {name: item for name, item in items.items() if isinstance(item, h5py.Group)}
        if not groups:
            raise RefusedError("holds no evaluator's group")
        tables = [_log_table(name, group, sequences) for name, group in groups.items()]
        return pd.concat(tables, ignore_index=True)


def _log_table(name: str, group: h5py.Group, sequences: np.ndarray) -> pd.DataFrame:
    means: dict[str, np.ndarray] = {}
    for metric in map(str, group):
        item = files.h5_item(group.file, f"{name}/{metric}")
        if not isinstance(item, h5py.Dataset):
            raise RefusedError(f"has {name}/{metric}, which is not a dataset of numbers")
        values = files.h5_numbers(item, "fiub")
        if values.shape[:1] != sequences.shape or values.size == 0:
            raise RefusedError(
                f"has {name}/{metric} of shape {values.shape} for {len(sequences)} evaluations; "
                "it may be cut short"
            )
        means[metric] = values.reshape(len(values), -1).mean(axis=1, dtype=np.float64)
    return pd.DataFrame({"sequences": sequences, "split": name, **means})


def _file(path: PathLike, what: str) -> Path:
    path = as_path(path, f"The path of a {what}")
    if not path.is_file():
        raise FileNotFoundError(f"There is no {what} at {path}.")
    return path


def _refuse_huge(path: Path, options: Options, n_values: int) -> None:
    """Refuse a model far larger than its checkpoint, before memory is taken for it."""
    width, ratio = options.d_model, options.mlp_ratio or 0
    due = options.depth * (100 + width * width * (4 + 2 * ratio))  # attention and MLPs
    if due > max(SMALL_MODEL, n_values):
        raise ValueError(
            f"{path} describes a model of more than {due:,.0f} weights, and the checkpoint holds "
            f"{n_values:,} numbers."
        )


def _arrays_in(file: io.BufferedIOBase, path: Path) -> Iterator[np.ndarray]:
    size = path.stat().st_size
    while (left := size - file.tell()) > 0:
        try:
            yield files.read_npy(file, left)
        except files.UNREADABLE as error:
            raise ValueError(
                f"{path} is no .eqx file, or it is cut short after {file.tell()} bytes: {error}"
            ) from error


def _copy_arrays(model: HookedTransformer, arrays: Iterator[np.ndarray]) -> None:
    """Take the model's arrays in tree order; linear weights are [out, in] there."""
    embed, cfg = model.embed, model.cfg
    assert isinstance(embed, FewShotEmbed)
    _take(arrays, embed.W_in.T)
    _take(arrays, embed.b_in)
    _take(arrays, embed.W_label.T)
    if cfg.positional_embedding_type == "standard":
        table = next(arrays)[..., : cfg.n_ctx]  # 32 positions there
        _take(iter([table]), model.pos_embed.W_pos.T)
    blocks: Any = model.blocks
    for block in blocks:
        _take_norm(arrays, block.ln1)
        attn, all_heads = block.attn, cfg.n_heads * cfg.d_head
        for bias in (attn.b_Q, attn.b_K, attn.b_V, attn.b_O):
            bias.zero_()
        qkv = (attn.W_Q.mT, attn.W_K.mT, attn.W_V.mT)  # [head, d_head, d_model] each
        _take(arrays, *qkv, shape=(3 * all_heads, cfg.d_model))
        _take(arrays, attn.W_O.permute(2, 0, 1), shape=(cfg.d_model, all_heads))
        if not cfg.attn_only:
            _take_norm(arrays, block.ln2)
            for parameter in (block.mlp.W_in.T, block.mlp.b_in, block.mlp.W_out.T, block.mlp.b_out):
                _take(arrays, parameter)
    _take_norm(arrays, getattr(model, "ln_final", None))
    _take(arrays, model.unembed.W_U.T)
    _take(arrays, model.unembed.b_U)


def _take_norm(arrays: Iterator[np.ndarray], norm: Any) -> None:
    if hasattr(norm, "w"):  # there is none to take where the model has no norms
        _take(arrays, norm.w)
        _take(arrays, norm.b)


def _take(
    arrays: Iterator[np.ndarray], *views: Tensor, shape: tuple[int, ...] | None = None
) -> None:
    """Copy the next array into views of parameters, equal parts of it; `shape` is the array's."""
    array = next(arrays)
    if array.dtype.kind != "f":
        raise ValueError(f"an array of {array.dtype} lies where weights were expected")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and so refused
        value = torch.from_numpy(array.astype(np.float32))
    if not bool(torch.isfinite(value).all()):
        raise ValueError("an array of weights holds NaN or infinity")
    expected = tuple(views[0].shape) if shape is None else shape
    if tuple(value.shape) != expected:
        raise ValueError(f"an array has shape {tuple(value.shape)} where {expected} was expected")
    for view, part in zip(views, value.reshape(len(views), *views[0].shape), strict=True):
        view.copy_(part)
