"""Writing files whole or not at all, so that neither a kill nor a power failure leaves half of one.

What `write_atomic` has returned from is on the disk, under its name. A kill may leave a temporary
file beside it, which `sweep` removes. No link is followed: what a link names stays as it is.
"""

import errno
import os
import re
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias, cast

from ih_interp.types import expect

FULL = (errno.ENOSPC, errno.EDQUOT)

PathLike: TypeAlias = str | os.PathLike[str]
"""A place that a user names; `~` in it is the home folder."""


def as_path(path: object, what: str) -> Path:
    """Return the path that a user gave, a leading `~` or `~name` expanded.

    Raises TypeError for what is no path, ValueError where there is no such home folder, or for the
    names of variables, which a shell would have replaced.
    """
    expect(path, (str, os.PathLike), what)
    text = os.fspath(cast(PathLike, path))
    if "\0" in text:
        raise ValueError(f"{what}: {text!r} has a null character, which no path may have.")
    if text != os.path.expandvars(text):
        raise ValueError(
            f"{what}: {text!r} has the name of a variable in it; write os.path.expandvars(path)."
        )
    try:
        return Path(cast(PathLike, path)).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{what}: {error} Write the whole path instead of ~.") from None


def write_atomic(
    path: Path, content: bytes, *, sync_name: bool = True, new_folders: bool = True
) -> None:
    """Replace a file whole or not at all: temporary file beside it, flush, fsync, rename.

    `sync_name=False` leaves the rename to a later `sync_folder`: a power failure in between may
    bring the file that was there before back, but never half of one. `new_folders=False` refuses
    to make the folder where it is missing. Raises OSError, in words
    where the disk is full or a folder has the file's name; what was there before is still there.
    """
    if new_folders:
        make_folders(path.parent)
    # Not tempfile's, which nobody else may read: the run folder may be shared.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)  # of a killed process that had our number
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        if sync_name:
            sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, IsADirectoryError):
            raise IsADirectoryError(
                error.errno,
                f"A folder has the name of the file {path.name}; move it away",
                str(path),
            ) from error
        if isinstance(error, OSError) and error.errno in FULL:
            raise OSError(
                error.errno, f"The disk is full, {path.name} was not written", str(path)
            ) from error
        raise


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk: files are there after a power failure, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems do this by themselves, and say so
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sweep(folder: Path, names: Sequence[str]) -> None:
    """Remove temporary files that kills left of `write_atomic`; nobody may be writing.

    Of files with one of these names only, each a regular expression; never through a link.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    temporary = re.compile(rf"\.({'|'.join(names)})\.\d+")
    for path in folder.iterdir():
        if temporary.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode):
            path.unlink(missing_ok=True)


def make_folders(folder: Path) -> None:
    """Make a folder and those above it where they are missing, their names on the disk."""
    missing = [each for each in (folder, *folder.parents) if not each.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)
