"""Figure 6: what more classes and more labels do to learning, and through which subcircuit."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import pandas as pd

from ih_interp.analysis.emergence import LEARNED, learned
from ih_interp.analysis.survival import emergence_table
from ih_interp.paper.recipes import EVOLUTIONS
from ih_interp.paper.study import Claim, Figure, Study, decimals, judged, over_seeds
from ih_interp.plots.data import of_row, plot_data_dependence
from ih_interp.runs import Run

CURVE = ["evolution", "classes", "labels"]

UNCHANGED = 1.25  # a time that data change by less than this factor is called unchanged

Times: TypeAlias = list[dict[tuple[str, str], list[float]]]
"""Of every network, by evolution and what varies: times from the fewest to the most."""


def data_table(study: Study) -> pd.DataFrame:
    """Training losses with more classes or labels, normally and with subcircuits clamped.

    Columns: `seed`, `run`, `evolution` (a key of `recipes.EVOLUTIONS`: what is left to learn),
    `classes`, `labels`, `sequences`, `loss`. Clamped runs with the fewest of both are those of
    Figure 5b, cut where the other clamped runs end.
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
    times = emergence_table(table, learned, by=CURVE)
    times["time"] = times["time"].where(times["observed"].astype(bool), np.inf)
    return times.drop(columns="observed")


def slowdowns(times: pd.DataFrame) -> pd.DataFrame:
    """How many times as long the most classes or labels take as the fewest.

    Columns: `varied` ("classes" or "labels"), `evolution`, `seed`, `factor`; 1 is no effect, NaN
    where even the fewest were not learned, infinite where only the most were not.
    """
    rows = [
        {"varied": varied, "evolution": evolution, "seed": seed, "factor": _factor(network)}
        for seed, found in zip(_seeds(times), _by_network(times), strict=True)
        for (evolution, varied), network in found.items()
    ]
    return pd.DataFrame(rows)[["varied", "evolution", "seed", "factor"]]


def data_claims(table: pd.DataFrame) -> list[Claim]:
    """Classes slow the match, labels the copy, and normal training follows."""
    networks = _by_network(learning_times(table))
    return [
        *_normal_claims(networks),
        *_alone_claims(networks, table),
        _through_claim(networks),
    ]


def _normal_claims(networks: Times) -> list[Claim]:
    labels = [network["normal", "labels"] for network in networks]
    classes = [network["normal", "classes"] for network in networks]
    return [
        judged(
            "6",
            f"normal training: more classes, later (sequences until the loss is below {LEARNED:.3f}"
            ", from the fewest classes to the most)",
            paper="309k; 385k; 420k",
            ours=_told(classes),
            holds=[_ascends(times) for times in classes],
        ),
        judged(
            "6",
            "normal training: the fewest labels are learned first, and others much later "
            "(at least twice the time)",
            paper="309k; 878k; 1.43M",
            ours=_told(labels),
            holds=[times[0] < np.inf and min(times[1:]) > 2 * times[0] for times in labels],
        ),
        judged(
            "6",
            "normal training: of the two larger numbers of labels, the larger is learned later",
            paper="878k; 1.43M; the other way round in three of its eight series",
            ours=_told([times[1:] for times in labels]),
            holds=[_ascends(times[1:]) for times in labels],
            varies=True,
        ),
    ]


def _alone_claims(networks: Times, table: pd.DataFrame) -> list[Claim]:
    match = [network["B alone", "classes"] for network in networks]
    copy = [network["C alone", "labels"] for network in networks]
    unmoved = [network["C alone", "classes"] for network in networks]
    apart = _apart(table)
    return [
        judged(
            "6",
            "B alone (match): more classes, slower",
            paper="28k; 32k; 35k",
            ours=_told(match),
            holds=[_ascends(times) for times in match],
        ),
        judged(
            "6",
            "B alone does not change with labels: largest difference of its losses (0 by "
            "construction, as its loss does not see the labels)",
            paper="0",
            ours=over_seeds(apart, decimals(3)),
            holds=[difference < 1e-3 for difference in apart],
        ),
        judged(
            "6",
            "C alone (copy): more labels, much slower, at least twice the time for the most",
            paper="33k; 82k; 120k",
            ours=_told(copy),
            holds=[_ascends(times) and times[-1] > 2 * times[0] for times in copy],
        ),
        judged(
            "6",
            f"C alone does not change with classes: times within a factor {UNCHANGED} of each "
            "other",
            paper="32k; 34k; 34k",
            ours=_told(unmoved),
            holds=[
                max(times) < np.inf and max(times) < UNCHANGED * min(times) for times in unmoved
            ],
        ),
    ]


def _through_claim(networks: Times) -> Claim:
    """Which of the two subcircuits the most classes, and the most labels, slow more."""
    factors = [{key: _factor(times) for key, times in network.items()} for network in networks]

    def told(varied: str) -> str:
        return ", ".join(
            f"{which} x{over_seeds([f[f'{which} alone', varied] for f in factors], decimals(2))}"
            for which in "BC"
        )

    return judged(
        "6",
        "classes act mainly through B, labels through C: how many times as long the most take "
        "as the fewest",
        paper="classes: B x1.25, C x1.06; labels: B x1.00, C x3.64",
        ours=f"classes: {told('classes')}; labels: {told('labels')}",
        holds=[
            f["B alone", "classes"] > f["C alone", "classes"]
            and f["C alone", "labels"] > f["B alone", "labels"]
            for f in factors
        ],
    )


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


def _by_network(times: pd.DataFrame) -> Times:
    found: Times = []
    for seed in _seeds(times):
        network = times[times["seed"] == seed]
        found.append(
            {
                (evolution, varied): of_row(
                    network[network["evolution"] == evolution].sort_values(varied), varied
                )["time"].tolist()
                for evolution in EVOLUTIONS
                for varied in ("classes", "labels")
            }
        )
    return found


def _seeds(times: pd.DataFrame) -> list[int]:
    return sorted({int(seed) for seed in times["seed"]})


def _apart(table: pd.DataFrame) -> list[float]:
    """Of every network, the largest difference between losses of B alone with other labels."""
    alone = of_row(table[table["evolution"] == "B alone"], "labels")
    wide = alone.pivot_table(index=["seed", "sequences"], columns="labels", values="loss")
    return (wide.max(axis=1) - wide.min(axis=1)).groupby("seed").max().tolist()


def _ascends(times: Sequence[float]) -> bool:
    """Each later than the one before; only the last may be never."""
    return all(early < late for early, late in pairwise(times))


def _factor(times: Sequence[float]) -> float:
    first, last = times[0], times[-1]
    return last / first if 0 < first < math.inf else math.nan


def _told(networks: Sequence[Sequence[float]]) -> str:
    return "; ".join(over_seeds(times) for times in zip(*networks, strict=True))


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
