"""What heads are judged by: one number per sequence, read from the query's logits."""

import math
from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ih_interp.analysis.checks import given_copies
from ih_interp.evaluation import is_right
from ih_interp.types import Batch, expect

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
"""Scales on which effects may or may not add; `measured` says what each is."""

Metric: TypeAlias = Scale | Callable[[Tensor, Batch], Tensor]
"""A scale by name, or a function of the last position's logits `[batch, label]` and the batch."""

SCALES: tuple[Scale, ...] = get_args(Scale)
LOWER_IS_BETTER: tuple[Scale, ...] = ("loss", "in_context_loss")


def measured(
    metric: Metric, logits: Float[Tensor, "*any batch label"], batch: Batch
) -> Float[Tensor, "*any batch"]:
    """One number per sequence, from the logits at the last position.

    With logits z, target t, L labels, n of them different ones in the context:

        logit                   z[t]; any real number
        logit_difference        z[t] - mean of z over the context's other labels; chance 0
        loss                    - ln softmax(z)[t], nats; chance ln L
        in_context_loss         the same over the context's labels only; chance ln n
        probability             softmax(z)[t]; chance 1/L
        in_context_probability  the same over the context's labels only; chance 1/n
        accuracy                1 where the largest logit is the target's; chance 1/L
        in_context_accuracy     1 where it is the largest of the context's; chance 1/n

    All are NaN where their logits are, an accuracy also where the largest is infinite: it is no
    guess. `logits` may have axes in front, `[..., batch, label]`, which the result keeps. The
    scales that speak of the context need few-shot sequences; the others take any `Batch`.

    Raises ValueError for an unknown name, logits of other sequences than the batch's, a function
    that gives something else than `[batch]`, or a logit difference where a context has no other
    label.
    """
    expect(logits, Tensor, "The logits", "give model(batch.tokens)[:, -1]")
    expect(batch, Batch, "The batch", "give the Batch itself, not its tokens")
    if logits.ndim < 2 or logits.shape[-2] != len(batch):
        raise ValueError(
            f"The logits have shape {tuple(logits.shape)} for {len(batch)} sequences; "
            "[..., batch, label] was expected."
        )
    if callable(metric):
        metric = given_copies(metric)
        flat = (
            [metric(part, batch) for part in logits.flatten(end_dim=-3)]
            if logits.ndim > 2
            else [metric(logits, batch)]
        )
        for value in flat:
            expect(value, Tensor, "What the metric gives", "return one number per sequence")
        wrong = [tuple(value.shape) for value in flat if value.shape != logits.shape[-2:-1]]
        if wrong:
            raise ValueError(
                f"The metric gave shape {wrong[0]} for {len(batch)} sequences; "
                "one number per sequence, [batch], was expected."
            )
        return torch.stack(flat).reshape(logits.shape[:-1])
    if metric not in SCALES:
        raise ValueError(f"{metric!r} is no metric; choose from {', '.join(SCALES)}.")
    target = batch.target.expand(logits.shape[:-1])[..., None]
    if metric == "logit":
        return logits.gather(-1, target)[..., 0]
    if metric.startswith("in_context") or metric == "logit_difference":
        shown = torch.zeros(logits.shape[-2:], dtype=torch.bool, device=logits.device)
        shown.scatter_(1, batch.context_labels, True)
        if metric == "logit_difference":
            others = shown.scatter(1, batch.target[:, None], False)
            if not bool(others.any(dim=-1).all()):
                raise ValueError(
                    "A context holds no label but the target, so there is no difference to take; "
                    "use the logit."
                )
            return logits.gather(-1, target)[..., 0] - _mean_where(others, logits)
        logits = torch.where(shown, logits, -torch.inf)
    if metric.endswith("accuracy"):
        return is_right(logits, batch.target)
    log_p = logits.log_softmax(dim=-1).gather(-1, target)[..., 0]
    return -log_p if metric.endswith("loss") else log_p.exp()


def _mean_where(shown: Bool[Tensor, "batch label"], logits: Tensor) -> Tensor:
    """The mean of the logits that are shown; the others count for nothing, also -inf or NaN."""
    kept = logits * shown  # quicker, and right for numbers
    if not math.isfinite(float(logits.detach().sum())):
        kept = torch.where(shown, logits, 0)
    return kept.sum(-1) / shown.sum(-1)
