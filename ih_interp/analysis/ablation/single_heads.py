"""Measures of single heads of the last layer: alone, left out, added back, and label by label.

These are the measures of Singh et al. (2024), arXiv:2404.07129, Figures 4a, 13, 14 and 16 and
Tables 2 and 3. Heads are ablated by zero, as there; `heads` are all of the last layer by default,
and others stay on. Every `value` has a percentile bootstrap interval, `low` to `high`, over
sequences. With `perfect_match=True` the heads attend to the correct label alone (the clamp
`InductionAttention`, strength 1), so that they differ only in what they copy. Clamps and other
hooks on the model stay in force.
"""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from numpy import ndarray
from torch import Tensor

from ih_interp.analysis.ablation._subset_passes import subset_values
from ih_interp.analysis.checks import Seed, checked_in_plain_torch
from ih_interp.analysis.heads.attention import answered_queries, induction_strength
from ih_interp.analysis.statistics import Estimate, bootstrap
from ih_interp.batch import Batch
from ih_interp.clamps import Shape, clamped
from ih_interp.clamps._active import rows_per_pass
from ih_interp.clamps.base import head_mask
from ih_interp.clamps.subcircuits import match
from ih_interp.evaluation import Metric, metric_name, parse_metrics
from ih_interp.hooked_model import HookedModel
from ih_interp.types import Head, HeadName, parse_heads

N_RESAMPLES = 500


@checked_in_plain_torch()
def ablate_each_head(
    model: HookedModel,
    batch: Batch,
    heads: Iterable[HeadName] | None = None,
    *,
    metrics: Metric | Sequence[Metric] = ("accuracy", "loss"),
    perfect_match: bool = False,
    seed: Seed = 0,
) -> pd.DataFrame:
    """Return metrics with only one head on, and with all but it, beside its induction strength.

    Figures 4a and 13 of the paper; with `perfect_match` also 16a. Columns: `head`, `strength`
    (`induction_strength` of the model as it is; NaN for sequences without answers), `kept`,
    `metric`, `value`, `low`, `high`. `kept` is "only" or "without" the head, and without a head
    "all" of them or "none", which is about chance where only they carry the answer. Chance, with L
    labels of which n are in the context: strength 0; accuracy 1/L, a guess within the context 1/n;
    loss ln L and ln n nats; others as in `evaluation.sequence_metrics`.
    """
    chosen, metrics = _heads(model, heads), parse_metrics(metrics)
    n = len(chosen)
    alone, both = np.eye(n, dtype=bool), np.array([[True], [False]])
    on = np.concatenate([alone, ~alone, both.repeat(n, axis=1)])
    values = _values(model, batch, chosen, on, metrics, perfect_match=perfect_match)
    strength = _strengths(model, batch, chosen) if _has_answers(batch) else np.full(n, np.nan)
    places = [
        {"head": str(head), "strength": of_head, "kept": kept}
        for kept in ("only", "without")
        for head, of_head in zip(chosen, strength, strict=True)
    ]
    places += [{"head": None, "strength": np.nan, "kept": kept} for kept in ("all", "none")]
    return _table(values, places, metrics, seed)


@checked_in_plain_torch()
def add_back(
    model: HookedModel,
    batch: Batch,
    order: Iterable[HeadName] | None = None,
    *,
    metrics: Metric | Sequence[Metric] = ("loss", "accuracy"),
    seed: Seed = 0,
) -> pd.DataFrame:
    """Return metrics as heads of the last layer are added one by one to none of them.

    Figure 14 of the paper. `order` is that of falling induction strength by default; heads of the
    last layer that are not in it stay ablated. Columns: `n_heads` on, `head` (the one just added;
    None in the first row), `metric`, `value`, `low`, `high`.
    """
    every, metrics = _heads(model, None), parse_metrics(metrics)
    added = by_strength(model, batch, every) if order is None else parse_heads(order)
    chosen = (*added, *(head for head in every if head not in added))
    on = np.arange(len(chosen)) < np.arange(len(added) + 1)[:, None]
    values = _values(model, batch, chosen, on, metrics)
    places = [{"n_heads": n, "head": head} for n, head in enumerate([None, *map(str, added)])]
    return _table(values, places, metrics, seed)


