"""Graphs compiled ahead, by a process of its own, for fleets that train now or later.

It fills the cache of compiled graphs and does nothing else: where it fails or is killed, graphs are
compiled when they are needed.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, NamedTuple

import torch

from ih_interp._torch_state import plain_torch
from ih_interp.config import RunConfig
from ih_interp.engine.compile_cache import lasting_place
from ih_interp.runs import Run, create_run
from ih_interp.tasks.pairs import build_like
from ih_interp.training._launch import command
from ih_interp.training.evaluating import is_worth_compiling
from ih_interp.training.fleet import Fleet

STOP_SECONDS = 8.0  # a C++ compiler that is at work ends sooner
ORDERS = "orders"  # the file of fleets
NICENESS = 19  # the process takes what others leave


class Ahead(NamedTuple):
    """A fleet to compile for, as one that is trained with the compiled engine."""

    runs: Sequence[RunConfig]
    updates: bool = True
    """False for evaluations alone: the process that trains compiles the update at this moment."""


def evaluations_of(jobs: Sequence[Sequence[Run]]) -> list[Ahead]:
    """Return the evaluations that fleets will compile once each has compiled its update."""
    return [
        Ahead([run.config for run in job], updates=False)
        for job in jobs
        if job[0].engine == "compiled"
        and any(is_worth_compiling(run.config, run.task) for run in job)
    ]


@contextmanager
def compiled_ahead(fleets: Sequence[Ahead]) -> Generator[int | None]:
    """Compile for fleets, one after the other, until the block ends.

    Gives the process's number. No process is started where there are no fleets, and none stays.
    """
    if not fleets:
        yield None
        return
    with TemporaryDirectory() as folder:
        lines = [
            json.dumps({"runs": [run.model_dump_json() for run in runs], "updates": updates})
            for runs, updates in fleets
        ]
        (Path(folder) / ORDERS).write_text("\n".join(lines))
        process = subprocess.Popen(
            command("ih_interp.training._ahead", folder),
            stdin=subprocess.PIPE,  # which closes where this process is killed
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | lasting_place() | {"TORCHINDUCTOR_COMPILE_THREADS": "1"},
            start_new_session=True,  # Ctrl-C reaches this process, which ends it
        )
        try:
            yield process.pid
        finally:
            process.terminate()
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def main() -> int:
    """Compile for the fleets that a file in the folder lists, a JSON object in each line."""
    os.nice(NICENESS)
    with suppress(OSError):  # of its session as well, among which Linux may share processors
        Path("/proc/self/autogroup").write_text(str(NICENESS))
    signal.signal(signal.SIGTERM, _end)
    Thread(target=lambda: _end(sys.stdin.read()), daemon=True).start()
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for number, line in enumerate((folder / ORDERS).read_text().splitlines()):
        with suppress(Exception):  # the process that trains meets it again, and tells
            compile_fleet(json.loads(line), folder / str(number))
    return 0


@plain_torch(gradient=True)
def compile_fleet(order: dict[str, Any], folder: Path) -> None:
    """Compile the graphs of a fleet; run folders that it makes for that are in `folder`."""
    configs = [RunConfig.model_validate_json(run) for run in order["runs"]]
    task = configs[0].task.build()
    runs = [
        create_run(folder / config.name, config, build_like(config.task, task), engine="compiled")
        for config in configs
    ]
    Fleet(runs, compiled=True).prepare(updates=order["updates"])


def _end(*_: object) -> None:
    """End this process, as its parent does, once a C++ compiler that it runs has ended.

    Half a library would stay otherwise.
    """
    with suppress(ChildProcessError):
        while True:
            os.wait()
    os._exit(0)
