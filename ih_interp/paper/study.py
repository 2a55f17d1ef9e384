"""What figures are made of: finished runs, tables of them, and claims about the tables."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure as Canvas
from transformer_lens import HookedTransformer

from ih_interp._reprs import short_repr
from ih_interp.analysis.dynamics.emergence import LEARNED, Crossing, learned
from ih_interp.paper.circuit import Circuit
from ih_interp.paper.recipes import RunSet
from ih_interp.plots._style import short_count
from ih_interp.runs import Run
from ih_interp.types import Batch

CURVE_SEQUENCES = 4_000  # a mean loss of 0.7 is then within 0.02
MAX_CHECKPOINTS = 101  # of a run in one curve, as in the paper's Figure 3b
UNTIL_LEARNED = f"sequences until the loss is below {LEARNED:.3f}"
"""What claims say of times that are the paper's times of learning."""


@short_repr
@dataclass(frozen=True)
class Study:
    """The finished runs that figures are drawn from."""

    runs: Mapping[RunSet, Mapping[int, Mapping[str, Run]]]
    """By set, seed and condition (`recipes`); only what the figures asked for need."""
    circuits: Mapping[int, Circuit]
    """By seed."""
    sequences: int | None
    """How many training sequences measures are averaged over; None is every one."""

    @property
    def main(self) -> dict[int, Run]:
        """The networks with all heads, by seed: those that the figures show."""
        return {seed: self.runs["main"][seed]["main"] for seed in self.seeds}

    @property
    def seeds(self) -> list[int]:
        """Of the networks that the figures show, ascending."""
        return sorted(self.circuits)

    def batch(self, run: Run) -> Batch:
        """The sequences that measures of a run are averaged over, the same for every run."""
        return run.task.enumerate("train") if self.sequences is None else self._sample(run)

    def curve_batch(self, run: Run) -> Batch:
        """The same for measures of a hundred checkpoints that nothing makes fast: a sample.

        `CURVE_SEQUENCES`, or `sequences` where that is given.
        """
        return self._sample(run)

    def _sample(self, run: Run) -> Batch:
        generator = torch.Generator().manual_seed(0)
        n = CURVE_SEQUENCES if self.sequences is None else self.sequences
        return run.task.sample("train", n, generator=generator)

    def losses(self, run_set: RunSet, splits: Iterable[str] = ("train",)) -> pd.DataFrame:
        """Metrics of a set's runs, means over the `evaluation_size` sequences of their evaluations.

        Columns: `seed`, `condition`, `run`, `sequences` (seen in training), `split`, and at the
        query `loss` in nats (ln 2 for a guess between the context's two labels, ln L for L labels
        and no idea) and `accuracy` (chance 1/L, 1/2 for that guess).
        """
        parts = [
            run.metrics.assign(seed=seed, condition=condition, run=run.config.name)
            for seed in self.seeds
            for condition, run in self.runs[run_set][seed].items()
        ]
        table = pd.concat(parts, ignore_index=True)
        columns = ["seed", "condition", "run", "sequences", "split", "loss", "accuracy"]
        return table.loc[table["split"].isin([*splits]), columns]

    def each_network(
        self, measure: Callable[[HookedTransformer, Batch], pd.DataFrame]
    ) -> pd.DataFrame:
        """A measure of every network with all heads at its end; columns as in `each_run`."""
        return self.each_run(lambda run, batch: measure(run.model(), batch))

    def each_run(self, measure: Callable[[Run, Batch], pd.DataFrame]) -> pd.DataFrame:
        """A measure of every run with all heads.

        Columns: `seed`, `run`, `n_sequences`, how many the measure is averaged over, and those of
        the measure. It is given those of `batch`; one that takes others gives `n_sequences` itself.
        """
        parts: list[pd.DataFrame] = []
        for seed, run in self.main.items():
            batch = self.batch(run)
            table = measure(run, batch)
            if "n_sequences" not in table:
                table.insert(0, "n_sequences", len(batch))
            table.insert(0, "run", run.config.name)
            table.insert(0, "seed", seed)
            parts.append(table)
        return pd.concat(parts, ignore_index=True)


class Claim(NamedTuple):
    """What the paper found, what these runs found, and in how many networks it is the same."""

    figure: str
    claim: str
    paper: str
    ours: str
    held: int
    """Networks in which it holds."""
    of: int
    varies: bool = False
    """Whether it varies from network to network in the paper too; most of them suffice then."""
    judged: bool = True
    """Whether these runs can tell; those of the smoke preset learn nothing."""

    @property
    def verdict(self) -> str:
        """Whether it holds, in words: "yes", "no" or "not judged"."""
        return ("yes" if self.holds else "no") if self.judged else "not judged"

    @property
    def holds(self) -> bool:
        """In every network; where the paper's own vary, in more than half."""
        return self.held > self.of / 2 if self.varies else self.held == self.of


