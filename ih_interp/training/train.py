"""`ih.train`: runs are grouped into fleets and trained, each into its run folder."""

import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, signature
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast, get_args

import torch

from ih_interp._expect import expect, integer
from ih_interp._torch_state import plain_torch
from ih_interp.config import RunConfig, run_folder
from ih_interp.engine.compiled_forward import compiler_found
from ih_interp.hooked_model import expect_hooked_transformers
from ih_interp.model import build_model
from ih_interp.registry import load_plugins, plugins_for
from ih_interp.runs import Run, create_run, refuse_other_run
from ih_interp.start import starting_weights
from ih_interp.storage.atomic import PathLike, as_path
from ih_interp.storage.lock import claimed
from ih_interp.storage.run_files import CONFIG, STATE_BEFORE, saved_states
from ih_interp.tasks.base import Task
from ih_interp.training._ahead import Ahead, compiled_ahead, evaluations_of
from ih_interp.training._bar import bar_over
from ih_interp.training._cluster_sweep import open_runs, train_in_jobs
from ih_interp.training._refusals import tasks_of
from ih_interp.training._repair import repair as repair_run
from ih_interp.training._signals import terminate_as_interrupt
from ih_interp.training._workers import train_in_workers
from ih_interp.training.cluster import Slurm
from ih_interp.training.fleet import Planned, make_jobs
from ih_interp.training.loop import OnMetrics, train_jobs
from ih_interp.training.state import TrainingFailedError, to_train

Engine: TypeAlias = Literal["auto", "compiled", "eager"]

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
    plugins: Sequence[str] = (),
    cluster: Slurm | None = None,
    wait: bool = True,
) -> list[Run]:
    """Train runs, or resume unfinished ones, and return them in the order given.

    Runs of one shape train together, as if alone: a run's numbers depend neither on the others nor
    on interruptions. Finished runs go on if they are given more `sequences`, to the numbers of a
    run trained at once. Otherwise they are left alone, unless checkpoints or metrics are missing:
    then they are trained again, to the same numbers.

    Args:
        runs: one configuration or several; each has its own folder `root/name`.
        root: the folder of the run folders.
        engine: "compiled" traces and compiles an update, "eager" runs TransformerLens as it is;
            both take the same step up to rounding, which grows over a run: at high learning rates
            whole runs differ. "auto" compiles runs of 4,000 updates and more if there is a C++
            compiler. A run that was begun keeps its engine, `run.engine`.
        workers: processes of one thread each, by default one per core when there is enough to do.
        device: "cpu", or "cuda", which trains in this process.
        progress: show a bar with the mean loss and the time left.
        on_metrics: called with the run and every new row of its metrics, once that update's
            checkpoint, if one is due, is on the disk: `run.model(row["step"])` gives the network.
            If it raises `ih.StopRun`, that run is saved and ends, with several workers one or a few
            evaluations later; `run.stopped` is the update, and later calls leave the run alone.
            Other exceptions are raised once everything is saved.
        repair: verify every file of these runs; damaged ones are removed, with a warning, and
            trained again to the same bytes, from the newest saved state before them.
        plugins: modules that define tasks, clamps and others of your own, to be imported here and
            by workers; those in which the classes of these runs stand need not be named.
        cluster: `ih.Slurm(...)` trains each fleet in a job on a cluster, to the same numbers. The
            same call again finds the jobs that are there. `on_metrics` is then called here, with
            rows that the jobs have saved, and cannot stop a run. Ctrl-C leaves the jobs as they
            are.
        wait: False submits the jobs of a cluster, and returns the unfinished runs.

    Raises ValueError, before anything is written, for runs that share a name, do not fit their
    exemplars, whose folder holds another run, or that another process is training;
    KeyboardInterrupt after Ctrl-C or SIGTERM, with everything saved; TrainingFailedError, after the
    others have ended, for runs that failed: their loss became NaN, one of their files is damaged or
    cannot be written, the disk is full, their process was killed, their job was cancelled. With
    `cluster`, ImportError without submitit, and ClusterError (a RuntimeError of
    `ih_interp.training.cluster`) where no job can be sent from here or SLURM refuses them.
    """
    configs = _configs(runs)
    switches = {"progress": progress, "repair": repair, "wait": wait}
    _refuse_arguments(engine, workers, device, on_metrics, plugins, **switches)
    _refuse_beside(cluster, workers, device, wait=wait)
    root = _root(root)
    load_plugins(plugins)
    modules = _modules(configs, plugins, workers, cluster)
    with one_thread(), terminate_as_interrupt():
        configs = [config.pinned() for config in configs]  # a run can then tell if files change
        tasks = tasks_of(configs)
        places = [(run_folder(root, config), config) for config in configs]
        for (folder, config), task in zip(places, tasks, strict=True):
            if not (folder / CONFIG).is_file():
                starting_weights(config.start, build_model(task, config.model), task)
            elif not repair:
                refuse_other_run(folder, config)
        engines = [_engine(engine, config) for config in configs]
        if cluster is not None and modules is not None:
            found = open_runs(places, tasks, engines, cluster, repair=repair)
            failures = train_in_jobs(
                found, cluster, modules, wait=wait, progress=progress, on_metrics=on_metrics
            )
        else:
            with claimed([place[0] for place in places if repair or _may_write(*place)]):
                found = _created(places, tasks, engines, repair=repair)
                failures = _train_here(found, workers, device, progress, on_metrics, modules)
    if failures:
        raise TrainingFailedError("; ".join(failures))
    return found


