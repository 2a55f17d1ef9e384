"""Studies are values: their runs are trained in stages, each until it has learned."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from ih_interp._config_base import Frozen
from ih_interp._reprs import short_repr
from ih_interp.analysis.dynamics.emergence import learned
from ih_interp.clamps import AbstractClamp, PreviousTokenAttention, copy, layer_one, match
from ih_interp.clamps.schedules import AbstractSchedule
from ih_interp.config import Grid, RunConfig, Seeds
from ih_interp.engine.compiled_forward import compiler_found
from ih_interp.optimisers import Adam
from ih_interp.paper.drawing import Drawing
from ih_interp.runs import Run
from ih_interp.studies.findings import Finding
from ih_interp.tasks.base import AbstractTask
from ih_interp.tasks.exemplars import ExemplarSource, GaussianSource
from ih_interp.tasks.few_shot import TaskConfig
from ih_interp.tasks.repeated_tokens import RepeatedTokens
from ih_interp.training.fleet import trace_key
from ih_interp.training.state import StopRun
from ih_interp.training.train import Engine, train
from ih_interp.types import Head

LEARNED = 0.4  # times the loss of a guess: below it a task counts as learned
WORTH_COMPILING = 8_000  # updates of runs that share a graph


CLAMPS: Mapping[str, Callable[[AbstractSchedule], AbstractClamp]] = {
    "previous token": lambda on: PreviousTokenAttention(heads=(Head(0, 0),), schedule=on),
    "layer 1": lambda on: layer_one(schedule=on),
    "match": lambda on: match("L1H0", schedule=on),
    "copy": lambda on: copy("L1H0", schedule=on),
}
"""The clamps of Figure 5b as functions of their schedule; "layer 1" is the paper's, L0 here.

Clamps of a head are on the first of its layer: before training the heads of a layer are alike.
"""


class Scale(Frozen):
    """A scale says which networks a study has, how long runs are, and when they are evaluated."""

    seeds: tuple[int, ...] = tuple(range(5, 13))
    """The seeds of the initial weights; other chance is the same in all networks."""
    learning_rate: float = 6e-5
    """The learning rate of Adam."""
    sequences: int = 96_000
    """The longest run, in sequences; a run that has learned ends earlier."""
    batch_size: int = 32
    """Sequences in an update."""
    every: int = 1_600
    """Sequences from one evaluation to the next."""
    evaluation_size: int = 1_000
    """The number of sequences of each evaluation set."""
    exemplars: ExemplarSource = GaussianSource(n_classes=300)
    """The exemplars of few-shot sequences."""

    def run(
        self, name: str, seed: int, clamps: Sequence[AbstractClamp] = (), **changes: object
    ) -> RunConfig:
        """Return a run on the paper's task and model at this scale, with other fields as given."""
        run = RunConfig(
            name=f"{name}-{seed}",
            task=TaskConfig(exemplars=self.exemplars),
            optimiser=Adam(learning_rate=self.learning_rate),
            seeds=Seeds(init=seed),
            sequences=self.sequences,
            batch_size=self.batch_size,
            clamps=tuple(clamps),
            evaluations=Grid(every=self.every),
            evaluation_size=self.evaluation_size,
        )
        return run.replace(**changes)


SMOKE = Scale(
    seeds=(5, 6),
    learning_rate=1e-3,
    sequences=160,
    every=80,
    evaluation_size=64,
    exemplars=GaussianSource(n_classes=300, n_exemplars=3, n_features=32),
)
"""Seconds: everything runs, nothing is learned."""


class Trial(NamedTuple):
    """A run of a study and the condition that it is of, as columns of the study's table."""

    condition: Mapping[str, Any]
    config: RunConfig


Stage: TypeAlias = Callable[[Scale, pd.DataFrame], list[Trial]]
"""The runs to train next, given a scale and the table of the stages before."""
Rows: TypeAlias = Callable[[Trial, Run], list[dict[str, Any]]]


@short_repr
@dataclass(frozen=True)
class Study:
    """A question, the runs that answer it, and what was expected of them before they were made."""

    name: str
    """As "critical periods"."""
    question: str
    scales: Mapping[str, Scale]
    """By preset: "smoke", "quick", "paper"."""
    stages: tuple[Stage, ...]
    """Trained one after the other."""
    summarise: Callable[[pd.DataFrame], pd.DataFrame]
    """Numbers with intervals over networks, one row per condition."""
    judge: Callable[[pd.DataFrame], list[Finding]]
    draw: Drawing
    size: tuple[float, float]
    """Inches."""
    rows: Rows
    """A run's rows of the table: `time_rows`, `curve_rows` or one of its own."""

    @property
    def word(self) -> str:
        """The name as the command takes it: "critical-periods"."""
        return self.name.replace(" ", "-")

    @property
    def file_name(self) -> str:
        """The name of its files without ending: "critical_periods"."""
        return self.name.replace(" ", "_")


