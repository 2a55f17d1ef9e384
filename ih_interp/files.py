"""Writing files whole or not at all, so that neither a kill nor a power failure leaves half of one.

What `write_atomic` has returned from is on the disk, under its name. A kill may leave a temporary
file beside it, which `sweep` removes.
"""

import errno
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias, cast

from ih_interp.types import expect

FULL = (errno.ENOSPC, errno.EDQUOT)

PathLike: TypeAlias = str | os.PathLike[str]
"""A place that a user names; `~` in it is the home folder."""


def as_path(path: object, what: str) -> Path:
    """Return the path that a user gave, a leading `~` or `~name` expanded.

    Raises TypeError for what is no path, ValueError where there is no such home folder.
    """
    expect(path, (str, os.PathLike), what)
    try:
        return Path(cast(PathLike, path)).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{what}: {error} Write the whole path instead of ~.") from None


def write_atomic(path: Path, content: bytes, *, sync_name: bool = True) -> None:
    """Replace a file whole or not at all: temporary file beside it, flush, fsync, rename.

    `sync_name=False` leaves the rename to a later `sync_folder`: a power failure in between may
    bring the file that was there before back, but never half of one. Raises OSError, in words
    where the disk is full; what was there before is then still there.
    """
    _make_folders(path.parent)
    # Not tempfile's, which nobody else may read: the run folder may be shared.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        if sync_name:
            sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
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


def sweep(folder: Path) -> None:
    """Remove temporary files that kills left of `write_atomic`; nobody may be writing."""
    if folder.is_dir():
        for path in folder.iterdir():
            if re.fullmatch(r"\..+\.\d+", path.name):
                path.unlink(missing_ok=True)


def _make_folders(folder: Path) -> None:
    missing = [each for each in (folder, *folder.parents) if not each.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)
