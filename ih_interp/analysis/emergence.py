"""When a curve crosses a level."""

import math

import numpy as np
from jaxtyping import Float

LEARNED = 0.4 * math.log(2)
"""Training loss below which the paper calls the task learned: 0.277 nats."""

PLATEAU = (0.6, 0.8)
"""Losses around ln 2 = 0.693, where a model knows the two labels of the context and not which."""


def first_below(
    sequences: Float[np.ndarray, " point"], curve: Float[np.ndarray, " point"], level: float
) -> float:
    """Sequences at which a curve first falls below a level, interpolated linearly; inf if never.

    >>> first_below(np.array([0.0, 10.0, 20.0]), np.array([3.0, 2.0, 0.0]), 1.0)
    15.0
    """
    below = np.flatnonzero(curve < level)
    if len(below) == 0:
        return math.inf
    after = int(below[0])
    if after == 0:
        return float(sequences[0])
    share = (curve[after - 1] - level) / (curve[after - 1] - curve[after])
    return float(sequences[after - 1] + share * (sequences[after] - sequences[after - 1]))


def time_on_plateau(
    sequences: Float[np.ndarray, " point"], loss: Float[np.ndarray, " point"]
) -> float:
    """Sequences between the first loss below 0.8 and the first below 0.6; inf if never below."""
    low, high = PLATEAU
    end = first_below(sequences, loss, low)
    return math.inf if math.isinf(end) else end - first_below(sequences, loss, high)
