"""The runs of one call on a cluster: those without a job get one, and all are waited for."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

from tqdm import tqdm

from ih_interp.config import RunConfig
from ih_interp.runs import Run, create_run
from ih_interp.storage import run_files
from ih_interp.storage.lock import claimed, holder
from ih_interp.tasks.base import Task
from ih_interp.training._bar import OnProgress, bar_over
from ih_interp.training._cluster_jobs import (
    PLACE,
    Job,
    Queue,
    record_job,
    recorded_job,
    refuse_missing,
    submitted,
)
from ih_interp.training._repair import repair as repair_run
from ih_interp.training._signals import deferred_interrupts
from ih_interp.training.cluster import Slurm
from ih_interp.training.fleet import make_jobs
from ih_interp.training.loop import OnMetrics
from ih_interp.training.state import StopRun

LOOK_SECONDS = 2.0  # between two looks at the files of runs and jobs
REPORT_SECONDS = 20.0  # in which a network file system shows the report of a job that has ended

Plugins: TypeAlias = Mapping[str, Sequence[str]]
"""The modules that a job imports for each run, by the run's name."""


def open_runs(
    places: Sequence[tuple[Path, RunConfig]],
    tasks: Sequence[Task],
    engines: Sequence[str],
    cluster: Slurm,
    *,
    repair: bool,
) -> list[Run]:
    """Make the run folders that are missing, and change those whose run is to go on for longer.

    A run that is there as it should be is opened without its lock, which a job may hold. Raises
    ValueError where another has to be changed and somebody trains it, and ImportError or
    ClusterError, before it writes, where no job could be submitted.
    """
    found: list[Run] = []
    for (folder, config), task, engine in zip(places, tasks, engines, strict=True):
        is_there = (folder / run_files.CONFIG).is_file() and not repair
        if is_there and Run(folder).config == config:
            found.append(create_run(folder, config, task, engine=engine))
            continue
        refuse_missing(cluster)
        with claimed([folder]):
            if repair:
                repair_run(folder, config)
            found.append(create_run(folder, config, task, engine=engine))
    return found


def train_in_jobs(
    runs: Sequence[Run],
    cluster: Slurm,
    plugins: Plugins,
    *,
    wait: bool,
    progress: bool,
    on_metrics: OnMetrics | None,
) -> list[str]:
    """Submit the runs that are not finished and that nobody trains, and wait for all of them.

    Returns in words what went wrong. Raises KeyboardInterrupt, with jobs left as they are, after
    Ctrl-C, and whatever `on_metrics` raises.
    """
    sweep = Sweep(runs, cluster, plugins)
    unfinished = [*sweep.waiting.values()] if wait else []
    try:
        sweep.advance()
        if progress and sweep.submitted:
            tqdm.write(_told(sweep.submitted), file=sys.stderr)
        with bar_over(unfinished, shown=progress, done=0) as tell:
            watched = [Watched(run, on_metrics, tell) for run in unfinished]
            while unfinished and sweep.waiting:
                time.sleep(LOOK_SECONDS)
                sweep.advance()
                for run in watched:
                    run.look()
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_left(sweep.jobs)) from None
    for run in unfinished:
        run.engine = Run(run.folder).engine  # as the job recorded it
    return sweep.failures


def _told(jobs: Sequence[Job]) -> str:
    numbers = ", ".join(job.number for job in jobs)
    return f"Submitted as jobs {numbers}; their logs are in {jobs[0].logs}."


def _left(jobs: Sequence[Job]) -> str:
    """Say which jobs go on without this process."""
    numbers = " ".join(job.number for job in jobs)
    return f"jobs {numbers} were left as they are: the same call again waits for them"


class Watched:
    """A run that a job trains, and the rows of its metrics that were told."""

    def __init__(self, run: Run, on_metrics: OnMetrics | None, tell: OnProgress) -> None:
        self._run, self._on_metrics, self._tell = run, on_metrics, tell
        self._changed = self._told_steps = 0
        self._rows: set[tuple[Any, ...]] = set()
        for row in self._new_rows():  # of an earlier call
            self._advance(row)

    def look(self) -> None:
        """Tell the rows that are new; ValueError where a callback wants to stop the run."""
        for row in self._new_rows():
            self._advance(row)
            if self._on_metrics is None:
                continue
            try:
                self._on_metrics(self._run, dict(row))
            except StopRun:
                raise ValueError(
                    f"{self._run.folder}: ih.StopRun cannot end a run that a job trains; cancel "
                    "the job, or train without cluster=."
                ) from None

    def _advance(self, row: Mapping[str, Any]) -> None:
        new = row["step"] - self._told_steps
        if new > 0:
            self._told_steps += new
            self._tell(new, row["loss"])

    def _new_rows(self) -> list[dict[str, Any]]:
        """Return the rows that were written since the last look.

        A file that cannot be read is no failure here: the job that trains the run tells it.
        """
        rows: list[dict[str, Any]] = []
        with suppress(OSError, ValueError):
            changed = (self._run.folder / run_files.METRICS).stat().st_mtime_ns
            if changed != self._changed:
                rows = self._run.rows(before=0)
                self._changed = changed
        new = [row for row in rows if _key(row) not in self._rows]
        self._rows |= {_key(row) for row in new}
        return new


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return row["step"], row["split"], row["under"]


