"""Training of the runs behind figures: networks first, then the runs about their heads."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ih_interp.config import RunConfig, run_folder
from ih_interp.paper.circuit import Circuit, choose_circuit
from ih_interp.paper.presets import Preset
from ih_interp.paper.recipes import FIRST_SEED, NEED_NO_CIRCUIT, RECIPES, Context, RunSet, main_run
from ih_interp.paper.study import Figure, Study
from ih_interp.runs import Run
from ih_interp.storage.run_files import CONFIG
from ih_interp.tasks.exemplars import ExemplarSource
from ih_interp.training._bar import one_bar
from ih_interp.training.state import saved_step
from ih_interp.training.train import Engine, train
from ih_interp.types import Head

N_DONORS = 3  # networks whose first layers Figure 7 grafts onto one
UNKNOWN = Circuit(Head(1, 0), (Head(0, 0),), Head(0, 1))
"""Stands for a circuit that is not known yet, so that runs can be counted."""

Configs = dict[RunSet, dict[int, dict[str, RunConfig]]]


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
        self.sets: list[RunSet] = [n for n in RECIPES if n in needed or (needed and n == "main")]
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
        folders = {seed: self._main(seed) for seed in self.seeds}
        finished = {seed: folder for seed, folder in folders.items() if _is_finished(folder)}
        return {seed: choose_circuit(Run(folder)) for seed, folder in finished.items()}

    def _main(self, seed: int) -> Path:
        """Return the folder of a network with all heads."""
        return run_folder(self.root, main_run(self._preset, self._exemplars, seed))

    def _context(self, seed: int, circuit: Circuit | None) -> Context:
        others = [donor for donor in self.trained if donor != seed]
        donors = {donor: str(self._main(donor)) for donor in [seed, *others][:N_DONORS]}
        return Context(self._preset, self._exemplars, seed, circuit, donors)


def flat(configs: Configs) -> list[RunConfig]:
    """Return the runs of all sets in a row."""
    by_condition = [runs for by_seed in configs.values() for runs in by_seed.values()]
    return [config for runs in by_condition for config in runs.values()]


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
    with one_bar(every, sum(map(_updates_done, folders))):
        found = _trained(networks.configs(), root, engine)
        for seed in networks.seeds:
            if seed not in circuits:
                circuits[seed] = choose_circuit(found["main"][seed]["main"])
            say(f"seed {seed}: {circuits[seed]}")
        found |= _trained(networks.configs(circuits), root, engine)
    return Study(found, circuits, sequences)


def _trained(
    configs: Configs, root: Path, engine: Engine
) -> dict[RunSet, dict[int, dict[str, Run]]]:
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
