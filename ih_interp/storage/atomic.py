"""Files written whole or not at all: neither a kill nor a power failure leaves half of one.

Once `write_atomic` has returned, the file is on the disk under its name. A kill may leave a
temporary file beside it, which `sweep` removes. No link is followed.
"""

import errno
import os
import re
import stat
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias, cast

from ih_interp._expect import expect

FULL = (errno.ENOSPC, errno.EDQUOT)

PathLike: TypeAlias = str | os.PathLike[str]
"""A path that a user gives; a leading `~` is the home folder."""


def as_path(path: object, what: str) -> Path:
    """Return the path that a user gave, with `~` or `~name` replaced by the home folder.

    Raises TypeError for other values, ValueError where there is no such home folder, and for names
    of variables, which a shell would have replaced.
    """
    expect(path, (str, os.PathLike), what)
    text = os.fspath(cast(PathLike, path))
    if "\0" in text:
        raise ValueError(f"{what}: {text!r} has a null character, which no path may have.")
    if text != os.path.expandvars(text):
        raise ValueError(f"{what}: {text!r} names a variable; write os.path.expandvars(path).")
    try:
        return Path(cast(PathLike, path)).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{what}: {error} Write the whole path instead of ~.") from None


def write_atomic(path: Path, content: bytes, *, with_folder: bool = True) -> None:
    """Replace a file whole or not at all: temporary file beside it, flush, fsync, rename.

    `with_folder=False` leaves it to the caller to make the folder before and to `sync_folder`
    after: a power failure before that may bring the old file back, but never half of one. Raises
    OSError, in words where the disk is full or a folder has the file's name; the old file then
    stays.
    """
    if with_folder:
        make_folders(path.parent)
    # Not tempfile's, which only this user may read: the run folder may be shared.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.unlink(missing_ok=True)  # of a killed process that had our number
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        if with_folder:
            sync_folder(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, IsADirectoryError):
            what = f"A folder has the name of the file {path.name}; move it away"
        elif isinstance(error, OSError) and error.errno in FULL:
            what = f"The disk is full, {path.name} was not written"
        else:
            raise
        raise OSError(error.errno, what, str(path)) from error


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, so that a power failure loses no file."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems do this by themselves, and say so
        if error.errno not in (errno.EINVAL, errno.EBADF, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sweep(folder: Path, names: Sequence[str]) -> None:
    """Remove what `leftovers` finds; no process may be writing."""
    for path in leftovers(folder, names):
        path.unlink(missing_ok=True)


def leftovers(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the temporary files that kills left of `write_atomic`, or that are being written.

    `names` are regular expressions: only temporary files of files with such a name are found,
    never through a link.
    """
    if folder.is_symlink() or not folder.is_dir():
        return []
    temporary = re.compile(rf"\.({'|'.join(names)})\.\d+")
    return [
        path
        for path in folder.iterdir()
        if temporary.fullmatch(path.name) and stat.S_ISREG(path.lstat().st_mode)
    ]


def make_folders(folder: Path) -> None:
    """Make a folder and those above it where they are missing; write their names to the disk."""
    missing = [each for each in (folder, *folder.parents) if not each.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


class Writer:
    """A thread that writes files in the order given, so that training need not wait for the disk.

    Several writers may share a thread. Leaving the `with` block settles; an exception that leaves
    it goes on, with a note of what could not be written.
    """

    def __init__(self, thread: ThreadPoolExecutor | None = None) -> None:
        self._thread = thread or ThreadPoolExecutor(max_workers=1)
        self._begun: list[tuple[Path, Future[None]]] = []

    def write(self, path: Path, content: bytes) -> None:
        """Begin to replace a file by `write_atomic`, in a folder that is there."""
        written = self._thread.submit(write_atomic, path, content, with_folder=False)
        self._begun.append((path, written))

    def settle(self) -> None:
        """Wait until the files begun are on the disk under their names; raise the first error."""
        begun, self._begun = self._begun, []
        for _, written in begun:
            written.result()
        for folder in sorted({path.parent for path, _ in begun}):  # once for many files
            with suppress(FileNotFoundError):  # moved meanwhile, as the next save finds out
                sync_folder(folder)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            self.settle()
        except Exception as unwritten:
            if error is None:
                raise
            error.add_note(f"Besides, files could not be written: {unwritten}")
        finally:
            self._thread.shutdown()
