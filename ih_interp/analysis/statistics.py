"""The uncertainty of a number: bootstrap intervals, sign-flip tests, false discoveries."""

from collections.abc import Callable, Generator
from typing import Annotated, Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from numpy.typing import ArrayLike
from scipy.stats import false_discovery_control

from ih_interp._columns import numbers
from ih_interp._reprs import short_repr
from ih_interp.analysis.checks import Positive, Within, checked

BLOCK = 64  # resamples at once: their weights are [resample, batch]


@short_repr
class Estimate(NamedTuple):
    """A number, or an array of numbers, with the ends of its interval."""

    value: Float[ndarray, "*out"]
    low: Float[ndarray, "*out"]
    high: Float[ndarray, "*out"]


@checked()
def bootstrap(
    values: ArrayLike,
    statistic: Callable[[ndarray], ndarray] = np.asarray,
    *,
    level: float = 0.95,
    n_resamples: Positive = 1_000,
    seed: Annotated[int, Within(0)] = 0,
) -> Estimate:
    """Return a statistic of the mean over sequences, with a percentile bootstrap interval.

    `values` are `[batch, ...]`; `statistic` maps the mean `[...]` of sequences drawn with
    replacement to numbers `[*out]`. The interval runs between the quantiles (1 - level) / 2 and
    (1 + level) / 2 of the resampled statistic (Efron 1979): how much the number would vary with
    other sequences, not with other networks. Ends of NaN and infinite values are NaN. Raises
    ValueError for fewer than two sequences, a level outside (0, 1) or a statistic whose shape
    varies, and TypeError for other than real numbers.
    """
    means = _several(values, "values")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a share between 0 and 1, such as 0.95.")
    # scipy's bootstrap needs [resample, batch, ...] in memory; these means are matrix products.
    flat, rng = means.reshape(len(means), -1), np.random.default_rng(seed)
    with np.errstate(invalid="ignore"):  # infinities give NaN
        drawn = [
            _given_by(statistic, mean.reshape(means.shape[1:]))
            for weights in _resampled(len(means), n_resamples, rng)
            for mean in weights @ flat
        ]
        value = _given_by(statistic, means.mean(axis=0))
        shapes = {found.shape for found in (value, *drawn)}
        if len(shapes) > 1:
            raise ValueError(f"The statistic gave the shapes {sorted(shapes)}: expected one.")
        low, high = np.quantile(np.stack(drawn), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Estimate(value, np.asarray(low), np.asarray(high))


def _given_by(statistic: Callable[[Any], Any], mean: Any) -> ndarray:
    found = statistic(mean)
    if found is None:
        raise TypeError("The statistic gave None: expected numbers, return them.")
    return numbers(found, "The statistic")


def _resampled(
    size: int, n: int, rng: np.random.Generator
) -> Generator[Float[ndarray, "resample batch"]]:
    """Yield blocks of weights `[resample, batch]`; every row sums to 1."""
    for start in range(0, n, BLOCK):
        rows = [
            np.bincount(rng.integers(size, size=size), minlength=size)
            for _ in range(min(BLOCK, n - start))
        ]
        yield np.stack(rows) / size


@checked()
def sign_flip_test(
    effects: ArrayLike, *, n_permutations: Positive = 9_999, seed: Annotated[int, Within(0)] = 0
) -> Float[ndarray, " test"]:
    """Return two-sided p-values of the hypothesis that an effect is distributed evenly about 0.

    `effects` are `[batch, test]`. Signs of whole sequences are flipped at random; p = (1 +
    permutations whose absolute mean is at least that of the data) / (1 + n_permutations), in
    (0, 1] (Phipson and Smyth 2010). Where n sequences have at most 1 + n_permutations flips, each
    of the 2^n is taken once and p is exact, at least 2^(1 - n). All tests share the flips. The p of
    an effect with a NaN or an infinity is NaN. Raises ValueError for fewer than two sequences, or
    effects of another shape.
    """
    # scipy.stats.permutation_test draws other flips, and published p-values would change.
    found = _several(effects, "effects")
    if found.ndim != 2:
        raise ValueError(f"effects: expected [batch, test], got shape {found.shape}.")
    # Sums in another order differ in the last digits: a tie with the data counts as reaching it.
    found = np.where(np.isfinite(found), found, np.nan)
    reach = np.abs(found.sum(axis=0)) - 1e-12 * np.abs(found).sum(axis=0)
    reached, tried = np.zeros(found.shape[1]), 0
    for signs in _flips(len(found), n_permutations, np.random.default_rng(seed)):
        reached += (np.abs(signs @ found) >= reach).sum(axis=0)
        tried += len(signs)
    return np.where(np.isnan(reach), np.nan, (1 + reached) / (1 + tried))


def _flips(
    size: int, n: int, rng: np.random.Generator
) -> Generator[Float[ndarray, "permutation batch"]]:
    """Yield blocks of signs: `n` at random, or all but the data's own where they are no more."""
    every = 2**size - 1
    for start in range(0, min(n, every), BLOCK):
        count = min(BLOCK, min(n, every) - start)
        if every <= n:
            flipped = np.arange(start + 1, start + count + 1)[:, None] >> np.arange(size) & 1
        else:
            flipped = rng.integers(2, size=(count, size), dtype=np.int8)
        yield 1.0 - 2.0 * flipped


def adjusted_for_discoveries(p: ArrayLike) -> Float[ndarray, "*test"]:
    """Return p-values adjusted for their number (Benjamini and Hochberg 1995), in [0, 1].

    The shape stays; NaN stays NaN and does not count. If results of at most q are called effects,
    the expected share of false ones among them is at most q, for independent or positively
    dependent tests. Raises ValueError for p-values outside [0, 1].
    """
    found = numbers(p, "p")
    if ((found < 0) | (found > 1)).any():
        raise ValueError(f"p={np.nanmin(found):g} to {np.nanmax(found):g}: expected 0 to 1.")
    adjusted, there = found.copy(), ~np.isnan(found)
    if there.any():
        adjusted[there] = false_discovery_control(found[there], method="bh")
    return adjusted


def _several(values: ArrayLike, what: str) -> Float[ndarray, "batch ..."]:
    found = numbers(values, what)
    if found.ndim == 0 or len(found) < 2:
        raise ValueError(f"{what}: expected two or more sequences, to have a spread.")
    return found
