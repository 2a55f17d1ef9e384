"""One writer a run folder: a lock that the kernel lets go of when its process ends, even by a kill.

Whoever trains a run holds `.lock` in its folder, shared with the worker processes that train it.
Taking it needs it exclusively, so that neither the process nor a worker that outlives it is
overtaken. The file is removed at the end; one that a killed process left refuses nobody.
"""

import errno
import fcntl
import os
import resource
import socket
import time
import warnings
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ih_interp.files import sweep

LOCK = ".lock"
WAIT_SECONDS = 10.0  # for the workers of a dead process, which end when they notice
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
SPARE_FILES = 256  # beside one lock a run, that a process may have open


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
        yield


@contextmanager
def _claimed(folder: Path) -> Generator[None]:
    made = [each for each in (folder, *folder.parents) if not each.is_dir()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = _claim(folder)
        try:
            for place in (folder, *filter(Path.is_dir, folder.iterdir())):
                sweep(place)
            yield
        finally:
            if descriptor is not None:
                # Before the lock is let go of: whoever waits for it finds out that the file is
                # another one, and begins anew.
                with suppress(OSError):
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
        os.pwrite(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode(), 0)
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
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | create, 0o666)
        try:
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(descriptor)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # removed by its last holder meanwhile


def _recorded(folder: Path) -> tuple[int, str] | None:
    with suppress(OSError, ValueError):
        pid, host = (folder / LOCK).read_text().split()
        return int(pid), host
    return None


def _holder(folder: Path) -> str:
    recorded = _recorded(folder)
    return "another process" if recorded is None else "process {} on {}".format(*recorded)


def _holder_is_dead(folder: Path) -> bool:
    """Whether the process that took the lock is gone, so that only its workers can hold it."""
    recorded = _recorded(folder)
    if recorded is None or recorded[1] != socket.gethostname():
        return False
    try:
        os.kill(recorded[0], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def _allow_open_files(n: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < n:
        most = n if hard == resource.RLIM_INFINITY else min(n, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
