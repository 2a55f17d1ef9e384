"""Facts on a run for the head of its page: how far it came, what was trained, when it learned."""

import json
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from ih_interp._columns import measured_once
from ih_interp.analysis.dynamics.emergence import learned
from ih_interp.page.subject import Subject
from ih_interp.runs import Run
from ih_interp.tasks.base import AbstractTask
from ih_interp.tasks.few_shot import TaskConfig
from ih_interp.tasks.markov_chains import MarkovChains

LEARNED = 0.4
"""The share of an even guess's loss below which the task counts as learned, as in the paper."""


def saved_metrics(run: Run) -> pd.DataFrame:
    """Return the metrics of a run; ValueError where none are saved yet, or some are missing."""
    metrics = run.metrics
    if metrics.empty:
        raise ValueError("No evaluation is saved yet: train the run, and make the page again.")
    return metrics


def guess(task: AbstractTask) -> tuple[float, str]:
    """Return the loss of an even guess, in nats, and a phrase that says among what.

    Few-shot sequences show the answer among the labels of their context, others anywhere.
    """
    if isinstance(task, TaskConfig):
        n, what = task.n_context_classes, "labels of the context"
    else:
        n, what = task.d_vocab_out, "tokens"
    return math.log(n), f"ln {n}, of an even guess among {n} {what}"


def references(subject: Subject) -> dict[str, float]:
    """Return the mean loss of Markov chains' ideal predictors on the measured sequences, in nats.

    Other tasks have none. Where the bigram is the best that can be, one name says so.
    """
    task = subject.run.task
    if not isinstance(task, MarkovChains):
        return {}
    losses = task.reference_losses(subject.batch).items()
    found = {name: float(loss.mean()) for name, loss in losses}
    if found["bigram"] == found["optimal"]:
        return {"unigram": found["unigram"], "bigram, optimal": found["optimal"]}
    return found


def facts(
    run: Run, metrics: pd.DataFrame | None, ideal: Mapping[str, float]
) -> list[tuple[str, str]]:
    """Return facts on a run, each with its name.

    Where the losses of ideal predictors are known, they stand in place of the time of learning.
    """
    config, model = run.config, run.config.model
    clamps = ", ".join(clamp.kind for clamp in run.clamps) or "none"
    layers = f"{model.n_layers} layer{'s' if model.n_layers > 1 else ''} of {model.n_heads} heads"
    found = [
        ("State", state(run)),
        ("Task", config.task.kind),
        ("Model", f"{layers}, width {model.d_model}{'' if model.attn_only else ', with MLPs'}"),
        ("Clamps", clamps),
        ("Seed of the weights", str(config.seeds.init)),
        ("Fingerprint", config.fingerprint),
    ]
    if metrics is not None:
        reached = ("Ideal predictors", nats(ideal)) if ideal else ("Learned", when(run, metrics))
        found[1:1] = [("Loss at the end", losses_at_end(metrics)), reached]
    return found


def state(run: Run) -> str:
    """Return how far a run came, in sequences."""
    end, per_step = run.config.sequences, run.sequences_per_step
    if run.finished:
        return f"finished after {end:,} sequences"
    steps = run.steps
    so_far = f"{steps[-1] * per_step:,} of {end:,} sequences" if steps else "no checkpoint yet"
    return (
        f"stopped by a callback: {so_far}" if run.stopped is not None else f"unfinished: {so_far}"
    )


def losses_at_end(metrics: pd.DataFrame) -> str:
    """Return the last loss of every split, as clamped where it was measured so."""
    last = measured_once(metrics).groupby("split", sort=False).tail(1)
    return nats(dict(zip(last["split"], last["loss"], strict=True)))


def nats(losses: Mapping[str, float]) -> str:
    """Return losses by name, in words."""
    return "; ".join(f"{name} {loss:.3f}" for name, loss in losses.items()) + " nats"


def when(run: Run, metrics: pd.DataFrame) -> str:
    """Return when the training loss first passed 0.4 of an even guess's."""
    level = LEARNED * guess(run.config.task)[0]
    rows: Any = measured_once(metrics)
    rows = rows[rows["split"] == rows["split"].iloc[0]]
    words = f"{level:.2f} nats ({LEARNED} of an even guess's loss)"
    if not rows["loss"].notna().all():
        return f"the loss is not a number everywhere, so that {words} has no time"
    crossing = learned(rows["sequences"].to_numpy(), rows["loss"].to_numpy(), level=level)
    if not crossing.observed:
        return f"the loss on {rows['split'].iloc[0]!r} did not fall below {words}"
    under = ", under its clamps," if run.clamps else ""
    return f"after {crossing.time:,.0f} sequences the loss{under} fell below {words}"


def configuration(run: Run) -> str:
    """Return the configuration, its fingerprint and the versions that it ran with, as JSON."""
    value = {
        "fingerprint": run.config.fingerprint,
        "engine": run.engine,
        "versions": run.versions,
        "run": run.config.save(),
    }
    return json.dumps(value, indent=2)
