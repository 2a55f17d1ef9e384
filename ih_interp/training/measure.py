"""Evaluating runs while they train: by the model as it is, or often enough that compiling pays."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from transformer_lens import HookedTransformer

from ih_interp.clamps import Shape, in_order
from ih_interp.config import RunConfig
from ih_interp.evaluation import QueryMetrics, evaluate, means, query_metrics
from ih_interp.task import FewShotTask
from ih_interp.training.data import Rows
from ih_interp.training.state import RunState
from ih_interp.training.step import (
    Tensors,
    compile_graph,
    trace_forward,
)
from ih_interp.types import Batch

WORTH_COMPILING = 500_000  # sequences a run evaluates in all from which compiling is repaid
MAX_CHUNK = 1_000  # sequences a call: their activations stay in the processor's cache
MIN_CHUNK = 100  # below it, calls cost more than what they compute


class Evaluator:
    """Measures the evaluation sets of runs of one shape under their clamps."""

    def __init__(self, model: HookedTransformer, run: RunState, *, compiled: bool) -> None:
        self._model = model
        self._clamps = in_order(run.config.clamps)
        self._rows = Rows.evaluation(run.task)
        self._compiled = compiled and is_worth_compiling(run.config, run.task)
        self._chunk_size = chunk_size(run.config.evaluation_size)
        self._logits: Callable[..., Tensor] | None = None

    def measure(self, run: RunState, weights: Tensors) -> Mapping[str, Mapping[str, float]]:
        """The means of every metric on every set, as the run's clamps are at its step."""
        if self._compiled:
            return {split: means(self._by_graph(run, weights, b)) for split, b in run.sets.items()}
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
        return {
            split: means(
                evaluate(
                    self._model, batch, run.config.clamps, step=run.step, metrics=tuple(run.rows)
                )
            )
            for split, batch in run.sets.items()
        }

    def _by_graph(self, run: RunState, weights: Tensors, batch: Batch) -> QueryMetrics:
        logits = [
            self._chunk(run, weights, part) for part in self._rows.of(batch).split(self._chunk_size)
        ]
        return query_metrics(torch.cat(logits), batch)

    def _chunk(self, run: RunState, weights: Tensors, part: Batch) -> Float[Tensor, "batch label"]:
        shape = Shape.of(self._model)
        tensors = [clamp.tensors(shape) for clamp in self._clamps]
        given = [tensor for of_clamp in tensors for tensor in of_clamp.values()]
        inputs = [*weights.values(), part.tokens, part.target, *given]
        inputs += [torch.tensor(gate) for gate in run.gates()]
        if self._logits is None:
            self._logits = self._trace(list(weights), tensors, inputs)
        with torch.no_grad():
            return self._logits(*inputs)

    def _trace(
        self, names: list[str], tensors: list[Tensors], example: list[Tensor]
    ) -> Callable[..., Tensor]:
        features, n = self._rows.features, len(names)

        def arguments(inputs: Sequence[Tensor]) -> tuple[Any, ...]:
            weights = dict(zip(names, inputs[:n], strict=True))
            tokens, target, *rest = inputs[n:]
            remaining = iter(rest)
            of_clamps = [{name: next(remaining) for name in given} for given in tensors]
            return weights, features, tokens, target, of_clamps, list(remaining)

        nested = trace_forward(self._model, self._clamps, *arguments(example))
        with torch.no_grad():
            flat = make_fx(lambda *inputs: nested(*arguments(inputs)))(*example)
        return compile_graph(flat, *example)


def is_worth_compiling(config: RunConfig, task: FewShotTask) -> bool:
    """Whether a run evaluates so often that compiling is repaid; whatever fleet it is in."""
    evaluations = len(config.evaluations.steps(config.n_steps, config.batch_size))
    sequences = evaluations * len(task.splits) * config.evaluation_size
    return sequences >= WORTH_COMPILING and chunk_size(config.evaluation_size) >= MIN_CHUNK


def chunk_size(size: int) -> int:
    """The largest number of sequences up to 1,000 that divides a set of this size.

    >>> chunk_size(1_000), chunk_size(2_400), chunk_size(1_009)
    (1000, 800, 1)
    """
    return max(n for n in range(1, MAX_CHUNK + 1) if size % n == 0)
