"""Exemplar features: synthetic ones with the geometry of real ones, and real ones from a file."""

import hashlib
import io
import math
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tokenize import TokenError
from typing import Annotated, Literal, TypeAlias

import h5py
import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from ih_interp.files import PathLike, as_path, write_atomic
from ih_interp.frozen import Frozen
from ih_interp.reprs import short_repr
from ih_interp.torch_state import plain_torch
from ih_interp.types import expect

GRAIN = 2**-12  # synthetic features are multiples of it: every machine gets the same bits
OMNIGLOT_DATASET = "resnet18/224/feat"  # where the published code's feature file keeps them

MAX_VALUES = 2**31  # of one table of features: 8 GiB
PLAIN_BYTES = 2**26  # a file may always hold so many; beyond, no more than a sum that it can:
MAX_RATIO = 100  # features hardly compress, so bytes that unpack to more than this are a trap

H5_FILTERS = frozenset({1, 2, 3, 4, 5, 6, 32_000})
"""HDF5's own, and h5py's lzf: for others a library that the file names would be looked for."""

UNREADABLE = (
    *(ValueError, SyntaxError, TokenError, EOFError, OSError, MemoryError, OverflowError),
    *(RuntimeError, TypeError, LookupError, zipfile.BadZipFile, zlib.error),
)
"""What readers of numpy, zip and HDF5 raise for bytes that they do not understand."""


class GaussianSource(Frozen):
    """Recipe of `Exemplars.gaussian`; the same recipe gives the same features."""

    kind: Literal["gaussian"] = "gaussian"
    n_classes: int = Field(default=200, ge=2)
    """Characters, or their likes."""
    n_exemplars: int = Field(default=5, ge=1)
    """Drawings of each class."""
    n_features: int = Field(default=512, ge=1)
    """Numbers per drawing."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Draws all of them."""

    @model_validator(mode="after")
    def _fits_in_memory(self) -> "GaussianSource":
        n_values = max(self.n_classes * self.n_exemplars, self.n_features) * self.n_features
        if n_values > MAX_VALUES:
            raise ValueError(
                f"n_classes={self.n_classes}, n_exemplars={self.n_exemplars} and n_features="
                f"{self.n_features} make a table of {n_values:,} numbers, more than "
                f"{MAX_VALUES:,}; lower one of them."
            )
        return self


class FileSource(Frozen):
    """Features in a file, with the digest that says whether it is still the same file.

    The path may name any regular `.h5` or `.npz` file of this machine, where the user keeps
    features; nothing but numbers is read from it.
    """

    kind: Literal["file"] = "file"
    path: str
    """As `Exemplars.load` found it: absolute, so that it holds in any working directory."""
    dataset: str
    """Name of the array in the file."""
    sha256: str
    """Digest of the features' shape and bytes, by which other features are refused."""


ExemplarSource: TypeAlias = Annotated[GaussianSource | FileSource, Field(discriminator="kind")]
"""Where features came from, as a run records it."""


