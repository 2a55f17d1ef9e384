"""How sure a number is: bootstrap intervals, sign-flip tests, false discoveries."""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray
from scipy.stats import false_discovery_control

from ih_interp._columns import numbers
from ih_interp._reprs import short_repr
from ih_interp.types import expect, integer

BLOCK = 64  # resamples at once: their weights are [resample, batch]


@short_repr
class Estimate(NamedTuple):
    """A number, or an array of them, with the ends of its interval."""

    value: Float[ndarray, "*out"]
    low: Float[ndarray, "*out"]
    high: Float[ndarray, "*out"]


def random_numbers(seed: Any) -> np.random.Generator:
    """Return NumPy's generator from a seed; ValueError for what is none, as -1 or 1.5."""
    try:
        return np.random.default_rng(seed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"seed={seed!r}: a whole number of at least 0 was expected.") from error


def _mean(means: ndarray) -> ndarray:
    return means


def bootstrap(
    values: Shaped[ndarray, "batch ..."],
    statistic: Callable[[ndarray], ndarray] = _mean,
    *,
    level: float = 0.95,
    n_resamples: int = 1_000,
    seed: int = 0,
) -> Estimate:
    """A statistic of the mean over sequences, with a percentile bootstrap interval.

    Sequences are drawn with replacement `n_resamples` times; `statistic` maps their mean `[...]`
    to numbers `[*out]`, by default the mean itself. The interval runs between the quantiles
    (1 - level) / 2 and (1 + level) / 2 of the resampled statistic (Efron 1979). It says how much
    the number would vary with other sequences, not with other networks. The same seed gives the
    same interval. NaN and infinite values have NaN for ends. Raises ValueError for fewer than two
    sequences, a level outside (0, 1) or a statistic of another shape for every draw, and TypeError
    for what is no real number.
    """
    values = numbers(values, "The values")
    _refuse(values, level, n_resamples)
    expect(statistic, Callable, "The statistic", "give a function of the mean")  # pyright: ignore
    flat = values.reshape(len(values), -1)
    with np.errstate(invalid="ignore"):  # of infinities; NaN says so
        drawn = [
            _given_by(statistic, mean.reshape(values.shape[1:]))
            for weights in _resampled(len(values), n_resamples, random_numbers(seed))
            for mean in weights @ flat
        ]
        value = _given_by(statistic, values.mean(axis=0))
    shapes = {found.shape for found in (value, *drawn)}
    if len(shapes) > 1:
        raise ValueError(f"The statistic gave the shapes {sorted(shapes)}: one was expected.")
    with np.errstate(invalid="ignore"):
        low, high = np.quantile(np.stack(drawn), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Estimate(value, np.asarray(low), np.asarray(high))


def _given_by(statistic: Callable[[Any], Any], mean: Any) -> ndarray:
    found = statistic(mean)
    if found is None:
        raise TypeError("The statistic gave None: numbers were expected, return them.")
    return numbers(found, "What the statistic gives")


def _resampled(
    size: int, n: int, rng: np.random.Generator
) -> Generator[Float[ndarray, "resample batch"]]:
    """Blocks of weights `[resample, batch]`; every row sums to 1."""
    for start in range(0, n, BLOCK):
        rows = [
            np.bincount(rng.integers(size, size=size), minlength=size)
            for _ in range(min(BLOCK, n - start))
        ]
        yield np.stack(rows) / size


def sign_flip_test(
    effects: Shaped[ndarray, "batch test"], *, n_permutations: int = 9_999, seed: int = 0
) -> Float[ndarray, " test"]:
    """Two-sided p-values of the hypothesis that an effect's distribution is symmetric about 0.

    Signs of whole sequences are flipped at random; p = (1 + permutations whose absolute mean is at
    least that of the data) / (1 + n_permutations), so at least 1 / (1 + n_permutations) and in
    (0, 1] (Phipson and Smyth 2010). Where n sequences have no more than 1 + n_permutations flips,
    each of the 2^n is taken once and p is exact, at least 2^(1 - n). All tests share the flips.
    The p of an effect with a NaN or an infinity is NaN. Raises ValueError for fewer than two
    sequences, or effects of another shape.
    """
    effects = numbers(effects, "The effects")
    _refuse(effects, 0.5, n_permutations)
    if effects.ndim != 2:
        raise ValueError(f"Effects have shape {effects.shape}; [batch, test] was expected.")
    # Sums in another order differ in the last digits: a tie with the data counts as reaching it.
    effects = np.where(np.isfinite(effects), effects, np.nan)
    reach = np.abs(effects.sum(axis=0)) - 1e-12 * np.abs(effects).sum(axis=0)
    reached, tried = np.zeros(effects.shape[1]), 0
    for signs in _flips(len(effects), n_permutations, random_numbers(seed)):
        reached += (np.abs(signs @ effects) >= reach).sum(axis=0)
        tried += len(signs)
    return np.where(np.isnan(reach), np.nan, (1 + reached) / (1 + tried))


def _flips(
    size: int, n: int, rng: np.random.Generator
) -> Generator[Float[ndarray, "permutation batch"]]:
    """Blocks of signs -1 and 1: `n` at random, or all but the data's own where they are no more."""
    every = 2**size - 1
    for start in range(0, min(n, every), BLOCK):
        count = min(BLOCK, min(n, every) - start)
        if every <= n:
            numbers = np.arange(start, start + count)[:, None] + 1
            flipped = numbers >> np.arange(size) & 1
        else:
            flipped = rng.integers(2, size=(count, size), dtype=np.int8)
        yield 1.0 - 2.0 * flipped


def adjusted_for_discoveries(p: Shaped[ndarray, "*test"]) -> Float[ndarray, "*test"]:
    """p-values adjusted for how many were tried (Benjamini and Hochberg 1995); NaN stays NaN.

    Of those called effects because the result is at most q, a share of at most q is none, in
    expectation, for independent or positively dependent tests. Raises ValueError outside [0, 1].
    """
    p = numbers(p, "p")
    if ((p < 0) | (p > 1)).any():
        low, high = np.nanmin(p), np.nanmax(p)
        raise ValueError(f"p runs from {low:g} to {high:g}: numbers between 0 and 1 were expected.")
    adjusted = np.full(p.shape, np.nan)
    there = ~np.isnan(p)
    if there.any():
        adjusted[there] = false_discovery_control(p[there], method="bh")
    return adjusted


def _refuse(values: ndarray, level: float, n: int) -> None:
    if values.ndim == 0 or len(values) < 2:
        raise ValueError(
            f"{len(np.atleast_1d(values))} sequences have no spread; give two or more."
        )
    expect(level, (int, float, np.number), f"level={level!r}")
    if not 0 < level < 1:
        raise ValueError(f"level={level}; a share such as 0.95 was expected.")
    if integer(n, f"{n!r} resamples") < 1:
        raise ValueError(f"{n} resamples are too few; give one or more.")
