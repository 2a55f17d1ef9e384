"""Values of every subset of some heads: the game that is additive or not.

**A tautology to know.** The heads of the last layer of an attention-only model do not feed each
other. Without a final LayerNorm the logits are therefore *exactly* additive over them, whatever was
learned; with one, only its one shared scale is not additive. Additivity of such heads says
something about the model on the scales of loss, probability and accuracy only, and of heads in
other layers on any scale. `freeze_ln=True` takes the shared scale away.

**Speed.** Where the logits are linear in what the last layer's heads write, every subset of these
heads comes from one pass, and heads of lower layers cost one pass per subset of *theirs*. Elsewhere
(MLPs, or a hook after the last `hook_z`, such as a clamp on the logits) each subset is a pass.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from transformer_lens import HookedTransformer

from ih_interp._reprs import short_repr
from ih_interp.analysis._passes import Ablation
from ih_interp.analysis.ablation import interactions
from ih_interp.analysis.ablation._subset_passes import subset_values
from ih_interp.analysis.checks import Seed, checked_in_plain_torch
from ih_interp.evaluation import Metric, parse_metrics
from ih_interp.types import Batch, Head, HeadName, parse_heads

MOST_HEADS = 16  # 65,536 subsets


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


@checked_in_plain_torch()
def coalitions(
    model: HookedTransformer,
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
    functions of the last position's logits and a batch. `ablation` says what replaces z (`hook_z`)
    of an ablated head, at every position: "zero", as in the paper; "mean", its mean over
    `reference` at that position; "resample", its z in that row of `reference`. These are sequences
    as long as the batch's, run with every head on; by default the batch itself, which is resampled
    along one random cycle, drawn from `seed`. `freeze_ln` divides the logits by the final norm's
    scale with every head on, each sequence by its own, so that they are exactly linear in what the
    last layer's heads write. `per_sequence` keeps the value of every sequence too, in float32.

    Raises ValueError for unknown, repeated or no heads, for a reference
    that does not fit, and for values by sequence that would need more than 2 GiB.
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
