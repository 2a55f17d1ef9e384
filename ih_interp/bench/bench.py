"""The benchmark of training speed: contenders in processes of their own take turns."""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ih_interp.bench.contender import PERIOD
from ih_interp.plots import plot_speeds
from ih_interp.plots._style import save, style
from ih_interp.training._launch import command
from ih_interp.training.train import cores

SIZES = (2, 4, 8, 16, 32)
PRODUCTS = 50  # of large matrices, a measurement of the machine's peak


class Contender(NamedTuple):
    """A way to train."""

    name: str
    runs: int
    """The number of runs in one process."""
    engine: str
    processes: int = 1


class Process(subprocess.Popen[str]):
    """A process of a contender; `first_update` is the time to its first update, in seconds."""

    def __init__(self, contender: Contender, cache: Path) -> None:
        start = time.perf_counter()
        super().__init__(
            command("ih_interp.bench.contender", str(contender.runs), contender.engine),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)},
        )
        self.answer()
        self.first_update = time.perf_counter() - start

    def answer(self) -> float:
        """Wait for the answer to the last order and return it; RuntimeError if it died."""
        assert self.stdout is not None
        line = self.stdout.readline()
        if not line:
            self.communicate()
            raise RuntimeError("A process of the benchmark died; see its output above.")
        return float(line)


class Team(NamedTuple):
    """A contender and its processes."""

    entrant: Contender
    first_update_cold: float
    """Seconds to the first update where nothing was compiled yet."""
    processes: list[Process]

    def turn(self, order: str, number: int = 1) -> float:
        """Send an order to all processes at once; return the largest answer."""
        for process in self.processes:
            print(order, number, file=process.stdin, flush=True)
        return max(process.answer() for process in self.processes)


def contenders(sizes: Sequence[int] = SIZES) -> list[Contender]:
    """List plain TransformerLens, a compiled run, fleets, and fleets of 8 on every core."""
    n = cores()
    return [
        Contender("eager", 1, "eager"),
        Contender("compiled", 1, "compiled"),
        *(Contender(f"fleet of {size}", size, "compiled") for size in sizes),
        *([Contender(f"{n} fleets of 8", 8, "compiled", n)] if n > 1 else []),
    ]


def bench(
    entrants: Sequence[Contender], *, repeats: int = 5, say: Callable[[str], None] | None = None
) -> pd.DataFrame:
    """Measure training speed; return one row per contender.

    Contenders take turns, in `repeats` rounds: each trains a fiftieth of the paper's main run,
    without evaluations and checkpoints and then with them; medians are over the rounds.

    Columns: `name`, `runs` (trained together, over all processes), `processes`;
    `updates_per_second` (updates of one run, of 32 sequences each), `ratio` to the first contender
    in the same round, `ratio_low` and `ratio_high` over the rounds; `overhead`, the time of
    evaluating and saving as the paper's main run does (200 evaluations of the evaluation sets and
    1,000 checkpoints in 31,250 updates), as a share of the time of the updates; `first_update_cold`
    and `first_update`, seconds from the start of a process that has to compile, or finds everything
    compiled; `memory`, peak bytes of a process; `matrix_share`, the share of the time that its
    matrix products would take at the speed of products of 512 x 512 matrices on as many cores.
    """
    say = say or (lambda _: None)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        teams = [_started(entrant, Path(folder), stack, say) for entrant in entrants]
        rates, overheads, peaks = _rounds(teams, repeats, say)
        ratios, speeds = rates / rates[:, :1], np.median(rates, axis=0)
        n = np.array([team.entrant.processes for team in teams])
        runs = np.array([team.entrant.runs for team in teams])
        flops = np.array([team.turn("flops") for team in teams]) / runs
        return pd.DataFrame(
            {
                "name": [team.entrant.name for team in teams],
                "runs": runs * n,
                "processes": n,
                "updates_per_second": speeds,
                "ratio": np.median(ratios, axis=0),
                "ratio_low": ratios.min(axis=0),
                "ratio_high": ratios.max(axis=0),
                "overhead": np.median(overheads, axis=0),
                "first_update_cold": [team.first_update_cold for team in teams],
                "first_update": [team.processes[0].first_update for team in teams],
                "memory": [team.turn("memory") for team in teams],
                "matrix_share": speeds * flops / (np.median(peaks) * n),
            }
        )


def write(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write `bench.csv`, and a picture of it as pdf and png."""
    with style():
        canvas = Figure(figsize=(6, 3.2), layout="constrained")
        plot_speeds(table, canvas.subplots())
    return save(canvas, folder, "bench", table)


def _started(entrant: Contender, cache: Path, stack: ExitStack, say: Callable[[str], None]) -> Team:
    """Start a contender's processes, after a first one that compiles for them has ended."""
    own = cache / entrant.name.replace(" ", "-")
    with Process(entrant, own) as cold:
        pass
    processes = [stack.enter_context(Process(entrant, own)) for _ in range(entrant.processes)]
    seconds = f"{cold.first_update:.1f} s, {processes[0].first_update:.1f} s"
    say(f"{entrant.name}: first update after {seconds} when compiled before")
    return Team(entrant, cold.first_update, processes)


def _rounds(
    teams: Sequence[Team], repeats: int, say: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return updates per second and overheads `[round, contender]`, and the machine's peaks."""
    for team in teams:
        team.turn("overhead")  # compiles the evaluation
    rates, overheads = np.zeros((2, repeats, len(teams)))
    peaks = np.zeros(repeats)
    for number in range(repeats):
        for place, team in enumerate(teams):
            updates = PERIOD * team.entrant.runs * team.entrant.processes
            rates[number, place] = updates / team.turn("go", PERIOD)
            overheads[number, place] = team.turn("overhead")
        peaks[number] = teams[0].turn("peak", PRODUCTS)
        say(f"round {number + 1} of {repeats}: " + ", ".join(f"{r:.0f}" for r in rates[number]))
    return rates, overheads, peaks
