"""Arrays in `.h5`, `.npz`, `.npy`: no header is believed, no link followed, nothing unpickled."""

# numpy and h5py alone do not ensure this: h5py follows links into other files, numpy takes as much
# memory as a header asks for, and zlib and HDF5 inflate to the end of what they find.

import io
import math
import warnings
import zipfile
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError

import h5py
import numpy as np

from ih_interp._config_base import short

PLAIN_BYTES = 2**26  # arrays of up to this size are always read; larger ones are read
MAX_RATIO = 100  # up to this multiple of their file's size: numbers hardly compress
DEFLATE_RATIO = 1032  # the most that gzip can compress
MAX_PARTS = 32  # of a dataset's name: groups can hold each other, so that names have no end

GZIP, SHUFFLE, CHECKSUM, LZF = 1, 2, 3, 32_000
CHECKSUM_BYTES = 4

UNREADABLE = (
    *(ValueError, SyntaxError, TokenError, EOFError, OSError, MemoryError, OverflowError),
    *(RuntimeError, TypeError, LookupError, zipfile.BadZipFile, zlib.error),
)
"""The errors that numpy, zip and HDF5 raise for bytes that they cannot read."""


class RefusedError(ValueError):
    """An error whose text follows the file's path in the final message."""


@contextmanager
def _reading(path: Path, kind: str) -> Generator[None]:
    """Turn every error of the block into a ValueError that names the file."""
    try:
        yield
    except UNREADABLE as error:
        cut = f"cannot be read as {kind}, it may be cut short: {error}"
        what = f"{error}." if isinstance(error, RefusedError) else cut
        raise ValueError(f"{path} {what}") from error


def _refuse_trap(path: Path, n_bytes: int) -> None:
    """Refuse a file that says it unpacks to far more than its size."""
    size = path.stat().st_size
    if n_bytes > max(PLAIN_BYTES, MAX_RATIO * size):
        raise RefusedError(
            f"says that its {size:,} bytes hold {n_bytes:,} of numbers; save them uncompressed"
        )


@contextmanager
def opened_h5(path: Path) -> Generator[h5py.File]:
    """Open an HDF5 file to read; every error in the block becomes a ValueError that names it."""
    with _reading(path, "HDF5"), h5py.File(path, "r") as file:
        yield file


def read_h5(path: Path, dataset: str) -> np.ndarray:
    """Read the numbers of a dataset; ValueError where there are none, or the file is not HDF5."""
    with opened_h5(path) as file:
        found = h5_item(file, dataset)
        if not isinstance(found, h5py.Dataset):
            raise RefusedError(f"has no dataset {short(dataset)}; it holds {short(list(file))}")
        return h5_numbers(found)


def h5_item(file: h5py.Group, name: str) -> object:
    """Return the group or dataset that the file itself holds under a name, or None.

    Raises ValueError for soft and external links, which may lead out of the file.
    """
    parts = [part for part in name.split("/") if part]
    if len(parts) > MAX_PARTS:
        raise RefusedError(f"{short(name)}: expected up to {MAX_PARTS} parts, got {len(parts)}")
    found: object = file
    for part in parts:
        link = found.get(part, getlink=True) if isinstance(found, h5py.Group) else None
        if not isinstance(found, h5py.Group) or link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise RefusedError(f"has {name!r}, which is a link to elsewhere; copy what it names")
        found = found[part]
    return found


def h5_numbers(found: h5py.Dataset, kinds: str = "fiu") -> np.ndarray:
    """Return a dataset's values; ValueError unless they are numbers that lie in this very file.

    Values of NumPy types of other `kinds` are refused without being read.
    """
    if found.shape is None:
        raise RefusedError(f"has {found.name!r}, which is empty: {found.dtype} without values")
    if found.dtype.kind not in kinds:
        what = f"{str(found.dtype)[:120]} of shape {found.shape}"
        raise RefusedError(f"has {found.name!r}, which is {what}; numbers were expected")
    if found.is_virtual or found.external:
        raise RefusedError(f"has {found.name!r}, which lies in other files; copy its values")
    chunk = math.prod(found.chunks or ()) * found.dtype.itemsize
    _refuse_trap(Path(found.file.filename), max(found.nbytes, chunk))
    _refuse_overfull_chunks(found, chunk)
    return np.asarray(found[()])