class Sweep:
    """Runs that jobs train, the jobs that are waited for, and what went wrong."""

    def __init__(self, runs: Sequence[Run], cluster: Slurm, plugins: Plugins) -> None:
        self.failures: list[str] = []
        self.submitted: list[Job] = []
        self.waiting = {run.config.name: run for run in runs if not self._is_done(run)}
        self._cluster, self._plugins = cluster, plugins
        self._queue = Queue(cluster.executor)
        self._jobs: dict[str, Job] = {}
        self._gone: dict[Job, float] = {}
        if self.waiting:
            refuse_missing(cluster)
            self._find_jobs()

    def _find_jobs(self) -> None:
        """Find the jobs of earlier calls that still wait or run."""
        queue = self._queue.numbers()
        for name, run in self.waiting.items():
            job = recorded_job(run.folder)
            if job is None or job.executor != self._cluster.executor or job.failures() is not None:
                continue
            if queue is None or job.number in queue:
                self._jobs[name] = job

    @property
    def jobs(self) -> list[Job]:
        """The jobs that are waited for."""
        return sorted(set(self._jobs.values()))

    def advance(self) -> None:
        """Take notice of jobs that have ended, and submit the runs that nobody trains."""
        queue = self._queue.numbers() if self._jobs else None
        for job in self.jobs:
            failures = job.failures()
            if failures is None and queue is not None and job.number not in queue:
                failures = self._without_report(job)
            if failures is not None:
                self.failures += [
                    f"{failure} (the log of job {job.number} is {job.log})" for failure in failures
                ]
                self._forget(job, failed=bool(failures))
        others = [run for name, run in self.waiting.items() if name not in self._jobs]
        free = [run for run in others if holder(run.folder) is None]
        for run in free:
            if self._is_done(run):
                del self.waiting[run.config.name]
        self._submit([run for run in free if run.config.name in self.waiting])

    def _is_done(self, run: Run) -> bool:
        """Return whether a run is at its end; a damaged one is not, and its job says so."""
        try:
            return run.stopped is not None or run.whole
        except ValueError:
            return False

    def _without_report(self, job: Job) -> list[str] | None:
        """Return in words that a job has left the queue, once its report is late."""
        since = self._gone.setdefault(job, time.monotonic())
        if job.executor == "slurm" and time.monotonic() - since < REPORT_SECONDS:
            return None
        names = ", ".join(name for name, other in self._jobs.items() if other == job)
        return [
            f"Job {job.number}, which trained {names}, ended without a report: it was cancelled, "
            "or ran out of memory or of time; what was saved is kept, and the same call submits "
            "these runs again"
        ]

    def _forget(self, job: Job, *, failed: bool) -> None:
        """Take the runs of a job that has ended from those that are waited for.

        One of an earlier call may have trained less than is wanted now: then another job goes on.
        """
        for name in [name for name, other in self._jobs.items() if other == job]:
            del self._jobs[name]
            if failed or job in self.submitted or self._is_done(self.waiting[name]):
                del self.waiting[name]

    def _submit(self, runs: Sequence[Run]) -> None:
        """Submit fleets as the jobs of one array, and record which job trains each run."""
        if not runs:
            return
        fleets = make_jobs(runs, 1)
        logs = runs[0].folder.parent / PLACE / "logs"
        with deferred_interrupts() as interrupted:  # a job without a record would be sent twice
            jobs = submitted([self._order(fleet) for fleet in fleets], self._cluster, logs)
            for fleet, job in zip(fleets, jobs, strict=True):
                for run in fleet:
                    record_job(run.folder, job)
                    self._jobs[run.config.name] = job
        self.submitted += jobs
        self._queue.ask_again()
        if interrupted():
            raise KeyboardInterrupt

    def _order(self, fleet: Sequence[Run]) -> str:
        order: dict[str, Any] = {
            "runs": [str(run.folder) for run in fleet],
            "plugins": {str(run.folder): [*self._plugins[run.config.name]] for run in fleet},
            "workers": self._cluster.cpus,
            "path": sys.path,
        }
        return json.dumps(order, default=str)
