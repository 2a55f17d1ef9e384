"""What figures are made of: finished runs, tables of them, and claims about the tables."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure as Canvas
from transformer_lens import HookedTransformer

from ih_interp.paper.circuit import Circuit
from ih_interp.paper.recipes import RunSet
from ih_interp.plots.style import short_count
from ih_interp.runs import Run
from ih_interp.types import Batch

CURVE_SEQUENCES = 4_000  # a mean loss of 0.7 is then within 0.02
MAX_CHECKPOINTS = 101  # of a run in one curve, as in the paper's Figure 3b


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
        """The same for measures of a hundred checkpoints that nothing makes fast: a sample."""
        return self._sample(run)

    def _sample(self, run: Run) -> Batch:
        generator = torch.Generator().manual_seed(0)
        n = CURVE_SEQUENCES if self.sequences is None else self.sequences
        return run.task.sample("train", n, generator=generator)

    def losses(self, run_set: RunSet, splits: Iterable[str] = ("train",)) -> pd.DataFrame:
        """Metrics of a set's runs.

        Columns: `seed`, `condition`, `run`, `sequences`, `split`, `loss`, `accuracy`.
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
        """A measure of every network with all heads at its end, with columns `seed` and `run`."""
        return self.each_run(lambda run, batch: measure(run.model(), batch))

    def each_run(self, measure: Callable[[Run, Batch], pd.DataFrame]) -> pd.DataFrame:
        """A measure of every run with all heads, with columns `seed` and `run` in front."""
        parts: list[pd.DataFrame] = []
        for seed, run in self.main.items():
            table = measure(run, self.batch(run))
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

    @property
    def holds(self) -> bool:
        """In every network; where the paper's own vary, in more than half."""
        return self.held > self.of / 2 if self.varies else self.held == self.of


@dataclass(frozen=True)
class Figure:
    """A figure or table of the paper."""

    name: str
    """As "3a" or "table 1"."""
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
    def file_name(self) -> str:
        """Without its ending: "fig3a", "table1"."""
        name = self.name.replace(" ", "")
        return name if name.startswith("table") else f"fig{name}"


def some_steps(run: Run, count: int = MAX_CHECKPOINTS) -> list[int]:
    """At most `count` of a run's checkpoints, evenly, the first and the last among them."""
    steps = run.steps
    places = np.linspace(0, len(steps) - 1, min(count, len(steps))).round().astype(int)
    return [steps[place] for place in places]


def over_seeds(
    values: Sequence[float] | Sequence[int], form: Callable[[float], str] = short_count
) -> str:
    """The median over networks and, of several, the range.

    >>> over_seeds([310e3, 250e3, 400e3])
    '310k (250k to 400k)'
    """
    median = form(float(np.median(values)))
    low, high = form(min(values)), form(max(values))
    return median if low == high else f"{median} ({low} to {high})"


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
            str(name): (
                rows["sequences"].to_numpy(dtype=float),
                rows[value].to_numpy(dtype=float),
            )
            for name, rows in of_seed.groupby(by, sort=False)
        }
    return found


def judged(
    figure: str, claim: str, *, paper: str, ours: str, holds: Sequence[bool], varies: bool = False
) -> Claim:
    """A claim with its verdict in every network."""
    return Claim(figure, claim, paper, ours, sum(map(bool, holds)), len(holds), varies)
