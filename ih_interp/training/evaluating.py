"""Evaluation of runs while they train: by the plain model, or compiled where that pays."""

import operator
from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map, tree_structure, tree_unflatten

from ih_interp._torch_state import seeded
from ih_interp.analysis import heads
from ih_interp.batch import Batch
from ih_interp.clamps import AbstractClamp, Level, Shape, clamped, in_order
from ih_interp.clamps.base import flat_tensors
from ih_interp.clamps.schedules import Metrics, Under
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
from ih_interp.hooked_model import HookedModel
from ih_interp.tasks.base import Task
from ih_interp.training.state import RunState

Clamps: TypeAlias = tuple[AbstractClamp, ...]

WORTH_COMPILING = 250_000  # sequences, of all evaluations of a run, that repay compiling
MAX_CHUNK = 2_000  # sequences per call: their activations stay in the processor's cache
MIN_CHUNK = 100  # below it, calls cost more than what they compute


class Evaluator:
    """An object that evaluates runs that share a trace (`fleet.trace_key`)."""

    def __init__(self, model: HookedModel, *, compiled: bool) -> None:
        self._model = model
        self.compiled = compiled
        self._graphs: dict[tuple[int | None, int, bool], EvaluationGraph] = {}

    def prepare(self, run: RunState, weights: Tensors) -> None:
        """Compile the evaluations of this run if it pays; raises the compiler's errors."""
        for under in run.config.evaluate:
            self._graph(run, weights, clamps_under(run.config, under))

    def measure(self, run: RunState, weights: Tensors) -> list[dict[str, Any]]:
        """Return a row per set: the mean of every metric under the run's clamps at its step.

        `run.config.evaluate` asks for rows under them, for rows without any, or for both.
        """
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])
        means: dict[bool, Mapping[str, Mapping[str, float]]] = {}
        rows: list[dict[str, Any]] = []
        for under in run.config.evaluate:
            clamps = clamps_under(run.config, under)
            with seeded(run.config.seeds.evaluation, run.step):  # of clamps that draw
                if bool(clamps) not in means:  # without clamps both are the same
                    means[bool(clamps)] = self._means(run, weights, clamps)
                scores = head_scores(self._model, run.config, under, run.sets, run.step, run.rows)
            for split, values in means[bool(clamps)].items():
                rows.append({"split": split, "under": under, **values, **scores[split]})
        return rows

    def _graph(self, run: RunState, weights: Tensors, clamps: Clamps) -> "EvaluationGraph | None":
        if not (self.compiled and is_worth_compiling(run.config, run.task)):
            return None
        sizes = (getattr(run.task, "n_test_classes", None), run.config.evaluation_size)
        key = (*sizes, bool(clamps))
        if key not in self._graphs:
            self._graphs[key] = EvaluationGraph(self._model, run, weights, is_free=not clamps)
        return self._graphs[key]

    def _means(
        self, run: RunState, weights: Tensors, clamps: Clamps
    ) -> Mapping[str, Mapping[str, float]]:
        if (graph := self._graph(run, weights, clamps)) is not None:
            return graph.measure(run, weights)
        given: dict[str, Any] = {"step": run.step, "metrics": tuple(run.rows)}
        return {
            split: evaluate(self._model, batch, clamps, **given).mean()
            for split, batch in run.sets.items()
        }


def clamps_under(config: RunConfig, under: Under) -> Clamps:
    """Return the clamps under which a run is measured."""
    return config.clamps if under == "clamped" else ()


@torch.no_grad()
def head_scores(
    model: HookedModel,
    config: RunConfig,
    under: Under,
    sets: Mapping[str, Batch],
    step: int,
    rows: Metrics,
) -> dict[str, dict[str, float]]:
    """Return, by split, the scores of heads that schedules wait for, by their columns."""
    found: dict[str, dict[str, float]] = {split: {} for split in sets}
    for level in levels_of(config):
        if level.head is None or level.under != under:
            continue
        measure, clamps = getattr(heads, level.metric), clamps_under(config, under)
        # Measures on repeated tokens draw their own.
        draws = "generator" in signature(measure).parameters
        given = {"generator": torch.Generator().manual_seed(config.seeds.evaluation)}
        batch = None if draws else sets[level.split]
        with clamped(model, clamps, batch, step=step, metrics=tuple(rows)):
            scores = measure(model, **given) if draws else measure(model, batch)
        found[level.split][level.column] = float(scores[level.head])
    return found


def levels_of(config: RunConfig) -> list[Level]:
    """Return what the schedules of a run's clamps wait for."""
    return [level for clamp in config.clamps for level in clamp.schedule.levels]


class EvaluationGraph:
    """A compiled graph of every metric on evaluation sets, for all runs of one fleet."""

    def __init__(
        self, model: HookedModel, run: RunState, weights: Tensors, *, is_free: bool = False
    ) -> None:
        self._is_free = is_free
        self._rows = Rows.of_splits(run.task, run.task.splits)
        self._size = chunk_size(len(run.sets) * run.config.evaluation_size)
        self._names = metric_names(run.task)
        self._shape = Shape.of(model)
        self._compiled = self._compile(model, run, weights, self._chunks(run)[0])

    def measure(self, run: RunState, weights: Tensors) -> Mapping[str, Mapping[str, float]]:
        """Return the mean of every metric by split."""
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
            Sequences.of(self._rows.of(batch), run.task, self._clamps(run))
            for batch in run.sets.values()
        ]
        every: Sequences = tree_map(lambda *same: torch.cat(same), *sets)
        n_chunks = -(-len(every.tokens) // self._size)
        filled = torch.arange(n_chunks * self._size) % len(every.tokens)
        return [tree_map(operator.itemgetter(rows), every) for rows in filled.split(self._size)]

    def _clamps(self, run: RunState) -> Clamps:
        return () if self._is_free else in_order(run.config.clamps)

    def _gates(self, run: RunState) -> list[Tensor]:
        """Return the gates of the clamps that have a schedule."""
        return [] if self._is_free else [torch.tensor(gate) for gate in run.gates()]

    def _given(self, run: RunState) -> list[Tensor]:
        """Return the tensors of the run's clamps, and the gates of those with a schedule."""
        return flat_tensors(self._clamps(run), self._shape) + self._gates(run)

    def _compile(
        self, model: HookedModel, run: RunState, weights: Tensors, sequences: Sequences
    ) -> Callable[..., Float[Tensor, "metric batch"]]:
        given, task = self._given(run), run.task
        n_tensors = len(given) - len(self._gates(run))
        example = [*tree_leaves((weights, sequences)), *given]
        structure = tree_structure((weights, sequences))

        def arguments(inputs: Sequence[Tensor]) -> tuple[Any, ...]:
            n_first = structure.num_leaves
            named, shown = tree_unflatten(list(inputs[:n_first]), structure)
            rest = list(inputs[n_first:])
            return named, self._rows.buffers, shown, rest[:n_tensors], rest[n_tensors:]

        # A metric of the user's own may read every position.
        whole = bool(task.metrics)
        clamped = ClampedModel(model, self._clamps(run), task, whole=whole)
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
