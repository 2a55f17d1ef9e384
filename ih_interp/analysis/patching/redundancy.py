"""The redundancy of a wiring, from the effects of its edges.

Edges are `use`, `[sender, receiver]` or one per sequence `[batch, sender, receiver]`: positive
where the edge serves the behaviour (`Wiring.through`). Measures are of the mean over sequences,
whose negative entries count as 0. With sequences, they have bootstrap intervals over them
(`options` are those of `bootstrap`), otherwise NaN.

Pure noise looks like effects spread over many edges: read these numbers beside the effects
themselves. Resamples are noisier than the mean and cut off at 0, so that a value may lie at one end
of its interval where effects are small.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Shaped
from numpy import ndarray
from scipy.special import entr

from ih_interp._columns import numbers
from ih_interp._torch_state import plain_torch
from ih_interp.analysis.checks import checked, checked_in_plain_torch
from ih_interp.analysis.dynamics.trace import as_series, refuse_other_function, sequences_of, trace
from ih_interp.analysis.patching.wiring import Wiring, wiring_map
from ih_interp.analysis.statistics import Estimate, bootstrap
from ih_interp.batch import Batch
from ih_interp.checkpoints import Checkpoints
from ih_interp.clamps._active import CHUNK
from ih_interp.hooked_model import HookedModel
from ih_interp.types import Head

Values: TypeAlias = Shaped[ndarray, "..."] | Shaped[torch.Tensor, "..."]
"""Numbers of any shape, from NumPy or torch."""

Statistic: TypeAlias = Callable[[ndarray], ndarray | float]

EFFECTS = "give effects of edges, ih.wiring_map(model, clean, corrupted).through('k')"


@checked(EFFECTS)
def effective_senders(use: Values, **options: Any) -> Estimate:
    """Return how many senders feed each receiver, `[receiver]`, in [1, n senders].

    exp of the entropy of a receiver's shares, `p_s = max(use[s, r], 0) / sum over senders`: 1 where
    one sender does all, n where n do equally much (Hill number of order 1). NaN for a receiver that
    no sender feeds.
    """
    return estimated(use, 2, lambda wires: _effective(wires, 0), options)


@checked(EFFECTS)
def effective_receivers(use: Values, **options: Any) -> Estimate:
    """Return how many receivers each sender serves, `[sender]`, in [1, n receivers].

    As `effective_senders`, with the shares of a sender's use.
    """
    return estimated(use, 2, lambda wires: _effective(wires, 1), options)


@checked(EFFECTS)
def fan_in(use: Values, **options: Any) -> Estimate:
    """Return how evenly receivers draw on senders, in [0, 1].

    `H(sender | receiver) / ln n senders`, with the edges' shares of all positive use as a joint
    distribution. 0 where every receiver has one sender, 1 where all senders feed each equally.
    NaN without any positive use. Raises ValueError for fewer than two senders.
    """
    return estimated(use, 2, lambda wires: _conditional(wires)[0] / _log(wires, 0), options)


@checked(EFFECTS)
def fan_out(use: Values, **options: Any) -> Estimate:
    """Return how evenly senders serve receivers, in [0, 1].

    `H(receiver | sender) / ln n receivers`, as in `fan_in`.
    """
    return estimated(use, 2, lambda wires: _conditional(wires)[1] / _log(wires, 1), options)


@checked(EFFECTS)
def many_to_many(use: Values, **options: Any) -> Estimate:
    """Return how far a wiring is from one to one, in [0, 1].

    `(H(sender | receiver) + H(receiver | sender)) / (ln n senders + ln n receivers)`: the variation
    of information between senders and receivers, divided by its largest value. 0 exactly for one to
    one, whatever the strengths; 1 exactly for all to all, equally; 1/2 for one sender of n, or one
    receiver; ln k / ln n for blocks of k x k in n x n. It does not depend on the scale of effects.
    NaN without any positive use. Raises ValueError for fewer than two heads.
    """

    def index(wires: ndarray) -> float:
        return sum(_conditional(wires)) / (_log(wires, 0) + _log(wires, 1))

    return estimated(use, 2, index, options)


@checked_in_plain_torch()
def redundancy_over_training(
    checkpoints: Checkpoints,
    corrupt: Callable[[Batch], Batch],
    *,
    batch: Batch | None = None,
    via: str | Sequence[str] = ("q", "k", "v"),
    steps: Sequence[int] | None = None,
    progress: bool = False,
    bootstrap_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Return the redundancy of the wiring at every checkpoint, with intervals over sequences.

    Columns: `step`, `sequences` where they are known, `via`, `name`, `value`, `low`, `high`. Names
    are "many_to_many", "fan_in", "fan_out", "effective_senders L1H3" of every receiver and
    "effective_receivers L0H2" of every sender; the first three need two receivers, and are left out
    where there is one key-value head. `options` are those of `wiring_map`. `batch` is by default,
    as in `trace`, a fixed sample of a run's training split, here of at most 1,024. Raises
    ValueError for more sequences, which go through several passes and would have several intervals.
    """
    refuse_other_function(corrupt, "corrupt", "batch")
    batch, said = sequences_of(as_series(checkpoints), batch, most=CHUNK)
    if len(batch) > CHUNK:
        raise ValueError(f"batch: expected at most {CHUNK} sequences, got {len(batch)}.")
    given = {"n_resamples": 200, **(bootstrap_options or {})}

    def measure(model: HookedModel, part: Batch) -> dict[str, float]:
        wiring = wiring_map(model, part, corrupt(part), via=via, per_sequence=True, **options)
        return {
            f"{name}|{letter}|{end}": float(value)
            for letter in wiring.via
            for name, estimate in _named(wiring, letter, given).items()
            for end, value in estimate._asdict().items()
        }

    rows = trace(checkpoints, measure, batch=batch, steps=steps, progress=progress)
    rows[["name", "via", "end"]] = rows["name"].str.split("|", expand=True)
    index = [*(["step", "sequences"] if "sequences" in rows else ["step"]), "via", "name"]
    wide = rows.set_index([*index, "end"])["value"].unstack("end").reset_index()
    wide.attrs = {"batch": said} if said else {}
    return wide[[*index, "value", "low", "high"]].rename_axis(columns=None)


