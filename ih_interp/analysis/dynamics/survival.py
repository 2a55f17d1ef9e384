"""Times across seeds, some of them censored: Kaplan-Meier, intervals, paired comparisons.

A run that ends before it learns shows that its time is longer, not how long. Leaving it out, or
counting its length, makes a slow condition look fast; all numbers here count it as censored. What
they say of other networks rests on the number of seeds: see `widest_coverage`.

Times are finite and at least 0, also those of censored runs: how long the run lasted. Every
function raises ValueError for others, for an `observed` that is not True, False, 1 or 0, and for no
runs. The order of runs or rows changes no number. In tables a missing key (None, NaN) is a
condition like any other.
"""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from ih_interp.analysis.dynamics.emergence import Criterion, Crossing, learned
from ih_interp.analysis.statistics import Estimate, bootstrap, sign_flip_test
from ih_interp.types import expect

NOWHERE = Estimate(*(np.asarray(math.nan),) * 3)

STATISTICS = ("median", "restricted_mean")
SUMMARY = (
    *("time", "observed", "n_seeds", "n_observed", "horizon", "widest_coverage"),
    *(f"{name}{end}" for name in STATISTICS for end in ("", "_low", "_high")),
)
"""Columns of `emergence_summary`, and those that it reads: no condition may have their names."""


@short_repr
class Survival(NamedTuple):
    """Share of networks that have not yet got there: `share[i]` from `time[i]` on."""

    time: Float[ndarray, " time"]
    """Sequences; 0, then every time at which a run got there or ended."""
    share: Float[ndarray, " time"]
    """1 at first; the last value is above 0 where the longest run is censored."""
    low: Float[ndarray, " time"]
    high: Float[ndarray, " time"]
    """Ends of the interval at each time, NaN where the formula has none (share 1 or 0)."""


@checked()
def kaplan_meier(crossings: Sequence[Crossing], *, level: Confidence = 0.95) -> Survival:
    """Return Kaplan and Meier's (1958) share of networks that have not yet got there, in [0, 1].

    `product over times t_i <= t of (1 - d_i / n_i)`, d_i that got there at t_i of n_i that had
    neither got there nor ended before. The interval is Greenwood's on the log-log scale, from
    `scipy.stats.ecdf`: right for many seeds, rough for few.
    """
    _refuse_unsound(crossings)
    times, ended = [float(c.time) for c in crossings], [not c.observed for c in crossings]
    sf = stats.ecdf(stats.CensoredData.right_censored(times, ended)).sf
    with warnings.catch_warnings():  # where share is 1 or 0; NaN says so
        warnings.filterwarnings("ignore", "The confidence interval is undefined", RuntimeWarning)
        interval = sf.confidence_interval(level, method="log-log")
    return Survival(
        np.append(0.0, sf.quantiles),
        np.append(1.0, sf.probabilities),
        np.append(math.nan, interval.low.probabilities),
        np.append(math.nan, interval.high.probabilities),
    )


@checked()
def median_time(crossings: Sequence[Crossing]) -> float:
    """Return sequences after which half of the networks have got there, or infinity.

    By Kaplan-Meier: the first time at which the share is 1/2 or less; where it stays at 1/2 and
    falls later, the middle of that while, as R's `survfit`. Without censoring it is the ordinary
    median.
    """
    time, share = _steps(crossings)
    reached = np.flatnonzero(share < 0.5 + 1e-9)
    if len(reached) == 0:
        return math.inf
    first = int(reached[0])
    after = np.flatnonzero(share < 0.5 - 1e-9)
    if share[first] > 0.5 - 1e-9 and len(after):
        return float(time[first] + time[after[0]]) / 2
    return float(time[first])


@checked()
def restricted_mean(crossings: Sequence[Crossing], horizon: NotNegative) -> float:
    """Return the mean sequences without it, of the first `horizon`, in [0, horizon].

    The area under Kaplan-Meier up to there: finite whatever is censored, so comparable where a
    median is not reached, but only between numbers of one horizon. Raises ValueError for a horizon
    that the longest run, a censored one, does not reach.
    """
    time, share = _steps(crossings)
    if horizon > time[-1] and share[-1] > 0:
        raise ValueError(
            f"horizon={horizon:g}: expected {time[-1]:g} or less, where the longest run ends "
            "without getting there; what follows is not known."
        )
    ends = np.minimum(np.append(time, max(horizon, time[-1])), horizon)
    return float((np.diff(ends) * share).sum())


