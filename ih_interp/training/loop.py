"""The training loop, which evaluates, saves and stops the runs of a fleet when it is time."""

import math
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

from ih_interp._reprs import with_notes
from ih_interp._torch_state import plain_torch, users_code
from ih_interp.runs import Run
from ih_interp.storage.atomic import FULL
from ih_interp.training._bar import OnProgress
from ih_interp.training._signals import Interrupts, deferred_interrupts
from ih_interp.training.fleet import Fleet
from ih_interp.training.state import RunState, StopRun, TrainingFailedError

SAVE_SECONDS = 20.0  # the training that a kill can cost
LOSSES_EVERY = 64  # updates between looks at the losses

OnMetrics: TypeAlias = Callable[[Run, Mapping[str, Any]], None]
"""Called with every new row of a run's metrics, once that update's checkpoint is on the disk."""


class CallbackError(Exception):
    """A wrapper of `error`, which a callback raised: no run has failed."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.error = error


def train_jobs(
    jobs: Sequence[Sequence[Run]],
    *,
    device: str = "cpu",
    on_metrics: OnMetrics | None = None,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """Train fleets one after the other; return in words what went wrong with runs."""
    failures: list[str] = []
    for job in jobs:
        try:
            train_fleet(job, device=device, on_metrics=on_metrics, on_progress=on_progress)
        except TrainingFailedError as error:
            failures.append(str(error))
        except CallbackError as error:
            raise error.error from None
        except OSError as error:
            failures.append(in_words(job, error))
        except Exception as error:  # the other fleets still train
            traceback.print_exc()
            failures.append(f"{_folders(job)}: {type(error).__name__}: {with_notes(error)}")
    return failures


@plain_torch(gradient=True)
def train_fleet(
    runs: Sequence[Run],
    *,
    device: str = "cpu",
    on_metrics: OnMetrics | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Train runs that share a trace and an engine to their ends, each into its own folder.

    Raises KeyboardInterrupt after SIGINT or SIGTERM, and CallbackError, with everything saved;
    TrainingFailedError, once the others have ended, for runs whose loss or weights became NaN or
    infinite, or whose files cannot be written; OSError where the disk is full.
    """
    fleet = Fleet(runs, compiled=runs[0].engine == "compiled", device=device)
    losses: list[Tensor] = []
    saved = time.monotonic()
    with fleet.writers, deferred_interrupts() as interrupted:
        fleet.interrupted = interrupted
        with interrupted.at_once():  # compiling takes a minute, and nothing is lost with it
            fleet.prepare()
        measure(fleet, on_metrics, interrupted)
        while fleet.active:
            losses.append(fleet.advance())
            due = any(run.is_due for run in fleet.runs)
            late = time.monotonic() - saved > SAVE_SECONDS
            if due or late or interrupted() or len(losses) == LOSSES_EVERY:
                look_at(losses, fleet, on_progress)
                losses.clear()
            if interrupted():
                save_at_last(fleet)
                break
            if late:
                save(fleet)
                saved = time.monotonic()
            if due:
                measure(fleet, on_metrics, interrupted)
        if interrupted():
            raise KeyboardInterrupt
    if failures := [run.failure for run in fleet.runs if run.failure is not None]:
        raise TrainingFailedError("; ".join(failures))


def look_at(losses: Sequence[Tensor], fleet: Fleet, on_progress: OnProgress | None) -> None:
    """Stop runs whose loss is NaN or infinite, and report the progress.

    `losses` are those of the last updates, `[run]` each; the last one belongs to update `step - 1`.
    """
    table = torch.stack(list(losses)).cpu()
    open_runs = [place for place, run in enumerate(fleet.runs) if run.is_open]
    for place in open_runs:
        run, bad = fleet.runs[place], (~torch.isfinite(table[:, place])).nonzero()
        if len(bad):
            step = run.step - len(table) + int(bad[0])
            run.fail(f"the loss was {float(table[int(bad[0]), place])} at update {step}")
    if on_progress is not None:
        mean = float(table[-1, open_runs].mean()) if open_runs else math.nan
        with saved_first(fleet):
            on_progress(len(table) * len(open_runs), mean)