@dataclass(frozen=True)
class Figure:
    """A figure or table of the paper."""

    name: str
    """As "3a" or "table 1", in words; `word` is how it is asked for."""
    needs: tuple[RunSet, ...]
    table: Callable[[Study], pd.DataFrame]
    """The numbers; rows from a run name it in a column `run`."""
    draw: Callable[[pd.DataFrame, Canvas], object]
    claims: Callable[[pd.DataFrame], list[Claim]]
    size: tuple[float, float] = (5.2, 3.4)
    """Inches."""
    main_text: bool = False
    needs_donors: bool = False
    """Whether networks of three seeds must be trained, however many are shown (Figure 7)."""

    @property
    def word(self) -> str:
        """As the command takes it: "3a", "11init", "table1"."""
        return self.name.replace(" ", "")

    @property
    def file_name(self) -> str:
        """Without its ending: "fig3a", "table1"."""
        return self.word if self.word.startswith("table") else f"fig{self.word}"


def some_steps(run: Run, count: int = MAX_CHECKPOINTS) -> list[int]:
    """At most `count` of a run's checkpoints, evenly, the first and the last among them."""
    steps = run.steps
    places = np.linspace(0, len(steps) - 1, min(count, len(steps))).round().astype(int)
    return [steps[place] for place in places]


def over_seeds(
    values: Sequence[float] | Sequence[int], form: Callable[[float], str] = short_count
) -> str:
    """The median over networks and, of several, the range; networks of NaN are counted apart.

    >>> over_seeds([310e3, 250e3, 400e3])
    '310k (250k to 400k)'
    >>> over_seeds([310e3, float("nan")])
    '310k; none in 1 of 2'
    """
    numbers = [float(value) for value in values if not math.isnan(value)]
    if not numbers:
        return "none"
    median, low, high = map(form, (float(np.median(numbers)), min(numbers), max(numbers)))
    told = median if low == high else f"{median} ({low} to {high})"
    missing = len(values) - len(numbers)
    return f"{told}; none in {missing} of {len(values)}" if missing else told


def decimals(digits: int) -> Callable[[float], str]:
    """How numbers are written in claims.

    >>> decimals(2)(0.126)
    '0.13'
    """
    return lambda value: f"{value:.{digits}f}"


def curves(
    table: pd.DataFrame, by: str, value: str = "loss"
) -> dict[int, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Sequences and values of every curve, by seed and by the column `by`."""
    found: dict[int, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for seed in sorted(table["seed"].unique()):
        of_seed = table[table["seed"] == seed].sort_values("sequences", kind="stable")
        found[int(seed)] = {
            str(name): (rows["sequences"].to_numpy(dtype=float), rows[value].to_numpy(dtype=float))
            for name, rows in of_seed.groupby(by, sort=False, dropna=False)
        }
    return found


def times_of(table: pd.DataFrame, by: str, *, level: float = LEARNED) -> list[dict[str, Crossing]]:
    """When each curve's loss falls below a level, by the column `by`; seed after seed."""
    return [
        {name: learned(*curve, level=level) for name, curve in network.items()}
        for network in curves(table, by).values()
    ]


def surely_longer(slow: Crossing, fast: Crossing, *, factor: float | int = 1) -> bool:
    """Whether a time is more than `factor` times another, as far as the runs show.

    A run that ended before counts as slow with its length only, and as fast not at all.

    >>> surely_longer(Crossing(384e3, False), Crossing(200e3, True), factor=2)  # 1.92 times or more
    False
    """
    return fast.observed and slow.time > factor * fast.time


def when(crossing: Crossing) -> float:
    """A time as a number, infinity where the run ended before: to sort and tell, not to judge."""
    return crossing.time if crossing.observed else math.inf


def over_times(times: Iterable[Crossing]) -> str:
    """`over_seeds` of times; where the run ended before, "never"."""
    return over_seeds([when(time) for time in times])


def told(times: Sequence[Mapping[str, Crossing]], names: Iterable[str]) -> str:
    """Times of some conditions over networks, as "match 33k, none 310k"."""
    return ", ".join(f"{name} {over_times(network[name] for network in times)}" for name in names)


def judged(
    figure: str, claim: str, *, paper: str, ours: str, holds: Sequence[bool], varies: bool = False
) -> Claim:
    """A claim with its verdict in every network; ValueError for none, which would hold."""
    if not holds:
        raise ValueError(f"Figure {figure}: no network to judge by that {claim!r}; leave it out.")
    return Claim(figure, claim, paper, ours, sum(map(bool, holds)), len(holds), varies)
