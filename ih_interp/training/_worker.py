"""A process that trains fleets; orders and messages are JSON, through one connection."""

import json
import math
import os
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ih_interp.registry import load_plugins
from ih_interp.runs import Run
from ih_interp.storage import lock
from ih_interp.storage.run_files import sweep_run
from ih_interp.training._launch import received
from ih_interp.training.fleet import make_jobs
from ih_interp.training.loop import train_jobs
from ih_interp.training.state import StopRun, saved_step, to_train
from ih_interp.training.train import one_thread


def main() -> int:
    """Train as ordered until there are no more orders; return 130 after an interrupt."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the parent may ignore it; a worker must not
    for warning in (signal.SIGUSR1, signal.SIGUSR2):  # a cluster warns every process of a job,
        signal.signal(warning, signal.SIG_IGN)  # and the parent then has the workers save
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # standard output is the parent's
    parent = Connection(int(sys.argv[1]))
    os.set_inheritable(parent.fileno(), False)
    with one_thread():
        while order := received(parent):
            if "train" not in order:
                continue  # a late order to stop a run
            try:
                report = train_ordered(order["train"], parent, order["plugins"])
            except KeyboardInterrupt:
                return 130
            tell(parent, report)
    return 0


def train_ordered(
    order: Mapping[str, int | None],
    parent: Connection,
    plugins: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Train runs to their ends, each with its recorded engine; return the report.

    `order` maps run folders to the inherited open files that hold their locks, `plugins` to the
    modules that define their kinds. Runs that the parent orders to stop end at their next
    evaluation.
    """
    for folder, descriptor in order.items():
        if descriptor is not None:
            os.set_inheritable(descriptor, False)  # a compiler must not keep the lock
            lock.HELD[Path(folder)] = descriptor
    runs, failures = opened(order, plugins or {})
    for run in runs:
        sweep_run(run.folder)  # files that a killed worker left
    unfinished, damaged = to_train(runs)
    failures += damaged
    done = sum(saved_step(run.folder) if run in unfinished else run.config.n_steps for run in runs)
    stopping: set[str] = set()

    def on_metrics(run: Run, row: Mapping[str, Any]) -> None:
        while parent.poll() and (order := received(parent)):
            stopping.add(order["stop"])
        tell(parent, {"folder": str(run.folder), "row": dict(row)})
        if str(run.folder) in stopping:
            raise StopRun

    def on_progress(updates: int, loss: float) -> None:
        nonlocal done
        done += updates
        tell(parent, {"done": done, "loss": loss})

    on_progress(0, math.nan)
    failures += train_jobs(make_jobs(unfinished, 1), on_metrics=on_metrics, on_progress=on_progress)
    return {"failures": failures, "engines": {str(run.folder): run.engine for run in runs}}


def opened(
    folders: Iterable[str], plugins: Mapping[str, Sequence[str]]
) -> tuple[list[Run], list[str]]:
    """Return the runs that can be read here, and in words why others cannot."""
    runs: list[Run] = []
    failures: list[str] = []
    for folder in folders:
        try:
            load_plugins(plugins.get(folder, ()))
            runs.append(Run(folder))
        except ValueError as error:
            failures.append(f"{folder}, in a process of its own: {error}")
    return runs, failures


def tell(parent: Connection, message: dict[str, Any]) -> None:
    """Send a message to the parent; if it is gone, save and end."""
    try:
        parent.send_bytes(json.dumps(message).encode())
    except OSError:
        signal.raise_signal(signal.SIGTERM)