def _created(
    places: Sequence[tuple[Path, RunConfig]],
    tasks: Sequence[Task],
    engines: Sequence[str],
    *,
    repair: bool,
) -> list[Run]:
    """Make run folders, whose locks are held, or open them, repaired if that is asked for."""
    for folder, config in places:
        if repair:
            repair_run(folder, config)
        _refuse_lost_compiler(folder, config)
    return [
        create_run(*place, task, engine=engine)
        for place, task, engine in zip(places, tasks, engines, strict=True)
    ]


def _train_here(
    found: Sequence[Run],
    workers: int | None,
    device: str,
    progress: bool,
    on_metrics: OnMetrics | None,
    modules: Mapping[str, Sequence[str]] | None,
) -> list[str]:
    """Train runs on this machine; return in words what went wrong."""
    unfinished, failures = to_train(found)
    n_workers = workers or _n_workers([run.config for run in unfinished])
    n_workers = n_workers if device == "cpu" and modules is not None else 1
    jobs = make_jobs(unfinished, n_workers)
    is_idle = (workers or cores()) > min(n_workers, len(jobs)) and device == "cpu"
    ahead = evaluations_of(jobs) if is_idle else []
    with compiled_ahead(ahead), bar_over(unfinished, shown=progress) as tell:
        if n_workers > 1 and len(jobs) > 1:
            return failures + train_in_workers(jobs, n_workers, on_metrics, tell, modules)
        trained = train_jobs(jobs, device=device, on_metrics=on_metrics, on_progress=tell)
        return failures + trained


def compiled_for_later(
    configs: Sequence[RunConfig], *, engine: Engine
) -> AbstractContextManager[object]:
    """Compile during the block what training these runs, in one later call, will need.

    The fleets that will train first come last: what is not done by then is done by those that
    train.
    """
    planned = [Planned(config, _engine(engine, config)) for config in configs]
    jobs = make_jobs(planned, _n_workers(configs)) if cores() > 1 else []
    of_fleets = [[run.config for run in job] for job in jobs if job[0].engine == "compiled"]
    return compiled_ahead([Ahead(fleet) for fleet in reversed(of_fleets)])


def _n_workers(configs: Sequence[RunConfig]) -> int:
    """Return how many processes train these runs where the caller does not say."""
    return cores() if sum(config.n_steps for config in configs) >= WORTH_WORKERS else 1


def _configs(runs: object) -> list[RunConfig]:
    """Return one configuration or several as a list; TypeError for other values."""
    several = isinstance(runs, Iterable) and not isinstance(runs, RunConfig | Mapping | str)
    configs = list(cast(Iterable[Any], runs)) if several else [cast(Any, runs)]
    for config in configs:
        expect(config, RunConfig, "A run", "write ih.RunConfig(name=..., ...), or a list of them")
    names = [config.name for config in configs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"Several runs are named {', '.join(twice)}; give each its own name.")
    return configs


def _modules(
    configs: Sequence[RunConfig], plugins: Sequence[str], workers: int | None, cluster: Slurm | None
) -> dict[str, list[str]] | None:
    """Return the modules that a worker imports for each run; None where none can read them."""
    try:
        own = {config.name: plugins_for(config) for config in configs}
    except ValueError as error:
        if cluster is not None:
            raise ValueError(f"On a cluster {error}.") from None
        if workers is not None and workers > 1:
            raise ValueError(f"workers={workers}: {error}, or train with workers=1.") from None
        return None
    return {name: [*plugins, *modules] if modules else [] for name, modules in own.items()}


