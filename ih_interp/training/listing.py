"""The runs below a folder: how far each is, who trains it, and what is wrong with it."""

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ih_interp.runs import Run
from ih_interp.storage import run_files
from ih_interp.storage.atomic import PathLike, as_path
from ih_interp.storage.lock import holder
from ih_interp.training.state import saved_step

State: TypeAlias = Literal[
    "finished", "stopped", "training", "interrupted", "damaged", "unreadable"
]

FILES = (run_files.METRICS, run_files.STATE, run_files.STATE_BEFORE)


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """The status of one run folder."""

    folder: Path
    name: str
    state: State
    """Stopped by a callback (`ih.StopRun`), interrupted before its end and trained by nobody,
    damaged where files are missing or altered, unreadable where this program cannot tell."""
    step: int | None = None
    """The updates done, as far as they are saved; None where that cannot be read."""
    steps: int | None = None
    """The updates of the whole run."""
    loss: float | None = None
    """The training loss in nats at the last evaluation on disk: of the first split, under the
    run's clamps if it was evaluated so."""
    clamps: tuple[str, ...] = ()
    bytes: int
    """The size of all files on disk."""
    trained_by: str | None = None
    """The process that holds the run's lock, "4711 on host"."""
    reason: str = ""
    """Why it is damaged or unreadable."""

    def save(self) -> dict[str, Any]:
        """Return the fields as a JSON value."""
        return {**asdict(self), "folder": str(self.folder), "clamps": list(self.clamps)}


def list_runs(root: PathLike) -> list[RunStatus]:
    """Return the status of every run below a folder, or of the run that it is, by path.

    Only what must be read is read: weights are not. Raises FileNotFoundError where there is no
    folder; a run that cannot be read is told as such.
    """
    return [status(folder) for folder in run_folders(root)]


def run_folders(root: PathLike) -> list[Path]:
    """Return the run folders below a folder, sorted; no link is followed.

    A folder counts that holds the files of a run. Raises FileNotFoundError where there is none.
    """
    top = as_path(root, "root").absolute()
    if not top.is_dir():
        raise FileNotFoundError(f"There is no folder {top}; give one that holds runs.")
    return sorted(_below(top))


def _below(top: Path) -> Iterator[Path]:
    for folder, inside, files in os.walk(top):
        if _is_run(Path(folder), inside, files):
            inside.clear()  # a run holds no other
            yield Path(folder)


def _is_run(folder: Path, inside: list[str], files: list[str]) -> bool:
    """Return whether a folder has the files of a run; other programs write a config.json too."""
    if any(name in files for name in FILES):
        return True
    if run_files.CONFIG not in files:
        return False
    if run_files.CHECKPOINTS in inside:
        return True
    try:
        return "fingerprint" in run_files.read_json(folder / run_files.CONFIG)
    except (ValueError, OSError):
        return False


def status(folder: Path) -> RunStatus:
    """Return the status of one run; what cannot be read is told in `reason`."""
    known: dict[str, Any] = {"folder": folder, "name": folder.name, "bytes": disk_bytes(folder)}
    try:
        held = holder(folder)
        if held is not None:
            known |= {"state": "training", "trained_by": str(held).removeprefix("process ")}
        known |= _progress(Run(folder), is_held=held is not None)
    except (ValueError, OSError, LookupError) as error:
        is_damaged = isinstance(error, run_files.DamagedFileError | FileNotFoundError)
        known["reason"] = str(error)
        known.setdefault("state", "damaged" if is_damaged else "unreadable")
    return RunStatus(**known)


def _progress(run: Run, *, is_held: bool) -> dict[str, Any]:
    """Return how far a run is. While it is trained files change, and only whole ones are read."""
    config, rows = run.config, run.rows(before=0)
    step = max([*run.steps, *(row["step"] for row in rows)], default=0)
    known: dict[str, Any] = {"steps": config.n_steps, "clamps": tuple(map(str, config.clamps))}
    last = [row for row in rows if row["step"] == rows[-1]["step"]]
    of_split = [row for row in last if row["split"] == last[0]["split"]]
    by_under = {row["under"]: row.get("loss") for row in of_split}
    if by_under:
        known["loss"] = by_under.get("clamped", next(iter(by_under.values())))
    if is_held:
        return {**known, "step": step}
    if run.finished:
        lost = run.lost(config.n_steps + 1)
        found = {"state": "damaged", "reason": "; ".join(lost)} if lost else {"state": "finished"}
    elif run.stopped is not None:
        found = {"state": "stopped"}
    else:
        found, step = {"state": "interrupted"}, max(step, saved_step(run.folder))
    return {**known, **found, "step": step}


def disk_bytes(folder: Path) -> int:
    """Return the size of all files below a folder; links count as themselves."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += (Path(place) / name).lstat().st_size
            except FileNotFoundError:  # replaced meanwhile
                continue
    return total