@short_repr
@dataclass(frozen=True, eq=False)
class Exemplars:
    """Frozen features of a few drawings (exemplars) of each of many characters (classes)."""

    features: Float[Tensor, "class exemplar feature"]
    """float32, finite; the model projects them and never trains them."""

    source: GaussianSource | FileSource | None = None
    """How to get them again; None for an array that only this process has."""

    def __post_init__(self) -> None:
        expect(self.features, Tensor, "Exemplar features", "use torch.from_numpy(array)")
        if self.features.ndim != 3 or 0 in self.features.shape:
            raise ValueError(
                f"Exemplar features have shape {tuple(self.features.shape)}; "
                "class x exemplar x feature, none of them empty, was expected."
            )
        if self.features.dtype != torch.float32:
            raise ValueError(
                f"Exemplar features are {self.features.dtype}; convert them to torch.float32."
            )
        bad = (~torch.isfinite(self.features)).nonzero()
        if len(bad):
            raise ValueError(
                f"{len(bad)} exemplar features are NaN or infinite, the first at class, exemplar, "
                f"feature {tuple(bad[0].tolist())}; remove or repair those exemplars."
            )

    @property
    def n_classes(self) -> int:
        return self.features.shape[0]

    @property
    def n_exemplars(self) -> int:
        return self.features.shape[1]

    @property
    def n_features(self) -> int:
        return self.features.shape[2]

    @cached_property
    def sha256(self) -> str:
        """Digest of shape and bytes; equal digests are equal features."""
        return features_digest(self.features)

    @cached_property
    def recorded_source(self) -> GaussianSource | FileSource:
        """The source, for a run to record; ValueError if these features do not come from it."""
        if self.source is None:
            raise ValueError(
                "These exemplars have no source that a run could record; "
                "save them first with exemplars = exemplars.save(path)."
            )
        if isinstance(self.source, FileSource):
            expected = self.source.sha256
        else:
            expected = features_digest(_gaussian_features(self.source))
        if self.sha256 != expected:
            raise ValueError(
                f"These exemplars are not those of their source, {self.source!r}: they were "
                "changed; save them with exemplars = exemplars.save(path)."
            )
        return self.source

    @classmethod
    def gaussian(
        cls, n_classes: int = 200, n_exemplars: int = 5, n_features: int = 512, seed: int = 0
    ) -> "Exemplars":
        """Synthetic features with the geometry of Omniglot's, so that no download is needed.

        `x = mean + class + exemplar`, each Gaussian. Directions share one random basis in which the
        variances fall as `k^-1.16`; scalar products are expected to be 0.73 of the mean square norm
        between classes and 0.88 within one, that norm 27: as of SqueezeNet v1.1's features of
        Omniglot. On both kinds training pauses near ln 2 before the phase change.

        Shape `[n_classes, n_exemplars, n_features]`. Raises ValueError for fewer than 2
        classes or other sizes below 1.
        """
        source = GaussianSource(
            n_classes=n_classes, n_exemplars=n_exemplars, n_features=n_features, seed=seed
        )
        return cls(_gaussian_features(source), source)

    @classmethod
    def load(cls, path: PathLike, dataset: str | None = None) -> "Exemplars":
        """Read features `[class, exemplar, feature]` from `.h5` or `.npz`.

        `dataset` names the array: by default "resnet18/224/feat" in `.h5`, as the published code's
        file, and "features" in `.npz`. Nothing is unpickled. Raises FileNotFoundError for a missing
        file, ValueError for one that cannot be read, lacks the array, holds bad values, points to
        other files, or unpacks to far more than it is.
        """
        path = as_path(path, "The path of a feature file")
        if dataset is not None:
            expect(dataset, str, "dataset, the name of the array,")
        readers: dict[str, tuple[Callable[[Path, str], np.ndarray], str]] = {
            ".h5": (_read_h5, OMNIGLOT_DATASET),
            ".npz": (_read_npz, "features"),
        }
        if path.suffix not in readers:
            raise ValueError(f"{path} is neither .h5 nor .npz; save the features as one of them.")
        if not path.is_file():
            raise FileNotFoundError(f"There is no feature file at {path}.")
        read, default = readers[path.suffix]
        name = default if dataset is None else dataset
        array = read(path, name)
        if array.ndim != 3 or array.dtype.kind not in "fiu":
            raise ValueError(
                f"{path}: {name!r} is {array.dtype} of shape {array.shape}; "
                "numbers of shape class x exemplar x feature were expected."
            )
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and so refused
            features = torch.from_numpy(array.astype(np.float32))
        digest = features_digest(features)
        source = FileSource(path=str(path.resolve()), dataset=name, sha256=digest)
        try:
            return cls(features, source)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @classmethod
    def from_source(cls, source: GaussianSource | FileSource) -> "Exemplars":
        """The features that a run recorded; ValueError if the file holds others by now."""
        if isinstance(source, GaussianSource):
            return cls(_gaussian_features(source), source)
        exemplars = cls.load(source.path, source.dataset)
        if exemplars.sha256 != source.sha256:
            raise ValueError(
                f"{source.path} holds other features than when the run was made "
                f"(sha256 {exemplars.sha256[:12]} against {source.sha256[:12]}); restore that file."
            )
        return cls(exemplars.features, source)

    @classmethod
    def omniglot(cls, root: PathLike, n_exemplars: int = 5, seed: int = 0) -> "Exemplars":
        """ResNet18 features of Omniglot's 1,623 characters, by torchvision (`[omniglot]` extra).

        See `ih_interp.omniglot`; downloads images and weights into `root` where they are missing.
        """
        from ih_interp.omniglot import resnet18_features

        return cls(resnet18_features(as_path(root, "root"), n_exemplars=n_exemplars, seed=seed))

    def save(self, path: PathLike) -> "Exemplars":
        """Write `.npz`, whole or not at all; the same exemplars with that file as their source."""
        path = as_path(path, "The path of a feature file")
        if path.suffix != ".npz":
            raise ValueError(f"Exemplars are saved as .npz; got {path}.")
        file = io.BytesIO()
        np.savez(file, features=self.features.detach().cpu().numpy())
        write_atomic(path, file.getvalue())
        return Exemplars.load(path)


