"""One measure over every checkpoint of a series: the only loop over checkpoints."""

import functools
import inspect
import logging
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Real
from typing import Annotated, Any, TypeAlias

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from ih_interp._expect import expect
from ih_interp._sequences import refuse_other_sequences
from ih_interp._stock import n_hooks, parts_of
from ih_interp.analysis.checks import checked_in_plain_torch, shown
from ih_interp.analysis.heads.pattern_scores import by_head
from ih_interp.batch import Batch
from ih_interp.checkpoints import Checkpoints, ModelSeries, weights_digest
from ih_interp.clamps import AbstractClamp, clamped
from ih_interp.clamps._active import rows_per_pass
from ih_interp.hooked_model import HookedModel, is_bridge
from ih_interp.runs import Run
from ih_interp.tasks.base import Task, drawn
from ih_interp.tasks.few_shot import FewShotTask, number

Measure: TypeAlias = Callable[[HookedModel, Batch], Any]
"""Maps a model and sequences to a number, `[layer, head]`, or numbers by name, all of them means.

By name (a mapping, a NamedTuple) a tensor `[batch]` may stand for its mean.
"""

Clamps: TypeAlias = Annotated[Sequence[AbstractClamp], 'write [ih.clamps.match("L1H3")]']
Steps: TypeAlias = Annotated[Iterable[int], "write steps=[0, 100]"]
ARun: TypeAlias = Annotated[Run, "open its folder with ih.Run(folder)"]

SETTING = (int, float, str)
MOST_SEQUENCES = 4_096  # where none are given: a mean's error is 1/64 of the spread over them


@checked_in_plain_torch(gradient=None)
def trace(
    checkpoints: Checkpoints,
    measure: Measure,
    *,
    batch: Batch | None = None,
    clamps: Clamps | None = None,
    steps: Steps | None = None,
    progress: bool = False,
) -> pd.DataFrame:
    """Apply a measure to checkpoints; return a table, one row per checkpoint and number.

    Columns: `step`, `sequences` where the series knows how many an update took (a run does),
    `name`, `value`. `name` is the head ("L1H3") for `[layer, head]` measures, the key for mappings,
    the field for NamedTuples, "value" for single numbers. `table.attrs["measure"]` is the name
    of a score of heads in words, where it has one; plots read it.

        strengths = ih.trace(run, ih.induction_strength, batch=batch)
        losses = ih.trace(run, ih.evaluate, batch=batch).query("name == 'loss'")
        scores = ih.trace(run, lambda model, batch: my_score(model))  # else than (model, batch)
        ih.trace(ih.Pretrained("pythia-70m", steps=[0, 512, 143_000]), ih.evaluate, batch=batch)

    Args:
        checkpoints: a run, `ih.Pretrained`, `ih.ModelSeries`, or a class of yours (`Checkpoints`).
        measure: must be a mean over sequences: long batches are measured in chunks and averaged.
        batch: the sequences; other series than runs need them. By default all of a run's training
            split, or, where there are more, the 4,096 of `task.sample("train", 4_096, seed=0)`.
            `table.attrs["batch"]` then says which, and the first such call logs it. For all give
            `run.task.enumerate("train")`.
        clamps: applied to every checkpoint, by default those of training, each as at the step.
        steps: in updates; by default all, with a warning where a run is not finished.
        progress: show a bar.

    Raises ValueError for a step without checkpoint, a measure of another kind or one that leaves
    the model changed, or a clamp that waits for a level in metrics which are not saved; a series
    that is no run has none.
    """
    refuse_other_function(measure, "measure", "model", "batch")
    series = as_series(checkpoints)
    batch, said = sequences_of(series, batch)
    chosen = _chosen(series, steps)
    if clamps is None:
        clamps = series.clamps if isinstance(series, Run) else ()
    metrics = _metrics(series, clamps, before=max(chosen))
    model_at = _models(series, chosen[0])
    rows: list[dict[str, Any]] = []
    for step in tqdm(chosen, disable=not progress, unit="checkpoint"):
        place: dict[str, Any] = {"step": step}
        if series.sequences_per_step is not None:
            place["sequences"] = step * series.sequences_per_step
        # No name here holds the model: it goes before the next one comes.
        values = measured(model_at(step), measure, batch, clamps, step=step, metrics=metrics)
        rows += [{**place, "name": name, "value": value} for name, value in values.items()]
    table = pd.DataFrame(rows)
    table.attrs |= {"batch": said} if said else {}
    if (words := _in_words(measure)) and table["name"].str.fullmatch(r"L\d+(H|KV)\d+").all():
        table.attrs["measure"] = words
    return table


