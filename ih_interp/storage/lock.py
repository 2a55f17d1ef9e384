"""One writer per run folder: a lock that the kernel releases when its process ends, even by a kill.

The process that trains a run locks the file `.lock` in its folder. Worker processes inherit the
open file and with it the lock, which lasts as long as one of them. The file is removed at the end;
one that a killed process left is locked again. Anything else with that name, such as a link, is
refused and left as it is.
"""

# `filelock` (4.2) makes the same system call. It is not used, because it leaves its file in the run
# folder, takes any file with the name for a lock, changes to a lock file that outlives a kill where
# the kernel has no locks, and cannot hand a lock to worker processes.

import errno
import fcntl
import os
import re
import resource
import socket
import stat
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from ih_interp.storage.run_files import sweep_run

LOCK = ".lock"
OURS = rb"(\d+ \S+( \d+)?\n?)?"  # process and machine; earlier versions added the process's start
WAIT_SECONDS = 3.0  # for the workers of a killed process, which end when they notice
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
SPARE_FILES = 256  # that a process may have open besides one lock per run

HELD: dict[Path, int] = {}
"""Folders that this process trains in, and the open files that hold their locks."""


class Holder(NamedTuple):
    """The process that trains a run, or has left workers that do."""

    pid: int | None
    """None for the moment in which it has the lock and has not yet written its number."""
    host: str

    def __str__(self) -> str:
        return "another process" if self.pid is None else f"process {self.pid} on {self.host}"


def holder(folder: Path) -> Holder | None:
    """Return who holds the lock of a run folder, None where nobody does; nothing is written.

    Raises OSError where the lock's file cannot be read, or is a link.
    """
    # A link is not followed, and a pipe is not waited for.
    how = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(folder / LOCK, how)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        written = re.fullmatch(rb"(\d+) (\S+).*\n?", os.read(descriptor, 1_000))
        return Holder(int(written[1]), written[2].decode()) if written else Holder(None, "")
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    finally:
        os.close(descriptor)
    return None


@contextmanager
def claimed(folders: Sequence[Path]) -> Generator[None]:
    """Hold the locks of run folders, all or none; folders are made where they are missing.

    Raises ValueError that names the folder and the process that holds its lock. Where the file
    system has no locks, a warning says so.
    """
    _allow_open_files(len(folders) + SPARE_FILES)
    with ExitStack() as held:
        for folder in folders:
            _claim(folder, held)
        yield


def expect_held(folder: Path) -> None:
    """Raise FileNotFoundError where a folder that this process has locked was moved or removed.

    Another folder may be in its place, with a writer of its own.
    """
    descriptor = HELD.get(folder.absolute())
    if descriptor is not None and not _is_at(folder / LOCK, descriptor):
        what = "The run folder was moved or removed while it was trained in"
        raise FileNotFoundError(errno.ENOENT, what, str(folder))


def _claim(folder: Path, held: ExitStack) -> None:
    """Make the folder and lock it until `held` is left; remove it then if it is still empty."""
    if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
        raise ValueError(
            f"{folder} is not a folder but a file or a broken link: move it away, or give the run "
            "another name or root."
        )
    made = [each for each in (folder, *folder.parents) if not each.is_dir()]
    held.callback(_remove_empty, made)
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _waited_for(folder)
    if descriptor is not None:
        HELD[folder.absolute()] = descriptor
        held.callback(_release, folder, descriptor)
    sweep_run(folder)


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _waited_for(folder: Path) -> int | None:
    """Return the open file that holds the lock, or None where there are no locks."""
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            return _locked(folder / LOCK)
        except BlockingIOError:
            if time.monotonic() > end:
                raise ValueError(
                    f"{folder} is being trained by {_holder(folder)}: wait for it to end, or stop "
                    "it with SIGTERM, which saves, and train again. Reading needs no lock."
                ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            warnings.warn(
                f"{folder} lies on a file system without locks ({error.strerror}): see to it that "
                "no second process trains there, or choose a root on another disk.",
                stacklevel=2,
            )
            return None
        time.sleep(0.05)


def _release(folder: Path, descriptor: int) -> None:
    """Remove the lock's file and release the lock."""
    del HELD[folder.absolute()]
    # In this order: a process that opened the file before it was removed gets its lock afterwards,
    # sees that the file has lost its name, and begins anew.
    with suppress(OSError):
        if _is_at(folder / LOCK, descriptor):
            (folder / LOCK).unlink(missing_ok=True)
    os.close(descriptor)


def _locked(path: Path) -> int:
    """Lock the file, write this process into it, return it open; BlockingIOError if taken."""
    while True:
        descriptor = _opened(path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last holder has removed it meanwhile


def _opened(path: Path) -> int:
    """Open the lock's file; ValueError for anything else that has its name."""
    refusal = ValueError(f"{path} is not a lock of ih_interp's: move it away, and train again.")
    # No link is followed, and no pipe is waited for.
    how = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, how, 0o666)
    except OSError as error:
        with suppress(FileNotFoundError):
            if not stat.S_ISREG(path.lstat().st_mode):
                raise refusal from error
        raise
    found = os.fstat(descriptor)
    is_ours = stat.S_ISREG(found.st_mode) and found.st_nlink <= 1
    if not is_ours or not re.fullmatch(OURS, os.pread(descriptor, 1_000, 0)):
        os.close(descriptor)
        raise refusal
    return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file is the one that has this name now."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    return False


def _holder(folder: Path) -> str:
    """Return in words which process holds the lock: the one named in it, or workers of that one."""
    with suppress(OSError, ValueError):
        pid, host = (folder / LOCK).read_text().split()[:2]
        return f"process {pid} on {host} (or by workers that it left)"
    return "another process"


def _allow_open_files(n: int) -> None:
    """Raise the limit of open files, as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < n:
        most = n if hard == resource.RLIM_INFINITY else min(n, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
