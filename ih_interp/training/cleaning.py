"""Files below a folder of runs are found that no number depends on, and deleted.

Deletable are the saved states of finished runs, from which a run goes on to more `sequences` and
which nothing else reads, temporary files that kills left, and compiled graphs. Configurations,
metrics and checkpoints are not, nor is anything of a run that is being trained.
"""

import shutil
from pathlib import Path
from typing import NamedTuple

from ih_interp.engine.compile_cache import kept_graphs
from ih_interp.runs import Run
from ih_interp.storage.atomic import PathLike
from ih_interp.storage.lock import claimed, holder
from ih_interp.storage.run_files import run_leftovers, saved_states
from ih_interp.training.listing import disk_bytes, run_folders

STATE_OF_FINISHED = "only needed to train the finished run with more sequences"
LEFTOVER = "left by a write that was interrupted"
TRAINED = "being trained by"
GRAPHS = "compiled graphs, which are made again when they are needed"


class Deletable(NamedTuple):
    """A file or folder that can go."""

    path: Path
    bytes: int
    why: str


class Found(NamedTuple):
    """The result of a search: what can be deleted, and the runs left alone, with the reason.

    A run that is not finished needs its state, and is in neither.
    """

    items: list[Deletable]
    left: dict[Path, str]


def find_deletable(root: PathLike) -> Found:
    """Return what can be deleted in the runs below a folder; nothing is changed.

    Raises FileNotFoundError where there is no folder.
    """
    items: list[Deletable] = []
    left: dict[Path, str] = {}
    for folder in run_folders(root):
        try:
            held = holder(folder)
        except OSError as error:
            left[folder] = str(error)
            continue
        if held is not None:
            left[folder] = f"{TRAINED} {held}"
            continue
        items += [Deletable(p, p.lstat().st_size, LEFTOVER) for p in run_leftovers(folder)]
        try:
            items += _states(folder)
        except (ValueError, OSError) as error:
            left[folder] = str(error)
    return Found(items, left)


def _states(folder: Path) -> list[Deletable]:
    """Return the saved states of a finished run; ValueError or OSError for one not readable."""
    if not Run(folder).whole:
        return []
    states = [path for path in saved_states(folder) if not path.is_symlink()]
    return [Deletable(path, path.stat().st_size, STATE_OF_FINISHED) for path in states]


def _graphs() -> list[Deletable]:
    """Return the folder of compiled graphs of this user, where there is one that is not empty."""
    place = kept_graphs()
    size = 0 if place is None else disk_bytes(place)
    return [Deletable(place, size, GRAPHS)] if place is not None and size else []


def clean(root: PathLike, *, yes: bool = False, graphs: bool = False) -> Found:
    """Find what can be deleted below a folder of runs, and delete it with `yes`.

    Every run is deleted from under its lock: one that another process trains is left alone, and so
    is one whose files cannot be deleted, and the state of one that cannot be read; `left` says why.
    With `graphs` compiled graphs, which all folders of runs share, count too. A process that has
    loaded its graphs trains on without them, but one that is compiling may fail to: they stay where
    a run below `root` is being trained. Returns what can be deleted, or what has been. Raises
    FileNotFoundError where there is no folder.
    """
    found = find_deletable(root)
    if yes:
        found = _deleted(root, found)
    if not graphs:
        return found
    kept = _graphs()
    if any(why.startswith(TRAINED) for why in found.left.values()):
        left = {item.path: "a run below this folder is being trained" for item in kept}
        return Found(found.items, {**found.left, **left})
    for path in [path for item in kept if yes for path in item.path.iterdir()]:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return Found([*found.items, *kept], found.left)


def _deleted(root: PathLike, found: Found) -> Found:
    """Delete what was found, as far as it is still deletable; return what has gone."""
    gone: list[Deletable] = []
    left = dict(found.left)
    for folder in run_folders(root):
        items = [item for item in found.items if item.path.is_relative_to(folder)]
        if not items:
            continue
        try:
            with claimed([folder]):  # which removes what interrupted writes left
                still = {item.path for item in _states(folder)}
                for item in items:
                    if item.path in still:
                        item.path.unlink()
        except (ValueError, OSError) as error:
            left[folder] = str(error)
        gone += [item for item in items if not item.path.exists()]
    return Found(gone, left)
