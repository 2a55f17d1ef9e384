"""Evaluation of runs while they train: by the plain model, or compiled where that pays."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_structure, tree_unflatten
from transformer_lens import HookedTransformer

from ih_interp.clamps import Shape, in_order
from ih_interp.clamps.base import flat_tensors
from ih_interp.config import RunConfig
from ih_interp.engine.compiled_forward import (
    ClampedModel,
    Sequences,
    Tensors,
    compile_graph,
    trace_forward,
    traced,
)
from ih_interp.engine.feature_table import Rows
from ih_interp.evaluation import evaluate, metric_names, sequence_metrics
from ih_interp.tasks.base import Task
from ih_interp.training.state import RunState

WORTH_COMPILING = 250_000  # sequences, of all evaluations of a run, that repay compiling
MAX_CHUNK = 2_000  # sequences per call: their activations stay in the processor's cache
MIN_CHUNK = 100  # below it, calls cost more than what they compute


class Evaluator:
    """An object that evaluates runs that share a trace (`fleet.trace_key`)."""

    def __init__(self, model: HookedTransformer, *, compiled: bool) -> None:
        self._model = model
        self.compiled = compiled
        self._graphs: dict[tuple[int | None, int], EvaluationGraph] = {}

    def prepare(self, run: RunState, weights: Tensors) -> "EvaluationGraph | None":
        """Return the compiled evaluation of this run if it pays; raises the compiler's errors."""
        if not (self.compiled and is_worth_compiling(run.config, run.task)):
            return None
        key = (getattr(run.task, "n_test_classes", None), run.config.evaluation_size)
        if key not in self._graphs:
            self._graphs[key] = EvaluationGraph(self._model, run, weights)
        return self._graphs[key]

    def measure(self, run: RunState, weights: Tensors) -> Mapping[str, Mapping[str, float]]:
        """Return the mean of every metric on every set, under the run's clamps at its step."""
        if (graph := self.prepare(run, weights)) is not None:
            return graph.measure(run, weights)
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
        return {
            split: evaluate(
                self._model, batch, run.config.clamps, step=run.step, metrics=tuple(run.rows)
            ).mean()
            for split, batch in run.sets.items()
        }


class EvaluationGraph:
    """A compiled graph of every metric on evaluation sets, for all runs of one fleet."""

    def __init__(self, model: HookedTransformer, run: RunState, weights: Tensors) -> None:
        self._rows = Rows.of_splits(run.task, run.task.splits)
        self._size = chunk_size(len(run.sets) * run.config.evaluation_size)
        self._names = metric_names(run.task)
        self._shape = Shape.of(model)
        self._compiled = self._compile(model, run, weights, self._chunks(run)[0])

    def measure(self, run: RunState, weights: Tensors) -> Mapping[str, Mapping[str, float]]:
        """Return the means, as `Evaluator.measure` does."""
        given = self._given(run)
        with torch.no_grad():
            parts = [
                self._compiled(*tree_leaves((weights, sequences)), *given)
                for sequences in self._chunks(run)
            ]
        n_sets, size = len(run.sets), run.config.evaluation_size
        found = torch.cat(parts, dim=1)[:, : n_sets * size]
        values = found.double().unflatten(1, (n_sets, size)).mean(dim=-1)
        return {
            split: dict(zip(self._names, of_split, strict=True))
            for split, of_split in zip(run.sets, values.T.tolist(), strict=True)
        }

    def _chunks(self, run: RunState) -> list[Sequences]:
        """Return all sets, one after the other, in pieces of one size; the last is filled up."""
        sets = [
            Sequences.of(self._rows.of(batch), run.task, run.config.clamps)
            for batch in run.sets.values()
        ]
        every: Sequences = tree_map(lambda *same: torch.cat(same), *sets)
        n_chunks = -(-len(every.tokens) // self._size)
        filled = torch.arange(n_chunks * self._size) % len(every.tokens)
        return [tree_map(operator.itemgetter(rows), every) for rows in filled.split(self._size)]

    def _given(self, run: RunState) -> list[Tensor]:
        """Return the tensors of the run's clamps, and the gates of those with a schedule."""
        tensors = flat_tensors(in_order(run.config.clamps), self._shape)
        return tensors + [torch.tensor(gate) for gate in run.gates()]

    def _compile(
        self, model: HookedTransformer, run: RunState, weights: Tensors, sequences: Sequences
    ) -> Callable[..., Float[Tensor, "metric batch"]]:
        given, task = self._given(run), run.task
        n_tensors = len(given) - len(run.gates())
        example = [*tree_leaves((weights, sequences)), *given]
        structure = tree_structure((weights, sequences))

        def arguments(inputs: Sequence[Tensor]) -> tuple[Any, ...]:
            n_first = structure.num_leaves
            named, shown = tree_unflatten(list(inputs[:n_first]), structure)
            rest = list(inputs[n_first:])
            return named, self._rows.buffers, shown, rest[:n_tensors], rest[n_tensors:]

        # A metric of the user's own may read every position.
        whole = bool(task.metrics)
        clamped = ClampedModel(model, in_order(run.config.clamps), task, whole=whole)
        logits = trace_forward(clamped, *arguments(example))

        def measured(*inputs: Tensor) -> Float[Tensor, "metric batch"]:
            given = arguments(inputs)
            batch = given[2].batch(clamped.layout, task)
            return torch.stack(list(sequence_metrics(logits(*given), batch).values()))

        with torch.no_grad():
            graph = traced(measured, *example)
        return compile_graph(graph, *example)


def is_worth_compiling(config: RunConfig, task: Task) -> bool:
    """Return whether a run evaluates so often that compiling pays, in any fleet."""
    evaluations = len(config.evaluations.steps(config.n_steps, config.batch_size))
    size = len(task.splits) * config.evaluation_size
    return evaluations * size >= WORTH_COMPILING and size >= MIN_CHUNK


def chunk_size(size: int) -> int:
    """Return the sequences per call: the largest number from 100 to 2,000 that divides `size`.

    Where there is none, calls are as few and as equal as possible, and the last one is filled up.

    >>> chunk_size(1_000), chunk_size(4_800), chunk_size(8_012)
    (1000, 1600, 1603)
    """
    filled_up = -(-size // -(-size // MAX_CHUNK))
    return max((n for n in range(MIN_CHUNK, MAX_CHUNK + 1) if size % n == 0), default=filled_up)
