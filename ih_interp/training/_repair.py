"""Runs whose files were damaged: what is damaged goes, so that training brings it back.

Sequences are a function of the seed and the step, so what is trained again has the same bytes.
"""

import warnings
from contextlib import suppress
from pathlib import Path

import torch

from ih_interp._config_base import short
from ih_interp.config import RunConfig
from ih_interp.runs import Run, refuse_other_run
from ih_interp.storage import run_files
from ih_interp.storage.run_files import DamagedFileError
from ih_interp.training.state import load_state, remove_states


def repair(folder: Path, config: RunConfig) -> None:
    """Remove the damaged files of a run, and saved states that would go on after what is lost.

    It then goes on from the newest sound state before the first loss, or from its beginning. Where
    `config.json` is damaged it is begun anew, since nothing says how it was trained. A warning
    names what was removed. Raises ValueError where the folder holds another run, or folders with
    the names of a run's files. Nobody else may be writing to the folder.
    """
    _refuse_folders(folder)
    removed = _unsound_checkpoints(folder, config) + _unsound_states(folder, config)
    run = _open(folder, config)
    if run is None:
        _refuse_other_checkpoints(folder, config)
        removed += [
            folder / run_files.CONFIG,
            folder / run_files.METRICS,
            *run_files.saved_states(folder),
        ]
        removed += [
            run_files.checkpoint_path(folder, n) for n in run_files.checkpoint_steps(folder)
        ]
    else:
        for read in (lambda: run.rows(before=0), lambda: run.stopped):
            try:
                read()
            except DamagedFileError as error:
                removed.append(error.path)
    removed = sorted({path for path in removed if path.is_file()})
    for path in removed:
        path.unlink()
    if run is None:
        with suppress(OSError):  # there, or with files of others in it
            (folder / run_files.CHECKPOINTS).rmdir()
    else:
        removed += _rewind(run)
    if removed:
        names = ", ".join(str(path.relative_to(folder)) for path in removed[:5])
        names += f" and {len(removed) - 5} more" if len(removed) > 5 else ""
        warnings.warn(
            f"{folder}: removed {names}, damaged or of no use without what is; trained again.",
            stacklevel=2,
        )


def is_sound_checkpoint(path: Path, config: RunConfig) -> bool:
    """Whether a file is unaltered, and of this run and of the step in its name."""
    try:
        tensors, facts = run_files.load_tensors(path)
    except DamagedFileError:
        return False
    belongs = (facts.get("run"), facts.get("step")) == (config.fingerprint, int(path.stem))
    are_weights = all(
        ":" not in name and tensor.dtype == torch.float32 for name, tensor in tensors.items()
    )
    return belongs and are_weights


def _refuse_folders(folder: Path) -> None:
    """Raise ValueError for folders in the places of files, whose content may be anybody's."""
    names = (run_files.CONFIG, run_files.METRICS, run_files.STATE, run_files.STATE_BEFORE)
    paths = [folder / name for name in names]
    paths += (folder / run_files.CHECKPOINTS).glob("[0-9]*.safetensors")
    if strange := [str(path) for path in paths if path.is_dir()]:
        raise ValueError(f"{short(strange)} are folders where a run has files; move them away.")


def _unsound_checkpoints(folder: Path, config: RunConfig) -> list[Path]:
    paths = [run_files.checkpoint_path(folder, step) for step in run_files.checkpoint_steps(folder)]
    return [path for path in paths if not is_sound_checkpoint(path, config)]


def _unsound_states(folder: Path, config: RunConfig) -> list[Path]:
    unsound: list[Path] = []
    for path in run_files.saved_states(folder):
        try:
            load_state(path, config)
        except DamagedFileError:
            unsound.append(path)
    return unsound


def _open(folder: Path, config: RunConfig) -> Run | None:
    """The run, or None where its configuration is missing or damaged."""
    if not (folder / run_files.CONFIG).is_file():
        return None
    try:
        refuse_other_run(folder, config)
        return Run(folder)
    except DamagedFileError:
        return None


def _refuse_other_checkpoints(folder: Path, config: RunConfig) -> None:
    """Raise ValueError if a sound file says that the folder holds another run, and only that."""
    paths = [run_files.checkpoint_path(folder, step) for step in run_files.checkpoint_steps(folder)]
    owners: set[str] = set()
    for path in [*paths, *run_files.saved_states(folder)]:
        try:
            owners.add(str(run_files.load_tensors(path)[1].get("run")))
        except DamagedFileError:
            continue
    if owners and config.fingerprint not in owners:
        raise ValueError(
            f"{folder} holds checkpoints of run {', '.join(sorted(owners))}, not of "
            f"{config.fingerprint}, and no {run_files.CONFIG} that can be read: restore it, or "
            "give this run another name or root."
        )


def _rewind(run: Run) -> list[Path]:
    """Remove the newest states until all that is due before the one left is there."""
    removed: list[Path] = []
    for path in run_files.saved_states(run.folder):
        step = load_state(path, run.config)[1]
        if not run.lost(step):
            break
        path.unlink()
        removed.append(path)
    if run.finished and run.lost(run.config.n_steps + 1):
        remove_states(run.folder)
    return removed
