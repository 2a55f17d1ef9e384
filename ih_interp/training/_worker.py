"""A process that trains fleets: jobs come as lines of JSON, and so do its messages go."""

import ctypes
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from ih_interp.runs import Run
from ih_interp.storage.lock import shared
from ih_interp.storage.run_files import sweep_run
from ih_interp.training.loop import in_words, train_fleet
from ih_interp.training.state import StopRun, TrainingFailedError, remove_states, saved_step
from ih_interp.training.train import make_jobs, one_thread

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def main() -> int:
    """Train what is ordered until there are no more orders; 130 after an interrupt."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what the parent ignores, we would too
    die_with_parent(int(sys.argv[1]))
    # Whatever prints goes to standard error: standard output carries messages only.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    orders: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    stopping: set[str] = set()
    busy = threading.Event()
    threading.Thread(target=_read_orders, args=(orders, busy, stopping), daemon=True).start()
    with one_thread():
        while (order := orders.get()) is not None:
            busy.set()
            try:
                report = _train(json.loads(order), out, stopping)
            except KeyboardInterrupt:
                return 130
            busy.clear()
            _tell(out, report)
    return 0


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process as soon as that one ends, however it does.

    What it trains is then as after any kill: nothing that was saved is lost, and the runs can be
    trained again at once. On other systems than Linux the end of the orders tells it, a little
    later, and until then it holds the lock.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before we asked
            os._exit(130)


def _train(folders: Sequence[str], out: TextIO, stopping: Collection[str] = ()) -> dict[str, Any]:
    """Train runs to their ends, each by the engine that it has recorded; what to tell then.

    Those whose folders come to be among `stopping` end at their next evaluation.
    """

    def on_metrics(run: Run, row: Mapping[str, Any]) -> None:
        if str(run.folder) in stopping:
            raise StopRun
        _tell(out, {"folder": str(run.folder), "row": dict(row)})

    def on_progress(updates: int, loss: float) -> None:
        _tell(out, {"progress": [updates, loss]})

    runs, failures = [Run(folder) for folder in folders], list[str]()
    with _collected(failures, runs), shared([run.folder for run in runs]):
        unfinished, done = _as_left(runs)
        _tell(out, {"begun": done})
        for fleet in make_jobs(unfinished, 1):
            with _collected(failures, fleet):
                train_fleet(
                    fleet,
                    compiled=fleet[0].engine == "compiled",
                    on_metrics=on_metrics,
                    on_progress=on_progress,
                )
    return {"failures": failures, "engines": {str(run.folder): run.engine for run in runs}}


def _as_left(runs: Sequence[Run]) -> tuple[list[Run], int]:
    """Runs that can go on, and the updates done of all; what a killed worker left is swept."""
    unfinished: list[Run] = []
    done = 0
    for run in runs:
        sweep_run(run.folder)
        if run.whole:
            remove_states(run.folder)
            done += run.config.n_steps
        else:
            done += saved_step(run.folder)
            if run.stopped is None or run.lost(run.stopped + 1):
                unfinished.append(run)
    return unfinished, done


@contextmanager
def _collected(failures: list[str], runs: Sequence[Run]) -> Generator[None]:
    """Errors of the block become words: the parent is told, and goes on with other fleets."""
    try:
        yield
    except TrainingFailedError as error:
        failures.append(str(error))
    except OSError as error:
        failures.append(in_words(runs, error))
    except Exception as error:  # whatever it may be; where it came from is told
        traceback.print_exc()
        folders = ", ".join(str(run.folder) for run in runs)
        failures.append(f"{folders}: {type(error).__name__}: {error}")


def _tell(out: TextIO, message: dict[str, Any]) -> None:
    try:
        out.write(json.dumps(message) + "\n")
    except BrokenPipeError:  # the parent is gone: save and end
        signal.raise_signal(signal.SIGTERM)


def _read_orders(
    orders: "queue.SimpleQueue[str | None]", busy: threading.Event, stopping: set[str]
) -> None:
    for line in sys.stdin:
        if line.startswith("{"):
            stopping.add(json.loads(line)["stop"])
        else:
            orders.put(line)
    orders.put(None)
    if busy.is_set():  # the parent died while a fleet trained
        os.kill(os.getpid(), signal.SIGTERM)
