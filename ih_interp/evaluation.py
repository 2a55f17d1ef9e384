"""Every metric of a model's logits: loss, accuracy, probability, in the context or not."""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ih_interp._copies import given_copies
from ih_interp._expect import expect, integer
from ih_interp._reprs import short_repr
from ih_interp._sequences import refuse_other_sequences
from ih_interp._stock import refuse_unfit_weights
from ih_interp._torch_state import in_single, plain_torch
from ih_interp.batch import NOT_ASKED, Batch
from ih_interp.clamps import AbstractClamp, clamped
from ih_interp.clamps._active import rows_per_pass
from ih_interp.clamps.schedules import Metrics
from ih_interp.config import RunConfig
from ih_interp.hooked_model import HookedModel, expect_model
from ih_interp.tasks.base import Task, drawn
from ih_interp.tasks.few_shot import FewShotTask
from ih_interp.tasks.pairs import PairsConfig, PairsTask
from ih_interp.types import MetricName

METRICS: tuple[MetricName, ...] = get_args(MetricName)

Scale: TypeAlias = Literal[
    "logit",
    "logit_difference",
    "loss",
    "in_context_loss",
    "probability",
    "in_context_probability",
    "accuracy",
    "in_context_accuracy",
]
"""Scales on which effects may or may not add; `measured` defines each."""

Metric: TypeAlias = Scale | Callable[[Tensor, Batch], Tensor]
"""A scale by name, or a function of the logits at asked positions, `[asked, token]`, and the batch.

The function returns one number per asked position, `[asked]`. Where only the last is asked, that is
`[batch, token]` and `[batch]`; `batch.asked_rows` says where the rows stand.
"""

NO_FOILS = (
    "logit_difference: these are plain tokens: expected foils, the tokens to compare the target "
    "with; write ih.Batch(tokens, targets, foils=...), or metric='logit' or 'loss'."
)
SCALES: tuple[Scale, ...] = get_args(Scale)
LOWER_IS_BETTER: tuple[Scale, ...] = ("loss", "in_context_loss")


@short_repr
class SequenceMetrics(dict[str, Tensor]):
    """One value per sequence, `[batch]`, of every metric: `metrics["loss"]` or `metrics.loss`.

    All are NaN where the logits that they are computed from are NaN or infinite, as in a network
    that diverged.
    """

    def __getattr__(self, name: str) -> Tensor:
        if name in self:
            return self[name]
        raise AttributeError(f"{name!r}: expected one of the metrics {', '.join(self)}.")

    def mean(self) -> dict[str, float]:
        """Return the mean over sequences of every metric, summed in float64."""
        return {name: float(values.double().mean()) for name, values in self.items()}

    def table(self) -> pd.DataFrame:
        """Return one row per sequence, in the batch's order, and one column per metric."""
        return pd.DataFrame({name: v.tolist() for name, v in self.items()})


def at_asked(
    values: Float[Tensor, "*any batch pos token"], batch: Batch
) -> Float[Tensor, "*any asked token"]:
    """Return the rows at asked positions, sequence by sequence."""
    if batch.asks_last:
        return values[..., -1, :]
    sequences, positions = batch.asked_rows
    return values[..., sequences, positions, :]


def _by_sequence(values: Float[Tensor, "*any asked"], batch: Batch) -> Float[Tensor, "*any batch"]:
    """Return the mean over each sequence's asked positions."""
    if batch.asks_last:
        return values
    n_asked = batch.asked.sum(dim=1)
    if not bool(n_asked.all()):
        place = int((n_asked == 0).nonzero()[0, 0])
        raise ValueError(f"targets: nothing is asked in sequence {place}, which has no metric.")
    sums = values.new_zeros(*values.shape[:-1], len(batch))
    return sums.index_add(-1, batch.asked_rows[0], values) / n_asked


def _definitions(
    logits: Float[Tensor, "*any asked token"], batch: Batch
) -> dict[str, Callable[[], Tensor]]:
    """Return the one definition of every metric, `[..., asked]`, computed when it is called."""
    rows = slice(None) if batch.asks_last else batch.asked_rows[0]
    target = batch.target if batch.asks_last else batch.targets[batch.asked]
    at_target = target.expand(logits.shape[:-1])[..., None]

    @functools.cache
    def shown() -> Bool[Tensor, "asked token"]:
        """Return which labels the context holds."""
        none = torch.zeros(logits.shape[-2:], dtype=torch.bool, device=logits.device)
        return none.scatter(1, batch.context_labels[rows], True)

    @functools.cache
    def log_p(in_context: bool = False) -> Float[Tensor, "*any asked token"]:
        kept = torch.where(shown(), logits, -torch.inf) if in_context else logits
        values = kept.log_softmax(dim=-1)
        given = of_target(values)[..., None]
        # All NaN where the context lacks the target, which is then -inf.
        return values + (given - given) if in_context else values

    def of_target(values: Float[Tensor, "*any asked token"]) -> Float[Tensor, "*any asked"]:
        return values.gather(-1, at_target)[..., 0]

    def mean_of_others() -> Float[Tensor, "*any asked"]:
        if batch.foils is not None:
            return _mean_at(batch.foils[rows], logits)
        others = shown().scatter(1, target[:, None], False)
        if not bool(others.any(dim=-1).all()):
            raise ValueError("logit_difference: expected two labels in every context; use logit.")
        return _mean_where(others, logits)

    return {
        "logit": lambda: of_target(logits),
        "logit_difference": lambda: of_target(logits) - mean_of_others(),
        "loss": lambda: -of_target(log_p()),
        "in_context_loss": lambda: -of_target(log_p(in_context=True)),
        "probability": lambda: of_target(log_p()).exp(),
        "in_context_probability": lambda: of_target(log_p(in_context=True)).exp(),
        "context_probability": lambda: (log_p().exp() * shown()).sum(dim=-1),
        "accuracy": lambda: _is_right(logits, target),
        "in_context_accuracy": lambda: _is_right(log_p(in_context=True), target),
    }


