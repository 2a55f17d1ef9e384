"""Repair of damaged runs: damaged files are removed, and training writes the same bytes again."""

import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from ih_interp._config_base import short
from ih_interp.config import RunConfig
from ih_interp.runs import Run, refuse_other_run
from ih_interp.storage import run_files
from ih_interp.storage.run_files import DamagedFileError
from ih_interp.training.state import load_state


def repair(folder: Path, config: RunConfig) -> None:
    """Remove the damaged files of a run, and the states saved after the first missing file.

    Training then goes on from the newest state left, or from the beginning. Where `config.json` is
    damaged the run is begun anew, since nothing says how it was trained. A warning names the files
    removed. Raises ValueError where the folder holds another run, or folders with the names of a
    run's files. No other process may be writing to the folder.
    """
    checkpoints = [
        run_files.checkpoint_path(folder, step) for step in run_files.checkpoint_steps(folder)
    ]
    states = run_files.saved_states(folder)
    _refuse_folders(folder)
    run = None
    if (folder / run_files.CONFIG).is_file():
        with suppress(DamagedFileError):
            refuse_other_run(folder, config)
            run = Run(folder)
    if run is None:
        _refuse_files_of_others(folder, config, [*checkpoints, *states])
        files = [folder / run_files.CONFIG, folder / run_files.METRICS, *checkpoints, *states]
        removed = _removed(path for path in files if path.is_file())
        with suppress(OSError):  # it is missing, or holds other files
            (folder / run_files.CHECKPOINTS).rmdir()
    else:
        removed = _removed(_damaged(run, states)) + _rewind(run)
    if removed:
        names = ", ".join(str(path.relative_to(folder)) for path in removed[:5])
        names += f" and {len(removed) - 5} more" if len(removed) > 5 else ""
        warnings.warn(
            f"{folder}: removed damaged files, and files that depend on them: {names}. They are "
            "trained again.",
            stacklevel=2,
        )


def _refuse_folders(folder: Path) -> None:
    """Raise ValueError for folders in place of a run's files; their content may be the user's."""
    names = (run_files.CONFIG, run_files.METRICS, run_files.STATE, run_files.STATE_BEFORE)
    paths = [folder / name for name in names]
    paths += (folder / run_files.CHECKPOINTS).glob("[0-9]*.safetensors")
    if strange := [str(path) for path in paths if path.is_dir()]:
        raise ValueError(f"{short(strange)} are folders where a run has files; move them away.")


def _removed(paths: Iterable[Path]) -> list[Path]:
    """Remove files and return their paths."""
    removed = list(paths)
    for path in removed:
        path.unlink()
    return removed


def _damaged(run: Run, states: Sequence[Path]) -> list[Path]:
    """Return the damaged files of a run, sorted."""
    found: set[Path] = set()
    for read in (
        *(partial(run.read_weights, step) for step in run.steps),
        *(partial(load_state, path, run.config) for path in states),
        lambda: run.rows(before=0),
        lambda: run.stopped,
    ):
        try:
            read()
        except DamagedFileError as error:
            found.add(error.path)
    return sorted(found)


def _refuse_files_of_others(folder: Path, config: RunConfig, paths: Sequence[Path]) -> None:
    """Raise ValueError if sound files belong to another run, and none to this one."""
    owners: set[str] = set()
    for path in paths:
        with suppress(DamagedFileError):
            owners.add(str(run_files.load_tensors(path)[1].get("run")))
    if owners and config.fingerprint not in owners:
        raise ValueError(
            f"{folder} holds checkpoints of run {', '.join(sorted(owners))}, not of "
            f"{config.fingerprint}, and no {run_files.CONFIG} that can be read: restore it, or "
            "give this run another name or root."
        )


def _rewind(run: Run) -> list[Path]:
    """Remove the newest states until nothing is missing before the one left."""
    removed: list[Path] = []
    for path in run_files.saved_states(run.folder):
        step = load_state(path, run.config)[1]
        if not run.lost(step):
            break
        path.unlink()
        removed.append(path)
    return removed
