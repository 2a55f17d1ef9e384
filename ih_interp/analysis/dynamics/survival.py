"""Times across seeds, some of them censored: Kaplan-Meier, intervals, paired comparisons.

A run that ends before it learns shows only that its time is longer. Leaving it out, or counting its
length, makes a slow condition look fast; all numbers here count it as censored. How much they say
of other networks depends on the number of seeds: see `widest_coverage`.

Times are finite and at least 0; a censored run's time is its length. Every function raises
ValueError for other times, for an `observed` that is not True, False, 1 or 0, and for no runs. In
tables a missing key (None, NaN) is a condition like any other. The order of runs changes no number.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from scipy import stats

from ih_interp import _columns as columns
from ih_interp._reprs import short_repr
from ih_interp.analysis.checks import Confidence, NotNegative, Positive, Within, checked
from ih_interp.analysis.dynamics.emergence import Crossing, refuse_unsound
from ih_interp.analysis.statistics import Estimate, bootstrap, sign_flip_test

NOWHERE = Estimate(*(np.asarray(math.nan),) * 3)

SUMMARY = (
    *("time", "observed", "n_seeds", "n_observed", "horizon", "widest_coverage"),
    *(f"{name}{end}" for name in ("median", "restricted_mean") for end in ("", "_low", "_high")),
)
"""Columns that `emergence_summary` reads or makes: no condition may have their names."""


@short_repr
class Survival(NamedTuple):
    """The share of networks that have not yet got there, and the ends of its interval.

    `share[i]` holds from `time[i]` on. Times are 0, then every time at which a run got there or
    ended. Ends are NaN where the share is 1 or 0.
    """

    time: Float[ndarray, " time"]
    share: Float[ndarray, " time"]
    low: Float[ndarray, " time"]
    high: Float[ndarray, " time"]


@checked()
def kaplan_meier(crossings: Sequence[Crossing], *, level: Confidence = 0.95) -> Survival:
    """Return Kaplan and Meier's (1958) share of networks that have not yet got there, in [0, 1].

    `product over times t_i <= t of (1 - d_i / n_i)`, where d_i of the n_i that had neither got
    there nor ended before got there at t_i. The interval is Greenwood's on the log-log scale, from
    `scipy.stats.ecdf`: right for many seeds, rough for few.
    """
    refuse_unsound(crossings)
    times, ended = [float(c.time) for c in crossings], [not c.observed for c in crossings]
    sf = stats.ecdf(stats.CensoredData.right_censored(times, ended)).sf
    with warnings.catch_warnings():  # where share is 1 or 0; NaN says so
        warnings.filterwarnings("ignore", "The confidence interval is undefined", RuntimeWarning)
        interval = sf.confidence_interval(level, method="log-log")
    ends = interval.low.probabilities, interval.high.probabilities
    parts = zip((0.0, 1.0, *[math.nan] * 2), (sf.quantiles, sf.probabilities, *ends), strict=True)
    return Survival(*(np.append(first, rest) for first, rest in parts))


@checked()
def median_time(crossings: Sequence[Crossing]) -> float:
    """Return sequences after which half of the networks have got there, or infinity.

    By Kaplan-Meier: the first time at which the share is 1/2 or less; where it stays at 1/2 and
    falls later, the middle of that time, as in R's `survfit`. Without censoring it is the ordinary
    median.
    """
    refuse_unsound(crossings)
    return _median_time(crossings)


def _median_time(crossings: Sequence[Crossing]) -> float:
    time, share = _steps(crossings)
    reached = np.flatnonzero(share < 0.5 + 1e-9)
    if len(reached) == 0:
        return math.inf
    first, below = reached[0], np.flatnonzero(share < 0.5 - 1e-9)
    last = below[0] if share[first] > 0.5 - 1e-9 and len(below) else first
    return float(time[first] + time[last]) / 2


@checked()
def restricted_mean(crossings: Sequence[Crossing], horizon: NotNegative) -> float:
    """Return the mean time, cut at `horizon`, in [0, horizon]: the area under Kaplan-Meier.

    Compare only numbers of one horizon. Raises ValueError for one beyond a censored longest run.
    """
    refuse_unsound(crossings)
    return _restricted_mean(crossings, horizon)


def _restricted_mean(crossings: Sequence[Crossing], horizon: float) -> float:
    time, share = _steps(crossings)
    if horizon > time[-1] and share[-1] > 0:
        raise ValueError(f"horizon={horizon:g}: expected {time[-1]:g}, a censored end, or less.")
    ends = np.minimum(np.append(time, max(horizon, time[-1])), horizon)
    return float((np.diff(ends) * share).sum())


def _steps(crossings: Sequence[Crossing]) -> tuple[ndarray, ndarray]:
    """Return times, and Kaplan-Meier's share from each on, 25 times as fast as `scipy.stats.ecdf`.

    One step per run: ties one after the other, those that got there first, make the same product.
    """
    ordered = sorted(crossings, key=lambda crossing: (crossing.time, not crossing.observed))
    time = np.array([float(crossing.time) for crossing in ordered])
    observed = np.array([crossing.observed for crossing in ordered])
    share = np.cumprod(1 - observed / np.arange(len(ordered), 0, -1))
    return np.append(0.0, time), np.append(1.0, share)


@checked()
def bootstrap_over_seeds(
    crossings: Sequence[Crossing],
    statistic: Callable[[Sequence[Crossing]], float] = median_time,
    *,
    level: Confidence = 0.95,
    n_resamples: Positive = 1_000,
    seed: Annotated[int, Within(0)] = 0,
) -> Estimate:
    """Return a statistic of runs with a percentile interval over seeds, drawn with replacement.

    An end may be infinite. For the median of n <= 5 seeds the interval is about from the fastest to
    the slowest, and covers the truth at most as often as `widest_coverage(n)`. Raises ValueError
    for fewer than two runs.
    """
    refuse_unsound(crossings)
    if len(crossings) < 2:
        raise ValueError(f"{len(crossings)} seeds: expected two or more, to have a spread.")
    return _bootstrap(crossings, statistic, level=level, n_resamples=n_resamples, seed=seed)


def _bootstrap(
    crossings: Sequence[Crossing],
    statistic: Callable[[Sequence[Crossing]], float],
    *,
    level: float,
    n_resamples: int,
    seed: int = 0,
) -> Estimate:
    # Places are drawn: sorted, so that the order of rows changes no number.
    crossings = sorted(crossings, key=lambda crossing: (crossing.time, crossing.observed))
    rng = np.random.default_rng(seed)
    drawn: list[Any] = [
        statistic([crossings[i] for i in rng.integers(len(crossings), size=len(crossings))])
        for _ in range(n_resamples)
    ]
    if any(value is None or np.ndim(value) for value in drawn):
        raise TypeError(f"The statistic gave {drawn[0]!r}: expected a number.")
    values = columns.numbers(drawn, "The statistic")
    # The ends are drawn values: nothing lies between a number and infinity.
    ends = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Estimate(*map(np.asarray, (statistic(crossings), *ends)))


@checked()
def widest_coverage(n_seeds: Positive) -> float:
    """Return how often the interval from the fastest to the slowest of n seeds holds the median.

    No interval between observed times covers more, whatever the distribution.

    >>> [widest_coverage(n) for n in (1, 3, 5, 6)]
    [0.0, 0.75, 0.9375, 0.96875]
    """
    return 1 - 2.0 ** (1 - n_seeds)


@short_repr
class PairedTimes(NamedTuple):
    """A comparison of two conditions, seed by seed."""

    ratio: Estimate  # geometric mean of first / second over pairs compared, interval over pairs
    p: float  # two-sided, of log ratios symmetric about 0 (sign flips); >= 2^(1 - n_compared)
    n_compared: int  # pairs in which both got there
    n_left_out: int
    earlier: int  # pairs in which the first got there before the second did, or before it ended
    later: int
    undecided: int
    p_of_signs: float  # two-sided binomial of earlier, later; censored pairs of known order count


@checked()
def paired_times(
    first: Mapping[int, Crossing], second: Mapping[int, Crossing], *, level: Confidence = 0.95
) -> PairedTimes:
    """Compare the times of two conditions over the same seeds, each by seed.

    `ratio` and `p` leave censored pairs out, so they understate a condition whose runs end early;
    where `n_left_out` is not small, believe the signs. NaN where fewer than two pairs are left.
    Raises ValueError unless the seeds are the same, or for a time of 0, which has no ratio.
    """
    refuse_unsound([*first.values(), *second.values()])
    columns.refuse_seeds([*first, *second])
    if set(first) != set(second):
        seeds = f"{sorted(first)} and {sorted(second)}"
        raise ValueError(f"Pairs: expected the same seeds, got {seeds}.")
    pairs = [(first[seed], second[seed]) for seed in sorted(first)]
    both = np.array([(a.time, b.time) for a, b in pairs if a.observed and b.observed])
    if (both == 0).any():
        raise ValueError("A time of 0 has no ratio: expected times above it; leave the run out.")
    ratio, p = NOWHERE, math.nan
    if len(both) > 1:
        logs = np.log(both[:, 0] / both[:, 1])
        ratio = bootstrap(logs, np.exp, level=level)
        p = float(sign_flip_test(logs[:, None])[0])
    earlier = sum(a.observed and a.time < b.time for a, b in pairs)
    later = sum(b.observed and b.time < a.time for a, b in pairs)
    decided = earlier + later
    signs = float(stats.binomtest(earlier, decided).pvalue) if decided else math.nan
    return PairedTimes(
        ratio, p, len(both), len(pairs) - len(both), earlier, later, len(pairs) - decided, signs
    )


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

    `times` is an `emergence_table`. Columns: `by`, and `SUMMARY` from `n_seeds` on; a median is inf
    where it is not reached, ends are NaN for one seed, and `widest_coverage` is the most that the
    median's interval covers. By default `horizon` is the earliest end of a censored run, or the
    latest time.
    """
    columns.time_unit(times)  # of one kind
    keys = columns.key_columns(by, *SUMMARY)
    conditions = _conditions(times, keys)
    every = [c for _, found in conditions for c in found]
    if horizon is None:
        horizon = min((c.time for c in every if not c.observed), default=max(every).time)
    restricted = partial(_restricted_mean, horizon=horizon)
    resampled = partial(_bootstrap, level=level, n_resamples=n_resamples)
    rows: list[dict[str, object]] = []
    for row, found in conditions:
        row |= {"n_seeds": len(found), "n_observed": sum(c.observed for c in found)}
        for name, statistic in (("median", _median_time), ("restricted_mean", restricted)):
            _, low, high = resampled(found, statistic) if len(found) > 1 else NOWHERE
            ends = {f"{name}_low": float(low), f"{name}_high": float(high)}
            row |= {name: statistic(found), **ends}
        rows.append({**row, "horizon": horizon, "widest_coverage": widest_coverage(len(found))})
    return pd.DataFrame(rows)


