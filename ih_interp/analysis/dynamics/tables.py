"""Tables of the times at which runs got there, from curves to summaries of each condition.

A missing key (None, NaN) is a condition like any other. The order of rows changes no number. All
functions refuse times and runs as `survival` does, with ValueError.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd

from ih_interp import _columns as columns
from ih_interp.analysis.checks import Confidence, NotNegative, Positive, checked
from ih_interp.analysis.dynamics.emergence import Criterion, Crossing, learned
from ih_interp.analysis.dynamics.survival import (
    NOWHERE,
    bootstrap_over_seeds,
    kaplan_meier,
    median_time,
    refuse_unsound,
    restricted_mean,
    widest_coverage,
)
from ih_interp.types import expect

SUMMARY = (
    *("time", "observed", "n_seeds", "n_observed", "horizon", "widest_coverage"),
    *(f"{name}{end}" for name in ("median", "restricted_mean") for end in ("", "_low", "_high")),
)
"""Columns that `emergence_summary` reads or makes: no condition may have their names."""


@checked()
def emergence_table(
    curves: pd.DataFrame,
    criterion: Criterion = learned,
    *,
    by: str | Sequence[str] = "clamp",
    value: str = "loss",
) -> pd.DataFrame:
    """Return when each run got there: one row per run, columns `by`, `seed`, `time`, `observed`.

    `curves` has columns `sequences`, `seed`, those of `by`, and the `value` that the criterion
    reads. Raises ValueError for missing columns, and names the run that the criterion refuses.
    """
    keys = columns.key_columns(by, *Crossing._fields, seed=True)
    columns.refuse_columns(curves, [*keys, "sequences", value])
    x = columns.finite(curves["sequences"], "The column 'sequences'", low=0)
    y = columns.numbers(curves[value], f"The column {value!r}")
    curves = curves.assign(**{"sequences": x, value: y})
    rows: list[dict[str, object]] = []
    for run, curve in columns.groups(curves, keys):
        x, y = curve.sort_values("sequences")[["sequences", value]].to_numpy(copy=True).T
        try:
            crossing = criterion(x, y)
            expect(crossing, Crossing, "The criterion's result", "return a Crossing")
            refuse_unsound([crossing])
        except ValueError as error:
            name = ", ".join(f"{column} {columns.shown(part)}" for column, part in run.items())
            raise ValueError(f"The run of {name}: {error}") from error
        rows.append({**run, **crossing._asdict()})
    return pd.DataFrame(rows)


@checked()
def emergence_summary(
    times: pd.DataFrame,
    *,
    by: str | Sequence[str] = "clamp",
    horizon: NotNegative | None = None,
    level: Confidence = 0.95,
    n_resamples: Positive = 1_000,
) -> pd.DataFrame:
    """Return Kaplan-Meier medians and restricted means, one row per condition, with intervals.

    Columns: `by`, `n_seeds`, `n_observed`, `median`, `median_low`, `median_high` (inf: not
    reached), `restricted_mean`, its `_low` and `_high`, `horizon`, and `widest_coverage`, the most
    that the median's interval covers. `times` is an `emergence_table`. By default `horizon` is the
    earliest end of a censored run, or the latest time where none is. Ends are NaN for one seed.
    """
    keys = columns.key_columns(by, *SUMMARY)
    conditions = _conditions(times, keys)
    every = [c for _, found in conditions for c in found]
    if horizon is None:
        horizon = min((c.time for c in every if not c.observed), default=max(every).time)
    restricted = partial(restricted_mean, horizon=horizon)
    rows: list[dict[str, object]] = []
    for row, found in conditions:
        row |= {"n_seeds": len(found), "n_observed": sum(c.observed for c in found)}
        for name, statistic in (("median", median_time), ("restricted_mean", restricted)):
            low, high = NOWHERE[1:]
            if len(found) > 1:
                _, low, high = bootstrap_over_seeds(
                    found, statistic, level=level, n_resamples=n_resamples
                )
            ends = {f"{name}_low": float(low), f"{name}_high": float(high)}
            row |= {name: statistic(found), **ends}
        rows.append({**row, "horizon": horizon, "widest_coverage": widest_coverage(len(found))})
    return pd.DataFrame(rows)


@checked()
def survival_table(
    times: pd.DataFrame, *, by: str | Sequence[str] = "clamp", level: Confidence = 0.95
) -> pd.DataFrame:
    """Return `kaplan_meier` of each condition, for drawing.

    Columns: `by`, `sequences`, `share`, `low`, `high`, and `censored`, the runs that ended there.
    `times` is an `emergence_table`.
    """
    names = ("sequences", "share", "low", "high", "censored")
    rows: list[dict[str, object]] = []
    for condition, found in _conditions(times, columns.key_columns(by, *names)):
        ended = [c.time for c in found if not c.observed]
        for point in zip(*kaplan_meier(found, level=level), strict=True):
            numbers = (*point, ended.count(point[0]))
            rows.append({**condition, **dict(zip(names, numbers, strict=True))})
    return pd.DataFrame(rows)


@checked()
def crossings_by_seed(times: pd.DataFrame) -> dict[int, Crossing]:
    """Return one condition's rows of an `emergence_table` by seed, for `paired_times`.

    Raises ValueError for a seed that is missing, not a whole number, or there twice.
    """
    columns.refuse_columns(times, ["seed", "time", "observed"])
    found = _crossings(times)
    columns.refuse_seeds(times["seed"].tolist())
    seeds = columns.finite(times["seed"], "The column 'seed'")
    if (seeds % 1 > 0).any():
        raise ValueError(f"The column 'seed' holds {seeds.tolist()}: expected whole numbers.")
    if len(set(seeds)) < len(seeds):
        raise ValueError("A seed comes twice: expected the rows of one condition.")
    return dict(zip(map(int, seeds), found, strict=True))


def _conditions(
    times: pd.DataFrame, keys: Sequence[str]
) -> list[tuple[dict[str, Any], list[Crossing]]]:
    columns.refuse_columns(times, [*keys, "time", "observed"])
    return [(key, _crossings(rows)) for key, rows in columns.groups(times, keys)]


def _crossings(times: pd.DataFrame) -> list[Crossing]:
    time = columns.finite(times["time"], "The column 'time'", low=0)
    observed = columns.flags(times["observed"], "The column 'observed'")
    return [Crossing(*run) for run in zip(time.tolist(), observed.tolist(), strict=True)]
