"""A test of whether heads add up, on several scales, with intervals over sequences.

The game is that of `coalitions`: every subset of the heads on, the others ablated. Whether it is
additive depends on the scale: heads of the last layer add up in the logits but for the final
LayerNorm (the tautology that `coalitions` explains), and not in the probability or the loss, which
saturate. Each metric is therefore tested as it is and with the final norm's scale frozen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from ih_interp._reprs import short_repr
from ih_interp.analysis._passes import Ablation
from ih_interp.analysis.ablation import interactions
from ih_interp.analysis.ablation._subset_passes import HEADS
from ih_interp.analysis.ablation.coalitions import coalitions
from ih_interp.analysis.ablation.interactions import Game
from ih_interp.analysis.checks import Confidence, Positive, Seed, checked_in_plain_torch
from ih_interp.analysis.statistics import adjusted_for_discoveries, bootstrap, sign_flip_test
from ih_interp.batch import Batch
from ih_interp.evaluation import LOWER_IS_BETTER, Metric, metric_name, parse_metrics
from ih_interp.hooked_model import HookedModel
from ih_interp.types import Head, HeadName, parse_heads

PARTS = ("total", "frozen", "rest")
"""The model as it is; with the final norm's scale frozen; their difference, the scale's part."""

VALUES = 2**16  # at once, so that they stay in the processor's cache
ROUNDING = 1e-6  # of the largest value; float32 does not tell less from 0


@short_repr
@dataclass(frozen=True, kw_only=True, eq=False)
class AdditivityReport:
    """The result of `additivity_test`; the numbers stand in one tidy table."""

    heads: tuple[Head, ...]
    ablation: Ablation
    n_sequences: int
    level: float
    numbers: pd.DataFrame

    def table(self, *quantities: str) -> pd.DataFrame:
        """Return rows of the named quantities, by default of all, without empty columns."""
        known = list(self.numbers["quantity"].unique())
        wrong = [name for name in quantities if name not in known]
        if wrong:
            raise ValueError(f"quantity {wrong[0]!r}: expected one of {', '.join(known)}.")
        chosen = self.numbers["quantity"].isin(quantities or known)
        return self.numbers[chosen].dropna(axis="columns", how="all").reset_index(drop=True)


@checked_in_plain_torch(HEADS)
def additivity_test(
    model: HookedModel,
    batch: Batch,
    heads: Iterable[HeadName],
    *,
    metrics: Metric | Sequence[Metric] = ("logit_difference", "loss", "probability"),
    ablation: Ablation = "zero",
    reference: Batch | None = None,
    level: Confidence = 0.95,
    n_resamples: Positive = 500,
    n_permutations: Positive = 999,
    seed: Seed = 0,
) -> AdditivityReport:
    """Test how additive the heads are on every scale.

    The table has one row per `metric`, `part` and `quantity`, with `value` and its percentile
    bootstrap interval over sequences, `low` to `high`. v is the mean over sequences of the metric
    with a subset of the heads on, n the number of heads; see `interactions`:

        r_squared      of the best additive fit to v, all subsets alike, in [0, 1]; 1 is additive,
                       n / (2^n - 1) a random game, NaN a constant one
        r_squared_per_sequence
                       the same for each sequence's own v, their variances pooled; lower where
                       departures cancel in the mean
        share          of v's variance over subsets, by `order`: Walsh terms of that many heads
        moebius        sum of |Moebius terms| by `order`, in the metric's unit
        first_in       v(head) - v(none), by `head`;     last_in     v(all) - v(all but head)
        redundancy     first_in - last_in, its sign turned where lower is better: above 0 the head
                       can do more alone than is missed without it; 0 if additive
        shapley        a head's average contribution; they sum to v(all) - v(none)
        interaction    Shapley interaction index of `head` and `other`, in the metric's unit; 0 if
                       additive. `p` is the two-sided sign-flip p-value that it is symmetric about 0
                       over sequences, `q` the same adjusted for false discoveries over the pairs of
                       that metric and part. Below 0 is redundant and above complementary, the
                       reverse where lower is better (`evaluation.LOWER_IS_BETTER`)

    `part` is "total", the model as it is; "frozen", with each sequence's scale of the final norm as
    with all heads on; by head or pair also "rest", total - frozen, the part of that scale.
    Departures below a millionth of the largest v are rounding, and 0. The intervals are about other
    sequences, not other networks. `coalitions` explains heads, ablation and reference.

    Raises ValueError as `coalitions` does, and for fewer than two heads or sequences.
    """
    heads = parse_heads(heads)
    if len(heads) < 2:
        raise ValueError(f"heads: expected at least two, which can add up, and got {len(heads)}.")
    metrics = parse_metrics(metrics)
    given: Any = {"metric": metrics, "ablation": ablation, "reference": reference, "seed": seed}
    given["per_sequence"] = True
    total = frozen = coalitions(model, batch, heads, **given)
    if model.cfg.normalization_type is not None:
        frozen = coalitions(model, batch, heads, freeze_ln=True, **given)
    draws = {"level": level, "n_resamples": n_resamples, "seed": seed}
    rows: list[dict[str, Any]] = []
    values = [cast(ndarray, found.per_sequence) for found in (total, frozen)]
    for metric, *pair in zip(metrics, *values, strict=True):
        both = np.stack(pair, axis=1).astype(np.float64)
        found = _rows(both, heads, -1 if metric in LOWER_IS_BETTER else 1, draws)
        effects = _interactions(both).reshape(len(both), -1)
        p = sign_flip_test(effects, n_permutations=n_permutations, seed=seed)
        q = [adjusted_for_discoveries(of_part) for of_part in p.reshape(len(PARTS), -1)]
        pairs = (row for row in found if row["quantity"] == "interaction")
        for row, of_pair, adjusted in zip(pairs, p, np.ravel(q), strict=True):
            row.update(p=of_pair, q=adjusted)
        rows += [{"metric": metric_name(metric), **row} for row in found]
    return AdditivityReport(
        heads=heads,
        ablation=ablation,
        n_sequences=len(batch),
        level=level,
        numbers=pd.DataFrame(rows),
    )


class _Label(NamedTuple):
    """The name of a number."""

    quantity: str
    head: str | None = None
    other: str | None = None
    order: int | None = None


def _shape(values: Game) -> Float[ndarray, "*game number"]:
    """Return how additive games are: R squared, shares by order, Moebius mass by order."""
    shares = _rounded(interactions.variance_shares(values), ROUNDING**2)
    moebius = interactions.spectrum_by_order(values).moebius
    return np.concatenate([shares[..., :1], shares, moebius], axis=-1)


def _effects(values: Game, sign: int, rounding: float) -> Float[ndarray, "*game number"]:
    """Return by head first in, last in, redundancy and Shapley value, by pair the interaction."""
    first, last = interactions.first_in(values), interactions.last_in(values)
    i, j = np.triu_indices(interactions.n_players(values), k=1)
    pairs = interactions.shapley_interaction(values)[..., i, j]
    redundancy, pairs = (_rounded(x, rounding) for x in (sign * (first - last), pairs))
    return np.concatenate([first, last, redundancy, interactions.shapley(values), pairs], axis=-1)


def _rows(
    both: Float[ndarray, "batch part subset"], heads: Sequence[Head], sign: int, draws: Any
) -> list[dict[str, Any]]:
    """Return one row per number and part, with its interval; `both` is total and frozen."""
    names, orders = [str(head) for head in heads], range(1, len(heads) + 1)
    shape = [_Label("r_squared")]
    shape += [_Label(name, order=k) for name in ("share", "moebius") for k in orders]
    by_head = ("first_in", "last_in", "redundancy", "shapley")
    effects = [_Label(quantity, head) for quantity in by_head for head in names]
    effects += [_Label("interaction", *pair) for pair in combinations(names, 2)]
    rounding = ROUNDING * float(np.abs(both).max())

    def numbers(mean: Float[ndarray, "part subset"]) -> Float[ndarray, " number"]:
        total, frozen = _effects(mean, sign, rounding)
        rest = _rounded(total - frozen, rounding)
        return np.concatenate([_shape(mean).ravel(), total, frozen, rest])

    def additive_share(mean: Float[ndarray, "part two"]) -> Float[ndarray, " part"]:
        return mean[:, 0] / np.where(mean[:, 1] > 0, mean[:, 1], np.nan)

    labels = [(part, label) for part in PARTS[:2] for label in shape]
    labels += [(part, label) for part in PARTS for label in effects]
    labels += [(part, _Label("r_squared_per_sequence")) for part in PARTS[:2]]
    found = zip(
        bootstrap(both, numbers, **draws),
        bootstrap(_variances(both), additive_share, **draws),
        strict=True,
    )
    ends = map(np.concatenate, found)
    return [
        {"part": part, **label._asdict(), "value": value, "low": low, "high": high}
        for (part, label), value, low, high in zip(labels, *ends, strict=True)
    ]


def _variances(both: Float[ndarray, "batch part subset"]) -> Float[ndarray, "batch part two"]:
    """Return the variance of the additive part of each sequence's own game, and its whole."""
    n = interactions.n_players(both)
    slopes = both @ (2.0 * interactions.members(n) - 1) / 2**n
    constant = np.isnan(interactions.variance(both)) & ~np.isnan(both).any(axis=-1)
    found = np.stack([(slopes**2).sum(axis=-1), both.var(axis=-1)], axis=-1)
    return np.where(constant[..., None], 0.0, found)  # else a ratio of two rounding errors


def _interactions(both: Float[ndarray, "batch two subset"]) -> Float[ndarray, "batch part pair"]:
    """Return Shapley interactions of each sequence's own game: total, frozen, rest."""
    i, j = np.triu_indices(interactions.n_players(both), k=1)
    size = max(1, VALUES // both[0].size)
    chunks = [both[start : start + size] for start in range(0, len(both), size)]
    found = np.concatenate([interactions.shapley_interaction(chunk)[..., i, j] for chunk in chunks])
    found = np.concatenate([found, found[:, :1] - found[:, 1:]], axis=1)
    # Rounding errors have signs too, which the test would count as evidence.
    small = np.abs(found).max(axis=0) <= ROUNDING * np.abs(both).max()
    return np.where(small, 0.0, found)


def _rounded(x: Float[ndarray, "*shape"], rounding: float) -> Float[ndarray, "*shape"]:
    return np.where(np.abs(x) <= rounding, 0.0, x)