def save(fleet: Fleet) -> None:
    """Save what resuming needs of every run that is open, if its weights are finite."""
    for place, run in enumerate(fleet.runs):
        if run.is_open and is_finite(run, fleet.weights(place)):
            with failing_alone(run):
                run.save_state(fleet.state, place)


def save_at_last(fleet: Fleet) -> None:
    """Save before an interrupt is raised; it is raised where the disk is full, too."""
    try:
        save(fleet)
    except OSError as error:
        raise KeyboardInterrupt(in_words([run.run for run in fleet.runs], error)) from error


@contextmanager
def failing_alone(run: RunState) -> Generator[None]:
    """End this run alone if its files cannot be written, but all of them if the disk is full."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise
        run.failure = in_words([run.run], error)


@contextmanager
def saved_first(fleet: Fleet) -> Generator[None]:
    """Save everything before an error of a callback is raised."""
    try:
        yield
    except StopRun:
        raise
    except BaseException as error:
        save(fleet)
        raise CallbackError(error) from error


def is_finite(run: RunState, weights: Mapping[str, Tensor]) -> bool:
    """Return whether all weights are finite; if not, the run fails."""
    largest = torch.cat([weight.flatten() for weight in weights.values()]).abs().max()
    if bool(largest.isfinite()):
        return True
    broken = next(name for name, weight in weights.items() if not weight.isfinite().all())
    run.fail(f"{broken} was no longer finite after {run.step} updates")
    return False


def measure(fleet: Fleet, on_metrics: OnMetrics | None, interrupted: Interrupts) -> None:
    """Evaluate and save the runs for which it is time, and close those that are at their end.

    An interrupt ends an evaluation at once, since it may compile for a minute; it is done again.
    """
    for place, run in enumerate(fleet.runs):
        if not run.is_due or not is_finite(run, weights := fleet.weights(place)):
            continue
        rows: list[dict[str, Any]] = []
        if run.step in run.evaluations:
            try:
                with interrupted.at_once():
                    measured = fleet.evaluator.measure(run, weights)
            except KeyboardInterrupt:
                save_at_last(fleet)
                raise
            rows = run.record(measured)
        with failing_alone(run):
            if run.step == run.config.n_steps:
                run.close(fleet.state, place)
            elif run.step in run.checkpoints:
                run.save_checkpoint(fleet.state, place)
        if rows and on_metrics is not None:
            tell(fleet, place, rows, on_metrics)
        if run.step == run.stops_at and run.failure is None:
            with failing_alone(run):
                run.stop(fleet.state, place)


def tell(
    fleet: Fleet, place: int, rows: Sequence[Mapping[str, Any]], on_metrics: OnMetrics
) -> None:
    """Call `on_metrics` with a run's new rows, once its files are on the disk; it may stop it.

    It is called with all of them even where it ends the run: another callback may record them.
    """
    run = fleet.runs[place]
    with failing_alone(run):
        run.writer.settle()
    if run.failure is not None:
        return
    is_stopped = False
    for row in rows:
        try:
            with saved_first(fleet), users_code():
                on_metrics(run.run, dict(row))  # a copy, which the callback may change
        except StopRun:
            is_stopped = True
    if is_stopped:
        with failing_alone(run):
            run.stop(fleet.state, place)


def in_words(runs: Sequence[Run], error: OSError) -> str:
    """Say that files of these runs cannot be written, and how to go on."""
    return (
        f"{_folders(runs)}: {error}; what was saved before is whole: once there is room and the "
        "folder can be written to, train again, and they resume from their last saved state"
    )


def _folders(runs: Sequence[Run]) -> str:
    return ", ".join(str(run.folder) for run in runs)