@checked_in_plain_torch()
def mistakes_corrected(
    model: HookedModel,
    batch: Batch,
    base: HeadName | None = None,
    *,
    heads: Iterable[HeadName] | None = None,
    perfect_match: bool = False,
    seed: Seed = 0,
) -> pd.DataFrame:
    """Return the share of the base head's mistakes, alone, that another head alone gets right.

    `sum of wrong(base) right(head) / sum of wrong(base)`, in [0, 1]; Table 2 of the paper, and with
    `perfect_match` Table 3. For independent mistakes it is the head's `accuracy`, which stands
    beside it. `base` is the strongest head by default. Columns: `base`, `mistakes` (their number),
    `head`, `accuracy`, `value`, `low`, `high`; NaN where the base makes no mistake, and an end of
    an interval where a resample has none. Raises ValueError unless each sequence asks one token.
    """
    chosen = _heads(model, heads)
    first = by_strength(model, batch, chosen)[0] if base is None else Head.parse(base)
    others = [head for head in chosen if head != first]
    _target(batch)
    right = _right(model, batch, [first, *others], perfect_match=perfect_match)
    wrong = 1 - right[:, :1]
    found = bootstrap(
        np.concatenate([wrong * right[:, 1:], wrong], axis=1),
        lambda mean: _ratio(mean[:-1], mean[-1:]),
        n_resamples=N_RESAMPLES,
        seed=seed,
    )
    return pd.DataFrame(
        {
            "base": str(first),
            "mistakes": int(wrong.sum()),
            "head": [str(head) for head in others],
            "accuracy": right[:, 1:].mean(axis=0, dtype=np.float64),
            **found._asdict(),
        }
    )


@checked_in_plain_torch()
def label_specific_accuracy(
    model: HookedModel,
    batch: Batch,
    heads: Iterable[HeadName] | None = None,
    *,
    perfect_match: bool = True,
    seed: Seed = 0,
) -> pd.DataFrame:
    """Return by true label each head's accuracy alone, and that label's share of its mistakes.

    Figure 16, c and b, of the paper, whose heads have a perfect match. Columns: `head`, `label`,
    `quantity`, `value`, `low`, `high`, `sequences` and `mistakes` of that label. `quantity` is
    "accuracy", of the sequences with that label (chance 1/L for L labels), or "mistake_share", of
    the head's mistakes, which sums to 1 over labels (even: 1/L) and is NaN for a head without any.
    An end of an interval is NaN where a resample lacks the label or the mistakes. Raises ValueError
    unless each sequence asks one token.
    """
    chosen = _heads(model, heads)
    target = _target(batch).cpu().numpy()
    right = _right(model, batch, chosen, perfect_match=perfect_match)
    labels = np.unique(target)
    shown = (target[:, None] == labels).astype(np.float64)[:, None]
    correct = right[:, :, None] * shown

    def by_label(mean: Float[ndarray, "head_and_all label"]) -> Float[ndarray, "two head label"]:
        mistakes = mean[-1] - mean[:-1]
        shares = _ratio(mistakes, mistakes.sum(axis=-1, keepdims=True))
        return np.stack([_ratio(mean[:-1], mean[-1]), shares])

    both = np.concatenate([correct, shown], axis=1)
    found = bootstrap(both, by_label, n_resamples=N_RESAMPLES, seed=seed)
    *n_correct, total = both.sum(axis=0).astype(int)
    keys = [
        {"head": str(head), "label": label, "quantity": quantity}
        for quantity in ("accuracy", "mistake_share")
        for head in chosen
        for label in labels.tolist()
    ]
    counts = {"sequences": np.tile(total, 2 * len(chosen))}
    counts["mistakes"] = counts["sequences"] - np.tile(np.ravel(n_correct), 2)
    return _rows(keys, found).assign(**counts)


