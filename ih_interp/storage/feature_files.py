"""Arrays in `.h5`, `.npz`, `.npy`: no header is believed, no link followed, nothing unpickled."""

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

PLAIN_BYTES = 2**26  # a file may always hold so many; beyond, no more than a sum that it can:
MAX_RATIO = 100  # numbers hardly compress, so bytes that unpack to more than this are a trap
DEFLATE_RATIO = 1032  # the most that gzip can
MAX_PARTS = 32  # of a dataset's name: groups can hold each other, and names then have no end
MAX_CHUNKS = 100_000  # of a compressed dataset, each of which is looked at

GZIP, SHUFFLE, CHECKSUM, LZF = 1, 2, 3, 32_000
H5_FILTERS = {GZIP, SHUFFLE, CHECKSUM, LZF}
"""What h5py writes unless asked. For others a library that the file names would be looked for, or
the file alone says how far they unpack."""

UNREADABLE = (
    *(ValueError, SyntaxError, TokenError, EOFError, OSError, MemoryError, OverflowError),
    *(RuntimeError, TypeError, LookupError, zipfile.BadZipFile, zlib.error),
)
"""What readers of numpy, zip and HDF5 raise for bytes that they do not understand."""


class RefusedError(ValueError):
    """A file that could be read and is refused all the same; the words go on after its path."""


@contextmanager
def _reading(path: Path, kind: str) -> Generator[None]:
    """Every error of the block as a ValueError that names the file."""
    try:
        yield
    except RefusedError as error:
        raise ValueError(f"{path} {error}.") from error
    except UNREADABLE as error:
        raise ValueError(
            f"{path} cannot be read as {kind}, it may be cut short: {error}"
        ) from error


def _refuse_trap(path: Path, n_bytes: int) -> None:
    """Refuse a file that says it unpacks to far more than it is."""
    size = path.stat().st_size
    if n_bytes > max(PLAIN_BYTES, MAX_RATIO * size):
        raise RefusedError(
            f"says that its {size:,} bytes hold {n_bytes:,} of numbers; save them uncompressed"
        )


# HDF5


@contextmanager
def opened_h5(path: Path) -> Generator[h5py.File]:
    """Open an HDF5 file to read; all that goes wrong in the block is a ValueError that names it."""
    with _reading(path, "HDF5"), h5py.File(path, "r") as file:
        yield file


def read_h5(path: Path, dataset: str) -> np.ndarray:
    """Read the numbers of a dataset; ValueError where there are none, or for what is no HDF5."""
    with opened_h5(path) as file:
        found = h5_item(file, dataset)
        if not isinstance(found, h5py.Dataset):
            raise RefusedError(f"has no dataset {short(dataset)}; it holds {short(list(file))}")
        return h5_numbers(found)


