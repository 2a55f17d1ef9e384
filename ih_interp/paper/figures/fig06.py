"""Figure 6: what more classes and more labels do to learning, and through which subcircuit."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import pandas as pd

from ih_interp.analysis.dynamics.emergence import Crossing, emergence_table, learned
from ih_interp.paper.figures._fig06_drawing import of_row, plot_data_dependence
from ih_interp.paper.judging import UNTIL_LEARNED, Measured, Rule, by_rules, surely_longer, when
from ih_interp.paper.recipes import EVOLUTIONS
from ih_interp.paper.study import Figure, Study
from ih_interp.runs import Run

UNCHANGED = 1.25  # the factor by which a time changes at least where data are said to change it

Times: TypeAlias = dict[str, list[Crossing]]
"""Times of one network, by evolution and what varies ("normal classes"), the fewest first."""


def data_table(study: Study) -> pd.DataFrame:
    """Return training losses with more classes or labels, normally and with subcircuits clamped.

    Columns: `seed`, `run`, `evolution` (a key of `recipes.EVOLUTIONS`: what is left to learn),
    `classes`, `labels`, `sequences`, `loss` as in `Study.losses`. Clamped runs with the fewest of
    both are those of Figure 5b, cut where the other clamped runs end.
    """
    parts: list[pd.DataFrame] = []
    for seed in study.seeds:
        runs = study.runs["data"][seed]
        clamped = [run for key, run in runs.items() if not key.startswith("normal")]
        end = float(max(run.config.sequences for run in clamped))
        parts += [_losses(seed, key.partition(",")[0], run) for key, run in runs.items()]
        parts += [
            _losses(seed, evolution, study.runs["clamped"][seed][condition], end)
            for evolution, condition in EVOLUTIONS.items()
            if evolution != "normal"
        ]
    return pd.concat(parts, ignore_index=True)


def _losses(seed: int, evolution: str, run: Run, end: float = math.inf) -> pd.DataFrame:
    task, metrics = run.config.task, run.metrics
    there = metrics[(metrics["split"] == "train") & (metrics["sequences"] <= end)]
    keys = {"seed": seed, "run": run.config.name, "evolution": evolution}
    keys |= {"classes": task.n_train_classes, "labels": task.n_labels}
    return pd.DataFrame({**keys, "sequences": there["sequences"], "loss": there["loss"]})


def learning_times(table: pd.DataFrame) -> pd.DataFrame:
    """Return when every run of the figure learned: its loss fell below 0.4 ln 2 = 0.277 nats.

    Columns: `seed`, `evolution`, `classes`, `labels`, `time` in sequences, infinite where it never
    did.
    """
    times = _emergence(table)
    times["time"] = times["time"].where(times["observed"].astype(bool), np.inf)
    return times.drop(columns="observed")


def slowdowns(times: pd.DataFrame) -> pd.DataFrame:
    """Return how many times as long the most classes or labels take as the fewest.

    Columns: `varied` ("classes" or "labels"), `evolution`, `seed`, `factor`; 1 is no effect, NaN
    where even the fewest were not learned, infinite where only the most were not.
    """
    networks = _by_network(times.assign(observed=np.isfinite(times["time"])))
    rows = [
        (varied, evolution, seed, _factor(network[f"{evolution} {varied}"]))
        for seed, network in networks.items()
        for evolution in EVOLUTIONS
        for varied in ("classes", "labels")
    ]
    return pd.DataFrame(rows, columns=["varied", "evolution", "seed", "factor"])


def _measure(rows: pd.DataFrame) -> Measured:
    """Return one network's times, factors, and how far losses of B differ between labels."""
    (times,) = _by_network(_emergence(rows)).values()
    fewest, *more = times["normal labels"]
    factors = {f"{name} factor": _factor(found) for name, found in times.items()}
    return {**times, **factors, "fewest": fewest, "more": more, "apart": _apart(rows)}


def _ascends(times: Sequence[Crossing]) -> bool:
    """Return whether each is later than the one before; only the last may be never."""
    return all(surely_longer(late, early) for early, late in pairwise(times))


def _slows_more(times: Sequence[Crossing], others: Sequence[Crossing]) -> bool:
    """Return whether the last of some times is surely more times the first than among others."""
    known = times[0].observed and others[0].observed and others[-1].observed
    return known and times[-1].time * others[0].time > others[-1].time * times[0].time