@checked()
def survival_table(
    times: pd.DataFrame, *, by: str | Sequence[str] = "clamp", level: Confidence = 0.95
) -> pd.DataFrame:
    """Return `kaplan_meier` of each condition, for drawing.

    Columns: `by`, `sequences` (`step`, if times are in steps), `share`, `low`, `high`, and
    `censored`, the runs that ended there. `times` is an `emergence_table`.
    """
    names = (columns.time_unit(times), "share", "low", "high", "censored")
    keys = columns.key_columns(by, *names)
    rows: list[tuple[object, ...]] = []
    for condition, found in _conditions(times, keys):
        ended = [c.time for c in found if not c.observed]
        points = zip(*kaplan_meier(found, level=level), strict=True)
        rows += [(*condition.values(), *point, ended.count(point[0])) for point in points]
    return pd.DataFrame(rows, columns=[*keys, *names])


@checked()
def crossings_by_seed(times: pd.DataFrame) -> dict[int, Crossing]:
    """Return one condition's rows of an `emergence_table` by seed, for `paired_times`.

    Raises ValueError for a seed that is missing, not a whole number, or there twice.
    """
    columns.refuse_columns(times, ["seed", "time", "observed"])
    columns.time_unit(times)  # of one kind
    found = _crossings(times)
    columns.refuse_seeds(times["seed"].tolist())
    seeds = columns.finite(times["seed"], "The column 'seed'")
    if (seeds % 1 > 0).any() or len(set(seeds)) < len(seeds):
        raise ValueError(f"seed={seeds.tolist()}: expected whole numbers, and none comes twice.")
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
