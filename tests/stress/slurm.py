"""Trains a sweep on a real SLURM of one node, disturbs its jobs, and compares all bytes.

python tests/stress/slurm.py [--updates 600] [--cpus 1]

It takes root and Debian's or Ubuntu's apt: `slurm-wlm` and `munge` are installed where they are
missing, and a controller and a node run until it ends, with all their files in a temporary folder.
Eight runs of four shapes are submitted as four jobs of an array. In its middle the first is
cancelled, the second is requeued, as a preempted job is, and the third gets the warning that SLURM
sends before the time limit. The same call collects the runs, and names those of the cancelled job;
a second call submits these again. Then the runs are trained on this machine, without SLURM, and
all that they leave (checkpoints, metrics, saved states) is compared byte by byte.
"""

import argparse
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from kills import folder_bytes, small_fleet

import ih_interp as ih
from ih_interp.config import Grid, RunConfig, Seeds
from ih_interp.runs import Run
from ih_interp.training._cluster_jobs import Job, recorded_job
from ih_interp.training.state import TrainingFailedError

PACKAGES = ("slurm-wlm", "munge")
CONF = """\
ClusterName=stress
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=cred_expire=10
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
JobRequeue=1
KillWait=20
MessageTimeout=10
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=1000 State=UNKNOWN
PartitionName=short Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
SMALL = small_fleet()[0]
SHAPES = {
    "free": SMALL,
    "clamped": SMALL.replace(
        clamps=[ih.clamps.InductionAttention(heads=["L1H3"], schedule=ih.clamps.ramp(5, 300))]
    ),
    "sgd": SMALL.replace(optimiser=ih.SGD(learning_rate=1e-2)),
    "both": SMALL.replace(batch_size=16, evaluate=("clamped", "free")),
}
say = functools.partial(print, flush=True)


def sweep(updates: int) -> list[RunConfig]:
    """Two runs of each shape, which are eight runs in four jobs."""
    return [
        shape.replace(
            name=f"{name}-{seed}",
            seeds=Seeds(init=seed),
            sequences=updates * shape.batch_size,
            evaluations=Grid(every=50 * shape.batch_size),
            checkpoints=Grid(every=25 * shape.batch_size),
        )
        for name, shape in SHAPES.items()
        for seed in (5, 6)
    ]


def refusal() -> str:
    """Why this cannot run here, in words; nothing where it can."""
    if os.geteuid() != 0:
        return "It starts SLURM, which takes root: run it as root, in a container for example."
    if shutil.which("slurmctld") is None and shutil.which("apt-get") is None:
        return f"It needs {', '.join(PACKAGES)}: install them, since there is no apt-get here."
    return ""


def output_of(*command: str) -> str:
    """What a command prints; CalledProcessError where it fails."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=600).stdout


@contextmanager
def slurm(place: Path) -> Generator[None]:
    """SLURM of one node, whose files lie in a folder."""
    if shutil.which("slurmctld") is None or shutil.which("munged") is None:
        output_of("apt-get", "update")
        output_of("apt-get", "install", "-y", "--no-install-recommends", *PACKAGES)
    for folder in ("state", "spool"):
        (place / folder).mkdir()
    host = socket.gethostname().split(".")[0]
    (place / "slurm.conf").write_text(CONF.format(host=host, place=place))
    os.environ["SLURM_CONF"] = str(place / "slurm.conf")
    with ExitStack() as stack:
        if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode:
            socket_folder = Path("/run/munge")
            socket_folder.mkdir(exist_ok=True)
            shutil.chown(socket_folder, "munge")
            output_of(
                "runuser", "-u", "munge", "--", "munged", "--pid-file", "/run/munge/munged.pid"
            )
            stack.callback(ended, socket_folder / "munged.pid")
        for program in ("slurmctld", "slurmd"):
            output_of(program)
            stack.callback(ended, place / f"{program}.pid")
        until(lambda: "idle" in output_of("sinfo", "-h", "-o", "%T"), "SLURM's node is idle", 60)
        yield