def _in_words(measure: Measure) -> str:
    """Return the name of a module's function as words, "induction strength"; else "".

    The names of lambdas, and of functions that others define, may say little.
    """
    name = getattr(measure, "__qualname__", "<")
    return "" if "<" in name else name.rpartition(".")[2].replace("_", " ").strip()


def as_series(checkpoints: object) -> Run | ModelSeries:
    """Return a run or a series of models as it is, and any other series as one of models."""
    if isinstance(checkpoints, Run | ModelSeries):
        return checkpoints
    kind: Any = Checkpoints
    remedy = "a run's folder is opened by ih.Run(folder), models by step are an ih.ModelSeries"
    expect(checkpoints, kind, f"checkpoints={shown(checkpoints)}", remedy)
    given: Any = checkpoints
    per_step = getattr(given, "sequences_per_step", None)
    return ModelSeries(given.model, given.steps, sequences_per_step=per_step)


def sequences_of(
    checkpoints: Checkpoints, batch: Batch | None, most: int = MOST_SEQUENCES
) -> tuple[Batch, str]:
    """Return the sequences given, or `some_sequences` of a run, and a phrase that says which."""
    if batch is not None:
        return batch, ""
    if not isinstance(checkpoints, Run):
        raise ValueError("batch=None: only a run has a task to draw sequences of; give batch=.")
    return some_sequences(checkpoints.task, most=most)


def _metrics(
    series: Run | ModelSeries, clamps: Sequence[AbstractClamp], before: int
) -> list[dict[str, Any]] | None:
    """Return the metrics of a run where a clamp waits for a level in them."""
    waiting = [clamp for clamp in clamps if clamp.is_scheduled and not clamp.schedule.by_step]
    if not waiting:
        return None
    if not isinstance(series, Run):
        raise ValueError(
            f"{waiting[0]} waits for a level in the metrics of a run, which {series!r} does not "
            "have: give it a schedule by step, or none."
        )
    return series.rows(before=before)


def _models(series: Run | ModelSeries, first: int) -> Callable[[int], HookedModel]:
    """Return a function that gives the model at a step: one model of a run, with other weights."""
    if isinstance(series, ModelSeries):
        return series.model
    model = series.model(first)

    def at(step: int) -> HookedModel:
        series.load_weights(model, step)
        return model

    return at


def measured(
    model: HookedModel, measure: Measure, batch: Batch, clamps: Sequence[AbstractClamp], **at: Any
) -> dict[str, float]:
    """Return the measure's numbers at a checkpoint; refuse one that leaves the model changed."""
    refuse_other_sequences(model, batch)
    if is_bridge(model):
        model(batch.tokens[:1])  # its first pass puts hooks of its own on its modules
    parts, weights = _parts(model), weights_digest(model)
    values = _means(model, measure, batch, functools.partial(clamped, model, clamps, **at))
    same_weights = weights_digest(model) == weights
    if not same_weights or _parts(model) != parts:
        what = "modules, settings, buffers or hooks" if same_weights else "weights"
        raise ValueError(
            f"The measure left the model with other {what}: expected it as it came; change "
            "copy.deepcopy(model), or take hooks off with `with model.hooks(...)`."
        )
    return values


def some_sequences(
    task: Task, split: Any = "train", most: int = MOST_SEQUENCES
) -> tuple[Batch, str]:
    """Return all sequences of a split, or `most` of more, and a phrase that says which.

    The sample is the same every time, and logged once, as no warning that would stop a program.
    """
    said = f"a fixed sample of {most:,} sequences of {split!r}"
    if isinstance(task, FewShotTask):
        size = task.n_sequences(split)
        if size <= most:
            return task.enumerate(split), f"all {size:,} sequences of {split!r}"
        said = f"a fixed sample of {most:,} of the {number(size)} sequences of {split!r}"
    _say_once(f"Measured over {said}; give batch= for others.")
    return drawn(task, split, most, generator=torch.Generator().manual_seed(0)), said


