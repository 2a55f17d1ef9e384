"""Times at which a curve of one run changes: crossings, midpoints, the steepest place, plateaus.

A curve is `sequences` and values, `[point]` each; times are in sequences seen, or in steps where
steps are given instead. An event after the curve's end is censored (`Crossing`); across runs, see
`survival`. All functions raise ValueError unless there are as many sequences as values, ascending
from at least 0, and all are finite.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Literal, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray
from numpy.typing import ArrayLike
from scipy.optimize import curve_fit
from scipy.special import expit

from ih_interp import _columns as columns
from ih_interp._expect import expect
from ih_interp.analysis.checks import Positive, Within, checked

LEARNED = 0.4 * math.log(2)  # nats of training loss below which the paper calls the task learned
PLATEAU = (0.6, 0.8)  # losses around ln 2, of a model that guesses between the context's two labels
GOOD_FIT = 0.9  # the least share of the variance that a logistic explains whose midpoint is used

_windows = np.lib.stride_tricks.sliding_window_view

Curve: TypeAlias = Float[ndarray, " point"]
Rise: TypeAlias = Annotated[float, Within(0)]


class Crossing(NamedTuple):
    """The time at which a run got there, or, not `observed` (censored), the run's length."""

    time: float
    observed: bool

    @classmethod
    def before_end(cls, sequences: ArrayLike, time: float) -> "Crossing":
        """Return a time within a curve, or, where it is infinite, the curve's end as censored."""
        end = float(columns.numbers(sequences, "sequences")[-1])
        return cls(time if math.isfinite(time) else end, math.isfinite(time))


Criterion: TypeAlias = Callable[[ArrayLike, ArrayLike], Crossing]
"""Maps sequences and a curve to a `Crossing`: `learned`, `half_of_end`, or a function of yours."""


@checked()
def first_below(
    sequences: ArrayLike, curve: ArrayLike, level: float, *, for_at_least: Positive = 1
) -> float:
    """Return sequences at which a curve first falls below a level, or infinity.

    The crossing counts where at least `for_at_least` points in a row are below; a curve that starts
    below crosses at its first point. Between two points the curve is taken to be straight.

    >>> first_below(np.array([0.0, 10.0, 20.0]), np.array([3.0, 2.0, 0.0]), 1.0)
    15.0
    """
    return _first_below(*_curve(sequences, curve), level, for_at_least)


@checked()
def first_above(
    sequences: ArrayLike, curve: ArrayLike, level: float, *, for_at_least: Positive = 1
) -> float:
    """Return sequences at which a curve first rises above a level; otherwise as `first_below`."""
    x, y = _curve(sequences, curve)
    return _first_below(x, -y, -level, for_at_least)


def _first_below(x: Curve, y: Curve, level: float, for_at_least: int) -> float:
    if for_at_least > len(x):
        raise ValueError(f"for_at_least={for_at_least}: expected at most {len(x)}, all points.")
    stays = _windows(y < level, for_at_least).all(axis=1)
    if not stays.any():
        return math.inf
    after = int(stays.argmax())
    if after == 0:
        return float(x[0])
    share = (y[after - 1] - level) / (y[after - 1] - y[after])
    return float(x[after - 1] + share * (x[after] - x[after - 1]))


def learned(
    sequences: ArrayLike, loss: ArrayLike, *, level: float = LEARNED, for_at_least: Positive = 1
) -> Crossing:
    """Return when the loss first falls below 0.4 ln 2, the paper's time of learning.

    It is censored if it never does, and interpolated between evaluations; the published code (Singh
    et al. 2024, arXiv:2404.07129) takes the first evaluation below, or the run's length.
    """
    time = first_below(sequences, loss, level, for_at_least=for_at_least)
    return Crossing.before_end(sequences, time)


@checked()
def half_of_end(
    sequences: ArrayLike, strength: ArrayLike, *, at_least: Rise = 0.1, for_at_least: Positive = 1
) -> Crossing:
    """Return when a strength first rises above half of its last value.

    It is censored for a head that ends below `at_least`, which never emerged: noise would cross
    half of nothing. The time depends on where the run ends, so compare runs of one length. Raises
    ValueError for a curve that falls by `at_least`, such as a loss.
    """
    x, y = _curve(sequences, strength)
    _refuse_fall(y, at_least)
    late = y[-1] < at_least
    time = math.inf if late else _first_below(x, -y, -float(y[-1]) / 2, for_at_least)
    return Crossing.before_end(x, time)


