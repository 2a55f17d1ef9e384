"""The gates of a run's clamps over its updates, as their schedules set them, and in words."""

import numpy as np
import pandas as pd

from ih_interp.clamps import AbstractClamp, Shape
from ih_interp.clamps.schedules import During, FromLevel, Level, Pulses, Ramp
from ih_interp.runs import Run
from ih_interp.types import Head

BINS, MOST_STEPS, MOST_ASKED = 200, 100_000, 2_000
"""Bins over which gates are averaged, and the updates at which a schedule is asked: one that knows
the step alone answers quickly, others read metrics."""


def gates(run: Run, end: int) -> pd.DataFrame:
    """Return the mean gate of every clamp in bins of updates, from 0 to `end`.

    Columns `number`, `clamp` (in words), `step` (a bin's first update), `sequences`, `gate`, from 0
    (free) to 1 (clamped). Raises ValueError as `run.metrics` does, where a clamp waits for a level.
    """
    parts: list[pd.DataFrame] = []
    for number, clamp in enumerate(run.clamps):
        steps, values = _gate(run, clamp, end)
        width = max(1, -(-end // BINS))
        table = pd.DataFrame({"step": steps // width * width, "gate": values})
        table = table.groupby("step", as_index=False).mean()
        parts.append(table.assign(clamp=clamp_in_words(clamp), number=number))
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


def clamps_by_head(run: Run, step: int) -> dict[str, list[str]]:
    """Return by head the kinds of the clamps that set something of it, and what is off at a step.

    A clamp whose gate is 0 there is "ablate_heads (off at the end)", one whose gate is 0.5 is
    "ablate_heads (gate 0.50)". Raises ValueError as `run.rows` does, where one waits for a level.
    """
    found: dict[str, list[str]] = {}
    shape = Shape(run.config.model.n_layers, run.config.model.n_heads)
    waits = any(clamp.is_scheduled and not clamp.schedule.by_step for clamp in run.clamps)
    rows = run.rows(before=step) if waits else None
    for clamp in run.clamps:
        gate = clamp.gate(step, rows)
        words = {0.0: " (off at the end)", 1.0: ""}.get(gate, f" (gate {gate:.2f})")
        sites = {site for site in clamp.sites(shape) if 0 <= site.layer < shape.n_layers}
        for site in sites:
            heads = range(shape.n_heads) if site.head is None else [site.head]
            for head in heads:
                there = found.setdefault(str(Head(site.layer, head)), [])
                if clamp.kind + words not in there:
                    there.append(clamp.kind + words)
    return found


def clamp_in_words(clamp: AbstractClamp) -> str:
    """Return a clamp's kind, its fields and when it is on.

    >>> from ih_interp.clamps import AblateHeads, during
    >>> clamp_in_words(AblateHeads(heads=["L0H1"], schedule=during(0, 1_000)))
    "ablate_heads(heads=['L0H1']), until update 1,000"
    """
    fields = clamp.model_dump(mode="json", exclude_defaults=True, exclude={"kind", "schedule"})
    given = ", ".join(f"{name}={value}" for name, value in fields.items())
    return f"{clamp.kind}({given}), {schedule_in_words(clamp)}"


def schedule_in_words(clamp: AbstractClamp) -> str:
    """Return when a clamp is on, in updates; of a schedule of another package, its JSON."""
    match clamp.schedule:
        case During(start=start, stop=stop):
            since = f"from update {start:,}" if start or stop is None else ""
            until = "" if stop is None else f"until update {stop:,}"
            return f"{since} {until}".strip()
        case Ramp(start=start, stop=stop, low=low, high=high):
            return f"gate {low:g} to {high:g} from update {start:,} to {stop:,}"
        case Pulses(period=period, duty=duty):
            return f"the first {duty:.0%} of every {period:,} updates"
        case FromLevel(start=start, until=until):
            parts = [("from", start), ("until", until)]
            return " ".join(f"{word} {_level(level)}" for word, level in parts if level is not None)
        case schedule:
            return schedule.model_dump_json() if clamp.is_scheduled else "always"


def _level(level: Level) -> str:
    side = f"above {level.above:g}" if level.below is None else f"below {level.below:g}"
    under = "" if level.under == "clamped" else ", clamps off"
    return f"{level.column} {side} on {level.split}{under}"
