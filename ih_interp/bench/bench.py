"""The benchmark of training speed: contenders in processes of their own take turns."""

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
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


class Process:
    """A process of a contender; `first_update` is the seconds from its start to its first update.

    Raises RuntimeError if the process dies.
    """

    def __init__(self, contender: Contender, cache: Path) -> None:
        start = time.perf_counter()
        self._process = subprocess.Popen(
            command("ih_interp.bench.contender", str(contender.runs), contender.engine),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)},
        )
        try:
            self.answer()
        except RuntimeError:
            self.end()
            raise
        self.first_update = time.perf_counter() - start

    def tell(self, order: str, number: int = 1) -> None:
        """Give an order; `answer` waits for its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{order} {number}\n")
        self._process.stdin.flush()

    def answer(self) -> float:
        """Wait for the answer to the last order and return it."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("A process of the benchmark died; what it said stands above.")
        return float(json.loads(line))

    def end(self) -> None:
        """End the process."""
        self._process.communicate()


class Team(NamedTuple):
    """The processes of a contender."""

    first_update_cold: float
    """Seconds to the first update where nothing was compiled yet."""
    processes: list[Process]

    def turn(self, order: str, number: int = 1) -> float:
        """Have all processes do this at once; return the largest answer, the slowest's."""
        for process in self.processes:
            process.tell(order, number)
        return max(process.answer() for process in self.processes)


def contenders(sizes: Sequence[int] = SIZES) -> list[Contender]:
    """List TransformerLens as it is, a compiled run, fleets, and fleets of 8 on every core."""
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
    """Measure training speed; return one row per contender. Ratios are to the first of them.

    Contenders take turns, in `repeats` rounds: each trains a fiftieth of the paper's main run,
    without evaluations and checkpoints and then with them; medians are over the rounds.

    Columns: `name`, `runs` (trained together, over all processes), `processes`;
    `updates_per_second` (one run's update of 32 sequences counts one), `ratio` to the first
    contender in the same round, `ratio_low` and `ratio_high` over the rounds; `overhead`, the time
    of evaluating and saving as the paper's main run does (200 evaluations of the evaluation sets
    and 1,000 checkpoints in 31,250 updates), as a share of that of the updates between;
    `first_update_cold` and `first_update`, seconds from the start of a process with and without
    anything compiled yet; `memory`, peak bytes of a process; `matrix_share`, the share of the time
    that its matrix products would take at the speed of a product of 512 x 512 matrices on as many
    cores.
    """
    say = say or (lambda _: None)
    with tempfile.TemporaryDirectory() as folder, _started(entrants, Path(folder), say) as teams:
        rates, overheads, peaks = _rounds(entrants, teams, repeats, say)
        rows: list[dict[str, float | str]] = []
        for number, (entrant, team) in enumerate(zip(entrants, teams, strict=True)):
            ratios = rates[:, number] / rates[:, 0]
            speed, peak = float(np.median(rates[:, number])), float(np.median(peaks))
            flops = team.turn("flops") / entrant.runs
            rows.append(
                {
                    "name": entrant.name,
                    "runs": entrant.runs * entrant.processes,
                    "processes": entrant.processes,
                    "updates_per_second": speed,
                    "ratio": float(np.median(ratios)),
                    "ratio_low": float(ratios.min()),
                    "ratio_high": float(ratios.max()),
                    "overhead": float(np.median(overheads[:, number])),
                    "first_update_cold": team.first_update_cold,
                    "first_update": team.processes[0].first_update,
                    "memory": team.turn("memory"),
                    "matrix_share": speed * flops / (peak * entrant.processes),
                }
            )
    return pd.DataFrame(rows)


def write(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write `bench.csv`, and a picture of it as pdf and png."""
    with style():
        canvas = Figure(figsize=(6, 3.2), layout="constrained")
        plot_speeds(table, canvas.subplots())
    return save(canvas, folder, "bench", table)


@contextmanager
def _started(
    entrants: Sequence[Contender], cache: Path, say: Callable[[str], None]
) -> Generator[list[Team]]:
    """Start every contender's processes one by one, after another has compiled for them."""
    teams: list[Team] = []
    try:
        for entrant in entrants:
            own = cache / entrant.name.replace(" ", "-")
            cold = Process(entrant, own)
            cold.end()
            team = Team(cold.first_update, [])
            teams.append(team)
            for _ in range(entrant.processes):
                team.processes.append(Process(entrant, own))
            say(
                f"{entrant.name}: first update after {cold.first_update:.1f} s, "
                f"{team.processes[0].first_update:.1f} s when compiled before"
            )
        yield teams
    finally:
        for team in teams:
            for process in team.processes:
                process.end()


def _rounds(
    entrants: Sequence[Contender], teams: Sequence[Team], repeats: int, say: Callable[[str], None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return updates per second and overheads `[round, contender]`, and the machine's peaks."""
    for team in teams:
        team.turn("overhead")  # compiles the evaluation
    rates, overheads = np.zeros((2, repeats, len(teams)))
    peaks = np.zeros(repeats)
    for number in range(repeats):
        for place, (entrant, team) in enumerate(zip(entrants, teams, strict=True)):
            plain = team.turn("go", PERIOD)
            rates[number, place] = PERIOD * entrant.runs * entrant.processes / plain
            overheads[number, place] = team.turn("overhead")
        peaks[number] = teams[0].turn("peak", PRODUCTS)
        say(f"round {number + 1} of {repeats}: " + ", ".join(f"{r:.0f}" for r in rates[number]))
    return rates, overheads, peaks
