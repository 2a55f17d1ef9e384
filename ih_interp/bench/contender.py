"""A contender of the benchmark: a process that makes a fleet and trains it on orders.

Orders are lines ("go 100", "overhead 1", "peak 50"), answers are lines of one number.
"""

import resource
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ih_interp.clamps import in_order
from ih_interp.config import Grid, RunConfig, Seeds
from ih_interp.engine.compiled_forward import ClampedModel
from ih_interp.engine.update import trace_update
from ih_interp.model import build_model
from ih_interp.runs import create_run
from ih_interp.training._signals import deferred_interrupts
from ih_interp.training.fleet import Fleet
from ih_interp.training.loop import measure
from ih_interp.training.train import one_thread

SIDE = 512  # of the square matrices whose product measures the machine's peak
PERIOD = 625  # updates in which the paper's main run is evaluated 4 times and saved 20 times


def main() -> None:
    """Answer orders; the arguments are the number of runs, and "compiled" or "eager"."""
    n_runs, engine = int(sys.argv[1]), sys.argv[2]
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        fleet = make_fleet(n_runs, engine, Path(folder))
        orders: dict[str, Callable[[int], float]] = {
            "go": lambda updates: seconds(fleet, updates),
            "overhead": lambda periods: overhead(fleet, periods * PERIOD),
            "flops": lambda _: matrix_flops(fleet, compiled=engine == "compiled"),
            "peak": matrix_peak,
            "memory": lambda _: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }
        for line in chain(["go 1"], sys.stdin):
            order, number = line.split()
            print(orders[order](int(number)), flush=True)  # noqa: T201


def make_fleet(n_runs: int, engine: str, folder: Path) -> Fleet:
    """Make a fleet of the paper's runs, one seed each, on synthetic exemplars."""
    base = RunConfig(
        sequences=10_000_000, evaluations=Grid(every=5_000), checkpoints=Grid(every=1_000)
    )
    configs = [base.replace(name=f"run-{n}", seeds=Seeds(init=n)) for n in range(n_runs)]
    task = base.task.build()
    runs = [create_run(folder / config.name, config, task, engine=engine) for config in configs]
    return Fleet(runs, compiled=engine == "compiled")


def seconds(fleet: Fleet, updates: int) -> float:
    """Return the seconds that updates of all runs take, sampling of sequences included."""
    start = time.perf_counter()
    for _ in range(updates):
        fleet.advance()
    return time.perf_counter() - start


def overhead(fleet: Fleet, updates: int) -> float:
    """Return the time of evaluations and checkpoints as a share of the time of the updates.

    They are as frequent as in the paper's main run. Files are on the disk before the next update
    begins: written meanwhile, they would slow it down where every core trains.
    """
    start, others = time.perf_counter(), 0.0
    with deferred_interrupts() as interrupted:
        for _ in range(updates):
            fleet.advance()
            if any(run.is_due for run in fleet.runs):
                due = time.perf_counter()
                measure(fleet, None, interrupted)
                for run in fleet.runs:
                    run.writer.settle()
                others += time.perf_counter() - due
    return others / (time.perf_counter() - start - others)


def matrix_flops(fleet: Fleet, *, compiled: bool) -> float:
    """Return the floating-point operations in matrix products of one update of all runs."""
    counter = FlopCounterMode(display=False)
    if compiled:
        config, inputs = fleet.runs[0].config, fleet.inputs()
        model, clamps = build_model(fleet.runs[0].task, config.model), in_order(config.clamps)
        clamped = ClampedModel(model, clamps, fleet.runs[0].task)
        graph = trace_update(clamped, config.optimiser, fleet.state, inputs)
        with counter, torch.no_grad():
            graph(*fleet.state.map(torch.clone).flat, *inputs.flat)
    else:
        with counter:
            fleet.advance()
    return float(counter.get_total_flops())


def matrix_peak(repeats: int) -> float:
    """Return the floating-point operations per second of a large matrix product, on one thread."""
    left, right = torch.randn(2, SIDE, SIDE)
    start = time.perf_counter()
    for _ in range(repeats):
        torch.mm(left, right)
    return repeats * 2 * SIDE**3 / (time.perf_counter() - start)
