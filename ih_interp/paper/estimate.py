"""What is to be trained, and about how long it will take here."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ih_interp._torch_state import plain_torch
from ih_interp.config import RunConfig, run_folder
from ih_interp.engine.compiled_forward import compiler_found
from ih_interp.evaluation import evaluate
from ih_interp.model import build_model
from ih_interp.runs import Run
from ih_interp.storage.run_files import CONFIG
from ih_interp.tasks.exemplars import Exemplars
from ih_interp.tasks.few_shot import FewShotTask
from ih_interp.training.fleet import trace_key
from ih_interp.training.state import saved_step
from ih_interp.training.train import WORTH_COMPILING, cores, one_thread

FLEET_SPEED = 7.0  # times an eager update, a fleet of 8 on one core: figures/bench.csv
COMPILING = 60.0  # seconds a shape that is new to the cache, on one core
"""Measured on two cores, as the README says; the estimate is no promise."""


class Plan(NamedTuple):
    """Runs to train."""

    root: Path
    runs: int
    updates: int
    done: int
    """Runs that are finished already."""
    seconds: float
    """That training the others may take."""

    @classmethod
    def of(cls, configs: Sequence[RunConfig], root: Path) -> "Plan":
        """Count runs and what is left of them, and time a few updates of the first."""
        left = [config for config in configs if not is_finished(run_folder(root, config))]
        updates = sum(config.n_steps for config in configs)
        seconds = _estimate(left) if left else 0.0
        return cls(root, len(configs), updates, len(configs) - len(left), seconds)

    def __str__(self) -> str:
        text = (
            f"{self.root}: {self.runs} run(s), {self.updates:,} updates, "
            f"{self.done} run(s) finished already"
        )
        if self.done == self.runs:
            return text
        return f"{text}; about {_in_words(self.seconds)} to train here"


def updates_done(folder: Path) -> int:
    """Return how far the run in a folder has come; 0 where there is none."""
    if not (folder / CONFIG).is_file():
        return 0
    return Run(folder).config.n_steps if is_finished(folder) else saved_step(folder)


def is_finished(folder: Path) -> bool:
    """Whether a folder holds a run that is at its end."""
    if not (folder / CONFIG).is_file():
        return False
    try:
        return Run(folder).finished
    except ValueError:  # `train` will say what is wrong with it
        return False


def _estimate(configs: Sequence[RunConfig]) -> float:
    """Seconds, from one eager update and one evaluation on this machine."""
    update, evaluation = _calibrate(configs[0])
    total = 0.0
    compiled = compiler_found()
    for config in configs:
        fast = compiled and config.n_steps >= WORTH_COMPILING
        speed = FLEET_SPEED if fast else 1.0
        n_evaluations = len(config.evaluations.steps(config.n_steps, config.batch_size))
        total += config.n_steps * update / speed + n_evaluations * evaluation
    if compiled:
        worth = [config for config in configs if config.n_steps >= WORTH_COMPILING]
        total += COMPILING * len({trace_key(config) for config in worth})
    return total / min(cores(), len(configs))


@plain_torch(gradient=True)
def _calibrate(config: RunConfig) -> tuple[float, float]:
    """Seconds of one eager update without clamps, and of one evaluation of all sets."""
    task = FewShotTask(Exemplars.from_source(config.exemplars), config.task)
    model = build_model(task, config.model)
    generator = torch.Generator().manual_seed(0)
    batch = task.sample("train", config.batch_size, generator=generator)
    shown = task.sample("train", config.evaluation_size, generator=generator)
    optimiser = torch.optim.Adam(model.parameters(), lr=0.0)

    def update() -> None:
        logits = model(batch.tokens)[:, -1]
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits, batch.target).backward()
        optimiser.step()

    with one_thread():
        return _time(update, 15), len(task.splits) * _time(lambda: evaluate(model, shown), 3)


def _time(action: Callable[[], object], repeats: int) -> float:
    """The median duration of an action, in seconds, after one that does not count."""
    action()
    durations: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        durations.append(time.perf_counter() - start)
    return sorted(durations)[repeats // 2]


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5_400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3_600:.1f} h"
