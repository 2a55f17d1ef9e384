"""The effect of ablating heads, compared with that of random heads of the same layers.

Ablating many heads hurts any model, and early layers hurt more than late ones. A set's effect is
therefore compared with those of random sets which have as many heads in each layer, drawn from the
other heads (after the random heads of Crosbie and Shutova 2024, arXiv:2407.07011).
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool
from numpy import ndarray

from ih_interp._reprs import short_repr
from ih_interp.analysis._passes import Ablation
from ih_interp.analysis.ablation._subset_passes import HEADS, subset_values
from ih_interp.analysis.checks import Confidence, Positive, Seed, checked_in_plain_torch
from ih_interp.batch import Batch
from ih_interp.clamps.base import Shape, head_mask
from ih_interp.evaluation import LOWER_IS_BETTER, Metric
from ih_interp.hooked_model import HookedModel
from ih_interp.types import Head, HeadName, parse_heads

ROUNDING = 1e-6  # of the largest value; float32 does not tell less from 0

Sets: TypeAlias = Bool[ndarray, "set head"]


@short_repr
class MatchedSets(NamedTuple):
    """The effect of ablating a set of heads, beside those of random sets of the same layers."""

    effect: float
    """The metric without the set minus with it, in the metric's unit."""
    random: float
    """The mean effect of the random sets."""
    low: float
    """The end of the interval that holds the middle 95% (`level`) of the random sets' effects."""
    high: float
    share: float
    """(1 + random sets that hurt as much) / (1 + random sets), in (0, 1]; chance 1/2."""
    n_sets: int


@checked_in_plain_torch(HEADS)
def matched_random_sets(
    model: HookedModel,
    batch: Batch,
    heads: Iterable[HeadName],
    *,
    metric: Metric = "loss",
    n_sets: Positive = 100,
    ablation: Ablation = "zero",
    reference: Batch | None = None,
    level: Confidence = 0.95,
    seed: Seed = 0,
) -> MatchedSets:
    """Return the effect of ablating heads together, beside those of matched random sets.

    `effect = v(all but the heads) - v(all)`, v the mean of the metric over sequences. A random set
    has as many heads in every layer as `heads`, drawn evenly without repetition from the layer's
    other heads; each set is drawn anew from `seed`, or, where there are no more than `n_sets`
    different ones, all of them are taken once. `share` is the share of sets, the one given among
    them, that hurt at least as much: that raise the metric as much where lower is better
    (`evaluation.LOWER_IS_BETTER`), or lower it as much. It is small for heads that matter more than
    their layers explain, about even in (0, 1] for heads that were picked blindly, and at least 1 /
    (1 + n_sets). The interval is that of single random sets, between quantiles, and so about other
    heads, not about other sequences or networks. `coalitions` explains ablation and reference. Over
    checkpoints, of at most 1,024 sequences, as a share is no mean over them:

        ih.trace(run, lambda m, b: ih.ablation.matched_random_sets(m, b, ["L1H3"]), batch=batch)

    Raises ValueError as `coalitions` does, and for a layer with fewer other heads than `heads` has.
    """
    chosen = parse_heads(heads)
    if not chosen:
        raise ValueError("heads: expected at least one.")
    head_mask(chosen, Shape.of(model))
    layers = sorted({head.layer for head in chosen})
    every = [Head(layer, number) for layer in layers for number in range(model.cfg.n_heads)]
    given = np.array([head in chosen for head in every])
    others = [_others(chosen, layer, model.cfg.n_heads) for layer in layers]
    drawn = _sets(others, every, n_sets, np.random.default_rng(seed))
    on = ~np.concatenate([np.zeros_like(given)[None], given[None], drawn])
    options: Any = {"per_sequence": False, "seed": seed}
    found, _ = subset_values(model, batch, every, on, [metric], ablation, reference, **options)
    whole, without, *random = found[0]
    effect, effects = without - whole, np.array(random) - whole
    sign = 1 if metric in LOWER_IS_BETTER else -1
    low, high = np.quantile(effects, [(1 - level) / 2, (1 + level) / 2])
    # Effects that differ by rounding are equal, and a tie counts as hurting as much.
    rounding = ROUNDING * np.abs(found).max()
    hurt_as_much = int((sign * (effects - effect) >= -rounding).sum())
    return MatchedSets(
        effect=float(effect),
        random=float(effects.mean()),
        low=float(low),
        high=float(high),
        share=(1 + hurt_as_much) / (1 + len(effects)) if np.isfinite(found).all() else math.nan,
        n_sets=len(effects),
    )


def _others(chosen: Sequence[Head], layer: int, n_heads: int) -> tuple[list[Head], int]:
    """Return a layer's heads that are not chosen, and how many are to be drawn of them."""
    others = [h for h in (Head(layer, n) for n in range(n_heads)) if h not in chosen]
    size = n_heads - len(others)
    if len(others) < size:
        raise ValueError(
            f"heads: expected at most {n_heads // 2} of the {n_heads} heads of layer {layer}, so "
            f"that as many others can be drawn, got {size}."
        )
    return others, size


def _sets(
    others: Sequence[tuple[list[Head], int]],
    every: Sequence[Head],
    n_sets: int,
    rng: np.random.Generator,
) -> Sets:
    """Return sets of heads to ablate: all there are, or so many that are drawn."""
    n_different = math.prod(math.comb(len(heads), size) for heads, size in others)

    def drawn() -> Iterator[list[Head]]:
        for _ in range(n_sets):
            places = [rng.choice(len(heads), size, replace=False) for heads, size in others]
            pairs = zip(others, places, strict=True)
            yield [heads[place] for (heads, _), picked in pairs for place in picked.tolist()]

    by_layer = (itertools.combinations(heads, size) for heads, size in others)
    all_of_them = map(list, map(itertools.chain.from_iterable, itertools.product(*by_layer)))
    found = all_of_them if n_different <= n_sets else drawn()
    return np.array([[head in chosen for head in every] for chosen in found])
