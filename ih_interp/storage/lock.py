"""One writer per run folder: a lock that the kernel releases when its process ends, even by a kill.

Whoever trains a run holds `.lock` in its folder, shared with the worker processes that train it.
Taking it needs it exclusively, so that neither the process nor a worker that outlives it is
overtaken. The file is removed at the end; one that a killed process left refuses nobody. What has
its name and is no lock of ours, such as a link, is refused and left as it is.
"""

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

from ih_interp.storage.run_files import sweep_run

LOCK = ".lock"
OURS = rb"(\d+ \S+( \d+)?\n?)?"  # process, machine and, where it can be had, the process's start
WAIT_SECONDS = 10.0  # for the workers of a dead process, which end when they notice
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
SPARE_FILES = 256  # beside one lock a run, that a process may have open

_HELD: dict[Path, int] = {}  # folders that this process trains in, and their open locks


@contextmanager
def claimed(folders: Sequence[Path]) -> Generator[None]:
    """Hold the locks of run folders, which are made where they are missing; all or none.

    Raises ValueError that names the folder and who holds its lock. Where the file system has no
    locks, a warning says that nobody watches.
    """
    _allow_open_files(len(folders) + SPARE_FILES)
    with ExitStack() as held:
        for folder in folders:
            held.enter_context(_claimed(folder))
        yield


@contextmanager
def shared(folders: Sequence[Path]) -> Generator[None]:
    """Hold the locks of run folders together with the process that claimed them and that waits.

    Raises RuntimeError where another process has claimed them since.
    """
    with ExitStack() as held:
        for folder in folders:
            try:
                descriptor = _locked(folder / LOCK, fcntl.LOCK_SH)
            except BlockingIOError:
                raise RuntimeError(f"{folder} was taken over by {_holder(folder)}") from None
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                continue
            held.callback(os.close, descriptor)
            held.enter_context(_known(folder, descriptor))
        yield


def expect_held(folder: Path) -> None:
    """Raise FileNotFoundError unless the folder is still the one whose lock this process holds.

    Of a folder that was moved or removed meanwhile another may be in its place, with a writer of
    its own. Folders whose lock this process does not hold pass.
    """
    descriptor = _HELD.get(folder.absolute())
    if descriptor is not None and not _is_at(folder / LOCK, descriptor):
        raise FileNotFoundError(
            errno.ENOENT, "The run folder was moved or removed while it was trained in", str(folder)
        )


@contextmanager
def _known(folder: Path, descriptor: int) -> Generator[None]:
    path = folder.absolute()
    before = _HELD.get(path)
    _HELD[path] = descriptor
    try:
        yield
    finally:
        del _HELD[path]
        if before is not None:
            _HELD[path] = before


@contextmanager
def _claimed(folder: Path) -> Generator[None]:
    if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
        raise ValueError(
            f"{folder} is no folder, and a run lies in one: move away what is there (a file, or a "
            "link to what is gone), or give the run another name or root."
        )
    made = [each for each in (folder, *folder.parents) if not each.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = _claim(folder)
        if descriptor is None:
            sweep_run(folder)
            yield
            return
        try:
            with _known(folder, descriptor):
                sweep_run(folder)
                yield
        finally:
            # Before the lock is let go of: whoever waits for it finds out that the file is
            # another one, and begins anew.
            with suppress(OSError):
                if _is_at(folder / LOCK, descriptor):
                    (folder / LOCK).unlink(missing_ok=True)
            os.close(descriptor)
    finally:
        for each in made:  # where nothing came of it
            with suppress(OSError):
                each.rmdir()


def _claim(folder: Path) -> int | None:
    """The descriptor that holds the lock, or None where there are no locks."""
    end = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            descriptor = _locked(folder / LOCK, fcntl.LOCK_EX)
            if _signed(descriptor):
                return descriptor
        except BlockingIOError:
            if not _holder_is_dead(folder) or time.monotonic() > end:
                raise ValueError(
                    f"{folder} is being trained by {_holder(folder)}, and a run has one writer: "
                    "wait for it to end, or stop it with SIGTERM, which saves, and train again. "
                    "Reading the run needs no lock."
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
        time.sleep(0.05)  # until workers have noticed, or who came in between has signed


def _signed(descriptor: int) -> bool:
    """Write into the locked file who holds it, and share the lock; closed where it was lost.

    No lock is changed at one stroke: another may come in between. The file then bears our name
    until the other writes its own.
    """
    try:
        os.ftruncate(descriptor, 0)
        us = [str(os.getpid()), socket.gethostname(), _start_of(os.getpid())]
        os.pwrite(descriptor, (" ".join(filter(None, us)) + "\n").encode(), 0)
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return False
    except BaseException:
        os.close(descriptor)
        raise
    return True


def _locked(path: Path, kind: int) -> int:
    """An open file that holds the lock at this path; BlockingIOError where another holds it."""
    # Only who claims makes the file: a worker whose parent is gone must not.
    create = os.O_CREAT if kind == fcntl.LOCK_EX else 0
    while True:
        descriptor = _opened(path, create)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # removed by its last holder meanwhile


def _opened(path: Path, create: int) -> int:
    """The lock's file, open; ValueError for anything else that has its name."""
    refusal = ValueError(
        f"{path} is no lock of ih_interp's, and may be somebody's: move it away, and train again."
    )
    how = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | create
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
    """Whether an open file is the one that has this name now."""
    with suppress(FileNotFoundError, NotADirectoryError):
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    return False


def _recorded(folder: Path) -> tuple[int, str, str | None] | None:
    """Process, machine and start of who claimed the folder, as its lock says."""
    with suppress(OSError, ValueError):
        pid, host, *start = (folder / LOCK).read_text().split()
        return int(pid), host, start[0] if start else None
    return None


def _holder(folder: Path) -> str:
    """Who holds the lock, in words; nobody is named who may only have a dead process's number."""
    recorded = _recorded(folder)
    if recorded is None or _holder_is_dead(folder):
        return "another process"
    return f"process {recorded[0]} on {recorded[1]}"


def _holder_is_dead(folder: Path) -> bool:
    """Whether the process that took the lock is gone, so that only its workers can hold it."""
    recorded = _recorded(folder)
    if recorded is None or recorded[1] != socket.gethostname():
        return False
    pid, _, start = recorded
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass
    now = _start_of(pid)
    return start is not None and now is not None and now != start  # its number is another's by now


def _start_of(pid: int) -> str | None:
    """When a process of this machine began, in ticks since its start; None where nobody says."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return None


def _allow_open_files(n: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < n:
        most = n if hard == resource.RLIM_INFINITY else min(n, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
