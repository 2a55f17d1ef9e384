"""Figure 6: what more classes and more labels do to learning, and through which subcircuit."""

import math

import numpy as np
import pandas as pd

from ih_interp.paper.figures._fig06_claims import by_network, data_claims, factor, times_of_runs
from ih_interp.paper.figures._fig06_drawing import plot_data_dependence
from ih_interp.paper.recipes import EVOLUTIONS
from ih_interp.paper.study import Figure, Study
from ih_interp.runs import Run


def data_table(study: Study) -> pd.DataFrame:
    """Training losses with more classes or labels, normally and with subcircuits clamped.

    Columns: `seed`, `run`, `evolution` (a key of `recipes.EVOLUTIONS`: what is left to learn),
    `classes`, `labels`, `sequences`, `loss` as in `Study.losses`. Clamped runs with the fewest of
    both are those of Figure 5b, cut where the other clamped runs end.
    """
    parts: list[pd.DataFrame] = []
    for seed in study.seeds:
        runs = study.runs["data"][seed]
        clamped = {key: run for key, run in runs.items() if not key.startswith("normal")}
        end = float(max(run.config.sequences for run in clamped.values()))
        parts += [_losses(seed, key.partition(",")[0], run) for key, run in runs.items()]
        parts += [
            _losses(seed, evolution, study.runs["clamped"][seed][condition], end)
            for evolution, condition in EVOLUTIONS.items()
            if evolution != "normal"
        ]
    return pd.concat(parts, ignore_index=True)


def learning_times(table: pd.DataFrame) -> pd.DataFrame:
    """When every run of the figure learned: its loss fell below 0.4 ln 2 = 0.277 nats.

    Columns: `evolution`, `classes`, `labels`, `seed`, `time` in sequences, infinite where it never
    did.
    """
    times = times_of_runs(table)
    times["time"] = times["time"].where(times["observed"].astype(bool), np.inf)
    return times.drop(columns="observed")


def slowdowns(times: pd.DataFrame) -> pd.DataFrame:
    """How many times as long the most classes or labels take as the fewest.

    Columns: `varied` ("classes" or "labels"), `evolution`, `seed`, `factor`; 1 is no effect, NaN
    where even the fewest were not learned, infinite where only the most were not.
    """
    times = times.assign(observed=np.isfinite(times["time"]))
    rows = [
        {"varied": varied, "evolution": evolution, "seed": seed, "factor": factor(found)}
        for seed, network in by_network(times).items()
        for (evolution, varied), found in network.items()
    ]
    return pd.DataFrame(rows)[["varied", "evolution", "seed", "factor"]]


def _losses(seed: int, evolution: str, run: Run, end: float = math.inf) -> pd.DataFrame:
    task, metrics = run.config.task, run.metrics
    there = metrics[(metrics["split"] == "train") & (metrics["sequences"] <= end)]
    return pd.DataFrame(
        {
            "seed": seed,
            "run": run.config.name,
            "evolution": evolution,
            "classes": task.n_train_classes,
            "labels": task.n_labels,
            "sequences": there["sequences"],
            "loss": there["loss"],
        }
    )


FIGURES = (
    Figure(
        "6",
        ("clamped", "data"),
        data_table,
        lambda table, canvas: plot_data_dependence(table, canvas),
        data_claims,
        size=(11.0, 5.2),
        main_text=True,
    ),
)