def _steps(crossings: Sequence[Crossing]) -> tuple[ndarray, ndarray]:
    """Return times, and Kaplan-Meier's share from each on.

    `scipy.stats.ecdf` takes 25 times as long, and a bootstrap asks a thousand times. One step per
    run: ties one after the other, those that got there first, make the same product.
    """
    _refuse_unsound(crossings)
    ordered = sorted(crossings, key=lambda crossing: (crossing.time, not crossing.observed))
    time = np.array([float(crossing.time) for crossing in ordered])
    observed = np.array([crossing.observed for crossing in ordered])
    share = np.cumprod(1 - observed / np.arange(len(ordered), 0, -1))
    return np.append(0.0, time), np.append(1.0, share)


def _refuse_unsound(crossings: Iterable[Crossing]) -> None:
    found = list(crossings)
    if not found:
        raise ValueError("crossings=[]: expected at least one run.")
    columns.finite([crossing.time for crossing in found], "A time of crossings", low=0)
    columns.flags([crossing.observed for crossing in found], "`observed` of crossings")


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

    An end may be infinite. Seeds are the unit: other networks, not other sequences. Of the median
    of n <= 5 seeds the interval is about from the fastest to the slowest, and covers the truth at
    most as often as `widest_coverage(n)`. Raises ValueError for fewer than two runs.
    """
    _refuse_unsound(crossings)
    if len(crossings) < 2:
        raise ValueError(f"{len(crossings)} seeds: expected two or more, to have a spread.")
    # A draw is of places: in one order whatever that of the rows.
    crossings = sorted(crossings, key=lambda crossing: (crossing.time, crossing.observed))
    rng = np.random.default_rng(seed)
    drawn: list[Any] = [
        statistic([crossings[i] for i in rng.integers(len(crossings), size=len(crossings))])
        for _ in range(n_resamples)
    ]
    if any(value is None or np.ndim(value) for value in drawn):
        raise TypeError(f"The statistic gave {drawn[0]!r}: expected a number.")
    values = columns.numbers(drawn, "What the statistic gives")
    # Of the values themselves: between a number and infinity there is nothing to interpolate.
    ends = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return Estimate(np.asarray(statistic(crossings)), np.asarray(ends[0]), np.asarray(ends[1]))


@checked()
def widest_coverage(n_seeds: Positive) -> float:
    """Return how often the interval from the fastest to the slowest of n seeds holds the median.

    The true one, with probability `1 - 2^(1 - n)`, whatever the distribution: no interval between
    observed times covers more, so below six seeds none reaches 95%.

    >>> [widest_coverage(n) for n in (1, 3, 5, 6)]
    [0.0, 0.75, 0.9375, 0.96875]
    """
    return 1 - 2.0 ** (1 - n_seeds)


@short_repr
class PairedTimes(NamedTuple):
    """Two conditions, seed by seed."""

    ratio: Estimate
    """Geometric mean of first time / second time over the pairs compared, interval over pairs."""
    p: float
    """Two-sided, of log ratios symmetric about 0 (sign flips); at least 2^(1 - n_compared)."""
    n_compared: int
    """Pairs in which both got there."""
    n_left_out: int
    """Pairs in which one or both are censored."""
    earlier: int
    """Pairs in which the first got there before the second did, or before it ended."""
    later: int
    undecided: int
    p_of_signs: float
    """Two-sided binomial of earlier against later; censored pairs of known order count."""


@checked()
def paired_times(
    first: Mapping[int, Crossing], second: Mapping[int, Crossing], *, level: Confidence = 0.95
) -> PairedTimes:
    """Compare the times of two conditions over the same seeds, each by seed.

    `ratio` and `p` leave censored pairs out, so they understate a condition whose runs end early;
    `p_of_signs` counts those whose order is known, and says nothing of how much. Where
    `n_left_out` is not small, believe the signs. NaN where fewer than two pairs are left. Raises
    ValueError unless the seeds are the same, or for a time of 0, which has no ratio.
    """
    _refuse_unsound([*first.values(), *second.values()])
    columns.refuse_seeds([*first, *second])
    if set(first) != set(second):
        raise ValueError(
            f"Pairs: expected the same seeds, got {sorted(first)} and {sorted(second)}."
        )
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
def emergence_table(
    curves: pd.DataFrame,
    criterion: Criterion = learned,
    *,
    by: str | Sequence[str] = "clamp",
    value: str = "loss",
) -> pd.DataFrame:
    """Return when each run got there: one row per run, columns `by`, `seed`, `time`, `observed`.

    `curves` has columns `sequences`, `seed`, those of `by`, and the `value` that the criterion
    reads. Raises ValueError for missing columns, or with the run's name what the criterion refuses.
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
            expect(crossing, Crossing, "What the criterion gives", "return a Crossing")
            _refuse_unsound([crossing])
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
    reached), `restricted_mean`, its `_low` and `_high`, `horizon`, and `widest_coverage`, what
    the median's interval covers at most. `times` is an `emergence_table`. By default `horizon` is
    the earliest end of a censored run, or the latest time where none is. NaN for one seed.
    """
    keys = columns.key_columns(by, *SUMMARY)
    every = _crossings(times, keys)
    ended = [c.time for c in every if not c.observed]
    limit = min(ended) if ended else max(c.time for c in every)
    limit = limit if horizon is None else horizon
    restricted = partial(restricted_mean, horizon=limit)
    statistics = {"median": median_time, "restricted_mean": restricted}
    rows: list[dict[str, object]] = []
    for row, runs in columns.groups(times, keys):
        found = _crossings(runs, keys)
        row |= {"n_seeds": len(found), "n_observed": sum(c.observed for c in found)}
        for name, statistic in statistics.items():
            row[name] = statistic(found)
            _, low, high = (
                bootstrap_over_seeds(found, statistic, level=level, n_resamples=n_resamples)
                if len(found) > 1
                else NOWHERE
            )
            row |= {f"{name}_low": float(low), f"{name}_high": float(high)}
        rows.append({**row, "horizon": limit, "widest_coverage": widest_coverage(len(found))})
    return pd.DataFrame(rows)


@checked()
def survival_table(
    times: pd.DataFrame, *, by: str | Sequence[str] = "clamp", level: Confidence = 0.95
) -> pd.DataFrame:
    """Return `kaplan_meier` of each condition, for drawing.

    Columns: `by`, `sequences`, `share`, `low`, `high`, and `censored`, the runs that ended there.
    `times` is an `emergence_table`.
    """
    keys = columns.key_columns(by, "sequences", "share", "low", "high", "censored")
    columns.refuse_columns(times, keys)
    rows: list[dict[str, object]] = []
    for condition, runs in columns.groups(times, keys):
        found = _crossings(runs, keys)
        curve = kaplan_meier(found, level=level)
        ended = np.array([c.time for c in found if not c.observed])
        for time, share, low, high in zip(*curve, strict=True):
            place = {"sequences": time, "share": share, "low": low, "high": high}
            rows.append({**condition, **place, "censored": int((ended == time).sum())})
    return pd.DataFrame(rows)


@checked()
def crossings_by_seed(times: pd.DataFrame) -> dict[int, Crossing]:
    """Return one condition's rows of an `emergence_table` by seed, for `paired_times`.

    Raises ValueError for a seed that is missing, no whole number, or there twice.
    """
    found = _crossings(times, ["seed"])
    columns.refuse_seeds(times["seed"].tolist())
    seeds = columns.finite(times["seed"], "The column 'seed'")
    if (seeds % 1 > 0).any():
        raise ValueError(f"The column 'seed' holds {seeds.tolist()}: expected whole numbers.")
    if len(set(seeds)) < len(seeds):
        raise ValueError("A seed comes twice: expected the rows of one condition.")
    return dict(zip(map(int, seeds), found, strict=True))


def _crossings(times: pd.DataFrame, keys: Sequence[str]) -> list[Crossing]:
    columns.refuse_columns(times, [*keys, "time", "observed"])
    time = columns.finite(times["time"], "The column 'time'", low=0)
    observed = columns.flags(times["observed"], "The column 'observed'")
    return [Crossing(*run) for run in zip(time.tolist(), observed.tolist(), strict=True)]
