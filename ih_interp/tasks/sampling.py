"""The parts of sequences: label sets, and numbers without repetition."""

import itertools
import math

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ih_interp import _jax_random as jax_random

MAX_ENUMERATED = 10_000_000  # sequences, or label sets; more would fill the memory


def label_split(
    n_labels: int, set_size: int, held_out: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split unordered sets of labels into those for training and held out, `[set, set_size]` each.

    This is the published code's split, by JAX's generator: all sets in lexicographic order are
    permuted under `seed` and the first share is held out. Where a label would then be missing from
    training, the next seed is tried (the published code meant to, but drew the same split again).
    Raises ValueError if no split in 100 shows every label, and above 10 million sets.
    """
    n_sets = math.comb(n_labels, set_size)
    if n_sets > MAX_ENUMERATED:
        raise ValueError(
            f"There are {n_sets:,} sets of {set_size} of {n_labels} labels, too many to split; "
            "lower n_labels or n_pairs."
        )
    sets = np.array(list(itertools.combinations(range(n_labels), set_size)))
    n_held_out = int(len(sets) * held_out)
    for attempt in range(100):
        shuffled = sets[jax_random.permutation(jax_random.key(seed + attempt), len(sets))]
        if len(np.unique(shuffled[n_held_out:])) == n_labels:
            return shuffled[n_held_out:], shuffled[:n_held_out]
    raise ValueError(
        f"held_out_labels={held_out} leaves too few of {len(sets)} label sets "
        f"to show all {n_labels} labels in training; lower it."
    )


def without_repetition(draws: list[Int[Tensor, " n"]]) -> Int[Tensor, "n k"]:
    """Turn draws from [0, N), [0, N-1), ... into k different numbers, uniformly.

    The i-th draw counts only the numbers not yet taken: going through the taken numbers upwards, it
    is raised by one at each that is not above it.
    """
    taken = draws[0][:, None]
    for draw in draws[1:]:
        number = draw
        for earlier in taken.sort(dim=1).values.unbind(dim=1):
            number = number + (number >= earlier).long()
        taken = torch.cat([taken, number[:, None]], dim=1)
    return taken