def _mean_where(
    mask: Bool[Tensor, "asked token"], logits: Float[Tensor, "*any asked token"]
) -> Float[Tensor, "*any asked"]:
    kept = logits * mask  # quicker than `where`, and right for finite numbers
    if not math.isfinite(float(logits.detach().sum())):
        kept = torch.where(mask, logits, 0)
    return kept.sum(-1) / mask.sum(-1)


def _mean_at(
    tokens: Int[Tensor, "asked foil"], logits: Float[Tensor, "*any asked token"]
) -> Float[Tensor, "*any asked"]:
    """Return the mean logit of the tokens of each row, of which -100 are none."""
    is_one = tokens != NOT_ASKED
    places = torch.where(is_one, tokens, 0).expand(*logits.shape[:-1], -1)
    return torch.where(is_one, logits.gather(-1, places), 0).sum(-1) / is_one.sum(-1)


def _is_right(
    values: Float[Tensor, "*any label"], target: Int[Tensor, "*some"]
) -> Float[Tensor, "*any"]:
    best, chosen = values.max(dim=-1)
    # `best - best` is 0, or NaN for NaN and infinities, whose place says nothing.
    return (chosen == target).to(values) + (best - best)


def metric_names(task: Task) -> tuple[str, ...]:
    """Return the names of the metrics that are measured on sequences of a task."""
    is_few_shot = isinstance(task, PairsTask | PairsConfig)
    return METRICS if is_few_shot else ("loss", "accuracy", *task.metrics)


def sequence_metrics(logits: Float[Tensor, "batch pos token"], batch: Batch) -> SequenceMetrics:
    """Return the metrics of every sequence, each the mean over the positions that are asked.

    Few-shot sequences have the six metrics of `METRICS`, at the query; `measured` defines them, and
    `context_probability` is that of all the context's labels together, with chance n/L for n of L
    labels (`use_context_prob` in the published code). Other sequences have loss and accuracy, and
    the metrics of their task.
    """
    logits = in_single(logits)
    if batch.is_few_shot:
        rows = logits[:, -1] if batch.asks_last else at_asked(logits, batch)
        definitions = _definitions(rows, batch)
        return SequenceMetrics({n: _by_sequence(definitions[n](), batch) for n in METRICS})
    targets = batch.targets[:, -logits.shape[1] :]
    asked = targets != NOT_ASKED
    target, n_asked = torch.where(asked, targets, 0), asked.sum(dim=1)
    losses = -logits.log_softmax(dim=-1).gather(-1, target[..., None])[..., 0]
    each = {"loss": losses, "accuracy": _is_right(logits, target)}
    own = {} if batch.task is None else batch.task.metrics
    return SequenceMetrics(
        {name: torch.where(asked, v, 0).sum(dim=1) / n_asked for name, v in each.items()}
        | {name: _given_by(given_copies(m), logits, batch, len(batch)) for name, m in own.items()}
    )


def measured(
    metric: Metric, logits: Float[Tensor, "*any asked token"], batch: Batch
) -> Float[Tensor, "*any batch"]:
    """Return one number per sequence, the mean over its asked positions, from their logits.

    With logits z, target t, L labels, n of them different ones in the context:

        logit                   z[t]; any real number
        logit_difference        z[t] - mean of z over the foils, or over the context's other
                                labels; chance 0
        loss                    - ln softmax(z)[t], nats; chance ln L
        in_context_loss         the same over the context's labels only; chance ln n
        probability             softmax(z)[t]; chance 1/L
        in_context_probability  the same over the context's labels only; chance 1/n
        accuracy                1 where the largest logit is the target's; chance 1/L
        in_context_accuracy     1 where it is the largest of the context's; chance 1/n

    All are NaN where their logits are, an accuracy also where the largest is infinite; scales that
    begin with in_context also where the context lacks the target. `logits` are `at_asked` of all,
    `[batch, token]` where only the last position is asked; axes in front stay in the result. The
    scales over the context need few-shot sequences; the others take any `Batch`.

    Raises ValueError for an unknown name, logits of other positions than the batch's, a sequence in
    which nothing is asked, a function that gives other than one number per asked position, or a
    logit difference where a context has no other label.
    """
    _refuse_other_logits(logits, batch)
    if callable(metric):
        flat = logits.reshape(-1, *logits.shape[-2:])
        values = [_given_by(given_copies(metric), part, batch, part.shape[0]) for part in flat]
        return _by_sequence(torch.stack(values).reshape(logits.shape[:-1]), batch)
    if metric not in SCALES:
        raise ValueError(f"metric={metric!r}: expected one of {', '.join(SCALES)}.")
    if metric == "logit_difference" and batch.foils is None and not batch.is_few_shot:
        raise ValueError(NO_FOILS)
    return _by_sequence(_definitions(logits, batch)[metric](), batch)


