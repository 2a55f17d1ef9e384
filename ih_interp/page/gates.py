"""The gates of a run's clamps over its updates, as their schedules set them."""

import numpy as np
import pandas as pd

from ih_interp.clamps import AbstractClamp
from ih_interp.runs import Run

BINS, MOST_STEPS, MOST_ASKED = 200, 100_000, 2_000
"""Bins over which gates are averaged, and the updates at which a schedule is asked: one that knows
the step alone answers quickly, others read metrics."""


def gates(run: Run, end: int) -> pd.DataFrame:
    """Return the mean gate of every clamp in bins of updates, from 0 to `end`.

    Columns `clamp` (as it prints), `step` (a bin's first update), `sequences`, `gate`, from 0
    (free) to 1 (clamped). Raises ValueError as `run.metrics` does, where a clamp waits for a level.
    """
    parts: list[pd.DataFrame] = []
    for number, clamp in enumerate(run.clamps):
        steps, values = _gate(run, clamp, end)
        width = max(1, -(-end // BINS))
        table = pd.DataFrame({"step": steps // width * width, "gate": values})
        table = table.groupby("step", as_index=False).mean()
        parts.append(table.assign(clamp=str(clamp), number=number))
    columns = ["number", "clamp", "step", "sequences", "gate"]
    if not parts:
        return pd.DataFrame(columns=columns)
    found = pd.concat(parts, ignore_index=True)
    return found.assign(sequences=found["step"] * run.sequences_per_step)[columns]


def _gate(run: Run, clamp: AbstractClamp, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Return updates and the clamp's gate at each."""
    n_steps = max(end, 1)
    if not clamp.is_scheduled:
        steps = np.unique(np.linspace(0, n_steps - 1, min(BINS, n_steps)).astype(int))
        return steps, np.ones(len(steps))
    by_step = clamp.schedule.by_step
    most = MOST_STEPS if by_step else MOST_ASKED
    steps = np.unique(np.linspace(0, n_steps - 1, min(most, n_steps)).astype(int))
    rows = None if by_step else run.rows(before=end + 1)
    return steps, np.array([clamp.gate(int(step), rows) for step in steps])