def _emergence(table: pd.DataFrame) -> pd.DataFrame:
    """Return when every run learned, or how long it ran: an `emergence_table`."""
    return emergence_table(table, learned, by=["evolution", "classes", "labels"])


def _by_network(times: pd.DataFrame) -> dict[int, Times]:
    """Return the rows of `_emergence` by seed, ascending."""
    found: dict[int, Times] = {}
    for seed, network in times.groupby("seed"):
        found[int(str(seed))] = {
            f"{evolution} {varied}": [
                Crossing(float(time), bool(observed))
                for time, observed in of_row(network[network["evolution"] == evolution], varied)
                .sort_values(varied)[["time", "observed"]]
                .to_numpy()
            ]
            for evolution in EVOLUTIONS
            for varied in ("classes", "labels")
        }
    return found


def _factor(times: Sequence[Crossing]) -> float:
    """Return how many times as long the last takes as the first, to write it, not to judge."""
    first, last = times[0], times[-1]
    return when(last) / first.time if first.observed and first.time > 0 else math.nan


def _apart(table: pd.DataFrame) -> float:
    """Return the largest difference between one network's losses of B alone with other labels.

    It is that of evaluations which all its curves have, and NaN where there are none.
    """
    alone = of_row(table[table["evolution"] == "B alone"], "labels")
    wide = alone.pivot_table(index="sequences", columns="labels", values="loss").dropna()
    return float((wide.max(axis=1) - wide.min(axis=1)).max())


data_claims = by_rules(
    "6",
    _measure,
    Rule(
        f"normal training: more classes, later ({UNTIL_LEARNED}, from the fewest classes to "
        "the most)",
        "309k; 385k; 420k",
        "{normal classes}",
        lambda n: _ascends(n["normal classes"]),
    ),
    Rule(
        "normal training: the fewest labels are learned first",
        "309k; 878k; 1.43M",
        "{normal labels}",
        lambda n: all(surely_longer(time, n["fewest"]) for time in n["more"]),
    ),
    Rule(
        "normal training: other numbers of labels are learned much later (over twice the time)",
        "309k; 878k; 1.43M; in five of its eight series",
        "{normal labels}",
        lambda n: all(surely_longer(time, n["fewest"], factor=2) for time in n["more"]),
        varies=True,
    ),
    Rule(
        "normal training: of the two larger numbers of labels, the larger is learned later",
        "878k; 1.43M; the other way round in three of its eight series",
        "{more}",
        lambda n: _ascends(n["more"]),
        varies=True,
    ),
    Rule(
        "B alone (match): more classes, slower",
        "28k; 32k; 35k",
        "{B alone classes}",
        lambda n: _ascends(n["B alone classes"]),
    ),
    Rule(
        "B alone does not change with labels: largest difference of its losses (0 by "
        "construction, as its loss does not see the labels)",
        "0",
        "{apart:.3f}",
        lambda n: n["apart"] < 1e-3,
    ),
    Rule(
        "C alone (copy): more labels, much slower, over twice the time for the most",
        "33k; 82k; 120k",
        "{C alone labels}",
        lambda n: (
            _ascends(n["C alone labels"])
            and surely_longer(n["C alone labels"][-1], n["C alone labels"][0], factor=2)
        ),
    ),
    Rule(
        f"C alone does not change with classes: times within a factor {UNCHANGED} of each other",
        "32k; 34k; 34k",
        "{C alone classes}",
        lambda n: all(
            surely_longer(a, b, factor=1 / UNCHANGED)
            for a in n["C alone classes"]
            for b in n["C alone classes"]
        ),
    ),
    Rule(
        "classes act mainly through B, labels through C: how many times as long the most take "
        "as the fewest",
        "classes: B x1.25, C x1.06; labels: B x1.00, C x3.64",
        "classes: B x{B alone classes factor:.2f}, C x{C alone classes factor:.2f}; "
        "labels: B x{B alone labels factor:.2f}, C x{C alone labels factor:.2f}",
        lambda n: (
            _slows_more(n["B alone classes"], n["C alone classes"])
            and _slows_more(n["C alone labels"], n["B alone labels"])
        ),
    ),
)


FIGURES = (
    Figure("6", ("clamped", "data"), data_table, plot_data_dependence, data_claims, (11.0, 5.2)),
)
