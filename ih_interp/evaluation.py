"""Every metric of a model's logits: loss, accuracy, probability, in the context or not."""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, TypeVar, cast, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp._expect import expect, integer
from ih_interp._reprs import short_repr
from ih_interp._stock import refuse_unfit_weights
from ih_interp._torch_state import plain_torch
from ih_interp.clamps import AbstractClamp, clamped
from ih_interp.clamps._active import pass_size
from ih_interp.clamps.schedules import Metrics
from ih_interp.config import RunConfig
from ih_interp.model import refuse_other_exemplars
from ih_interp.tasks.base import Task, drawn
from ih_interp.tasks.few_shot import FewShotTask
from ih_interp.tasks.pairs import PairsConfig, PairsTask
from ih_interp.types import NOT_ASKED, Batch, MetricName

METRICS: tuple[MetricName, ...] = get_args(MetricName)

Function = TypeVar("Function", bound=Callable[..., Any])

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
"""A scale by name, or a function of the last position's logits `[batch, label]` and the batch."""

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


def _definitions(
    logits: Float[Tensor, "*any batch label"], batch: Batch
) -> dict[str, Callable[[], Tensor]]:
    """Return the one definition of every metric, `[..., batch]`, computed when it is called."""
    target = batch.target
    at_target = target.expand(logits.shape[:-1])[..., None]

    @functools.cache
    def shown() -> Bool[Tensor, "batch label"]:
        """Return which labels the context holds."""
        none = torch.zeros(logits.shape[-2:], dtype=torch.bool, device=logits.device)
        return none.scatter(1, batch.context_labels, True)

    @functools.cache
    def log_p(in_context: bool = False) -> Float[Tensor, "*any batch label"]:
        kept = torch.where(shown(), logits, -torch.inf) if in_context else logits
        values = kept.log_softmax(dim=-1)
        given = of_target(values)[..., None]
        # All NaN where the context lacks the target, which is then -inf.
        return values + (given - given) if in_context else values

    def of_target(values: Float[Tensor, "*any batch label"]) -> Float[Tensor, "*any batch"]:
        return values.gather(-1, at_target)[..., 0]

    def mean_of_others() -> Float[Tensor, "*any batch"]:
        others = shown().scatter(1, target[:, None], False)
        if not bool(others.any(dim=-1).all()):
            raise ValueError("logit_difference: expected two labels in every context; use logit.")
        kept = logits * others  # quicker than `where`, and right for finite numbers
        if not math.isfinite(float(logits.detach().sum())):
            kept = torch.where(others, logits, 0)
        return kept.sum(-1) / others.sum(-1)

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
    if batch.is_few_shot:
        definitions = _definitions(logits[:, -1], batch)
        return SequenceMetrics({name: definitions[name]() for name in METRICS})
    targets = batch.targets[:, -logits.shape[1] :]
    asked = targets != NOT_ASKED
    target, n_asked = torch.where(asked, targets, 0), asked.sum(dim=1)
    losses = -logits.log_softmax(dim=-1).gather(-1, target[..., None])[..., 0]
    each = {"loss": losses, "accuracy": _is_right(logits, target)}
    own = {} if batch.task is None else batch.task.metrics
    return SequenceMetrics(
        {name: torch.where(asked, v, 0).sum(dim=1) / n_asked for name, v in each.items()}
        | {name: _given_by(given_copies(metric), logits, batch) for name, metric in own.items()}
    )


def measured(
    metric: Metric, logits: Float[Tensor, "*any batch label"], batch: Batch
) -> Float[Tensor, "*any batch"]:
    """Return one number per sequence, from the logits at the last position.

    With logits z, target t, L labels, n of them different ones in the context:

        logit                   z[t]; any real number
        logit_difference        z[t] - mean of z over the context's other labels; chance 0
        loss                    - ln softmax(z)[t], nats; chance ln L
        in_context_loss         the same over the context's labels only; chance ln n
        probability             softmax(z)[t]; chance 1/L
        in_context_probability  the same over the context's labels only; chance 1/n
        accuracy                1 where the largest logit is the target's; chance 1/L
        in_context_accuracy     1 where it is the largest of the context's; chance 1/n

    All are NaN where their logits are, an accuracy also where the largest is infinite; scales that
    begin with in_context also where the context lacks the target. `logits` may have axes in front,
    `[..., batch, label]`, which the result keeps. The scales over the context need few-shot
    sequences; the others take any `Batch`.

    Raises ValueError for an unknown name, logits of other sequences than the batch's, a function
    that gives no `[batch]`, or a logit difference where a context has no other label.
    """
    _refuse_other_logits(logits, batch)
    if callable(metric):
        flat = logits.reshape(-1, *logits.shape[-2:])
        values = [_given_by(given_copies(metric), part, batch) for part in flat]
        return torch.stack(values).reshape(logits.shape[:-1])
    if metric not in SCALES:
        raise ValueError(f"metric={metric!r}: expected one of {', '.join(SCALES)}.")
    return _definitions(logits, batch)[metric]()


