"""The finished runs that figures are made from, and what a figure consists of."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from ih_interp._reprs import short_repr
from ih_interp.paper.circuit import Circuit
from ih_interp.paper.claims import Judging
from ih_interp.paper.drawing import Drawing
from ih_interp.paper.recipes import RunSet
from ih_interp.runs import Run
from ih_interp.types import Batch

CURVE_SEQUENCES = 4_000  # a mean loss of 0.7 is then within 0.02
MAX_CHECKPOINTS = 101  # of a run in one curve, as in the paper's Figure 3b


@short_repr
@dataclass(frozen=True)
class Study:
    """The finished runs that figures are drawn from."""

    runs: Mapping[RunSet, Mapping[int, Mapping[str, Run]]]
    """Runs by set, seed and condition (`recipes`), as far as the figures asked for need them."""
    circuits: Mapping[int, Circuit]
    """By seed."""
    sequences: int | None
    """The number of training sequences that measures are averaged over; None: all of them."""

    @property
    def main(self) -> dict[int, Run]:
        """The runs with all heads, by seed: the networks that the figures show."""
        return {seed: self.runs["main"][seed]["main"] for seed in self.seeds}

    @property
    def seeds(self) -> list[int]:
        """The seeds of the networks that the figures show, ascending."""
        return sorted(self.circuits)

    def batch(self, run: Run) -> Batch:
        """Return the sequences that measures of a run are averaged over, the same for every run."""
        return run.task.enumerate("train") if self.sequences is None else self.curve_batch(run)

    def curve_batch(self, run: Run) -> Batch:
        """Return a sample for slow measures of a hundred checkpoints.

        It has `sequences` sequences or, where that is None, `CURVE_SEQUENCES`.
        """
        generator = torch.Generator().manual_seed(0)
        n = CURVE_SEQUENCES if self.sequences is None else self.sequences
        return run.task.sample("train", n, generator=generator)

    def losses(
        self, run_set: RunSet, splits: Iterable[str] = ("train",), *, by: str = "condition"
    ) -> pd.DataFrame:
        """Return metrics of a set's runs: means over the `evaluation_size` sequences evaluated.

        Columns: `seed`, `by` (the condition), `run`, `sequences` (seen in training), `split`, and
        at the query `loss` in nats (ln 2 for a guess between the context's two labels, ln L for L
        labels and no idea) and `accuracy` (chance 1/L, 1/2 for that guess).
        """
        parts = [
            run.metrics.assign(**{"seed": seed, by: condition, "run": run.config.name})
            for seed in self.seeds
            for condition, run in self.runs[run_set][seed].items()
        ]
        table = pd.concat(parts, ignore_index=True)
        columns = ["seed", by, "run", "sequences", "split", "loss", "accuracy"]
        return table.loc[table["split"].isin([*splits]), columns]


@dataclass(frozen=True)
class Figure:
    """A figure or table of the paper."""

    name: str
    """As "3a" or "table 1", in words; `word` is how it is asked for."""
    needs: tuple[RunSet, ...]
    table: Callable[[Study], pd.DataFrame]
    """The numbers; rows from a run name it in a column `run`."""
    draw: Drawing
    claims: Judging
    size: tuple[float, float] = (5.2, 3.4)
    """Inches."""

    @property
    def word(self) -> str:
        """The name as the command takes it: "3a", "11init", "table1"."""
        return self.name.replace(" ", "")

    @property
    def file_name(self) -> str:
        """The name of its files without ending: "fig3a", "table1"."""
        return self.word if self.word.startswith("table") else f"fig{self.word}"


def some_steps(run: Run, count: int = MAX_CHECKPOINTS) -> list[int]:
    """Return at most `count` of a run's checkpoints, evenly, the first and the last among them."""
    steps = run.steps
    places = np.linspace(0, len(steps) - 1, min(count, len(steps))).round().astype(int)
    return [steps[place] for place in places]


def each_run(
    measure: Callable[[Study, Run, Batch], pd.DataFrame],
) -> Callable[[Study], pd.DataFrame]:
    """Return the function that measures every run with all heads.

    Columns: `seed`, `run`, `n_sequences` (how many the measure is averaged over), and those of
    the measure. It gets `Study.batch`, or has a column `n_sequences` where it takes others.
    """

    def table(study: Study) -> pd.DataFrame:
        parts: list[pd.DataFrame] = []
        for seed, run in study.main.items():
            batch = study.batch(run)
            part = measure(study, run, batch)
            if "n_sequences" not in part:
                part.insert(0, "n_sequences", len(batch))
            part.insert(0, "run", run.config.name)
            part.insert(0, "seed", seed)
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    return table