def _refuse_beside(cluster: object, workers: int | None, device: str, *, wait: bool) -> None:
    """Refuse arguments that have no meaning on a cluster, or `wait` without one."""
    if cluster is None:
        if not wait:
            raise ValueError("wait=False: expected cluster=ih.Slurm(...) with it.")
        return
    expect(cluster, Slurm, "cluster", "write ih.Slurm(partition=...)")
    if workers is not None:
        raise ValueError(f"workers={workers}: a cluster's jobs have ih.Slurm(cpus=...) instead.")
    if device != "cpu":
        raise ValueError(f'device={device!r}: jobs of a cluster train on processors, "cpu".')


def _refuse_arguments(
    engine: Engine,
    workers: int | None,
    device: str,
    on_metrics: object,
    plugins: Sequence[str],
    **switches: object,
) -> None:
    expect_hooked_transformers("ih.train")
    if engine not in get_args(Engine):
        raise ValueError(f"engine={engine!r}; choose from {', '.join(get_args(Engine))}.")
    if engine == "compiled" and not compiler_found():
        raise ValueError('engine="compiled" needs a C++ compiler, such as g++; use "eager".')
    if workers is not None and integer(workers, f"workers={workers!r}") < 1:
        raise ValueError(f"workers={workers}: expected at least 1.")
    expect(device, str, f"device={device!r}", 'write "cpu" or "cuda"')
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise ValueError(f'device={device!r} is not available here; use "cpu".')
    if on_metrics is not None and not _takes_run_and_row(on_metrics):
        raise TypeError(
            f"on_metrics={on_metrics!r} cannot be called with a run and a row of its metrics; give "
            "a function(run, row), neither async nor with yield."
        )
    if isinstance(plugins, str) or {*map(type, plugins)} - {str}:
        raise TypeError(f'plugins={plugins!r}: expected a list of modules, ["my_package.clamps"].')
    for name, value in switches.items():
        expect(value, bool, f"{name}={value!r}")


def _takes_run_and_row(function: object) -> bool:
    """Return whether a call with two arguments runs the body of the function."""
    kinds = (iscoroutinefunction, isgeneratorfunction, isasyncgenfunction)
    bodies = (function, type(function).__call__)
    if not callable(function) or any(is_kind(body) for is_kind in kinds for body in bodies):
        return False
    with suppress(ValueError):  # a built-in function has no signature
        try:
            signature(function).bind(None, None)
        except TypeError:
            return False
    return True


def _root(root: PathLike) -> Path:
    """Return the absolute folder of runs, which holds after a change of the working folder."""
    folder = as_path(root, f"root={root!r}").absolute()
    try:
        nearest = next(each for each in (folder, *folder.parents) if each.exists())
    except OSError as error:
        raise ValueError(f"root={str(root)!r} cannot hold runs: {error.strerror}.") from None
    if not nearest.is_dir():
        raise ValueError(f"{nearest} is a file; give a folder, or one to be made, as root.")
    return folder


def _may_write(folder: Path, config: RunConfig) -> bool:
    """Return whether training may change this folder: not if its run is whole, and as long."""
    with suppress(FileNotFoundError, ValueError):
        run = Run(folder)
        is_left = (folder / STATE_BEFORE).is_file()  # by a kill at the run's end
        return is_left or run.config.sequences < config.sequences or not run.whole
    return True


def _refuse_lost_compiler(folder: Path, config: RunConfig) -> None:
    if not (folder / CONFIG).is_file() or compiler_found():
        return
    run = Run(folder)
    ends_here = run.finished and run.config.sequences == config.sequences
    if run.engine == "compiled" and not ends_here and saved_states(folder):
        raise ValueError(
            f"{folder} began compiled, and no C++ compiler was found here: install one, such as "
            "g++, or give the run another name to train it eagerly from the start."
        )


def _engine(engine: Engine, config: RunConfig) -> str:
    worth_it = config.n_steps >= WORTH_COMPILING and compiler_found()
    return engine if engine != "auto" else "compiled" if worth_it else "eager"


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_thread() -> Generator[None]:
    """Use one thread in the block: small models are faster, and bytes depend on no core count."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
