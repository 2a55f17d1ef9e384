"""From numbers of every network to claims: which networks show what the paper found."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from ih_interp.analysis.dynamics.emergence import LEARNED, Crossing, learned
from ih_interp.paper.claims import Claim, Judging
from ih_interp.plots._style import short_count

FINDINGS = pd.read_csv(
    Path(__file__).with_name("findings.csv"), dtype=str, keep_default_na=False
).set_index(["figure", "rule"])
"""The paper's findings by figure and by the rule that tells whether a network shows one.

Columns: `claim`; `paper`, its numbers; `ours`, a format string of `Measured` names, in which
`over_seeds` writes each value and each element of a list; `varies`, "yes" or "no", as in `Claim`.
"""

Measured: TypeAlias = Mapping[str, Any]  # numbers and times (`Crossing`) of one network, by name
Rule: TypeAlias = Callable[[Measured], object]  # whether one network shows a finding


def judge(figure: str, networks: Sequence[Measured], rules: Mapping[str, Rule]) -> list[Claim]:
    """Return one claim per rule; ValueError without networks: all rules would hold."""
    if not networks:
        raise ValueError(f"Figure {figure}: expected at least one network to judge, got none.")
    words = {name: _Words([network[name] for network in networks]) for name in networks[0]}
    claims: list[Claim] = []
    for name, holds in rules.items():
        claim, paper, ours, varies = FINDINGS.loc[(figure, name)]
        held = sum(bool(holds(network)) for network in networks)
        ours = ours.format_map(words)
        claims.append(Claim(figure, claim, paper, ours, held, len(networks), varies == "yes"))
    return claims


def by_rules(figure: str, measure: Callable[[pd.DataFrame], Measured], **rules: Rule) -> Judging:
    """Return the function that judges a figure's table; `measure` takes one network's rows."""
    return lambda table: judge(figure, [measure(rows) for rows in by_seed(table)], rules)


class _Words(list[Any]):
    """One value per network, written by `over_seeds` in a format string."""

    def __format__(self, spec: str) -> str:
        if isinstance(self[0], list):
            return "; ".join(over_seeds(values, spec) for values in zip(*self, strict=True))
        return over_seeds(self, spec)


def over_seeds(values: Sequence[float] | Sequence[int] | Sequence[Crossing], spec: str = "") -> str:
    """Return the median over networks and, of several, the range; NaN is counted apart.

    `spec` is a format such as ".2f"; by default counts are written short. Times may be `Crossing`s:
    those not observed are "never".

    >>> over_seeds([310e3, 250e3, 400e3])
    '310k (250k to 400k)'
    >>> over_seeds([0.126, float("nan")], ".2f")
    '0.13; none in 1 of 2'
    """
    numbers = [when(value) if isinstance(value, Crossing) else float(value) for value in values]
    known = [number for number in numbers if not math.isnan(number)]
    if not known:
        return "none"
    median, low, high = (
        format(number, spec) if spec else short_count(number)
        for number in (float(np.median(known)), min(known), max(known))
    )
    told = median if low == high else f"{median} ({low} to {high})"
    missing = len(numbers) - len(known)
    return f"{told}; none in {missing} of {len(numbers)}" if missing else told


def by_seed(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the rows of each network, seeds ascending."""
    return [rows for _, rows in table.groupby("seed")]


def curves(
    table: pd.DataFrame, by: str, value: str = "loss"
) -> dict[int, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Return sequences and values of every curve, by seed and by the column `by`."""
    found: dict[int, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for seed, of_seed in table.sort_values("sequences", kind="stable").groupby("seed"):
        found[int(str(seed))] = {
            str(name): (rows["sequences"].to_numpy(dtype=float), rows[value].to_numpy(dtype=float))
            for name, rows in of_seed.groupby(by, sort=False, dropna=False)
        }
    return found


def times_of(table: pd.DataFrame, by: str, *, level: float = LEARNED) -> list[dict[str, Crossing]]:
    """Return when each curve's loss falls below a level, by the column `by`; seed after seed."""
    return [
        {name: learned(*curve, level=level) for name, curve in network.items()}
        for network in curves(table, by).values()
    ]


def surely_longer(slow: Crossing, fast: Crossing, *, factor: float | int = 1) -> bool:
    """Return whether a time is more than `factor` times another, as far as the runs show.

    For a slow run that has not learned, its length counts; a fast one that has not gives False.

    >>> surely_longer(Crossing(384e3, False), Crossing(200e3, True), factor=2)  # 1.92 times or more
    False
    """
    return fast.observed and slow.time > factor * fast.time


def when(crossing: Crossing) -> float:
    """Return a time as a number, infinity if not observed: to sort and write, not to judge."""
    return crossing.time if crossing.observed else math.inf


def correlation(x: Sequence[float] | pd.Series, y: Sequence[float] | pd.Series) -> float:
    """Return Pearson's r, in [-1, 1], 0 for unrelated numbers; NaN where either is constant."""
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(xs) < 2 or np.ptp(xs) == 0 or np.ptp(ys) == 0:
        return float("nan")
    return float(np.corrcoef(xs, ys)[0, 1])


def rank_correlation(x: pd.Series, y: pd.Series) -> float:
    """Return Spearman's rank correlation, in [-1, 1]; NaN where either is constant."""
    return correlation(x.rank(), y.rank())