def _named(wiring: Wiring, via: str, options: dict[str, Any]) -> dict[str, Estimate]:
    use = wiring.through(via)
    # One key-value head for all leaves nothing to spread over.
    whole = (many_to_many, fan_in, fan_out) if min(use.shape[-2:]) > 1 else ()
    found = {measure.__name__: measure(use, **options) for measure in whole}
    senders = [str(Head(wiring.sender_layer, head)) for head in range(use.shape[-2])]
    each = ((wiring.receivers(via), effective_senders), (senders, effective_receivers))
    for heads, measure in each:
        columns = zip(*measure(use, **options), strict=True)
        ends_of = zip(heads, columns, strict=True)
        found |= {f"{measure.__name__} {head}": Estimate(*ends) for head, ends in ends_of}
    return found


@plain_torch()
def estimated(values: Values, ndim: int, statistic: Statistic, options: dict[str, Any]) -> Estimate:
    """Return a statistic of `ndim` axes; with a batch in front, of its mean with an interval."""
    array = numbers(values, "The values")
    if array.ndim == ndim + 1:
        return bootstrap(array, lambda mean: np.asarray(statistic(mean)), **options)
    if array.ndim != ndim:
        raise ValueError(
            f"Values of shape {array.shape}: expected {ndim} axes, or a batch and {ndim}."
        )
    value = np.asarray(statistic(array), dtype=np.float64)
    return Estimate(value, np.full_like(value, np.nan), np.full_like(value, np.nan))


def _effective(wires: ndarray, axis: int) -> ndarray:
    positive = np.maximum(wires, 0)
    total = positive.sum(axis=axis, keepdims=True)
    return np.exp(entr(positive / np.where(total > 0, total, np.nan)).sum(axis=axis))


def _conditional(wires: ndarray) -> tuple[float, float]:
    """Return H(sender | receiver) and H(receiver | sender) of the positive entries, in nats."""
    positive = np.maximum(wires, 0)
    if positive.sum() == 0:
        return math.nan, math.nan
    joint = positive / positive.sum()
    together = float(entr(joint).sum())
    receivers, senders = (float(entr(joint.sum(axis=axis)).sum()) for axis in (0, 1))
    # Differences of entropies are rounded; one to one must be exactly 0.
    return tuple(  # pyright: ignore[reportReturnType]
        0.0 if math.isclose(together, one) else together - one for one in (receivers, senders)
    )


def _log(wires: ndarray, axis: int) -> float:
    if wires.shape[axis] < 2:
        raise ValueError(f"Wires are {wires.shape}: expected two senders and receivers at least.")
    return float(np.log(wires.shape[axis]))