def ended(pid_file: Path) -> None:
    """End a program by the number in its file, and wait until it is gone."""
    pid = int(pid_file.read_text())
    os.kill(pid, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{pid}").exists(), f"{pid_file.stem} has ended", 60)


def until(is_so: Callable[[], bool], what: str, seconds: float) -> None:
    """Wait until something is so; TimeoutError says what was not."""
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError(f"After {seconds:.0f} s it was not so that {what}.")
        time.sleep(0.5)


COMMANDS = (["scancel"], ["scontrol", "requeue"], ["scancel", "--signal=USR2"])
"""They cancel the first job, requeue the second, and warn the third of its time limit."""


def disturb(runs: Sequence[Run], jobs: Sequence[Job]) -> None:
    """Disturb jobs, each once all of its runs have three checkpoints."""
    left = dict(zip(jobs, COMMANDS, strict=False))

    def all_disturbed() -> bool:
        for job in [*left]:
            own = [run for run in runs if recorded_job(run.folder) == job]
            if all(len(run.steps) >= 3 for run in own):
                at = ", ".join(f"{run.config.name} at {run.steps[-1]}" for run in own)
                command = left.pop(job)
                output_of(*command, job.number)
                say(f"  {at}: {' '.join(command)} {job.number}")
        return not left

    until(all_disturbed, "jobs have begun", 1800)


def differing(here: Path, there: Path) -> list[str]:
    """Files of two runs whose bytes differ, or that only one of them has."""
    ours, theirs = folder_bytes(here), folder_bytes(there)
    return [
        f"{there.name}/{f}" for f in sorted({*ours} | {*theirs}) if ours.get(f) != theirs.get(f)
    ]


def disturbed_sweep(configs: Sequence[RunConfig], root: Path, cpus: int) -> None:
    """Train the runs in jobs that are disturbed, with three calls."""
    train = functools.partial(ih.train, configs, root, engine="eager", progress=False)
    cluster = ih.Slurm(partition="short", time="1:00:00", cpus=cpus, memory="50M")
    runs = train(cluster=cluster, wait=False)
    jobs = first_jobs(runs)
    say(f"submitted {len(runs)} runs as jobs {', '.join(job.number for job in jobs)}")
    disturb(runs, jobs)
    try:
        train(cluster=cluster)
        raise AssertionError("nothing was told of the cancelled job")
    except TrainingFailedError as error:
        say(f"the same call: {error}")
    say(f"finished: {', '.join(run.config.name for run in runs if run.finished)}")
    assert [run.finished for run in runs] == [False] * 2 + [True] * 6
    train(cluster=cluster)
    again = {job.number for job in first_jobs(runs)} - {job.number for job in jobs}
    say(f"the same call again: submitted job {', '.join(again)}, and all 8 runs are finished")
    assert len(again) == 1
    until(lambda: not output_of("squeue", "-h"), "the queue is empty", 120)
    for job in jobs:
        starts = job.log.with_suffix(".out").read_text().count("Starting with")
        say(f"  job {job.number} was started {starts} times")
        assert starts == (2 if job in jobs[1:3] else 1)


def first_jobs(runs: Sequence[Run]) -> list[Job]:
    """The jobs that were submitted last for these runs, in the order of the runs."""
    jobs = [recorded_job(run.folder) for run in runs]
    return list(dict.fromkeys(job for job in jobs if job is not None))


def main() -> int:
    """Print what was done and which bytes differ; 1 if any do."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--updates", type=int, default=600)
    parser.add_argument("--cpus", type=int, default=1)
    given = parser.parse_args()
    if why_not := refusal():
        say(why_not)
        return 1
    configs = sweep(given.updates)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        (root / "slurm").mkdir()
        with slurm(root / "slurm"):
            say(output_of("sinfo", "--version").strip(), "of one node is here")
            disturbed_sweep(configs, root / "cluster", given.cpus)
        ih.train(configs, root / "here", engine="eager", workers=1, progress=False)
        different = {
            config.name: differing(root / "here" / config.name, root / "cluster" / config.name)
            for config in configs
        }
    for files in different.values():
        say("\n".join(f"differs: {file}" for file in files), end="\n" if files else "")
    equal = sum(not files for files in different.values())
    say(f"equal bytes: {equal} of {len(configs)} runs")
    return 0 if equal == len(configs) else 1


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
