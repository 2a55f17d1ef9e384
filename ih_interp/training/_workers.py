"""Fleets spread over processes of one thread each, which exchange JSON with this one.

Workers are started by their module's name, so that a notebook or a script without a main guard can
train.
"""

# Why not concurrent.futures or loky: when one process of their pools dies, every other one is ended
# and all jobs are lost, not restarted; the first runs the caller's script again in each worker, the
# second unpickles code; neither passes on a lock, ends a worker whose parent was killed, or lets it
# save at Ctrl-C. They would replace the classes `Worker` and `Crew`.

import json
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, TypeAlias, cast

from ih_interp.runs import Run
from ih_interp.storage import lock
from ih_interp.training._bar import OnProgress
from ih_interp.training._launch import command, received
from ih_interp.training._signals import terminate_as_interrupt
from ih_interp.training.loop import OnMetrics
from ih_interp.training.state import StopRun

Message: TypeAlias = dict[str, Any]

KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**25), "MALLOC_TRIM_THRESHOLD_": str(2**28)}
"""glibc's settings to keep memory for the next evaluation, which otherwise takes a third longer."""

STOP_SECONDS = 8.0  # schedulers kill soon after SIGTERM, and a kill costs 20 s of training


def train_in_workers(
    jobs: Sequence[Sequence[Run]],
    n_workers: int,
    on_metrics: OnMetrics | None,
    on_progress: OnProgress,
    plugins: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """Train fleets side by side; return in words what went wrong with runs.

    `plugins` are the modules that a worker imports to read a run, by the run's name.

    A worker that dies is replaced, and its runs go on from their last saved state; what they do
    again is not reported again. Runs whose worker dies a second time are given up and named.
    Raises KeyboardInterrupt after SIGINT or SIGTERM, once every worker has saved its state; a
    second signal kills the workers. No worker is left when this returns or raises.
    """
    crew = Crew([Job(runs, plugins or {}) for runs in jobs], on_metrics, on_progress)
    try:
        with terminate_as_interrupt():
            crew.train(n_workers)
    finally:
        _end(crew.workers, Worker.stop)
    return crew.failures


def _end(workers: Sequence["Worker"], how: Callable[["Worker"], None]) -> None:
    """End workers and wait for them, so that locks can be released; an interrupt kills them."""
    try:
        for worker in workers:
            how(worker)
        for worker in workers:
            worker.wait()
    except KeyboardInterrupt:
        _end(workers, Worker.kill)
        raise


class Job:
    """A fleet's runs, how often their worker died, and what was reported of them."""

    def __init__(self, runs: Sequence[Run], plugins: Mapping[str, Sequence[str]]) -> None:
        self.runs = {str(run.folder): run for run in runs}
        self.plugins = {f: [*plugins.get(r.config.name, ())] for f, r in self.runs.items()}
        self.deaths = 0
        self.stopped: set[str] = set()  # folders of runs that a callback has ended
        self._told: int | None = None
        self._rows: set[tuple[Any, ...]] = set()

    def new_updates(self, done: int) -> int:
        """Return how many of the updates done, over all runs, were not reported before.

        The first report counts the saved states. A worker that replaces another starts from a
        smaller count, and repeats some updates.
        """
        before = done if self._told is None else self._told
        self._told = max(before, done)
        return self._told - before

    def is_new(self, folder: str, row: Message) -> bool:
        """Return whether no worker has reported this row of metrics before."""
        key = (folder, row["step"], row["split"], row.get("under"))
        is_new = key not in self._rows
        self._rows.add(key)
        return is_new


class Crew:
    """The workers, the jobs that wait for one of them, and what went wrong."""

    def __init__(
        self, jobs: Sequence[Job], on_metrics: OnMetrics | None, on_progress: OnProgress
    ) -> None:
        self.workers: list[Worker] = []
        self.failures: list[str] = []
        self._waiting = list(jobs)
        self._on_metrics, self._on_progress = on_metrics, on_progress

    def train(self, n_workers: int) -> None:
        """Train every job to its end, or give it up after two deaths of its worker."""
        for _ in range(min(n_workers, len(self._waiting))):
            self._start()
        while self.workers:
            for worker in cast("list[Worker]", wait(cast("list[Any]", self.workers))):
                message = received(worker.connection)
                if message is None:
                    self._replace(worker)
                elif worker.job is not None:
                    self._hear(worker, worker.job, message)

    def _start(self) -> None:
        worker = Worker()
        self.workers.append(worker)
        worker.give(self._waiting.pop(0))

    def _replace(self, worker: "Worker") -> None:
        """Begin the job of a worker that has ended, if it had one, a second time."""
        status, job = worker.wait(), worker.job
        self.workers.remove(worker)
        if job is None:
            return
        job.deaths += 1
        if job.deaths == 1:
            self._waiting.insert(0, job)
        else:
            self.failures.append(
                f"The process that trained {', '.join(job.runs)} ended with status {status}, "
                "twice; train again, and they resume from their last saved state"
            )
        if self._waiting:
            self._start()

    def _hear(self, worker: "Worker", job: Job, message: Message) -> None:
        if "done" in message:
            if new := job.new_updates(message["done"]):
                self._on_progress(new, message["loss"])
        elif "row" in message:
            folder, row = message["folder"], message["row"]
            try:
                if self._on_metrics is not None and job.is_new(folder, row):
                    self._on_metrics(job.runs[folder], row)
            except StopRun:
                job.stopped.add(folder)
            if folder in job.stopped:  # ordered again where another worker has taken over
                worker.send({"stop": folder})
        else:
            self.failures += message["failures"]
            for folder, engine in message["engines"].items():
                job.runs[folder].engine = engine  # as recorded by the worker
            if self._waiting:
                worker.give(self._waiting.pop(0))
            else:
                worker.job = None
                worker.send({})  # there are no more jobs


class Worker:
    """A process that trains."""

    def __init__(self) -> None:
        self.job: Job | None = None
        self.connection, theirs = Pipe()
        self._process = subprocess.Popen(
            command("ih_interp.training._worker", str(theirs.fileno())),
            stdin=subprocess.DEVNULL,
            env=KEEP_MEMORY | os.environ,
            start_new_session=True,  # Ctrl-C reaches this process, which stops the workers
            pass_fds=(theirs.fileno(), *lock.HELD.values()),
        )
        theirs.close()

    def fileno(self) -> int:
        return self.connection.fileno()  # multiprocessing's `wait` asks for it

    def give(self, job: Job) -> None:
        self.job = job
        locks = {folder: lock.HELD.get(Path(folder)) for folder in job.runs}
        self.send({"train": locks, "plugins": job.plugins})

    def send(self, order: dict[str, Any]) -> None:
        """Send an order; a dead worker raises nothing here, since `wait` reports it."""
        with suppress(OSError):
            self.connection.send_bytes(json.dumps(order).encode())

    def stop(self) -> None:
        """Order the worker to save and end now."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self.connection.close()  # so that a worker that is sending does not wait

    def kill(self) -> None:
        self._process.kill()

    def wait(self) -> int:
        """Return the exit status of the ended worker; one that does not end in time is killed."""
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            self.connection.close()
