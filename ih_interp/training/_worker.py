"""A process that trains fleets: jobs come as lines of JSON, and so do its messages go."""

import json
import math
import os
import queue
import signal
import sys
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TextIO

from ih_interp.runs import Run
from ih_interp.storage import lock
from ih_interp.storage.run_files import sweep_run
from ih_interp.training.fleet import make_jobs
from ih_interp.training.loop import train_jobs
from ih_interp.training.state import StopRun, saved_step, to_train
from ih_interp.training.train import one_thread


def main() -> int:
    """Train what is ordered until there are no more orders; return 130 after an interrupt."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what the parent ignores, we would too
    # Whatever prints goes to standard error: standard output carries messages only.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    orders: queue.SimpleQueue[dict[str, int | None] | None] = queue.SimpleQueue()
    stopping: set[str] = set()
    busy = threading.Event()
    threading.Thread(target=_read_orders, args=(orders, busy, stopping), daemon=True).start()
    with one_thread():
        while (order := orders.get()) is not None:
            busy.set()
            try:
                report = train_ordered(order, out, stopping)
            except KeyboardInterrupt:
                return 130
            busy.clear()
            _tell(out, report)
    return 0


def train_ordered(
    order: Mapping[str, int | None], out: TextIO, stopping: Collection[str] = ()
) -> dict[str, Any]:
    """Train runs to their ends, each by the engine that it has recorded; return the report.

    `order` has the run folders and the inherited open files that hold their locks. Runs whose
    folders come to be among `stopping` end at their next evaluation.
    """
    for folder, descriptor in order.items():
        if descriptor is not None:
            os.set_inheritable(descriptor, False)  # no compiler that we start shall hold it
            lock.HELD[Path(folder)] = descriptor
    runs = [Run(folder) for folder in order]
    for run in runs:
        sweep_run(run.folder)  # files that a killed worker left
    unfinished, failures = to_train(runs)
    done = sum(saved_step(run.folder) if run in unfinished else run.config.n_steps for run in runs)

    def on_metrics(run: Run, row: Mapping[str, Any]) -> None:
        if str(run.folder) in stopping:
            raise StopRun
        _tell(out, {"folder": str(run.folder), "row": dict(row)})

    def on_progress(updates: int, loss: float) -> None:
        nonlocal done
        done += updates
        _tell(out, {"done": done, "loss": loss})

    on_progress(0, math.nan)
    failures += train_jobs(make_jobs(unfinished, 1), on_metrics=on_metrics, on_progress=on_progress)
    return {"failures": failures, "engines": {str(run.folder): run.engine for run in runs}}


def _tell(out: TextIO, message: dict[str, Any]) -> None:
    try:
        out.write(json.dumps(message) + "\n")
    except BrokenPipeError:  # the parent is gone: save and end
        signal.raise_signal(signal.SIGTERM)


def _read_orders(
    orders: "queue.SimpleQueue[dict[str, int | None] | None]",
    busy: threading.Event,
    stopping: set[str],
) -> None:
    for line in sys.stdin:
        order = json.loads(line)
        if "stop" in order:
            stopping.add(order["stop"])
        else:
            orders.put(order["train"])
    orders.put(None)
    if busy.is_set():  # the parent died while a fleet trained
        os.kill(os.getpid(), signal.SIGTERM)