_say_once = functools.cache(logging.getLogger("ih_interp").warning)


def warn_unfinished(run: Run) -> None:
    """Warn of a run whose last checkpoint is not yet its end."""
    if not run.finished:
        last, end = max(run.steps, default=0), run.config.n_steps
        warnings.warn(
            f"{run.folder} is not finished: its last checkpoint is at update {last:,} and its end "
            f"at {end:,}; the result ends there. Train it again to go on.",
            stacklevel=6,  # past the caller, the checks, torch's state, and the function that asked
        )


def _chosen(series: Run | ModelSeries, steps: Steps | None) -> list[int]:
    there = list(series.steps)
    if not there:
        raise ValueError(f"{series!r} has no checkpoints yet; train it first.")
    if steps is None:
        if isinstance(series, Run):
            warn_unfinished(series)
        return there
    chosen = [series.checkpoint_step(step) for step in steps]
    if not chosen:
        raise ValueError("steps=[]: expected at least one; leave it out for every checkpoint.")
    return chosen


def refuse_other_function(function: Callable[..., Any], what: str, *names: str) -> None:
    """Refuse a function that cannot be called with arguments of these names (TypeError)."""
    called, name = ", ".join(names), getattr(function, "__name__", "it")
    try:
        signature = inspect.signature(function)
    except ValueError as error:  # some builtins have no signature
        raise TypeError(f"{what} cannot be {name}; wrap it: lambda {called}: ...") from error
    try:
        signature.bind(*names)
    except TypeError as error:
        parameters = signature.parameters
        needed = [p.name for p in parameters.values() if p.default is p.empty]
        given = [p if p in names else f"{p}=..." for p in needed]
        raise TypeError(
            f"{what}: expected a function of ({called}), and {name} takes "
            f"({', '.join(parameters)}); wrap it: lambda {called}: {name}({', '.join(given)})."
        ) from error


def _parts(model: HookedModel) -> tuple[object, ...]:
    """Return what a measure may not change in a model, but for the values of its weights."""
    parts = [
        (
            id(module),
            sum(_is_public(name) for name in vars(module)),
            # A module's numbers and words are its settings, as a norm's eps.
            [v for n, v in vars(module).items() if _is_public(n) and isinstance(v, SETTING)],
            n_hooks(module),
            *map(id, module.parameters(recurse=False)),
            *((id(b), b._version) for b in module.buffers(recurse=False)),
        )
        for module in parts_of(model)
    ]
    return dict(vars(model.cfg)), parts


def _is_public(name: str) -> bool:
    """Return whether a module's attribute is more than a note of its own for the next pass."""
    return not name.startswith("_") and name != "training"


def _means(
    model: HookedModel, measure: Measure, batch: Batch, apply: Callable[..., Any]
) -> dict[str, float]:
    """Return the measure's numbers by name, chunk by chunk, each under the clamps of `apply`."""
    total: dict[str, float] = {}
    for part in batch.split(rows_per_pass(model, batch.tokens)):
        with apply(batch=part):
            values = _named(measure(model, part), len(part))
        if total and values.keys() != total.keys():
            raise ValueError(
                f"The measure named {list(values)} in one chunk and {list(total)} in another: "
                "expected the same names for any sequences."
            )
        for name, value in values.items():
            total[name] = total.get(name, 0.0) + value * len(part) / len(batch)
    return total


def _named(value: Any, n_sequences: int) -> dict[str, float]:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        value = value._asdict()  # pyright: ignore
    if isinstance(value, Mapping):
        return {str(name): _number(part, n_sequences) for name, part in value.items()}
    if isinstance(value, Tensor) and value.ndim == 2:
        return by_head(value.detach())
    return {"value": _number(value, None)}


def _number(value: Any, n_sequences: int | None) -> float:
    """Return a number, or the mean of one per sequence where `n_sequences` is given."""
    if isinstance(value, Tensor):
        value = value.detach()
        value = value.double().mean() if value.shape == (n_sequences,) else value
    if isinstance(value, Real) or (isinstance(value, Tensor) and value.ndim == 0):
        return float(value)
    shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(
        f"The measure gave {shape}: expected a number, [layer, head], or by name numbers or "
        "tensors [batch]."
    )