def given_copies(function: Function) -> Function:
    """Return a user's function so that it gets copies of tensors, batches, arrays and lists.

    The package's own functions, which write into nothing, are returned as they are.
    """
    module = str(getattr(function, "__module__", ""))
    if module.startswith("ih_interp.") or getattr(function, "_gets_copies", False):
        return function

    @functools.wraps(function)
    def called(*given: Any) -> Any:
        return function(*map(_copy, given))

    setattr(called, "_gets_copies", True)  # noqa: B010
    return cast(Function, called)


def _copy(value: Any) -> Any:
    if isinstance(value, Batch):
        return value.map(torch.clone)
    value = value.clone() if isinstance(value, Tensor) else value
    return value.copy() if isinstance(value, np.ndarray | list) else value


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


def _given_by(metric: Callable[[Tensor, Batch], Tensor], logits: Tensor, batch: Batch) -> Tensor:
    value = metric(logits, batch)
    expect(value, Tensor, "The metric's result", "return one number per sequence")
    if value.shape != (len(batch),):
        raise ValueError(
            f"The metric gave shape {tuple(value.shape)} for {len(batch)} sequences: expected one "
            "number per sequence, [batch]."
        )
    return value


def _refuse_other_logits(logits: Tensor, batch: Batch, *, axes: int | None = None) -> None:
    """Refuse logits other than `[..., batch, label]` of this batch, with `axes` axes if given."""
    expect(logits, Tensor, "The logits", "give model(batch.tokens)[:, -1]")
    expect(batch, Batch, "The batch", "give the Batch itself, not its tokens")
    if logits.ndim < 2 or logits.ndim != (axes or logits.ndim) or logits.shape[-2] != len(batch):
        raise ValueError(
            f"The logits have shape {tuple(logits.shape)} for {len(batch)} sequences: expected "
            "[batch, label], the query's, logits[:, -1]."
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
    model: HookedTransformer,
    batch: Batch,
    clamps: Sequence[AbstractClamp] = (),
    *,
    step: int | None = None,
    metrics: Metrics | None = None,
    chunk: int = 4_096,
) -> SequenceMetrics:
    """Return the metrics of every sequence under clamps; `step` and `metrics` as in `clamped`.

    At most `chunk` sequences go through a pass, or all of them inside a `clamped` block that was
    made for them. `evaluate(model, batch).mean()` gives the means, `.table()` one row per sequence.
    """
    expect(model, HookedTransformer, "The model", "a run's is run.model(step)")
    expect(batch, Batch, "The batch", "give the Batch itself, not its tokens")
    chunk = integer(chunk, f"chunk={chunk!r}")
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: expected at least one sequence per pass.")
    refuse_unfit_weights(model)
    refuse_other_sequences(model, batch)
    parts: list[SequenceMetrics] = []
    for part in batch.split(pass_size(model, len(batch), chunk)):
        with clamped(model, clamps, part, step=step, metrics=metrics):
            parts.append(sequence_metrics(model(part.tokens), part))
    return SequenceMetrics({name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def refuse_other_sequences(model: HookedTransformer, batch: Batch) -> None:
    """Refuse tokens and targets that a model does not have, and exemplars that it does not embed.

    Raises ValueError; torch would say only which number is out of range.
    """
    refuse_outside("batch: expected tokens", batch.tokens, model.cfg.d_vocab)
    asked = batch.given_targets[batch.given_targets != NOT_ASKED]
    refuse_outside("batch: expected targets", asked, model.cfg.d_vocab_out)
    refuse_other_exemplars(model, batch)


def refuse_outside(expected: str, values: Int[Tensor, "*shape"], high: int) -> None:
    """Refuse whole numbers outside [0, high), with ValueError."""
    low_seen, high_seen = (int(values.min()), int(values.max())) if values.numel() else (0, 0)
    if low_seen < 0 or high_seen >= high:
        raise ValueError(
            f"{expected} in [0, {high}), got {low_seen} to {high_seen}; make them for this model."
        )


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