class Logistic(NamedTuple):
    """A fitted rise `low + (high - low) / (1 + exp(-rate (ln t - ln midpoint)))`.

    `r_squared` is the share of the curve's variance that the fit explains, at most 1.
    """

    low: float
    high: float
    rate: float
    midpoint: float
    r_squared: float


def fit_logistic(sequences: ArrayLike, curve: ArrayLike) -> Logistic:
    """Fit the logistic in ln(sequences) with the least squared error, every point counting alike.

    The midpoint of a curve that has not levelled off may lie beyond its end. Raises ValueError for
    fewer than five points, and where the best fit explains less than half of the variance.
    """
    x, y = _curve(sequences, curve)
    if len(x) < 5:
        raise ValueError(f"{len(x)} points: expected five or more, to fix four parameters.")
    spread = float(np.ptp(y))
    if not spread * spread * len(y) < math.inf:
        raise ValueError(f"The curve spans {spread:g}: expected a finite square; divide it first.")
    fits = _fits(x, y, spread) if spread > 0 else []
    if not fits or fits[0].r_squared < 0.5:
        best = fits[0].r_squared if fits else 0.0
        raise ValueError(
            f"The curve does not rise: expected a logistic to explain half of its variance, got "
            f"{best:.2f}. Of a loss give the negative; for levels use first_above."
        )
    return fits[0]


@checked()
def logistic_midpoint(sequences: ArrayLike, curve: ArrayLike, *, at_least: Rise = 0.1) -> Crossing:
    """Return when half of a logistic rise is done; censored where it rises less than `at_least`.

    A midpoint beyond the curve's end is censored too. Raises ValueError for a curve that falls by
    `at_least`, such as a loss, or rises otherwise than a logistic (R squared below `GOOD_FIT`).
    """
    x, y = _curve(sequences, curve)
    _refuse_fall(y, at_least)
    if y[-1] - y[0] < at_least:
        return Crossing.before_end(x, math.inf)
    fit = fit_logistic(x, y)
    if fit.r_squared < GOOD_FIT:
        found = f"expected R squared of {GOOD_FIT}, got {fit.r_squared:.2f}"
        raise ValueError(f"A logistic fits the curve poorly: {found}; use first_above.")
    return Crossing.before_end(x, fit.midpoint if fit.midpoint <= x[-1] else math.inf)


class Steepest(NamedTuple):
    """The place at which a curve falls fastest: not observed at its end, as it may fall faster yet.

    The slope is below 0, in the curve's unit per sequence, or per factor e of sequences.
    """

    crossing: Crossing
    slope: float


@checked()
def steepest_descent(
    sequences: ArrayLike,
    curve: ArrayLike,
    *,
    n_points: Annotated[int, Within(2)] = 5,
    after: float = 0.0,
    scale: Literal["sequences", "log"] = "sequences",
) -> Steepest:
    """Return where the straight line through `n_points` neighbouring points falls fastest.

    The slope is by least squares against sequences, or with `scale="log"` against their logarithm;
    the time is the points' mean, or their geometric mean. A loss falls fastest at its very start:
    look from the plateau on with `after=first_below(sequences, loss, 0.8)`. Raises ValueError where
    fewer points are left, or the curve falls nowhere.
    """
    x, y = _curve(sequences, curve)
    there = (x >= after) & ((x > 0) | (scale == "sequences"))
    if n_points > there.sum():
        raise ValueError(f"n_points={n_points}: expected at most {there.sum()}, the points left.")
    place = np.log(x[there]) if scale == "log" else x[there]
    xs, ys = _windows(place, n_points), _windows(y[there], n_points)
    centred = xs - xs.mean(axis=1, keepdims=True)
    slopes = (centred * ys).sum(axis=1) / (centred**2).sum(axis=1)
    best = int(slopes.argmin())
    if slopes[best] >= 0:
        raise ValueError("The curve falls nowhere: expected a fall; give a rise's negative.")
    time = float(xs[best].mean())
    time = math.exp(time) if scale == "log" else time
    return Steepest(Crossing(time, best < len(slopes) - 1), float(slopes[best]))


@checked()
def plateau_length(
    sequences: ArrayLike, loss: ArrayLike, *, band: tuple[float, float] = PLATEAU
) -> Crossing:
    """Return sequences from the first loss below a band's upper end to the first below its lower.

    By default the band lies around ln 2. A run that ends before it leaves the band is censored,
    after the sequences that it spent there so far, 0 where it never got there.
    """
    low, high = band
    if not low < high:
        raise ValueError(f"band={band}: expected the lower end first.")
    x, y = _curve(sequences, loss)
    left = Crossing.before_end(x, _first_below(x, y, low, 1))
    return Crossing(left.time - min(_first_below(x, y, high, 1), left.time), left.observed)


