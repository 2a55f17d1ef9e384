"""One contender of the benchmark: a process that makes a fleet ready and trains when it is told.

Orders come as lines ("go 100", "overhead 1", "peak 50"), answers go as lines of JSON.
"""

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ih_interp.clamps import in_order
from ih_interp.config import Grid, RunConfig, Seeds
from ih_interp.engine.update import flat_inputs, trace_update
from ih_interp.model import build_model
from ih_interp.runs import create_run
from ih_interp.tasks.exemplars import Exemplars, GaussianSource
from ih_interp.tasks.few_shot import FewShotTask
from ih_interp.training._signals import deferred_interrupts
from ih_interp.training.fleet import Fleet
from ih_interp.training.loop import measure
from ih_interp.training.train import one_thread

SIDE = 512  # of the square matrices whose product measures the machine's peak
PERIOD = 625  # updates in which the paper's main run is evaluated 4 times and saved 20 times


def main() -> None:
    """Arguments: how many runs, and "compiled" or "eager"."""
    n_runs, engine = int(sys.argv[1]), sys.argv[2]
    with one_thread(), tempfile.TemporaryDirectory() as folder:
        fleet = make_fleet(n_runs, engine, Path(folder))
        orders: dict[str, Callable[[int], float]] = {
            "go": lambda updates: seconds(fleet, updates),
            "overhead": lambda periods: overhead(fleet, periods * PERIOD),
            "flops": lambda _: matrix_flops(fleet, compiled=engine == "compiled"),
            "peak": lambda repeats: matrix_peak(repeats),
            "memory": lambda _: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }
        tell(seconds(fleet, 1))
        for line in sys.stdin:
            order, number = line.split()
            tell(orders[order](int(number)))


def make_fleet(n_runs: int, engine: str, folder: Path) -> Fleet:
    """The paper's model, task and batch, on synthetic exemplars, from different seeds."""
    configs = [
        RunConfig(
            name=f"run-{seed}",
            exemplars=GaussianSource(),
            seeds=Seeds(init=seed),
            sequences=10_000_000,
            evaluations=Grid(every=5_000),
            checkpoints=Grid(every=1_000),
        )
        for seed in range(n_runs)
    ]
    task = FewShotTask(Exemplars.from_source(GaussianSource()), configs[0].task)
    runs = [create_run(folder / config.name, config, task, engine=engine) for config in configs]
    return Fleet(runs, compiled=engine == "compiled")


def seconds(fleet: Fleet, updates: int) -> float:
    """How long the fleet takes for that many updates of all its runs, sequences drawn and all."""
    start = time.perf_counter()
    for _ in range(updates):
        fleet.advance()
    return time.perf_counter() - start


def overhead(fleet: Fleet, updates: int) -> float:
    """How long evaluations and checkpoints take, as a share of the updates between them.

    As the paper's main run has them. Files are on the disk before the next update begins: written
    beside it, they would slow it where every core trains.
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
    """Floating-point operations in the matrix products of one update of all runs."""
    if not compiled:
        with _Operations() as counted:
            fleet.advance()
        return float(counted.total)
    config, inputs = fleet.runs[0].config, fleet.inputs()
    model, clamps = build_model(fleet.runs[0].task, config.model), in_order(config.clamps)
    graph = trace_update(model, clamps, config.optimiser, fleet.state, inputs)
    with _Operations() as counted, torch.no_grad():
        graph(*fleet.state.clone().flat, *flat_inputs(inputs))
    return float(counted.total)


class _Operations(TorchDispatchMode):
    """Counts the operations of matrix products inside, by torch's formulas."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        del types
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def matrix_peak(repeats: int) -> float:
    """Floating-point operations a second of a large matrix product, on one thread."""
    left, right = torch.randn(2, SIDE, SIDE)
    start = time.perf_counter()
    for _ in range(repeats):
        torch.mm(left, right)
    return repeats * 2 * SIDE**3 / (time.perf_counter() - start)


def tell(value: float) -> None:
    """One line of JSON."""
    print(json.dumps(value), flush=True)  # noqa: T201
