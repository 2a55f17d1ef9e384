"""What Figure 6 claims, and the times that its claims and its slowdowns are read from."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

import pandas as pd

from ih_interp.analysis.dynamics.emergence import Crossing, learned
from ih_interp.analysis.dynamics.survival import emergence_table
from ih_interp.paper.figures._fig06_drawing import of_row
from ih_interp.paper.recipes import EVOLUTIONS
from ih_interp.paper.study import (
    UNTIL_LEARNED,
    Claim,
    decimals,
    judged,
    over_seeds,
    over_times,
    surely_longer,
    when,
)

CURVE = ["evolution", "classes", "labels"]

UNCHANGED = 1.25  # a time that data change by less than this factor is called unchanged

Times: TypeAlias = dict[tuple[str, str], list[Crossing]]
"""Of one network, by evolution and what varies: times from the fewest to the most."""


def data_claims(table: pd.DataFrame) -> list[Claim]:
    """Classes slow the match, labels the copy, and normal training follows."""
    networks = [*by_network(times_of_runs(table)).values()]
    return [
        *_normal_claims(networks),
        *_match_claims(networks, _apart(table)),
        *_copy_claims(networks),
        _through_claim(networks),
    ]


def _normal_claims(networks: Sequence[Times]) -> list[Claim]:
    labels = [network["normal", "labels"] for network in networks]
    classes = [network["normal", "classes"] for network in networks]
    return [
        judged(
            "6",
            f"normal training: more classes, later ({UNTIL_LEARNED}, from the fewest classes to "
            "the most)",
            paper="309k; 385k; 420k",
            ours=_told(classes),
            holds=[_ascends(times) for times in classes],
        ),
        judged(
            "6",
            "normal training: the fewest labels are learned first",
            paper="309k; 878k; 1.43M",
            ours=_told(labels),
            holds=[all(surely_longer(time, few) for time in more) for few, *more in labels],
        ),
        judged(
            "6",
            "normal training: other numbers of labels are learned much later (over twice the time)",
            paper="309k; 878k; 1.43M; in five of its eight series",
            ours=_told(labels),
            holds=[
                all(surely_longer(time, few, factor=2) for time in more) for few, *more in labels
            ],
            varies=True,
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


def _match_claims(networks: Sequence[Times], apart: Sequence[float]) -> list[Claim]:
    """B alone; `apart` is how far its losses with other labels differ."""
    match = [network["B alone", "classes"] for network in networks]
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
    ]


def _copy_claims(networks: Sequence[Times]) -> list[Claim]:
    """C alone."""
    copy = [network["C alone", "labels"] for network in networks]
    unmoved = [network["C alone", "classes"] for network in networks]
    return [
        judged(
            "6",
            "C alone (copy): more labels, much slower, over twice the time for the most",
            paper="33k; 82k; 120k",
            ours=_told(copy),
            holds=[
                _ascends(times) and surely_longer(times[-1], times[0], factor=2) for times in copy
            ],
        ),
        judged(
            "6",
            f"C alone does not change with classes: times within a factor {UNCHANGED} of each "
            "other",
            paper="32k; 34k; 34k",
            ours=_told(unmoved),
            holds=[
                all(surely_longer(a, b, factor=1 / UNCHANGED) for a in times for b in times)
                for times in unmoved
            ],
        ),
    ]


def _through_claim(networks: Sequence[Times]) -> Claim:
    """Which of the two subcircuits the most classes, and the most labels, slow more."""
    factors = [{key: factor(times) for key, times in network.items()} for network in networks]

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
            _slows_more(n["B alone", "classes"], n["C alone", "classes"])
            and _slows_more(n["C alone", "labels"], n["B alone", "labels"])
            for n in networks
        ],
    )


def times_of_runs(table: pd.DataFrame) -> pd.DataFrame:
    """When every run learned, or how long it ran: an `emergence_table`."""
    return emergence_table(table, learned, by=CURVE)


def by_network(times: pd.DataFrame) -> dict[int, Times]:
    """The rows of `times_of_runs` by seed, ascending."""
    return {
        int(network["seed"].iloc[0]): {
            (evolution, varied): _row(network[network["evolution"] == evolution], varied)
            for evolution in EVOLUTIONS
            for varied in ("classes", "labels")
        }
        for _, network in times.groupby("seed")
    }


def factor(times: Sequence[Crossing]) -> float:
    """How many times as long the last takes as the first: to tell, not to judge."""
    first, last = times[0], times[-1]
    return when(last) / first.time if first.observed and first.time > 0 else math.nan


def _row(times: pd.DataFrame, varied: str) -> list[Crossing]:
    """From the fewest to the most of what varies."""
    rows = of_row(times, varied).sort_values(varied)
    return list(map(Crossing, rows["time"].tolist(), rows["observed"].astype(bool).tolist()))


def _apart(table: pd.DataFrame) -> list[float]:
    """Of every network, the largest difference between losses of B alone with other labels.

    Of evaluations that all its curves have; NaN where there is none.
    """
    alone = of_row(table[table["evolution"] == "B alone"], "labels")
    wide = alone.pivot_table(index=["seed", "sequences"], columns="labels", values="loss").dropna()
    apart = (wide.max(axis=1) - wide.min(axis=1)).groupby("seed").max()
    return apart.reindex(sorted(table["seed"].unique())).tolist()


def _ascends(times: Sequence[Crossing]) -> bool:
    """Each later than the one before; only the last may be never."""
    return all(surely_longer(late, early) for early, late in pairwise(times))


def _slows_more(times: Sequence[Crossing], others: Sequence[Crossing]) -> bool:
    """Whether the last of some times is surely more times the first than among the others."""
    known = times[0].observed and others[0].observed and others[-1].observed
    return known and times[-1].time * others[0].time > others[-1].time * times[0].time


def _told(networks: Sequence[Sequence[Crossing]]) -> str:
    return "; ".join(over_times(times) for times in zip(*networks, strict=True))
