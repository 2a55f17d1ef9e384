"""The folder of compiled graphs, in which no other user can write.

Torch unpickles whatever it finds there and loads it as machine code, whoever wrote it.
"""

import atexit
import functools
import os
import re
import shutil
import stat
import struct
import tempfile
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

Compiled = TypeVar("Compiled")

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
PLAIN = re.compile(r"[\w/.+@-]+")  # what the compiler's command line takes, as torch does not quote
ELF_HEADER = struct.Struct("<4sBB34xQ10xHH2x")
"""A library's header: magic, 64-bit, byte order, the place and the length of its last table."""


def with_lasting_cache(compile_it: Callable[[], Compiled]) -> Compiled:
    """Return what `compile_it` returns, and keep its work where it outlives this process.

    A place that the user chose by TORCHINDUCTOR_CACHE_DIR is left alone. Otherwise the place is
    `$XDG_CACHE_HOME/ih_interp` or `~/.cache/ih_interp`, which may be deleted at any time, or a
    private temporary folder. Where compiling fails with the files that are there, which a power
    failure may have cut short, it is done once more without them.
    """
    place = _place()
    if place is None:
        return compile_it()
    _remove_cut_short(place)
    aside = place.with_name(f"{place.name}.{os.getpid()}.damaged")
    was_used = any(place.iterdir())
    with _kept_at(place):
        try:
            return compile_it()
        except Exception:
            if not was_used:
                raise
            place.rename(aside)
            place.mkdir(mode=0o700)
        try:
            from torch._inductor.utils import clear_caches

            clear_caches()  # torch remembers what it has loaded
            compiled = compile_it()
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    warnings.warn(
        f"Compiled graphs kept in {place} were damaged; they are made anew.", stacklevel=2
    )
    return compiled


def lasting_place() -> dict[str, str]:
    """Return the environment in which another process keeps its work where this one does.

    That process takes the place as its user's choice, and removes nothing from it.
    """
    place = _place()
    return {} if place is None else {VARIABLE: str(place)}


def kept_graphs() -> Path | None:
    """Return the folder in which compiled graphs are kept; None where there is none of ours.

    A place that the user chose by TORCHINDUCTOR_CACHE_DIR is the user's.
    """
    if _is_chosen():
        return None
    there = (place for place in _candidates() if place.is_dir() and PLAIN.fullmatch(str(place)))
    return next((place for place in there if _fault(place) is None), None)


@contextmanager
def _kept_at(place: Path) -> Generator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(place)
    try:
        yield
    finally:
        os.environ.pop(VARIABLE)
        if before is not None:
            os.environ[VARIABLE] = before


def _place() -> Path | None:
    """Return a private folder, made where it is missing; None where the user chose one."""
    if _is_chosen():
        return None
    for place in _candidates():
        if PLAIN.fullmatch(str(place)) is None:
            continue
        with suppress(OSError):
            for folder in reversed([place, *place.parents]):
                folder.mkdir(mode=0o700, exist_ok=True)  # private whatever the umask is
            if (fault := _fault(place)) is None:
                place.chmod(0o700)
                return place
            warnings.warn(
                f"Compiled graphs are not kept in {place}, since {fault}, and they are run as "
                "machine code: remove that folder, or choose another by XDG_CACHE_HOME.",
                stacklevel=2,
            )
    return _of_this_process()


def _is_chosen() -> bool:
    """Return whether the user has chosen a place; torch sets its own early."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    return os.environ.get(VARIABLE) not in (None, default_cache_dir())


@functools.cache
def _of_this_process() -> Path:
    place = tempfile.mkdtemp(prefix="ih_interp-")
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return Path(place)


def _candidates() -> Iterator[Path]:
    """Yield the places to try, in order, with links resolved."""
    # platformdirs would save two lines, and use another folder on macOS.
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    with suppress(RuntimeError):  # a user without a home folder
        home = Path(chosen) if Path(chosen).is_absolute() else Path.home() / ".cache"
        yield (home / "ih_interp").resolve()
    for folder in (tempfile.gettempdir(), "/tmp"):  # the first may have a space in its name
        yield Path(folder).resolve() / f"ih_interp-{os.getuid()}"


def _fault(place: Path) -> str | None:
    """Return why others could write into this folder or exchange it; None if they cannot."""
    if place.is_symlink():
        return "it is a link"
    for folder in (place, *place.parents):
        found = folder.lstat()
        if found.st_uid not in (os.getuid(), 0):
            return f"{folder} belongs to another user"
        own_group = found.st_gid == os.getgid() == os.getuid()  # which has no other members
        writers = stat.S_IWOTH | (0 if own_group else stat.S_IWGRP)
        sticky = folder != place and found.st_mode & stat.S_ISVTX  # as the temporary folder
        if found.st_mode & writers and not sticky:
            return f"others can write to {folder}"
    return None


def _remove_cut_short(place: Path) -> None:
    """Remove libraries that end before their last table: loading one can kill the process."""
    for path in place.glob("**/*.so"):
        with suppress(OSError):
            with path.open("rb") as file:
                header = file.read(ELF_HEADER.size)
            if len(header) == ELF_HEADER.size:
                magic, wide, order, table, entry, entries = ELF_HEADER.unpack(header)
                is_known = magic == b"\x7fELF" and (wide, order) == (2, 1)  # others are left alone
                if not is_known or path.stat().st_size >= table + entry * entries:
                    continue
            path.unlink()
