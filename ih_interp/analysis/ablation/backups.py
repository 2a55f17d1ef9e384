"""How redundant a set of heads is: joint and single effects, sets that suffice, backup heads.

Values of every subset of n heads come as `[2^n]`, or one a sequence `[batch, 2^n]`, bit i of the
index telling whether head i is on (`coalitions`). Given sequences, measures have bootstrap
intervals over them; without, the ends are NaN.
"""

from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from ih_interp._columns import finite, numbers
from ih_interp._torch_state import plain_torch
from ih_interp.analysis.checks import called_with, refuse_wrong
from ih_interp.analysis.patching.redundancy import Values, estimated
from ih_interp.analysis.statistics import Estimate

VALUES = "give the value of every subset, ih.coalitions(model, batch, heads).values"
EFFECTS = "give effects, of each member alone and of all together, as ih.path_patch measures them"


@called_with(EFFECTS)
def set_redundancy(single: Values, joint: Values, **options: Any) -> Estimate:
    """How much of a set's effect no member shows alone: `1 - sum of single effects / joint effect`.

    `single` is `[member]` or `[batch, member]`, `joint` a number or `[batch]`: effects of ablating
    (noising) each alone and all together. 1 where only all together matter, so that each backs the
    others up; 0 where effects add; below 0 where members need each other, down to 1 - n where each
    alone does as much as all n. NaN where the joint effect is 0.
    """
    refuse_wrong(single=single, joint=joint)
    single, joint = numbers(single, "single"), numbers(joint, "joint")
    if single.ndim != joint.ndim + 1 or single.shape[:-1] != joint.shape:
        raise ValueError(
            f"single effects have shape {single.shape} and the joint effect {joint.shape}; "
            "[batch, member] and [batch], or [member] and a number, were expected."
        )
    columns = np.concatenate([single, joint[..., None]], axis=-1)

    def redundancy(effects: ndarray) -> ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            share = effects[:-1].sum() / effects[-1]
        return np.where(effects[-1] == 0, np.nan, 1 - share)

    return estimated(columns, 1, redundancy, options)


@called_with(VALUES)
def minimal_sufficient(values: Values, *, share: float = 0.9) -> list[tuple[int, ...]]:
    """Smallest sets of heads that do at least a share of what all of them do, smallest first.

    A set S suffices where `v(S) - v(none) >= share * (v(all) - v(none))`, for metrics of either
    sign; it is minimal where no proper subset suffices. Values per sequence are averaged. One head
    in many sets is a way round another; a head in every set is indispensable. Raises ValueError
    where all heads do nothing, for values that are not finite, and for a share outside (0, 1].
    """
    refuse_wrong(share=share, values=values)
    table = _means(values)
    if not 0 < share <= 1:
        raise ValueError(f"share={share}; a share in (0, 1] was expected.")
    done = (table - table[0]) / (table[-1] - table[0])
    found: list[int] = []
    # Rounding must not take a set away that reaches the share exactly.
    enough = [subset for subset in range(len(table)) if done[subset] >= share - 1e-9]
    for subset in sorted(enough, key=lambda subset: (subset.bit_count(), subset)):
        if not any(smaller & subset == smaller for smaller in found):
            found.append(subset)
    return [_members(subset) for subset in found]


@called_with(VALUES)
def backup(values: Values, **options: Any) -> Estimate:
    """How much more a head does when another is off, `[head, other]`, as a share of all heads.

    `((v(N-h) - v(N-h-o)) - (v(N) - v(N-o))) / (v(N) - v(none))`, N all heads: what `o` does without
    `h` minus what it does beside it. Symmetric: as much as `o` stands in for `h`. Positive for
    heads that back each other up (1: each does all alone), 0 for heads that add, negative for heads
    that need each other. The diagonal is NaN, and so is all where all heads together do nothing.
    Values as in `minimal_sufficient`.
    """
    table = _lattice(values)
    n = _n_heads(table)

    def matrix(mean: ndarray) -> ndarray:
        full = len(mean) - 1
        whole = mean[full] - mean[0] or np.nan
        out = np.full((n, n), np.nan)
        for h in range(n):
            for o in (o for o in range(n) if o != h):
                alone = mean[full ^ 1 << h] - mean[full ^ 1 << h ^ 1 << o]
                beside = mean[full] - mean[full ^ 1 << o]
                out[h, o] = (alone - beside) / whole
        return out

    return estimated(
        table if numbers(values, "The values").ndim == 2 else table[0], 1, matrix, options
    )


@called_with(VALUES)
@plain_torch()
def backup_heads(
    values: Values, *, idle: float = 0.05, share: float = 0.1
) -> dict[int, tuple[int, ...]]:
    """For every head, those that do nothing beside it and step in when it is off.

    A head `o` backs up `h` where it does less than `idle` of what all heads do while all are on,
    and at least `share` of it once `h` is off (Wang et al. 2022, backup name movers). Raises
    ValueError as `minimal_sufficient` does.
    """
    refuse_wrong(idle=idle, share=share, values=values)
    table = _means(values)
    full, n = len(table) - 1, _n_heads(table[None])
    whole = table[full] - table[0]

    def does(head: int, among: int) -> float:
        return float((table[among] - table[among ^ 1 << head]) / whole)

    sleepers = [o for o in range(n) if abs(does(o, full)) < idle]
    return {
        h: tuple(o for o in sleepers if o != h and does(o, full ^ 1 << h) >= share)
        for h in range(n)
    }


def _lattice(values: Values) -> Float[ndarray, "batch subset"]:
    array = numbers(values, "The values")
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or array.shape[1] < 2 or array.shape[1] & (array.shape[1] - 1):
        raise ValueError(f"Values have shape {array.shape}; [2^n] or [batch, 2^n] was expected.")
    return array


def _means(values: Values) -> Float[ndarray, " subset"]:
    """Over sequences; ValueError where no share of what all heads do can be compared with."""
    table = finite(_lattice(values), "values").mean(axis=0)
    if table[-1] == table[0]:
        raise ValueError("All heads together do nothing here; there is no share to reach.")
    return table


def _n_heads(table: ndarray) -> int:
    return table.shape[1].bit_length() - 1


def _members(subset: int) -> tuple[int, ...]:
    return tuple(i for i in range(subset.bit_length()) if subset >> i & 1)
