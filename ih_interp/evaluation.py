"""How well a model does at the query: loss, accuracy, and the same within the context's labels."""

from collections.abc import Sequence
from typing import NamedTuple, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp._reprs import short_repr
from ih_interp._stock import refuse_unfit_weights
from ih_interp._torch_state import plain_torch
from ih_interp.clamps import AbstractClamp, clamped
from ih_interp.clamps._active import pass_size
from ih_interp.clamps.schedules import Metrics
from ih_interp.config import RunConfig
from ih_interp.model import refuse_other_exemplars
from ih_interp.tasks.few_shot import SPLITS, FewShotTask, Split
from ih_interp.types import Batch, MetricName, expect, integer

METRICS: tuple[MetricName, ...] = get_args(MetricName)


@short_repr
class QueryMetrics(NamedTuple):
    """One value per sequence, all at the query. L labels, n of them in the context.

    All are NaN where the logits that they are made from are NaN or infinite, as in a network that
    diverged: an accuracy is then no guess.
    """

    loss: Float[Tensor, " batch"]
    """Cross-entropy over all labels, nats; chance ln L, guessing within the context ln n."""
    accuracy: Float[Tensor, " batch"]
    """1 where the largest logit is the target's; chance 1/L."""
    in_context_accuracy: Float[Tensor, " batch"]
    """1 where it is the largest of the context's labels; chance 1/n."""
    probability: Float[Tensor, " batch"]
    """Softmax over all labels at the target; chance 1/L."""
    in_context_probability: Float[Tensor, " batch"]
    """Softmax over the context's labels alone at the target; chance 1/n."""
    context_probability: Float[Tensor, " batch"]
    """Probability of all the context's labels together; chance n/L. The published code's
    `use_context_prob`."""

    def mean(self) -> dict[str, float]:
        """Return the mean over sequences of every metric, summed in float64."""
        return {name: float(values.double().mean()) for name, values in self._asdict().items()}

    def table(self) -> pd.DataFrame:
        """Return one row per sequence, in the batch's order, and one column per metric."""
        return pd.DataFrame({name: v.tolist() for name, v in self._asdict().items()})


def is_right(
    logits: Float[Tensor, "*any batch label"], target: Int[Tensor, " batch"]
) -> Float[Tensor, "*any batch"]:
    """Return 1 where the largest logit is the target's, else 0; NaN where it is no finite number.

    The place of a NaN among logits would be a guess.
    """
    best, chosen = logits.max(dim=-1)
    return (chosen == target).to(logits) + (best - best)  # 0 but for NaN and infinities


def query_metrics(logits: Float[Tensor, "batch label"], batch: Batch) -> QueryMetrics:
    """Metrics of the query's logits; the definitions stand at `QueryMetrics`."""
    expect(logits, Tensor, "The logits", "give model(batch.tokens)[:, -1]")
    expect(batch, Batch, "The batch", "give the Batch itself, not its tokens")
    if logits.ndim != 2 or len(logits) != len(batch):
        raise ValueError(
            f"The logits have shape {tuple(logits.shape)} for {len(batch)} sequences: expected "
            "[batch, label], the query's, logits[:, -1]."
        )
    shown = torch.zeros_like(logits, dtype=torch.bool).scatter(1, batch.context_labels, True)
    log_p = logits.log_softmax(dim=-1)
    log_p_context = torch.where(shown, logits, -torch.inf).log_softmax(dim=-1)
    target = batch.target[:, None]
    of_target, of_target_in_context = (p.gather(1, target)[:, 0] for p in (log_p, log_p_context))
    return QueryMetrics(
        loss=-of_target,
        accuracy=is_right(logits, batch.target).float(),
        in_context_accuracy=is_right(log_p_context, batch.target).float(),
        probability=of_target.exp(),
        in_context_probability=of_target_in_context.exp(),
        context_probability=(log_p.exp() * shown).sum(dim=-1),
    )


def chance(task: FewShotTask) -> dict[str, float]:
    """What a uniform guess over all labels, or (in context) over the context's, would score."""
    n, n_labels = task.config.n_context_classes, task.n_labels
    return {
        "loss": float(np.log(n_labels)),
        "accuracy": 1 / n_labels,
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
) -> QueryMetrics:
    """Metrics of every sequence under clamps; `step` and `metrics` as in `clamped`.

    At most `chunk` sequences go through a pass, or all of them inside a `clamped` block that was
    made for them.

    `evaluate(model, batch).mean()` gives their means, `.table()` a table of one row per sequence.
    """
    expect(model, HookedTransformer, "The model", "a run's is run.model(step)")
    expect(batch, Batch, "The batch", "give the Batch itself, not its tokens")
    if integer(chunk, f"chunk={chunk!r}") < 1:
        raise ValueError(f"chunk={chunk}; at least one sequence a pass was expected.")
    refuse_unfit_weights(model)
    _refuse_other_tokens(model, batch)
    refuse_other_exemplars(model, batch)
    parts: list[QueryMetrics] = []
    for part in batch.split(pass_size(model, len(batch), integer(chunk, "chunk"))):
        with clamped(model, clamps, part, step=step, metrics=metrics):
            parts.append(query_metrics(model(part.tokens)[:, -1], part))
    return QueryMetrics(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _refuse_other_tokens(model: HookedTransformer, batch: Batch) -> None:
    """Refuse tokens and targets that the model does not have, which torch would name by number."""
    for name, values, high in (
        ("tokens", batch.tokens, model.cfg.d_vocab),
        ("targets", batch.target, model.cfg.d_vocab_out),
    ):
        if values.numel() and not (int(values.min()) >= 0 and int(values.max()) < high):
            raise ValueError(
                f"The batch's {name} run from {int(values.min())} to {int(values.max())}; they "
                f"must lie in [0, {high}): use sequences of the model's own task."
            )


@plain_torch()
def evaluation_sets(task: FewShotTask, config: RunConfig) -> dict[str, Batch]:
    """The fixed sequences that a run is evaluated on: one set per split, drawn from its own seed.

    A split has the same set whichever other splits its task has.
    """
    return {
        split: task.sample(
            split,
            config.evaluation_size,
            generator=torch.Generator().manual_seed(_split_seed(config.seeds.evaluation, split)),
        )
        for split in task.splits
    }


def _split_seed(seed: int, split: Split) -> int:
    return int(np.random.SeedSequence((seed, SPLITS.index(split))).generate_state(1)[0])
