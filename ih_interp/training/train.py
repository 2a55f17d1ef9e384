"""`ih.train`: runs become fleets, fleets become jobs, results land in run folders."""

import os
import traceback
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, signature
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import torch

from ih_interp._config_base import canonical_json
from ih_interp._torch_state import plain_torch
from ih_interp.clamps import check
from ih_interp.clamps.schedules import FromLevel
from ih_interp.config import RunConfig, run_folder
from ih_interp.engine.compiled_forward import compiler_found
from ih_interp.model import build_model
from ih_interp.runs import Run, create_run, refuse_other_run
from ih_interp.storage.atomic import PathLike, as_path
from ih_interp.storage.lock import claimed
from ih_interp.storage.run_files import CONFIG, saved_states
from ih_interp.tasks.exemplars import Exemplars
from ih_interp.tasks.few_shot import FewShotTask
from ih_interp.training._bar import OnProgress, bar_over
from ih_interp.training._repair import repair as repair_run
from ih_interp.training._signals import terminate_as_interrupt
from ih_interp.training._workers import train_in_workers
from ih_interp.training.fleet import fleets
from ih_interp.training.loop import CallbackError, OnMetrics, in_words, train_fleet
from ih_interp.training.state import TrainingFailedError, refuse_unsound, remove_states
from ih_interp.types import expect, integer

Engine: TypeAlias = Literal["auto", "compiled", "eager"]

FLEET_SIZE = 8  # runs a fleet: more are no faster an update, and cost memory
WORTH_COMPILING = 4_000  # updates of a run; one alone repays the 40 s after 8,000, a fleet sooner
WORTH_WORKERS = 10_000  # updates in all from which starting processes (about 10 s each) is


@plain_torch(gradient=True)
def train(
    runs: RunConfig | Sequence[RunConfig],
    root: PathLike = "runs",
    *,
    engine: Engine = "auto",
    workers: int | None = None,
    device: str = "cpu",
    progress: bool = True,
    on_metrics: OnMetrics | None = None,
    repair: bool = False,
) -> list[Run]:
    """Train runs, or resume what is unfinished of them, and return them in the order given.

    Runs of one shape train together, as if alone: a run's numbers depend neither on the others nor
    on being interrupted. Finished runs are not touched, unless a checkpoint or metrics of
    theirs are missing: then they are trained again, to the same numbers.

    Args:
        runs: one configuration or several; each has its own folder `root/name`.
        root: where run folders lie.
        engine: "compiled" traces and compiles an update, "eager" runs TransformerLens as it is;
            both take the same step up to rounding, which grows over a run: at high learning rates
            whole runs part. "auto" compiles runs of 4,000 updates and more if there is a C++
            compiler. A run that was begun keeps its engine, which `run.engine` tells.
        workers: processes of one thread each, by default one per core when there is enough to do.
        device: "cpu", or "cuda", which trains in this process.
        progress: show a bar with the mean loss and the time left.
        on_metrics: called with the run and every new row of its metrics, once that update's
            checkpoint, if one is due, is on the disk: `run.model(row["step"])` gives the network.
            `ih.StopRun` raised in it ends that run, saved as far as it got, and the others go on;
            with several workers it ends one or a few evaluations later. `run.stopped` then tells
            the update, and later calls leave the run alone. What else it raises is raised, once
            everything is saved.
        repair: verify every file of these runs; those that are cut short, altered or another run's
            are removed, with a warning, and trained again to the same bytes, from the newest saved
            state before what is lost.

    Raises ValueError, before anything is written, for runs that share a name, do not fit their
    exemplars, whose folder holds another run, or which another process is training;
    KeyboardInterrupt after Ctrl-C or SIGTERM, with everything saved; TrainingFailedError, after the
    others have ended, for runs that could not be trained to their end: their loss became NaN, a
    file of theirs is damaged or cannot be written, the disk is full, their process was killed.
    """
    configs = _configs(runs)
    _refuse_options(engine, workers, device)
    root = _root(root)
    _refuse_other_arguments(on_metrics, progress=progress, repair=repair)
    with one_thread(), terminate_as_interrupt():
        configs = [_pinned(config) for config in configs]
        tasks = _checked(configs, root, repair=repair)
        folders = [run_folder(root, config) for config in configs]
        with claimed([folder for folder in folders if repair or _may_write(folder)]):
            found = _open(configs, tasks, root, engine, repair=repair)
            unfinished, failures = _to_train(found)
            n_workers = 1 if device != "cpu" else _n_workers(unfinished, workers)
            jobs = make_jobs(unfinished, n_workers)
            with bar_over(unfinished, shown=progress) as on_progress:
                if n_workers > 1 and len(jobs) > 1:
                    failures += train_in_workers(jobs, n_workers, on_metrics, on_progress)
                else:
                    failures += _train_here(jobs, device, on_metrics, on_progress)
    if failures:
        raise TrainingFailedError("; ".join(failures))
    return found