def _refuse_overfull_chunks(found: h5py.Dataset, n_bytes: int) -> None:
    """Refuse chunks that unpack to more than `n_bytes`: HDF5 would unpack them to their end.

    Filters that are not h5py's own are refused: HDF5 would look for a library that the file names,
    or believe the file about the unpacked size.
    """
    recipe = found.id.get_create_plist()
    filters = [recipe.get_filter(number)[0] for number in range(recipe.get_nfilters())]
    packing = [number for number in filters if number not in (SHUFFLE, CHECKSUM)]
    after = filters[filters.index(GZIP) + 1 :] if GZIP in filters else []
    if packing not in ([], [GZIP], [LZF]) or not set(after) <= {CHECKSUM}:
        what = f"{found.name!r} with HDF5's filters {filters}"
        raise RefusedError(f"has {what}; save it with gzip alone")
    if packing != [GZIP]:
        return  # lzf unpacks to 88 times its size at most
    chunks: list[tuple[tuple[int, ...], int, int]] = []
    found.id.chunk_iter(lambda c: chunks.append((c.chunk_offset, c.filter_mask, c.size)))
    most = n_bytes + CHECKSUM_BYTES
    for offset, left_out, size in chunks:
        is_packed = not left_out >> filters.index(GZIP) & 1
        if is_packed and size * DEFLATE_RATIO > PLAIN_BYTES:
            packed = found.id.read_direct_chunk(offset)[1]
            if len(zlib.decompressobj().decompress(packed, most + 1)) > most:
                what = f"a chunk of {found.name!r}"
                raise RefusedError(f"has {what} that unpacks to more than its {n_bytes:,} bytes")


def read_npz(path: Path, name: str | None) -> tuple[str, np.ndarray]:
    """Read an array and its name: the given one, or "features", or the only one there is."""
    with _reading(path, ".npz"), zipfile.ZipFile(path) as archive:
        members = [member for member in archive.namelist() if member.endswith(".npy")]
        names = sorted(member.removesuffix(".npy") for member in members)
        if name is None:
            name = names[0] if len(names) == 1 else "features"
        if name not in names:
            raise RefusedError(f"has no array {short(name)}; it holds {short(names)}")
        member = archive.getinfo(f"{name}.npy")
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            what = f"{name!r}, packed by zip's method {member.compress_type}"
            raise RefusedError(f"has {what}, which numpy does not write; save it with numpy.savez")
        _refuse_trap(path, member.file_size)
        with archive.open(member) as file:
            content = file.read(member.file_size + 1)  # without a number, it inflates to the end
        return name, read_npy(io.BytesIO(content), len(content))


def read_npy_file(path: Path) -> np.ndarray:
    """Read the array of a `.npy` file; ValueError for other files."""
    with _reading(path, ".npy"), path.open("rb") as file:
        return read_npy(file, path.stat().st_size)


def read_npy(file: io.BufferedIOBase, n_bytes: int) -> np.ndarray:
    """Read the next array, in numpy's format, of a stream with `n_bytes` left.

    Raises one of `UNREADABLE`, mostly ValueError, for other bytes.
    """
    start, numpy = file.tell(), np.lib.format
    version = numpy.read_magic(file)
    readers = {(1, 0): numpy.read_array_header_1_0, (2, 0): numpy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"numpy's format {version} is not read, only 1.0 and 2.0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's own, of a damaged header that it parses
        shape, fortran_order, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects: expected numbers")
    left, due = n_bytes - (file.tell() - start), math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or dtype.itemsize == 0 or due > left:
        raise ValueError(f"an array of {dtype} {shape} does not fit into the {left} bytes left")
    array = np.frombuffer(file.read(due), dtype)
    return array.reshape(shape, order="F" if fortran_order else "C")