def by_strength(model: HookedModel, batch: Batch, heads: Sequence[Head]) -> tuple[Head, ...]:
    """Return heads in the order of falling induction strength, as the model is.

    Raises ValueError where one is NaN, as in a network that diverged.
    """
    strengths = _strengths(model, batch, heads)
    if np.isnan(strengths).any():
        raise ValueError(
            f"The induction strengths are {strengths.tolist()}: expected numbers, which have an "
            "order; look at the model's weights, or name the heads in their order."
        )
    return tuple(heads[place] for place in np.argsort(-strengths, kind="stable").tolist())


def _has_answers(batch: Batch) -> bool:
    """Return whether every sequence has an answer and another candidate, as the strength needs."""
    try:
        return bool(answered_queries(batch)[2].any(dim=1).all())
    except ValueError:  # plain tokens
        return False


def _strengths(model: HookedModel, batch: Batch, heads: Sequence[Head]) -> Float[ndarray, " head"]:
    strength = induction_strength(model, batch)
    return np.array([float(strength[head.layer, head.head]) for head in heads])


def _heads(model: HookedModel, heads: Iterable[HeadName] | None) -> tuple[Head, ...]:
    """Return the heads given, or all of the last layer; ValueError for others than the model's."""
    if heads is None:
        return tuple(Head(model.cfg.n_layers - 1, head) for head in range(model.cfg.n_heads))
    chosen = parse_heads(heads)
    if not chosen:
        raise ValueError("heads: expected at least one, or None for all of the last layer.")
    head_mask(chosen, Shape.of(model))
    return chosen


def _target(batch: Batch) -> Int[Tensor, " batch"]:
    """Return the one token that each sequence asks; ValueError where one asks more, or none."""
    n_asked = batch.asked.sum(dim=1)
    if not bool((n_asked == 1).all()):
        raise ValueError(
            f"targets: expected one asked position in every sequence, which a head gets right or "
            f"wrong, got {int(n_asked.min())} to {int(n_asked.max())}."
        )
    return batch.targets[batch.asked]


def _right(
    model: HookedModel, batch: Batch, heads: Sequence[Head], *, perfect_match: bool
) -> Float[ndarray, "batch head"]:
    """Return 1 where only that head is on and right, else 0; ValueError for no finite logits."""
    alone = np.eye(len(heads), dtype=bool)
    (right,) = _values(model, batch, heads, alone, ["accuracy"], perfect_match=perfect_match)
    unknown = np.flatnonzero(np.isnan(right).any(axis=0)).tolist()
    if unknown:
        names = ", ".join(str(heads[i]) for i in unknown)
        raise ValueError(
            f"With only {names} on, logits are NaN or infinite: expected finite ones, for an "
            "answer that is right or wrong; look at the model's weights."
        )
    return right


def _values(
    model: HookedModel,
    batch: Batch,
    heads: Sequence[Head],
    on: Bool[ndarray, "subset head"],
    metrics: Sequence[Metric],
    *,
    perfect_match: bool = False,
) -> Float[ndarray, "metric batch subset"]:
    parts: list[Any] = []
    for part in batch.split(rows_per_pass(model, batch.tokens)):
        with clamped(model, [match(*heads)], part) if perfect_match else nullcontext():
            parts.append(subset_values(model, part, heads, on, metrics)[1])
    return np.concatenate(parts, axis=1)


def _table(
    values: Float[ndarray, "metric batch subset"],
    places: Sequence[dict[str, Any]],
    metrics: Sequence[Metric],
    seed: int,
) -> pd.DataFrame:
    """Return one row per subset and metric; `places` says what the subsets are."""
    found = bootstrap(values.transpose(1, 0, 2), n_resamples=N_RESAMPLES, seed=seed)
    names = [metric_name(metric) for metric in metrics]
    return _rows([{**place, "metric": name} for name in names for place in places], found)


def _rows(keys: Sequence[dict[str, Any]], found: Estimate) -> pd.DataFrame:
    return pd.DataFrame(keys).assign(**{n: part.ravel() for n, part in found._asdict().items()})


def _ratio(
    part: Float[ndarray, "*shape"], whole: Float[ndarray, "*other"]
) -> Float[ndarray, "*shape"]:
    """Return `part / whole`, NaN where there is nothing to take a part of."""
    return part / np.where(whole > 0, whole, np.nan)