def _configs(runs: object) -> list[RunConfig]:
    """One configuration or several as a list; TypeError in words for what is neither."""
    several = isinstance(runs, Iterable) and not isinstance(runs, RunConfig | Mapping | str)
    configs = list(cast(Iterable[Any], runs)) if several else [cast(Any, runs)]
    for config in configs:
        expect(config, RunConfig, "A run", "write ih.RunConfig(name=..., ...), or a list of them")
    return configs


def _may_write(folder: Path) -> bool:
    """Whether a run is not there or not at its end: all is, and nothing else."""
    if not (folder / CONFIG).is_file() or saved_states(folder):
        return True
    try:
        return not Run(folder).whole
    except ValueError:
        return True


def _to_train(found: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Runs that can go on, and what is damaged about others, in words."""
    unfinished: list[Run] = []
    failures: list[str] = []
    for run in found:
        try:
            if run.whole:
                remove_states(run.folder)  # where it was killed as it ended
            elif run.stopped is None or run.lost(run.stopped + 1):
                refuse_unsound(run)
                unfinished.append(run)
        except ValueError as error:
            failures.append(str(error))
    return unfinished, failures


def make_jobs(runs: Sequence[Run], n_workers: int) -> list[list[Run]]:
    """Fleets, the longest first, small enough to keep every worker busy."""
    by_name = {run.config.name: run for run in runs}
    jobs: list[list[Run]] = []
    for compiled in (True, False):
        same = [run.config for run in runs if (run.engine == "compiled") == compiled]
        share = -(-len(same) // n_workers)
        groups = fleets(same, max(1, min(FLEET_SIZE, share)))
        jobs += [[by_name[config.name] for config in group] for group in groups]
    return sorted(jobs, key=lambda job: -len(job) * max(run.config.n_steps for run in job))


@contextmanager
def one_thread() -> Generator[None]:
    """One thread: faster for models this small, and bytes do not depend on the number of cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _refuse_options(engine: Engine, workers: int | None, device: str) -> None:
    if engine not in get_args(Engine):
        raise ValueError(f"engine={engine!r}; choose from {', '.join(get_args(Engine))}.")
    if engine == "compiled" and not compiler_found():
        raise ValueError('engine="compiled" needs a C++ compiler, such as g++; use "eager".')
    if workers is not None and integer(workers, f"workers={workers!r}") < 1:
        raise ValueError(f"workers={workers}; at least one process has to train.")
    expect(device, str, f"device={device!r}", 'write "cpu" or "cuda"')
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise ValueError(f'device={device!r} is not to be had here; use "cpu".')


def _root(root: PathLike) -> Path:
    """Where runs lie, wherever the process works by the end of them."""
    folder = as_path(root, f"root={root!r}").absolute()
    try:
        nearest = next(each for each in (folder, *folder.parents) if each.exists())
    except OSError as error:
        raise ValueError(f"root={str(root)!r} is no place for runs: {error.strerror}.") from None
    if not nearest.is_dir():
        raise ValueError(f"{nearest} is a file; give a folder, or one to be made, as root.")
    return folder


def _refuse_other_arguments(on_metrics: object, **switches: object) -> None:
    if on_metrics is not None and not _takes_run_and_row(on_metrics):
        raise TypeError(
            f"on_metrics={on_metrics!r} cannot be called with a run and a row of its metrics; give "
            "a function(run, row), neither async nor with yield."
        )
    for name, value in switches.items():
        expect(value, bool, f"{name}={value!r}")


def _takes_run_and_row(function: object) -> bool:
    """Whether a call with two arguments runs the function's body."""
    if not callable(function):
        return False
    kinds = (iscoroutinefunction, isgeneratorfunction, isasyncgenfunction)
    if any(is_kind(body) for is_kind in kinds for body in (function, type(function).__call__)):
        return False
    try:
        signature(function).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # of a built-in function nobody knows
        pass
    return True


def _checked(configs: Sequence[RunConfig], root: Path, *, repair: bool) -> list[FewShotTask]:
    """The runs' tasks, after everything that can be refused has been."""
    names = [config.name for config in configs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Several runs are named {', '.join(twice)}; give each its own name.")
    tasks = _tasks(configs)
    for config, task in zip(configs, tasks, strict=True):
        check(build_model(task, config.model), config.clamps)
        _refuse_schedules(config, task)
        if not repair:
            refuse_other_run(run_folder(root, config), config)
            _refuse_lost_compiler(run_folder(root, config))
    return tasks


def _tasks(configs: Sequence[RunConfig]) -> list[FewShotTask]:
    exemplars: dict[str, Exemplars] = {}
    tasks: list[FewShotTask] = []
    for config in configs:
        source = canonical_json(config.exemplars)
        if source not in exemplars:
            exemplars[source] = Exemplars.from_source(config.exemplars)
        tasks.append(FewShotTask(exemplars[source], config.task))
    return tasks


def _open(
    configs: Sequence[RunConfig],
    tasks: Sequence[FewShotTask],
    root: Path,
    engine: Engine,
    *,
    repair: bool,
) -> list[Run]:
    """Every run's folder, which nobody else writes to."""
    if repair:
        for config in configs:
            repair_run(run_folder(root, config), config)
            _refuse_lost_compiler(run_folder(root, config))
    return [
        create_run(run_folder(root, config), config, task, engine=_engine(engine, config))
        for config, task in zip(configs, tasks, strict=True)
    ]


def _pinned(config: RunConfig) -> RunConfig:
    """The run with its clamps bound to the weights that they read now, so that it can tell."""
    return config.replace(clamps=[clamp.pinned() for clamp in config.clamps])


def _refuse_schedules(config: RunConfig, task: FewShotTask) -> None:
    """Raise ValueError for a clamp that this run could never be under."""
    for clamp in config.clamps:
        schedule = clamp.schedule
        if isinstance(schedule, FromLevel) and schedule.split not in task.splits:
            raise ValueError(
                f"{config.name}: {clamp} waits for a metric on {schedule.split!r}, which these "
                f"exemplars do not have; choose from {', '.join(task.splits)}."
            )
        if not isinstance(schedule, FromLevel) and not any(
            map(schedule.gate, range(config.n_steps))
        ):
            raise ValueError(
                f"{config.name}: {clamp} is off at every one of {config.n_steps} updates; begin "
                "its schedule earlier, train longer, or leave the clamp out."
            )


def _refuse_lost_compiler(folder: Path) -> None:
    if not (folder / CONFIG).is_file() or compiler_found():
        return
    run = Run(folder)
    if run.engine == "compiled" and not run.finished and saved_states(folder):
        raise ValueError(
            f"{folder} began compiled, and there is no C++ compiler here to go on with: install "
            "one, such as g++, or give the run another name to train it eagerly from the start."
        )


def _engine(engine: Engine, config: RunConfig) -> str:
    if engine != "auto":
        return engine
    worth_it = config.n_steps >= WORTH_COMPILING and compiler_found()
    return "compiled" if worth_it else "eager"


def _n_workers(runs: Sequence[Run], workers: int | None) -> int:
    if workers is not None:
        return workers
    updates = sum(run.config.n_steps for run in runs)
    return cores() if updates >= WORTH_WORKERS else 1


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _train_here(
    jobs: Sequence[Sequence[Run]],
    device: str,
    on_metrics: OnMetrics | None,
    on_progress: OnProgress,
) -> list[str]:
    """Fleets one after the other in this process; what went wrong with runs, in words."""
    failures: list[str] = []
    for job in jobs:
        try:
            train_fleet(
                job,
                compiled=job[0].engine == "compiled",
                device=device,
                on_metrics=on_metrics,
                on_progress=on_progress,
            )
        except TrainingFailedError as error:
            failures.append(str(error))
        except CallbackError as error:
            raise error.error from None
        except OSError as error:
            failures.append(in_words(job, error))
        except Exception as error:  # the other fleets still train; where it came from is told
            traceback.print_exc()
            folders = ", ".join(str(run.folder) for run in job)
            failures.append(f"{folders}: {type(error).__name__}: {error}")
    return failures
