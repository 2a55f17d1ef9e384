"""A job on a cluster: it trains a fleet, and goes back to the queue when it has to.

submitit starts it. On the warning before the time limit (SIGUSR2, unless the cluster is set up for
another signal), everything is saved, and submitit sends the job back to the queue, with the same
order. On SIGTERM everything is saved, too, and SLURM decides what comes next.
"""

import json
import logging
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, cast

from submitit import JobEnvironment
from submitit.helpers import Checkpointable

from ih_interp._reprs import with_notes
from ih_interp.storage import run_files
from ih_interp.training._cluster_jobs import report_path
from ih_interp.training._signals import handling, terminate_as_interrupt
from ih_interp.training._worker import opened
from ih_interp.training.state import TrainingFailedError
from ih_interp.training.train import train

WARNING = signal.Signals[f"SIG{JobEnvironment.USR_SIG}"]
GRACE_SECONDS = 300.0  # in which SLURM ends a job after SIGTERM
LOG = logging.getLogger("submitit")  # it writes into the job's log


class TrainFleet(Checkpointable):
    """The training of a fleet, called again when its job comes back from the queue."""

    def __call__(self, order: str) -> None:
        """Train the runs of an order, a JSON object, and leave a report beside the job's log.

        Raises TrainingFailedError, after the report, so that SLURM counts the job as failed.
        """
        requeue = cast(Callable[[int, None], None], signal.getsignal(WARNING))  # submitit's
        warned: list[int] = []

        def save_first(number: int, _: object) -> None:
            warned.append(number)
            signal.raise_signal(signal.SIGTERM)

        environment = JobEnvironment()
        try:
            with terminate_as_interrupt(), handling([WARNING], save_first):
                failures = train_ordered(json.loads(order))
        except KeyboardInterrupt:
            if warned:
                requeue(WARNING, None)
            LOG.info("Everything is saved; this job may be ended now.")
            if environment.cluster == "slurm":
                # SLURM requeues a preempted job that it has to kill, and takes one that ends
                # within its time of grace for failed.
                time.sleep(GRACE_SECONDS)
            raise
        path = report_path(environment.paths.folder, environment.job_id)
        run_files.write_json(path, {"failures": failures})
        if failures:
            raise TrainingFailedError("; ".join(failures))


def train_ordered(order: Mapping[str, Any]) -> list[str]:
    """Train the runs of an order to their ends; return in words what went wrong.

    `runs` are their folders, `plugins` the modules of each, `workers` the number of processes, and
    `path` is where modules are looked for.
    """
    sys.path += [folder for folder in order["path"] if folder not in sys.path]
    runs, failures = opened(order["runs"], order["plugins"])
    try:
        if runs:
            train(
                [run.config for run in runs],
                runs[0].folder.parent,
                workers=order["workers"],
                progress=False,
                plugins=sorted(
                    {name for run in runs for name in order["plugins"][str(run.folder)]}
                ),
            )
    except TrainingFailedError as error:
        failures.append(str(error))
    except Exception as error:  # whatever it is, the report tells it
        traceback.print_exc()
        names = ", ".join(str(run.folder) for run in runs)
        failures.append(f"{names}: {type(error).__name__}: {with_notes(error)}")
    return failures