def h5_item(file: h5py.Group, name: str) -> object:
    """Return what the file itself holds under a name, or None.

    Only hard links are followed: soft and external ones may lead out of the file, and raise
    ValueError.
    """
    parts = [part for part in name.split("/") if part]
    if len(parts) > MAX_PARTS:
        raise RefusedError(
            f"has no {short(name)}: up to {MAX_PARTS} parts of a name were expected, and that has "
            f"{len(parts)}"
        )
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

    `kinds` are those of NumPy's types that are taken. What is no number is refused by its type,
    without its values being read.
    """
    if found.shape is None:
        raise RefusedError(
            f"has {found.name!r}, which is empty: a type, {found.dtype}, and no values"
        )
    if found.dtype.kind not in kinds:
        raise RefusedError(
            f"has {found.name!r}, which is {_type_in_words(found.dtype)} of shape {found.shape}; "
            "numbers were expected"
        )
    if found.is_virtual or found.external:
        raise RefusedError(f"has {found.name!r}, which lies in other files; copy its values")
    path, chunk = Path(found.file.filename), math.prod(found.chunks or ()) * found.dtype.itemsize
    _refuse_trap(path, max(found.nbytes, chunk))
    _refuse_overfull_chunks(found, chunk)
    return np.asarray(found[()])


def _type_in_words(dtype: np.dtype) -> str:
    if dtype.names is not None:
        return f"records with the fields {short(list(dtype.names))}"
    if h5py.check_string_dtype(dtype) is not None:
        return "text"
    if h5py.check_ref_dtype(dtype) is not None:
        return "references"
    if h5py.check_vlen_dtype(dtype) is not None:
        return "arrays of several lengths"
    return str(dtype)


def _refuse_overfull_chunks(found: h5py.Dataset, n_bytes: int) -> None:
    """Refuse filters that are not HDF5's, and chunks that unpack to more than a chunk's bytes.

    HDF5 inflates to the end of what it finds, whatever the size of a chunk.
    """
    recipe = found.id.get_create_plist()
    filters = [recipe.get_filter(number)[0] for number in range(recipe.get_nfilters())]
    if not set(filters) <= H5_FILTERS:
        raise RefusedError(
            f"has {found.name!r}, which needs the filters {set(filters) - H5_FILTERS}; save it "
            "with gzip"
        )
    if len(set(filters)) < len(filters) or {GZIP, LZF} <= set(filters):
        raise RefusedError(
            f"has {found.name!r}, which is compressed more than once; save it with gzip alone"
        )
    if GZIP not in filters:
        return  # lzf unpacks to 88 times its size at most, the others to no more than it
    place = filters.index(GZIP)
    n_chunks = found.id.get_num_chunks()
    if n_chunks > MAX_CHUNKS or not set(filters[place + 1 :]) <= {CHECKSUM}:
        raise RefusedError(
            f"has {found.name!r}, in {n_chunks:,} chunks with the filters {filters}; save it with "
            f"gzip as the last of them, in up to {MAX_CHUNKS:,} chunks"
        )
    chunks: list[tuple[tuple[int, ...], int, int]] = []
    found.id.chunk_iter(
        lambda chunk: chunks.append((chunk.chunk_offset, chunk.filter_mask, chunk.size))
    )
    room = max(PLAIN_BYTES, MAX_RATIO * Path(found.file.filename).stat().st_size)
    for offset, left_out, size in chunks:
        if size * DEFLATE_RATIO > room and not left_out >> place & 1:
            packed = found.id.read_direct_chunk(offset)[1]
            checksum = 4  # bytes, where it was taken before
            unpacked = zlib.decompressobj().decompress(packed, n_bytes + checksum + 1)
            if len(unpacked) > n_bytes + checksum:
                raise RefusedError(
                    f"has a chunk of {found.name!r} that unpacks to more than its {n_bytes:,} bytes"
                )


# NumPy


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
            raise RefusedError(
                f"has {name!r}, packed by zip's method {member.compress_type}, which numpy does "
                "not write; save it with numpy.savez"
            )
        _refuse_trap(path, member.file_size)
        with archive.open(member) as file:
            content = file.read(member.file_size + 1)  # told no number, it inflates to the end
        return name, read_npy(io.BytesIO(content), len(content))


def read_npy_file(path: Path) -> np.ndarray:
    """Read the array of a `.npy` file; ValueError for what is none."""
    with _reading(path, ".npy"), path.open("rb") as file:
        return read_npy(file, path.stat().st_size)


def read_npy(file: io.BufferedIOBase, n_bytes: int) -> np.ndarray:
    """Read the next array of a stream with `n_bytes` left, in numpy's format; nothing is unpickled.

    The header is not believed. Raises ValueError, or another of `UNREADABLE`, for what is no array.
    """
    start = file.tell()
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"numpy's format {version} is not read, only 1.0 and 2.0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python's own, of a damaged header that it parses
        shape, fortran_order, dtype = readers[version](file)
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded when allow_pickle=False")
    left, due = n_bytes - (file.tell() - start), math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or dtype.itemsize == 0 or due > left:
        raise ValueError(f"an array of {dtype} {shape} does not fit into the {left} bytes left")
    array = np.frombuffer(file.read(due), dtype)
    return array.reshape(shape, order="F" if fortran_order else "C")
