"""The redundancy of a set of heads: joint and single effects, sets that suffice, backup heads.

Values of every subset of n heads are `[2^n]`, or one per sequence `[batch, 2^n]`; bit i of the
index tells whether head i is on (`coalitions`).
"""

from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from ih_interp._columns import finite, numbers
from ih_interp.analysis.ablation.interactions import n_players
from ih_interp.analysis.checks import Within, checked, checked_in_plain_torch
from ih_interp.analysis.patching.redundancy import Values, estimated
from ih_interp.analysis.statistics import Estimate

VALUES = "give the value of every subset, ih.coalitions(model, batch, heads).values"
EFFECTS = "give effects, of each member alone and of all together, as ih.path_patch measures them"


@checked(EFFECTS)
def set_redundancy(single: Values, joint: Values, **options: Any) -> Estimate:
    """Return the share of a set's effect that no member shows alone.

    `1 - sum of single effects / joint effect`. `single` is `[member]` or `[batch, member]`, `joint`
    a number or `[batch]`: effects of ablating (noising) each alone and all together. 1 where only
    all together matter, so that each backs the others up; 0 where effects add; below 0 where
    members need each other, down to 1 - n where each alone does as much as all n. NaN where the
    joint effect is 0. With sequences it has a bootstrap interval over them (`options` are those of
    `bootstrap`), otherwise NaN.
    """
    single, joint = numbers(single, "single"), numbers(joint, "joint")
    if single.ndim != joint.ndim + 1 or single.shape[:-1] != joint.shape:
        raise ValueError(
            f"single has shape {single.shape} and joint {joint.shape}: expected [batch, member] "
            "and [batch], or [member] and a number."
        )
    columns = np.concatenate([single, joint[..., None]], axis=-1)

    def redundancy(effects: ndarray) -> ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            share = effects[:-1].sum() / effects[-1]
        return np.where(effects[-1] == 0, np.nan, 1 - share)

    return estimated(columns, 1, redundancy, options)


@checked(VALUES)
def minimal_sufficient(values: Values, *, share: float = 0.9) -> list[tuple[int, ...]]:
    """Return the smallest sets of heads that do at least a share of what all of them do.

    A set S suffices where `v(S) - v(none) >= share * (v(all) - v(none))`, for metrics of either
    sign; it is minimal where no proper subset suffices. The smallest sets come first. Values per
    sequence are averaged. One head in many sets is a way round another; a head in every set is
    indispensable. Raises ValueError where all heads do nothing, for values that are not finite, and
    for a share outside (0, 1].
    """
    table = _means(values)
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: expected a share in (0, 1].")
    done = (table - table[0]) / (table[-1] - table[0])
    found: list[int] = []
    # Rounding must not take a set away that reaches the share exactly.
    enough = np.flatnonzero(done >= share - 1e-9).tolist()
    for subset in sorted(enough, key=lambda subset: (subset.bit_count(), subset)):
        if not any(smaller & subset == smaller for smaller in found):
            found.append(subset)
    return [tuple(i for i in range(n_players(table)) if subset >> i & 1) for subset in found]


@checked_in_plain_torch(VALUES)
def backup_heads(
    values: Values, *, idle: Annotated[float, Within(0)] = 0.05, share: float = 0.1
) -> dict[int, tuple[int, ...]]:
    """Return for every head those that do nothing beside it and step in when it is off.

    A head `o` backs up `h` where it does less than `idle` of what all heads do while all are on,
    and at least `share` of it once `h` is off (Wang et al. 2022, backup name movers). Raises
    ValueError as `minimal_sufficient` does.
    """
    table = _means(values)
    full, n = len(table) - 1, n_players(table)
    whole = table[full] - table[0]

    def does(head: int, among: int) -> float:
        return float((table[among] - table[among ^ 1 << head]) / whole)

    sleepers = [o for o in range(n) if abs(does(o, full)) < idle]
    return {
        h: tuple(o for o in sleepers if o != h and does(o, full ^ 1 << h) >= share)
        for h in range(n)
    }


def _means(values: Values) -> Float[ndarray, " subset"]:
    """Return means over sequences; ValueError for heads that do nothing, and other lengths."""
    table = finite(values, "values")
    n_players(table)
    if table.ndim > 2:
        raise ValueError(f"values has shape {table.shape}: expected [2^n] or [batch, 2^n].")
    table = np.atleast_2d(table).mean(axis=0)
    if table[-1] == table[0]:
        raise ValueError("values: expected heads that do something together; all do nothing here.")
    return table
