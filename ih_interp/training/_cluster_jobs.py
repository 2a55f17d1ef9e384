"""Jobs on a cluster: how they are submitted, which ones wait or run, and how each has ended.

The folder `.cluster` under the root holds, for each run, which job trains it, and in `logs` what
submitit writes: an order in each job, its logs, and the report that the job leaves at its end.
Orders, records and reports are JSON, and nothing is unpickled here.
"""

import atexit
import getpass
import io
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from ih_interp._expect import installing
from ih_interp.storage import run_files
from ih_interp.training._workers import KEEP_MEMORY
from ih_interp.training.cluster import ClusterError, Slurm

if TYPE_CHECKING:
    from submitit.core.core import PicklingExecutor

PLACE = ".cluster"  # under the root; a run's name cannot begin with a point
REQUEUES = 100  # times that a job goes back to the queue at its limit
ASK_SECONDS = (2.0, 30.0)  # between two looks at the queue: at first, and after some minutes


class Job(NamedTuple):
    """A job that was submitted, by its number."""

    executor: Literal["slurm", "local"]
    number: str
    """SLURM's, "12" or "12_3" in an array; of a local job that of its process."""
    logs: Path

    @property
    def log(self) -> Path:
        return self.logs / f"{self.number}_0_log.err"  # submitit's name

    def failures(self) -> list[str] | None:
        """Return the failures that the job reported; None where it has not reported yet."""
        with suppress(FileNotFoundError):
            return run_files.read_json(report_path(self.logs, self.number))["failures"]
        return None


def report_path(logs: Path, number: str) -> Path:
    """Return the file in which a job reports how it ended."""
    return logs / f"{number}_report.json"


def refuse_missing(cluster: Slurm) -> None:
    """Raise ImportError without submitit, ClusterError where jobs cannot be submitted from here."""
    try:
        import submitit  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise ImportError(
            f"Training on a cluster needs submitit: {installing('cluster')}."
        ) from error
    for program in ["ps"] if cluster.executor == "local" else ["sbatch", "srun", "squeue"]:
        if shutil.which(program) is None:
            raise ClusterError(
                f"{program!r} was not found: expected a machine from which jobs are submitted. For "
                'a trial without SLURM, write ih.Slurm(executor="local").'
            )


class Queue:
    """The jobs of this user that wait or run, asked for as seldom as a cluster likes."""

    def __init__(self, executor: Literal["slurm", "local"]) -> None:
        self._is_local = executor == "local"
        self._begun = time.monotonic()
        self._asked = -math.inf
        self._numbers: set[str] | None = None

    def numbers(self) -> set[str] | None:
        """Return the jobs' numbers, None while the queue does not answer."""
        now = time.monotonic()
        first, last = ASK_SECONDS
        if now - self._asked >= min(last, max(first, (now - self._begun) / 20)):
            self._asked = now
            self._numbers = self._local() if self._is_local else self._slurm()
        return self._numbers

    def ask_again(self) -> None:
        """Forget the last answer, which does not know jobs that were submitted after it."""
        self._asked, self._numbers = -math.inf, None

    def _slurm(self) -> set[str] | None:
        # sacct, which submitit asks, has no answer where a cluster keeps no accounts.
        listed = _output(["squeue", "-h", "-r", "-u", getpass.getuser(), "-o", "%i"])
        return None if listed is None else set(listed.split())

    def _local(self) -> set[str] | None:
        listed = _output(["ps", "-A", "-ww", "-o", "pid=", "-o", "args="])
        if listed is None:
            return None
        return {line.split()[0] for line in listed.splitlines() if "submitit.local._local" in line}


def _output(command: Sequence[str]) -> str | None:
    """Return what a command prints, None where it fails for now."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return None
    return None if done.returncode else done.stdout


def _record_path(run: Path) -> Path:
    return run.parent / PLACE / f"{run.name}.json"


def record_job(run: Path, job: Job) -> None:
    """Write which job trains the run in a folder."""
    path = _record_path(run)
    run_files.write_json(path, {"executor": job.executor, "job": job.number, "log": str(job.log)})


def recorded_job(run: Path) -> Job | None:
    """Return the job that was submitted last for the run in a folder; ValueError for damage."""
    path = _record_path(run)
    if not path.is_file():
        return None
    remedy = "delete it, once no job trains the run"
    match run_files.read_json(path, remedy):
        case {"executor": "slurm" | "local" as executor, "job": str(number)}:
            return Job(executor, number, path.parent / "logs")
        case _:
            raise run_files.DamagedFileError(path, "does not say which job trains the run", remedy)


def submitted(orders: Sequence[str], cluster: Slurm, logs: Path) -> list[Job]:
    """Submit a job for each order; ClusterError where SLURM refuses them."""
    executor = _executor(cluster, logs)
    from submitit.core.utils import FailedJobError
    from submitit.helpers import environment_variables

    from ih_interp.training._cluster_task import TrainFleet

    said = io.StringIO()  # submitit shows it too, and a refusal would be told twice
    try:
        with environment_variables(**KEEP_MEMORY), redirect_stderr(said):
            jobs = executor.map_array(TrainFleet(), orders)
    except FailedJobError as error:
        why = "; ".join(line.strip() for line in str(error).splitlines() if line.strip())
        raise ClusterError(f"SLURM refused {cluster}: {why}") from error
    except BaseException:
        sys.stderr.write(said.getvalue())
        raise
    sys.stderr.write(said.getvalue())
    if cluster.executor == "local":
        _STARTED.extend(jobs)
    return [Job(cluster.executor, job.job_id, logs) for job in jobs]


_STARTED: list[Any] = []
"""Local jobs of this process: Python warns where their processes are forgotten before they end."""
atexit.register(_STARTED.clear)  # submitit's objects cannot be removed later


def _executor(cluster: Slurm, logs: Path) -> "PicklingExecutor":
    import submitit

    if cluster.executor == "local":
        local = submitit.LocalExecutor(logs, max_num_timeout=REQUEUES)
        local.update_parameters(timeout_min=cluster.minutes)
        return local
    slurm = submitit.SlurmExecutor(logs, max_num_timeout=REQUEUES)
    memory = {} if cluster.memory is None else {"mem": cluster.memory}
    slurm.update_parameters(
        job_name="ih-interp",
        partition=cluster.partition,
        account=cluster.account,
        time=cluster.minutes,
        cpus_per_task=cluster.cpus,
        array_parallelism=cluster.at_once,
        setup=[*cluster.setup],
        additional_parameters={"requeue": True, **memory, **cluster.extra},
    )
    return slurm