@checked()
def emergence_table(
    curves: pd.DataFrame,
    criterion: Criterion = learned,
    *,
    by: str | Sequence[str] = "clamp",
    value: str = "loss",
) -> pd.DataFrame:
    """Return when each run got there: one row per run, columns `by`, `seed`, `time`, `observed`.

    `curves` has columns `by`, `seed`, `sequences`, and the `value` that the criterion reads. Where
    it has `step` and no `sequences`, times are in steps, and a column `unit` says "step". Raises
    ValueError for missing columns, and names the run that the criterion refuses.
    """
    time = columns.time_column(curves)
    keys = columns.key_columns(by, *Crossing._fields, "unit", seed=True)
    columns.refuse_columns(curves, [*keys, time, value])
    x = columns.finite(curves[time], f"The column {time!r}", low=0)
    y = columns.numbers(curves[value], f"The column {value!r}")
    curves = curves.assign(**{time: x, value: y})
    rows: list[dict[str, object]] = []
    for run, curve in columns.groups(curves, keys):
        x, y = curve.sort_values(time)[[time, value]].to_numpy(copy=True).T
        try:
            crossing = criterion(x, y)
            expect(crossing, Crossing, "The criterion's result", "return a Crossing")
            refuse_unsound([crossing])
        except ValueError as error:
            name = ", ".join(f"{column} {columns.shown(part)}" for column, part in run.items())
            raise ValueError(f"The run of {name}: {error}") from error
        unit = {} if time == "sequences" else {"unit": time}
        rows.append({**run, **crossing._asdict(), **unit})
    return pd.DataFrame(rows)


def refuse_unsound(crossings: Iterable[Crossing]) -> None:
    """Refuse no runs, a time below 0 or not finite, and an odd `observed`, with ValueError."""
    found = list(crossings)
    if not found:
        raise ValueError("crossings=[]: expected at least one run.")
    columns.finite([crossing.time for crossing in found], "A time of crossings", low=0)
    columns.flags([crossing.observed for crossing in found], "`observed` of crossings")


def _fits(x: Curve, y: Curve, spread: float) -> list[Logistic]:
    """Return the logistics from gentle and steep beginnings that converged, the best first."""
    with np.errstate(divide="ignore"):
        log_x = np.log(x)  # -inf at no sequences, where a rise is at its low end
    first, last = log_x[np.isfinite(log_x)][[0, -1]]
    middle = _first_below(x, -y, -(float(y.min()) + spread / 2), 1)
    start = min(max(math.log(middle), first), last) if 0 < middle < math.inf else first
    below, above = float(y.min()) - spread, float(y.max()) + spread
    bounds = ([below, below, 1e-3, first - 1], [above, above, 1e3, last + 1])
    found: list[Logistic] = []
    for steepness in (2.0, 32.0):
        guess = (float(y.min()), float(y.max()), steepness, start)
        try:
            fit, _ = curve_fit(
                _rise, log_x, y, p0=guess, bounds=bounds, max_nfev=2_000, check_finite=False
            )
        except RuntimeError:  # no convergence from this beginning
            continue
        error = float(((_rise(log_x, *fit) - y) ** 2).sum() / ((y - y.mean()) ** 2).sum())
        low, high, rate, log_midpoint = map(float, fit)
        if high > low:
            found.append(Logistic(low, high, rate, math.exp(log_midpoint), 1 - error))
    return sorted(found, key=lambda fit: -fit.r_squared)


def _rise(log_x: Curve, low: float, high: float, rate: float, log_midpoint: float) -> Curve:
    return low + (high - low) * expit(rate * (log_x - log_midpoint))


def _refuse_fall(curve: Curve, amount: float) -> None:
    if curve[0] - curve[-1] >= amount:
        fall = f"The curve falls from {curve[0]:.3g} to {curve[-1]:.3g}"
        raise ValueError(f"{fall}: expected a rise; of a loss give the negative, or use learned.")


def _curve(sequences: ArrayLike, curve: ArrayLike) -> tuple[Curve, Curve]:
    # Plain arrays: a column cut from a table is indexed by its row numbers, not by its places.
    x, y = columns.numbers(sequences, "sequences"), columns.numbers(curve, "The curve")
    if x.shape == y.shape == (0,):
        raise ValueError("The curve has no points: expected some; train a run to its end.")
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"sequences {x.shape} and the curve {y.shape}: expected [point] each.")
    columns.finite(x, "sequences", low=0)
    if not (np.diff(x) > 0).all():
        raise ValueError("sequences: expected one run's, ascending; sort the curve.")
    return x, columns.finite(y, "The curve")