def features_digest(features: Tensor) -> str:
    """SHA-256 of shape and float32 bytes."""
    digest = hashlib.sha256(str(tuple(features.shape)).encode())
    digest.update(features.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@plain_torch()
def _gaussian_features(source: GaussianSource) -> Float[Tensor, "class exemplar feature"]:
    between, within, norm, decay = 0.73, 0.88, 27.0, 1.16  # measured on Omniglot; see `gaussian`
    generator, n = torch.Generator().manual_seed(source.seed), source.n_features

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(draw(n, n)).Q
    variances = torch.arange(1, n + 1, dtype=torch.float64) ** -decay
    spread = (variances / variances.sum()).sqrt()
    mean = draw(n)
    mean = mean / mean.norm() * between**0.5
    of_class = draw(source.n_classes, 1, n) * spread * (within - between) ** 0.5
    of_exemplar = draw(source.n_classes, source.n_exemplars, n) * spread * (1 - within) ** 0.5
    features = norm * (mean + (of_class + of_exemplar) @ basis.T)
    return ((features / GRAIN).round() * GRAIN).float()


def read_npy(file: io.BufferedIOBase, n_bytes: int) -> np.ndarray:
    """The next array of a stream with `n_bytes` left, in numpy's format; nothing is unpickled.

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


def _refuse_trap(path: Path, n_bytes: int) -> None:
    """Refuse a file that says it unpacks to far more than it is."""
    size = path.stat().st_size
    if n_bytes > max(PLAIN_BYTES, MAX_RATIO * size):
        raise ValueError(
            f"it says that its {size:,} bytes hold {n_bytes:,} of features; save them uncompressed"
        )


def _read_h5(path: Path, dataset: str) -> np.ndarray:
    try:
        with h5py.File(path, "r") as file:
            found = _own_dataset(file, dataset)
            if found is not None:
                _refuse_foreign_parts(found)
                chunk = math.prod(found.chunks or ()) * found.dtype.itemsize
                _refuse_trap(path, max(found.nbytes, chunk))
                # What is no number is refused by its dtype, without its values being read.
                return found[()] if found.dtype.kind in "fiu" else np.empty(found.shape, "V1")
            names = list(file)
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as HDF5, it may be cut short: {error}") from error
    raise ValueError(f"{path} has no dataset {dataset!r}; it holds {names}.")


def _own_dataset(file: h5py.File, dataset: str) -> h5py.Dataset | None:
    """The dataset by hard links alone: soft and external ones may lead out of the file."""
    parts = [part for part in dataset.split("/") if part]
    for end in range(1, len(parts) + 1):
        link = file.get("/".join(parts[:end]), getlink=True)
        if link is not None and not isinstance(link, h5py.HardLink):
            raise ValueError(f"{dataset!r} is a link to elsewhere; copy the features into the file")
    found = file.get(dataset)
    return found if isinstance(found, h5py.Dataset) else None


def _refuse_foreign_parts(found: h5py.Dataset) -> None:
    """Refuse features that lie in other files, or that need code which HDF5 does not bring."""
    if found.is_virtual or found.external:
        raise ValueError(f"{found.name} lies in other files; copy the features into this one")
    recipe = found.id.get_create_plist()
    filters = {recipe.get_filter(number)[0] for number in range(recipe.get_nfilters())}
    if not filters <= H5_FILTERS:
        raise ValueError(
            f"{found.name} needs the filters {filters - H5_FILTERS}; save it with gzip"
        )


def _read_npz(path: Path, dataset: str) -> np.ndarray:
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name.removesuffix(".npy") for name in archive.namelist())
            if dataset in names:
                member = archive.getinfo(f"{dataset}.npy")
                _refuse_trap(path, member.file_size)
                content = archive.read(member)
                return read_npy(io.BytesIO(content), len(content))
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as .npz, it may be cut short: {error}") from error
    raise ValueError(f"{path} has no array {dataset!r}; it holds {names}.")
