"""Trains a small fleet that is killed again and again, and compares it with one that is not.

python tests/stress/kills.py --kills 50 [--engine compiled] [--workers 2] [--seed 1]

Every attempt is a process of its own, forked so that nothing is imported again, and SIGKILL comes
at a random moment of it, during start, compiling, training, evaluation or writing. With workers,
half of the kills hit one of the processes that train. Compiled, one tiny run is trained, of few
operations; a training in five begins with an empty cache, so that kills come as it compiles, too.
"""

import argparse
import functools
import gc
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

import ih_interp as ih
from ih_interp import clamps
from ih_interp.config import AdamConfig, Grid, RunConfig, Seeds
from ih_interp.tasks.exemplars import GaussianSource
from ih_interp.training import loop

SAVE_SECONDS = 0.1
"""Between two saved states; as in every run, only more often."""


def small_fleet(sequences: int = 8 * 40) -> list[RunConfig]:
    """Three runs, with and without clamps and schedules, of two shapes and two lengths."""
    plain = RunConfig(
        name="plain",
        task=ih.TaskConfig(
            exemplars=GaussianSource(n_classes=20, n_exemplars=2, n_features=16), n_train_classes=8
        ),
        optimiser=AdamConfig(learning_rate=1e-3),
        sequences=sequences,
        batch_size=8,
        evaluations=Grid(every=8 * 5),
        evaluation_size=20,
        checkpoints=Grid(every=8 * 3),
    )
    waits = clamps.from_level("loss", below=1.6)
    clamped = plain.replace(
        name="clamped",
        clamps=[
            clamps.InductionAttention(heads=["L1H3"], schedule=clamps.ramp(5, 30)),
            clamps.PreviousTokenAttention(heads=["L0H2"], schedule=waits),
        ],
    )
    return [
        plain,
        plain.replace(name="short", seeds=Seeds(init=6), sequences=sequences // 2),
        clamped,
    ]


def tiny_run(sequences: int = 4 * 400) -> list[RunConfig]:
    """One run of a single layer and head without norms, which compiles fast."""
    return [
        RunConfig(
            name="tiny",
            task=ih.TaskConfig(
                exemplars=GaussianSource(n_classes=12, n_exemplars=1, n_features=4),
                n_train_classes=8,
                n_labels=3,
            ),
            model=ih.ModelConfig(
                n_layers=1, d_model=4, n_heads=1, d_head=4, normalization_type=None
            ),
            optimiser=AdamConfig(learning_rate=1e-2),
            sequences=sequences,
            batch_size=4,
            evaluations=Grid(every=4 * 50),
            evaluation_size=8,
            checkpoints=Grid(every=4 * 30),
        )
    ]


def folder_bytes(root: Path) -> dict[str, bytes]:
    """Every file of every run, by its place; the lock that a kill leaves is none of them."""
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(paths)}


def forked(work: Callable[[], object]) -> int:
    """Begin the work in a process of its own, which prints nothing; its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        gc.freeze()
        if not os.environ.get("IH_KILLS_SHOW"):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()
        status = 0
    finally:
        os._exit(status)


def waited(pid: int) -> int:
    """The exit status of a process, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def train_in(root: Path, engine: str, workers: int, cache: Path) -> Callable[[], object]:
    """The training that is killed; what it compiles lies in `cache`."""

    def work() -> None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
        loop.SAVE_SECONDS = SAVE_SECONDS
        torch.set_num_threads(1)
        runs = tiny_run() if engine == "compiled" else small_fleet()
        ih.train(runs, root, engine=engine, workers=workers, progress=False)

    return work


def children_of(pid: int) -> list[int]:
    """Of a Linux process."""
    try:
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]
    except OSError:
        return []


class Killer:
    """Kills one training until it has been killed often enough, then lets it end."""

    def __init__(self, root: Path, *, engine: str, workers: int, seed: int) -> None:
        self.root, self.engine, self.workers = root, engine, workers
        self.random = random.Random(seed)
        self.survived = self.trainings = 0
        self.moments: list[float] = []
        self.seconds = {True: self._straight("cold")}
        self.expected = folder_bytes(root / "cold")
        assert self.expected
        # Eager trainings take the same time again, those whose graphs are in the cache less.
        self.seconds[False] = self._straight("warm") if engine == "compiled" else self.seconds[True]

    def kill(self, kills: int) -> list[str]:
        """The files that differ after as many kills, over as many trainings as it takes."""
        differing = self._differing("warm") if self.engine == "compiled" else []
        while self.survived < kills:
            self.trainings += 1
            target, cold = self.root / f"killed-{self.trainings}", self.trainings % 5 == 1
            cache = self.root / (f"cache-{self.trainings}" if cold else "cache")
            work = train_in(target, self.engine, self.workers, cache)
            # A few kills per training: the more, the less of it each can see.
            for _ in range(min(5, kills - self.survived)):
                if not self._killed(work, self.seconds[cold]):
                    break
            self._expect_end(forked(work))
            differing += self._differing(target.name)
        return differing

    def _straight(self, name: str) -> float:
        """Seconds of a training that nobody kills."""
        begun = time.monotonic()
        work = train_in(self.root / name, self.engine, self.workers, self.root / "cache")
        self._expect_end(forked(work))
        return time.monotonic() - begun

    def _differing(self, name: str) -> list[str]:
        """Files of a training that are not as they should be."""
        found = folder_bytes(self.root / name)
        return [
            f"{name}/{file}"
            for file in sorted({*found} | {*self.expected})
            if found.get(file) != self.expected.get(file)
        ]

    def _killed(self, work: Callable[[], object], seconds: float) -> bool:
        """Whether the kill came before the end of a training of so many seconds."""
        moment = self.random.uniform(0, 0.5 * seconds)
        pid = forked(work)
        time.sleep(moment)
        children = children_of(pid)
        if children and self.random.random() < 0.5:
            os.kill(self.random.choice(children), signal.SIGKILL)  # it is replaced
            time.sleep(self.random.uniform(0, 0.2 * seconds))
            self.survived += 1
            self.moments.append(moment)
        os.kill(pid, signal.SIGKILL)
        if waited(pid) != -signal.SIGKILL:
            return False
        self.survived += 1
        self.moments.append(moment)
        return True

    def _expect_end(self, pid: int) -> None:
        status = waited(pid)
        assert status == 0, f"the training ended with status {status}; IH_KILLS_SHOW=1 shows why"


def main() -> int:
    """Print how many kills were survived and which bytes differ; 1 if any do."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--engine", choices=["eager", "compiled"], default="eager")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    given = parser.parse_args()
    say = functools.partial(print, flush=True)
    say(f"seed {given.seed}")
    with tempfile.TemporaryDirectory() as root:
        killer = Killer(Path(root), engine=given.engine, workers=given.workers, seed=given.seed)
        seconds = f"{killer.seconds[True]:.1f} s, then {killer.seconds[False]:.1f} s"
        say(f"one training: {seconds}, {len(killer.expected)} files")
        differing = killer.kill(given.kills)
    say(
        f"{killer.survived} kills survived in {killer.trainings} trainings, "
        f"{min(killer.moments):.2f} to {max(killer.moments):.2f} s after their start; "
        f"{len(differing)} files differ"
    )
    say("\n".join(differing))
    return 1 if differing else 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
