"""Fleets spread over processes of one thread each.

Workers are started as `python -m ih_interp.training.worker`, so that a notebook or a script without
a main guard can train. They are told jobs and tell what happens in lines of JSON.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from ih_interp.runs import Run
from ih_interp.training.loop import OnMetrics, OnProgress
from ih_interp.training.signals import terminate_as_interrupt

Message: TypeAlias = dict[str, Any]
Inbox: TypeAlias = "queue.SimpleQueue[tuple[Worker, Message | None]]"

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
"""Has glibc keep what an evaluation frees for the next one; fetched anew, it costs a third more."""

STOP_SECONDS = 8.0  # schedulers kill soon after SIGTERM; who is killed loses 20 s of training


class Worker:
    """One process; its messages go to the inbox, None at its end."""

    def __init__(self, inbox: Inbox) -> None:
        self.job: Sequence[Run] = ()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ih_interp.training.worker", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=KEEP_MEMORY | os.environ,
            start_new_session=True,  # Ctrl-C reaches this process, which stops the workers
        )
        self._reader = threading.Thread(target=self._read, args=(inbox,), daemon=True)
        self._reader.start()

    def give(self, job: Sequence[Run]) -> None:
        """Start on a fleet."""
        assert self._process.stdin is not None
        self.job = job
        order = {
            "folders": [str(run.folder) for run in job],
            "compiled": job[0].engine == "compiled",
        }
        with suppress(BrokenPipeError):  # it is dead, and its end is on its way to the inbox
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()

    def dismiss(self) -> None:
        """No more jobs: the worker ends."""
        self.job = ()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def stop(self) -> None:
        """Save and end, now."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit status, once it has ended; one that does not end in time is killed."""
        try:
            status = self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        return status

    def _read(self, inbox: Inbox) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                inbox.put((self, json.loads(line)))
        finally:
            inbox.put((self, None))


def train_in_workers(
    jobs: Sequence[Sequence[Run]],
    n_workers: int,
    on_metrics: OnMetrics | None,
    on_progress: OnProgress,
) -> list[str]:
    """Train fleets side by side; what went wrong with runs, in words.

    A worker that dies is replaced, and its runs go on from their last saved state; runs whose
    worker dies a second time are given up and named. Raises KeyboardInterrupt after SIGINT or
    SIGTERM, once every worker has saved its state.
    """
    inbox: Inbox = queue.SimpleQueue()
    waiting = list(jobs)
    runs = {str(run.folder): run for job in jobs for run in job}
    workers: list[Worker] = []
    failures: list[str] = []
    lost_before: list[Sequence[Run]] = []

    def start() -> None:
        worker = Worker(inbox)
        workers.append(worker)
        worker.give(waiting.pop(0))

    try:
        with terminate_as_interrupt():
            for _ in range(min(n_workers, len(jobs))):
                start()
            at_work = len(workers)
            while at_work:
                worker, message = inbox.get()
                if message is None:
                    at_work -= 1
                    if worker.job:
                        if worker.job in lost_before:
                            failures.append(_lost(worker))
                        else:
                            lost_before.append(worker.job)
                            waiting.insert(0, worker.job)
                        if waiting:
                            start()
                            at_work += 1
                elif "progress" in message:
                    on_progress(*message["progress"])
                elif "row" in message:
                    if on_metrics is not None:
                        on_metrics(runs[message["folder"]], message["row"])
                else:
                    failures += message["failures"]
                    if waiting:
                        worker.give(waiting.pop(0))
                    else:
                        worker.dismiss()
    finally:
        for worker in workers:
            worker.stop()
        for worker in workers:
            worker.wait()
    return failures


def _lost(worker: Worker) -> str:
    names = ", ".join(str(run.folder) for run in worker.job)
    return (
        f"The process that trained {names} ended with status {worker.wait()}, twice; "
        "train again, and they resume from their last saved state"
    )
