"""The finished runs that figures are made from, and what a figure consists of."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from ih_interp._reprs import short_repr
from ih_interp.batch import Batch
from ih_interp.clamps import GraftIn, GraftOut
from ih_interp.config import RunConfig, run_folder
from ih_interp.paper.claims import Judging
from ih_interp.paper.drawing import Drawing
from ih_interp.paper.presets import Preset
from ih_interp.paper.recipes import (
    FIRST_SEED,
    NEED_NO_CIRCUIT,
    RECIPES,
    Circuit,
    Context,
    choose_circuit,
    main_run,
)
from ih_interp.runs import Run
from ih_interp.storage.run_files import CONFIG
from ih_interp.tasks.exemplars import ExemplarSource
from ih_interp.training._bar import one_bar
from ih_interp.training.state import saved_step
from ih_interp.training.train import Engine, compiled_for_later, train
from ih_interp.types import Head

CURVE_SEQUENCES = 4_000  # a mean loss of 0.7 is then within 0.02
MAX_CHECKPOINTS = 101  # of a run in one curve, as in the paper's Figure 3b
N_DONORS = 3  # networks whose first layers Figure 7 grafts onto one
UNKNOWN = Circuit(Head(1, 0), (Head(0, 0),), Head(0, 1))
"""Stands for a circuit that is not known yet, so that runs can be counted."""

Configs = dict[str, dict[int, dict[str, RunConfig]]]


@short_repr
@dataclass(frozen=True)
class Study:
    """The finished runs that figures are drawn from."""

    runs: Mapping[str, Mapping[int, Mapping[str, Run]]]
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
        """Return a sample for slow measures, of `sequences` or, for None, `CURVE_SEQUENCES`."""
        generator = torch.Generator().manual_seed(0)
        n = CURVE_SEQUENCES if self.sequences is None else self.sequences
        return run.task.sample("train", n, generator=generator)

    def losses(
        self, run_set: str, splits: Iterable[str] = ("train",), *, by: str = "condition"
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
    needs: tuple[str, ...]
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


class Networks:
    """The runs behind some figures, of as many networks as `seeds` says, under a root folder."""

    def __init__(
        self,
        figures: Sequence[Figure],
        preset: Preset,
        exemplars: ExemplarSource,
        *,
        seeds: int,
        root: Path,
    ) -> None:
        needed = {name for figure in figures for name in figure.needs}
        # All other runs are about heads of the main runs, so these are needed as well.
        self.sets = [name for name in RECIPES if name in needed or (needed and name == "main")]
        self.seeds = list(range(FIRST_SEED, FIRST_SEED + seeds))
        n_trained = max(seeds, N_DONORS) if "grafts" in needed else seeds
        self.trained = list(range(FIRST_SEED, FIRST_SEED + n_trained))
        """The seeds of the networks with all heads: those shown, and those that only donate."""
        self.root = root
        self._preset, self._exemplars = preset, exemplars

    def configs(self, circuits: Mapping[int, Circuit] | None = None) -> Configs:
        """Return the runs that need no heads chosen or, with circuits, those about their heads."""
        return {
            name: {
                seed: RECIPES[name](self._context(seed, circuits[seed] if circuits else None))
                for seed in (self.trained if name == "main" else self.seeds)
            }
            for name in self.sets
            if (name in NEED_NO_CIRCUIT) == (circuits is None)
        }

    def every(self, circuits: Mapping[int, Circuit]) -> list[RunConfig]:
        """Return all runs, to be counted; where a circuit is not known, names of runs differ."""
        known = {**dict.fromkeys(self.seeds, UNKNOWN), **circuits}
        return flat(self.configs()) + flat(self.configs(known))

    def known_circuits(self) -> dict[int, Circuit]:
        """Return the circuits of networks that are trained already."""
        return {
            seed: choose_circuit(Run(folder))
            for seed in self.seeds
            if _is_finished(folder := self._main(seed))
        }

    def _main(self, seed: int) -> Path:
        """Return the folder of a network with all heads."""
        return run_folder(self.root, main_run(self._preset, self._exemplars, seed))

    def _context(self, seed: int, circuit: Circuit | None) -> Context:
        others = [donor for donor in self.trained if donor != seed]
        donors = {donor: str(self._main(donor)) for donor in [seed, *others][:N_DONORS]}
        return Context(self._preset, self._exemplars, seed, circuit, donors)


def flat(configs: Configs) -> list[RunConfig]:
    """Return the runs of all sets in a row."""
    return [run for seeds in configs.values() for runs in seeds.values() for run in runs.values()]


def train_study(
    networks: Networks, *, sequences: int | None, engine: Engine, say: Callable[[str], None]
) -> Study:
    """Train what is missing, in two parts, and gather it; `sequences` as in `Study`."""
    if not networks.sets:
        return Study({}, {}, sequences)
    root = networks.root
    circuits = networks.known_circuits()
    every = networks.every(circuits)
    folders = [run_folder(root, config) for config in every]
    updates = sum(config.n_steps for config in every)
    finished = sum(map(_is_finished, folders))
    say(f"{root}: {len(every)} run(s), {updates:,} updates, {finished} run(s) finished already")
    later = _compilable(networks) if any(s not in circuits for s in networks.seeds) else []
    with compiled_for_later(later, engine=engine), one_bar(every, sum(map(_updates_done, folders))):
        found = _trained(networks.configs(), root, engine)
        for seed in networks.seeds:
            if seed not in circuits:
                circuits[seed] = choose_circuit(found["main"][seed]["main"])
            say(f"seed {seed}: {circuits[seed]}")
        found |= _trained(networks.configs(circuits), root, engine)
    return Study(found, circuits, sequences)


def _compilable(networks: Networks) -> list[RunConfig]:
    """Return runs with the graphs of those to come, as far as they can be made now."""
    # What clamps are about is a tensor: graphs do not depend on the heads, which are chosen later.
    every = flat(networks.configs(dict.fromkeys(networks.seeds, UNKNOWN)))
    grafts = (GraftIn, GraftOut)  # they read runs, which are not there yet
    return [run for run in every if not any(isinstance(clamp, grafts) for clamp in run.clamps)]


def _trained(configs: Configs, root: Path, engine: Engine) -> dict[str, dict[int, dict[str, Run]]]:
    train(flat(configs), root, engine=engine)
    return {
        name: {
            seed: {condition: Run(run_folder(root, config)) for condition, config in runs.items()}
            for seed, runs in by_seed.items()
        }
        for name, by_seed in configs.items()
    }


def _updates_done(folder: Path) -> int:
    """Return how far the run in a folder has come; 0 where there is none."""
    if _is_finished(folder):
        return Run(folder).config.n_steps
    return saved_step(folder) if (folder / CONFIG).is_file() else 0


def _is_finished(folder: Path) -> bool:
    """Return whether a folder holds a run that is at its end."""
    try:
        return (folder / CONFIG).is_file() and Run(folder).finished
    except ValueError:  # `train` will say what is wrong with it
        return False
