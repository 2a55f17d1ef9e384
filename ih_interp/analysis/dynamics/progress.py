"""Progress measures: parts of the circuit made perfect in the checkpoints of a run without them.

A clamp in training shows how the rest is learned where a part is perfect from the start; the same
clamp on checkpoints of a free run shows how much the rest has learned there, and keeps the plateau
and the sudden drop of the free run (Singh et al. 2024, arXiv:2404.07129, Figure 10).
"""

from collections.abc import Mapping
from typing import Annotated

import pandas as pd

from ih_interp._columns import measured_once
from ih_interp.analysis.checks import checked_in_plain_torch
from ih_interp.analysis.dynamics.trace import (
    ARun,
    Clamps,
    Measure,
    Steps,
    some_sequences,
    trace,
    warn_unfinished,
)
from ih_interp.batch import Batch
from ih_interp.checkpoints import Checkpoints
from ih_interp.evaluation import evaluate
from ih_interp.runs import Run

COMPARED = ("task", "model", "optimiser", "start", "seeds", "batch_size")
"""The parts of a configuration that two runs share where they differ in clamps alone."""


@checked_in_plain_torch(gradient=None)
def progress(
    checkpoints: Checkpoints,
    clamps: Clamps,
    *,
    name: str | None = None,
    measure: Measure = evaluate,
    batch: Batch | None = None,
    steps: Steps | None = None,
) -> pd.DataFrame:
    """Apply a measure to checkpoints under clamps that the model was not trained under.

        match = [ih.clamps.match("L1H3"), *run.clamps]
        table = progress(run, match, name="match", batch=batch).query("name == 'loss'")

    Columns: those of `trace`, by default the means of `evaluation.sequence_metrics`, and `clamp`,
    which is `name`, by default the clamps as they print, "none" without any. `clamps` are exactly
    those in force, each as at the checkpoint's step: name the run's own again to keep them, as the
    ablation of other heads in the paper's runs. Raises ValueError as `trace` does, also for clamps
    that cannot act together.
    """
    if name is None:
        name = " + ".join(map(str, clamps)) or "none"
    table = trace(checkpoints, measure, batch=batch, clamps=clamps, steps=steps)
    return table.assign(clamp=name)


@checked_in_plain_torch(gradient=None)
def progress_beside_training(
    free: ARun,
    clamped: Annotated[Mapping[str, Run], 'give runs by name, {"match": run}'],
    *,
    split: str = "train",
    batch: Batch | None = None,
    steps: Steps | None = None,
) -> pd.DataFrame:
    """Return the loss under clamps in training beside the free run's progress measures (Figure 10).

        table = progress_beside_training(runs["none"], {"match": runs["match"]})

    Columns: `sequences`, `clamp` (the key), `when`, `loss` (nats), `seed` (of the weights). Rows
    "training" are the clamped run's own evaluations on `split`; rows "inference" the free run's
    checkpoints under all of the clamped run's clamps, over `batch`, by default sequences of `split`
    chosen as in `trace`. Name the free run itself to have its curve in both. Raises ValueError for
    a run that differs from the free one in more than clamps, lengths and grids, and for one without
    metrics on the split. Warns of runs that are not finished.
    """
    for name, run in clamped.items():
        # `identity` knows features by their digest, wherever their file lies.
        one, two = free.config.identity, run.config.identity
        differ = [field for field in COMPARED if getattr(one, field) != getattr(two, field)]
        if differ:
            raise ValueError(
                f"The run {name!r} differs from the free run in {', '.join(differ)}: expected the "
                "same but for clamps, lengths and grids."
            )
    batch, said = some_sequences(free.task, split) if batch is None else (batch, "")
    parts: list[pd.DataFrame] = []
    for name, run in clamped.items():
        trained = _evaluations(run, name, split)
        table = progress(free, run.clamps, name=name, batch=batch, steps=steps)
        perfected = table[table["name"] == "loss"].rename(columns={"value": "loss"})
        for when, rows in (("training", trained), ("inference", perfected)):
            parts.append(rows[["sequences", "loss"]].assign(clamp=name, when=when))
    if not parts:
        raise ValueError('clamped={}: expected runs by name, {"match": run}.')
    table = pd.concat(parts, ignore_index=True).assign(seed=free.config.seeds.init)
    table.attrs = {"batch": said} if said else {}
    return table[["sequences", "clamp", "when", "loss", "seed"]]


def _evaluations(run: Run, name: str, split: str) -> pd.DataFrame:
    """Return a run's own metrics on a split, as many as are saved."""
    metrics = measured_once(run.metrics)
    if metrics.empty:
        raise ValueError(f"The run {name!r} has no metrics: expected some; train it to its end.")
    found = metrics[metrics["split"] == split]
    if found.empty:
        splits = ", ".join(sorted(metrics["split"].unique()))
        raise ValueError(f"split={split!r}: the run {name!r} has metrics on {splits}; name one.")
    warn_unfinished(run)
    return found