def parse_metrics(metric: Metric | Sequence[Metric]) -> tuple[Metric, ...]:
    """Return one metric, or several, as a tuple; ValueError for none."""
    metrics: Any = (metric,) if isinstance(metric, str) or callable(metric) else tuple(metric)
    if not metrics:
        raise ValueError("metric=[]: expected at least one, such as 'loss'.")
    return metrics


def metric_name(metric: Metric) -> str:
    """Return a metric's name in tables; a function has its own."""
    if isinstance(metric, str):
        return metric
    own: Any = inspect.unwrap(metric)  # without the copies of arguments that it is given
    return getattr(own, "__name__", repr(own))


def _given_by(
    metric: Callable[[Tensor, Batch], Tensor], logits: Tensor, batch: Batch, n_values: int
) -> Tensor:
    value = metric(logits, batch)
    expect(value, Tensor, "The metric's result", "return one number per sequence")
    if value.shape != (n_values,):
        what = "sequence" if n_values == len(batch) else "asked position"
        raise ValueError(
            f"The metric gave shape {tuple(value.shape)} for {len(batch)} sequences: expected one "
            f"number per {what}, [{n_values}]."
        )
    return value


def _refuse_other_logits(logits: Tensor, batch: Batch) -> None:
    """Refuse logits other than `[..., asked, token]` of this batch."""
    expect(logits, Tensor, "The logits", "give model(batch.tokens)[:, -1]")
    expect(batch, Batch, "The batch", "give the Batch itself, not its tokens")
    n_asked = len(batch) if batch.asks_last else int(batch.asked.sum())
    if logits.ndim < 2 or logits.shape[-2] != n_asked:
        rows = "logits[:, -1]" if batch.asks_last else "evaluation.at_asked(logits, batch)"
        raise ValueError(
            f"The logits have shape {tuple(logits.shape)} for {len(batch)} sequences: expected "
            f"[{n_asked}, token], those of asked positions, {rows}."
        )


def chance(task: Task) -> dict[str, float]:
    """Return the score of a uniform guess over all labels, or (in context) over the context's."""
    n_labels = task.d_vocab_out
    guess = {"loss": float(np.log(n_labels)), "accuracy": 1 / n_labels}
    if not isinstance(task, FewShotTask):  # in others a context may lack the target
        return guess
    n = task.config.n_context_classes
    return {
        **guess,
        "in_context_accuracy": 1 / n,
        "probability": 1 / n_labels,
        "in_context_probability": 1 / n,
        "context_probability": n / n_labels,
    }


@plain_torch()
def evaluate(
    model: HookedModel,
    batch: Batch,
    clamps: Sequence[AbstractClamp] = (),
    *,
    step: int | None = None,
    metrics: Metrics | None = None,
    chunk: int = 4_096,
) -> SequenceMetrics:
    """Return the metrics of every sequence under clamps; `step` and `metrics` as in `clamped`.

    At most `chunk` sequences go through a pass, fewer that are long, or all of them inside a
    `clamped` block that was made for them. `evaluate(model, batch).mean()` gives the means,
    `.table()` one row per sequence.
    """
    expect_model(model)
    expect(batch, Batch, "The batch", "give the Batch itself, not its tokens")
    chunk = integer(chunk, f"chunk={chunk!r}")
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: expected at least one sequence per pass.")
    refuse_unfit_weights(model)
    refuse_other_sequences(model, batch)
    parts: list[SequenceMetrics] = []
    for part in batch.split(rows_per_pass(model, batch.tokens, chunk)):
        with clamped(model, clamps, part, step=step, metrics=metrics):
            parts.append(sequence_metrics(model(part.tokens), part))
    return SequenceMetrics({name: torch.cat([part[name] for part in parts]) for name in parts[0]})


@plain_torch()
def evaluation_sets(task: Task, config: RunConfig) -> dict[str, Batch]:
    """Return the fixed sequences that a run is evaluated on, by split.

    Each set is drawn from its own seed, and so is the same whichever other splits the task has.
    """
    sets: dict[str, Batch] = {}
    for split in task.splits:
        place = config.task.splits.index(split)
        seeds = np.random.SeedSequence((config.seeds.evaluation, place))
        generator = torch.Generator().manual_seed(int(seeds.generate_state(1)[0]))
        sets[split] = drawn(task, split, config.evaluation_size, generator=generator)
    return sets
