"""One measure over every checkpoint of a run: the only loop over checkpoints."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm
from transformer_lens import HookedTransformer

from ih_interp import store
from ih_interp.analysis.attention import CHUNK
from ih_interp.clamps import AbstractClamp, clamped
from ih_interp.runs import Run
from ih_interp.types import Batch, Head

Measure: TypeAlias = Callable[[HookedTransformer, Batch], Any]
"""From a model and sequences to means over them: a number, `[layer, head]`, or numbers by name."""


def trace(
    run: Run,
    measure: Measure,
    *,
    batch: Batch | None = None,
    clamps: Sequence[AbstractClamp] | None = None,
    steps: Sequence[int] | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Apply a measure to a run's checkpoints; a tidy table, one row a checkpoint and number.

    Columns: `step`, `sequences`, `name`, `value`. `name` is the head ("L1H3") for `[layer, head]`
    measures, the key for mappings, "value" for single numbers.

        strengths = ih.trace(run, ih.induction_strength)

    Args:
        run: whose checkpoints.
        measure: must be a mean over sequences: long batches are measured in chunks and averaged.
        batch: the sequences; by default every one of the training split.
        clamps: applied to every checkpoint, by default those it was trained under, at its step;
            others than those of training give the paper's progress measures.
        steps: which checkpoints; by default all.
        progress: show a bar.

    Raises ValueError for a step without checkpoint or a measure of another kind.
    """
    batch = run.task.enumerate("train") if batch is None else batch
    clamps = run.clamps if clamps is None else clamps
    chosen = run.steps if steps is None else list(steps)
    if not chosen:
        raise ValueError(f"{run.folder} has no checkpoints yet; train it first.")
    metrics = store.read_metrics(run.folder)
    model = run.model(chosen[0])
    rows: list[dict[str, Any]] = []
    for step in tqdm(chosen, disable=not progress, unit="checkpoint"):
        run.load_weights(model, step)
        total: dict[str, float] = {}
        for part in batch.split(CHUNK):
            with clamped(model, clamps, part, step=step, metrics=metrics):
                values = _named(measure(model, part))
            for name, value in values.items():
                total[name] = total.get(name, 0.0) + value * len(part) / len(batch)
        place = {"step": step, "sequences": step * run.config.batch_size}
        rows += [{**place, "name": name, "value": value} for name, value in total.items()]
    return pd.DataFrame(rows)


def _named(value: Any) -> dict[str, float]:
    if isinstance(value, Mapping):
        return {str(name): float(number) for name, number in value.items()}  # pyright: ignore
    if isinstance(value, Tensor):
        value = value.detach()
    if isinstance(value, Tensor) and value.ndim == 2:
        layers, heads = value.shape
        return {
            str(Head(layer, head)): float(value[layer, head])
            for layer in range(layers)
            for head in range(heads)
        }
    if isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0):
        return {"value": float(value)}
    shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
    raise ValueError(
        f"The measure gave {shape}; a number, a mapping of numbers or [layer, head] was expected."
    )
