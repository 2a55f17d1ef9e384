"""Values of every subset of some heads: the game that is additive or not, and its redundancy.

**A tautology to know.** The heads of the last layer of an attention-only model do not feed each
other. Without a final LayerNorm the logits are therefore *exactly* additive over them, whatever was
learned; with one, only its one shared scale is not additive. Additivity of such heads says
something about the model on the scales of loss, probability and accuracy only, and of heads in
other layers on any scale. `freeze_ln=True` takes the shared scale away.

**Speed.** Where the logits are linear in what the last layer's heads write, every subset of these
heads comes from one pass, and heads of lower layers cost one pass per subset of *theirs*. Elsewhere
(MLPs, or a hook after the last `hook_z`, such as a clamp on the logits) each subset is a pass.

Values of every subset of n heads are `[2^n]`, or one per sequence `[batch, 2^n]`; bit i of the
index tells whether head i is on.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from ih_interp._columns import finite, numbers
from ih_interp._reprs import short_repr
from ih_interp.analysis._passes import Ablation
from ih_interp.analysis.ablation import interactions
from ih_interp.analysis.ablation._subset_passes import HEADS, subset_values
from ih_interp.analysis.checks import Seed, Within, checked, checked_in_plain_torch
from ih_interp.analysis.patching.redundancy import Values, estimated
from ih_interp.analysis.statistics import Estimate
from ih_interp.batch import Batch
from ih_interp.evaluation import Metric, parse_metrics
from ih_interp.hooked_model import HookedModel
from ih_interp.types import Head, HeadName, parse_heads

MOST_HEADS = 16  # 65,536 subsets

VALUES = "give the value of every subset, ih.coalitions(model, batch, heads).values"
EFFECTS = "give effects, of each member alone and of all together, as ih.path_patch measures them"


@short_repr
@dataclass(frozen=True, kw_only=True, eq=False)
class Coalitions:
    """The value of every subset of heads: `values[..., subset]`, a game of `interactions`.

    Bit i of a subset's index says whether `heads[i]` is on; the last subset is the whole model.
    """

    heads: tuple[Head, ...]
    metrics: tuple[Metric, ...]
    values: Float[ndarray, "*metric subset"]
    """Mean over sequences; the axis of metrics is there if several were asked for."""
    per_sequence: Float[ndarray, "*metric batch subset"] | None
    ablation: Ablation
    freeze_ln: bool
    n_sequences: int

    def of(self, on: Iterable[HeadName]) -> Float[ndarray, "*metric"]:
        """Return the value with these of the heads on and the others ablated."""
        chosen = parse_heads(on)
        strangers = [str(head) for head in chosen if head not in self.heads]
        if strangers:
            raise ValueError(
                f"on={', '.join(strangers)}: expected some of {', '.join(map(str, self.heads))}."
            )
        return np.asarray(self.values[..., sum(1 << self.heads.index(head) for head in chosen)])


@checked_in_plain_torch(HEADS)
def coalitions(
    model: HookedModel,
    batch: Batch,
    heads: Iterable[HeadName],
    *,
    metric: Metric | Sequence[Metric] = "loss",
    ablation: Ablation = "zero",
    reference: Batch | None = None,
    freeze_ln: bool = False,
    per_sequence: bool = False,
    seed: Seed = 0,
) -> Coalitions:
    """Return the mean metric of every subset of heads on, the others of them ablated.

    `v(S) = mean over sequences of the metric, with z of the heads not in S replaced`, float64,
    `[subset]` or `[metric, subset]`; all else stays on. Chance levels are the metric's. Clamps and
    other hooks act before the ablation, which therefore silences a clamped head too.

    `heads` are at most 16, of any layers. `metric` is one or several of `evaluation.SCALES` or
    functions of the logits at asked positions and a batch; a sequence's value is the mean over its
    asked positions. `ablation` says what replaces z (`hook_z`) of an ablated head, at every
    position: "zero", as in the paper; "mean", its mean at that position over the sequences of
    `reference` that reach it; "resample", its z in that row of `reference`. These are sequences
    as long as the batch's, run with every head on; by default the batch itself, which is resampled
    along one random cycle, drawn from `seed`, through all sequences of a length. `freeze_ln`
    divides the logits by the final norm's scale with every head on, each position by its own, so
    that they are exactly linear in what the last layer's heads write. `per_sequence` keeps the
    value of every sequence too, in float32.

    Raises ValueError for unknown, repeated or no heads, for a reference that does not fit, for
    sequences without another of their length to resample from, and for values by sequence that
    would need more than 2 GiB.
    """
    chosen, metrics = parse_heads(heads), parse_metrics(metric)
    if not 1 <= len(chosen) <= MOST_HEADS:
        raise ValueError(
            f"heads: expected from 1 to {MOST_HEADS} and got {len(chosen)}, which have "
            f"2^{len(chosen)} subsets."
        )
    on = interactions.members(len(chosen)).astype(bool)
    options: Any = {"freeze_ln": freeze_ln, "per_sequence": per_sequence, "seed": seed}
    found = subset_values(model, batch, chosen, on, metrics, ablation, reference, **options)
    if isinstance(metric, str) or callable(metric):
        found = [None if values is None else values[0] for values in found]
    return Coalitions(
        heads=chosen,
        metrics=metrics,
        values=found[0],
        per_sequence=found[1],
        ablation=ablation,
        freeze_ln=freeze_ln,
        n_sequences=len(batch),
    )


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
        with np.errstate(invalid="ignore"):
            return np.asarray(1 - effects[:-1].sum() / (effects[-1] or np.nan))

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
    return [
        tuple(i for i in range(interactions.n_players(table)) if subset >> i & 1)
        for subset in found
    ]


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
    full, n = len(table) - 1, interactions.n_players(table)
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
    interactions.n_players(table)
    if table.ndim > 2:
        raise ValueError(f"values has shape {table.shape}: expected [2^n] or [batch, 2^n].")
    table = np.atleast_2d(table).mean(axis=0)
    if table[-1] == table[0]:
        raise ValueError("values: expected heads that do something together; all do nothing here.")
    return table
