"""When a curve crosses a level."""

import math

import numpy as np
from numpy.typing import ArrayLike

LEARNED = 0.4 * math.log(2)
"""Training loss below which the paper calls the task learned: 0.277 nats."""

PLATEAU = (0.6, 0.8)
"""Losses around ln 2 = 0.693, where a model knows the two labels of the context and not which."""


def first_below(sequences: ArrayLike, curve: ArrayLike, level: float) -> float:
    """Sequences at which a curve first falls below a level, interpolated linearly; inf if never.

    `sequences` and `curve` are `[point]` each. Raises ValueError unless they are as many, the
    sequences ascend and every value is a number.

    >>> first_below(np.array([0.0, 10.0, 20.0]), np.array([3.0, 2.0, 0.0]), 1.0)
    15.0
    """
    sequences, curve = _checked(sequences, curve)
    below = np.flatnonzero(curve < level)
    if len(below) == 0:
        return math.inf
    after = int(below[0])
    if after == 0:
        return float(sequences[0])
    share = (curve[after - 1] - level) / (curve[after - 1] - curve[after])
    return float(sequences[after - 1] + share * (sequences[after] - sequences[after - 1]))


def time_on_plateau(sequences: ArrayLike, loss: ArrayLike) -> float:
    """Sequences between the first loss below 0.8 and the first below 0.6; inf if never below."""
    low, high = PLATEAU
    end = first_below(sequences, loss, low)
    return math.inf if math.isinf(end) else end - first_below(sequences, loss, high)


def _checked(sequences: ArrayLike, curve: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    # Plain arrays: a column cut from a table is indexed by its row numbers, not by its places.
    x, y = np.asarray(sequences, dtype=np.float64), np.asarray(curve, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(
            f"sequences have shape {x.shape} and the curve {y.shape}; [point] each was expected."
        )
    if not (np.diff(x) > 0).all():
        raise ValueError("sequences do not ascend; sort the curve, and give one run's at a time.")
    if np.isnan(y).any():
        raise ValueError(f"{int(np.isnan(y).sum())} values of the curve are NaN; remove them.")
    return x, y