def guess_loss(task: AbstractTask) -> float:
    """Return the loss in nats of a guess between the tokens that the context offers as answers.

    In few-shot sequences that is the logarithm of the number of labels in the context, ln 2 for the
    paper's task. In `RepeatedTokens` it is the mean logarithm of the block's length over the
    positions asked in its repeats.
    """
    if isinstance(task, TaskConfig):
        return math.log(task.n_context_classes)
    if isinstance(task, RepeatedTokens):
        periods = np.arange(task.min_period, task.max_period + 1)
        return float(np.average(np.log(periods), weights=task.length - periods))
    raise ValueError(f"{task!r}: expected a few-shot task or RepeatedTokens.")


def learned_level(task: AbstractTask) -> float:
    """Return the training loss in nats below which a task counts as learned: 0.4 `guess_loss`.

    In the paper's task that is its own level, 0.277.
    """
    return LEARNED * guess_loss(task)


def training_curve(run: Run) -> pd.DataFrame:
    """Return a run's metrics on training sequences up to the first that finds the task learned.

    Where several processes train, a run ends a few evaluations later. Of metrics under clamps and
    without them, it returns those that `evaluate` names first.
    """
    own = (run.metrics["split"] == "train") & (run.metrics["under"] == run.config.evaluate[0])
    curve = run.metrics[own].reset_index(drop=True)
    is_learned = curve["loss"] < learned_level(run.config.task)
    return curve.iloc[: int(is_learned.argmax()) + 1] if is_learned.any() else curve


def time_rows(trial: Trial, run: Run) -> list[dict[str, Any]]:
    """Return a row with the time at which a run learned: `time` in sequences, `observed`."""
    curve = training_curve(run)
    level = learned_level(run.config.task)
    crossing = learned(curve["sequences"], curve["loss"], level=level)
    return [{**_key(trial, run), **crossing._asdict()}]


def curve_rows(trial: Trial, run: Run) -> list[dict[str, Any]]:
    """Return a row for each evaluation of a run: `sequences`, `loss` in nats."""
    curve = training_curve(run)
    points = zip(curve["sequences"], curve["loss"], strict=True)
    return [{**_key(trial, run), "sequences": x, "loss": loss} for x, loss in points]


def _key(trial: Trial, run: Run) -> dict[str, Any]:
    own = {"seed": run.config.seeds.init, "run": run.config.name, "config": run.config.fingerprint}
    return {**trial.condition, **own}


def stop_when_learned(run: Run, row: Mapping[str, Any]) -> None:
    """End a run at the evaluation that finds its task learned."""
    is_own = row["split"] == "train" and row["under"] == run.config.evaluate[0]
    if is_own and row["loss"] < learned_level(run.config.task):
        raise StopRun


def train_stages(
    study: Study, scale: Scale, root: Path, *, engine: Engine, say: Callable[[str], None]
) -> pd.DataFrame:
    """Train what is missing, stage by stage, and return the study's table."""
    table = pd.DataFrame()
    for number, stage in enumerate(study.stages, start=1):
        trials = stage(scale, table)
        say(f"{root}: stage {number} of {len(study.stages)}, {len(trials)} run(s)")
        configs = [trial.config for trial in trials]
        runs = train(configs, root, engine=_engine(engine, configs), on_metrics=stop_when_learned)
        rows = [row for each in zip(trials, runs, strict=True) for row in study.rows(*each)]
        table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
    return table


def _engine(engine: Engine, configs: Sequence[RunConfig]) -> Engine:
    """Return the engine of a stage: short runs that share a graph may repay its compilation."""
    graphs = len({trace_key(config) for config in configs})
    updates = sum(config.n_steps for config in configs)
    worth_it = updates >= WORTH_COMPILING * graphs and compiler_found()
    return "compiled" if engine == "auto" and worth_it else engine


def study_folder(root: Path, study: Study, scale: str, exemplars: Path | None) -> Path:
    """Return the folder of a study's runs, as "runs/critical_periods-quick-synthetic"."""
    features = "synthetic" if exemplars is None else exemplars.stem
    return root / f"{study.file_name}-{scale}-{features}"


def trace_runs(summary: pd.DataFrame, table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return a summary whose rows name the runs behind them, and their fingerprints.

    Those are the runs of the same `by`; without any, all of them.
    """
    runs = table.drop_duplicates("run")
    if not by:
        return summary.assign(run=" ".join(runs["run"]), config=" ".join(runs["config"]))
    named = runs.groupby([*by], dropna=False, sort=False)
    names = named[["run", "config"]].agg(" ".join).reset_index()
    return summary.merge(names, on=[*by], how="left", validate="one_to_one")
