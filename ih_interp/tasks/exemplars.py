"""Exemplar features: synthetic ones with the geometry of real ones, and those in a file."""

import functools
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from ih_interp._config_base import Frozen
from ih_interp._expect import expect
from ih_interp._reprs import short_repr
from ih_interp._torch_state import plain_torch
from ih_interp.storage.atomic import PathLike, as_path, write_atomic
from ih_interp.storage.feature_files import read_h5, read_npy_file, read_npz
from ih_interp.tasks.omniglot import Network

GRAIN = 2**-12  # synthetic features are multiples of it, so that all machines get the same bits
OMNIGLOT_DATASET = "resnet18/224/feat"  # the name in the published code's feature file
MAX_VALUES = 2**31  # of one table of features: 8 GiB


class GaussianSource(Frozen):
    """The recipe of `Exemplars.gaussian`; the same recipe gives the same features."""

    kind: Literal["gaussian"] = "gaussian"
    n_classes: int = Field(default=200, ge=2)
    """The number of classes, such as characters."""
    n_exemplars: int = Field(default=5, ge=1)
    """The number of exemplars of each class."""
    n_features: int = Field(default=512, ge=1)
    """The number of features of each exemplar."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """The seed of all features."""

    @model_validator(mode="after")
    def _fits_in_memory(self) -> "GaussianSource":
        n_values = max(self.n_classes * self.n_exemplars, self.n_features) * self.n_features
        if n_values > MAX_VALUES:
            raise ValueError(
                f"n_classes={self.n_classes}, n_exemplars={self.n_exemplars}, n_features="
                f"{self.n_features}: expected up to {MAX_VALUES:,} numbers, got {n_values:,}; "
                "lower one of them."
            )
        return self


class FileSource(Frozen):
    """Features in an `.h5`, `.npz` or `.npy` file; only numbers are read from it."""

    kind: Literal["file"] = "file"
    path: str
    """The absolute path of the file."""
    dataset: str
    """The name of the array in the file."""
    sha256: str
    """The digest of the features' shape and bytes, by which other features are refused."""


ExemplarSource: TypeAlias = Annotated[GaussianSource | FileSource, Field(discriminator="kind")]
"""The source of features, as a run records it."""


@short_repr
@dataclass(frozen=True, eq=False)
class Exemplars:
    """Frozen features of a few images (exemplars) of each of many characters (classes)."""

    features: Float[Tensor, "class exemplar feature"]
    """float32, finite; the model projects them and never trains them."""
    source: GaussianSource | FileSource | None = None
    """The recipe or the file to get them again; None for an array that only this process has."""

    def __post_init__(self) -> None:
        expect(self.features, Tensor, "The array of features", "use ih.Exemplars.from_array(array)")
        if self.features.ndim != 3 or 0 in self.features.shape:
            raise ValueError(
                f"Exemplar features have shape {tuple(self.features.shape)}: expected class x "
                "exemplar x feature, none of them empty."
            )
        if self.features.dtype != torch.float32:
            raise ValueError(
                f"Exemplar features are {self.features.dtype}; convert them to torch.float32, as "
                "ih.Exemplars.from_array(features) does."
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

    @property
    def _snapshot(self) -> tuple[Float[Tensor, "class exemplar feature"], str]:
        """A copy of the features as they are now, and its digest.

        `features` can be changed in place, also through a NumPy array that shares their memory,
        which no counter of torch's notices: so they are compared bit by bit with the last copy.
        Raises ValueError where a change left NaN or infinity.
        """
        kept: tuple[Tensor, str] | None = vars(self).get("_kept")
        if kept is None or not _same_bits(kept[0], self.features):
            self.__post_init__()
            copy = self.features.detach().clone()
            kept = vars(self)["_kept"] = (copy, features_digest(copy))
        return kept

    @property
    def settled(self) -> Float[Tensor, "class exemplar feature"]:
        """A copy of the features as they are now, which models embed."""
        return self._snapshot[0]

    @property
    def sha256(self) -> str:
        """The digest of shape and bytes, as they are now; equal features have equal digests."""
        return self._snapshot[1]

    @property
    def last_sha256(self) -> str:
        """The digest of the features that models embed, without a new comparison."""
        kept: tuple[Tensor, str] | None = vars(self).get("_kept")
        return self.sha256 if kept is None else kept[1]

    @property
    def recorded_source(self) -> GaussianSource | FileSource:
        """The source that a run records; ValueError if these features do not come from it."""
        if self.source is None:
            raise ValueError(
                "These exemplars have no source that a run could record; "
                "save them first with exemplars = exemplars.save(path)."
            )
        source = self.source
        expected = source.sha256 if isinstance(source, FileSource) else _gaussian_digest(source)
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
        """Make synthetic features with the geometry of Omniglot's; no download is needed.

        `x = mean + class + exemplar`, each Gaussian, in one random basis in which the variances
        fall as `k^-1.16`. The expected norm is 27, and the expected scalar products are 0.73 of the
        mean square norm between classes and 0.88 within one, as measured on SqueezeNet v1.1's
        features of Omniglot. On both kinds training pauses near ln 2 before the phase change.

        Shape `[n_classes, n_exemplars, n_features]`. Raises ValueError for fewer than 2
        classes or other sizes below 1.
        """
        source = GaussianSource(
            n_classes=n_classes, n_exemplars=n_exemplars, n_features=n_features, seed=seed
        )
        return cls(_gaussian_features(source), source)

    @classmethod
    def from_array(cls, array: "np.ndarray | Tensor", path: PathLike | None = None) -> "Exemplars":
        """Copy features `[class, exemplar, feature]` from a NumPy array or a tensor, as float32.

        With `path` they are saved there, as `.npz`; a `RunConfig` takes arrays only once they are
        saved. Raises TypeError for values that are not arrays, ValueError for other shapes, values
        that are not real numbers, NaN and infinity.
        """
        kinds = (np.ndarray, Tensor)
        expect(array, kinds, "The array of features", "give a NumPy array or a tensor")
        if isinstance(array, np.ma.MaskedArray):
            raise ValueError("The features are a masked array; fill it first, array.filled(value).")
        exemplars = cls(_as_float32(array))
        return exemplars if path is None else exemplars.save(path)

    @classmethod
    def load(cls, path: PathLike, dataset: str | None = None) -> "Exemplars":
        """Read features `[class, exemplar, feature]` from `.h5`, `.npz` or `.npy`.

        `dataset` names the array: by default "resnet18/224/feat" in `.h5`, as in the published
        code's file, and in `.npz` the only array or else "features". Nothing is unpickled. Raises
        FileNotFoundError for a missing file, ValueError for one that cannot be read, lacks the
        array, holds bad values, points to other files, or unpacks to far more than its size.
        """
        path = as_path(path, "The path of a feature file")
        if dataset is not None:
            expect(dataset, str, "dataset, the name of the array,")
        if path.suffix not in (".h5", ".npz", ".npy"):
            raise ValueError(f"{path} is not .h5, .npz or .npy; save the features as one of them.")
        if not path.is_file():
            raise FileNotFoundError(f"There is no feature file at {path}.")
        name, array = _read(path, dataset)
        try:
            features = cls(_as_float32(array)).features
        except ValueError as error:
            raise ValueError(f"{path}: {name!r}: {error}") from error
        digest = features_digest(features)
        return cls(features, FileSource(path=str(path.resolve()), dataset=name, sha256=digest))

    @classmethod
    def from_source(cls, source: GaussianSource | FileSource) -> "Exemplars":
        """Return the features that a run recorded; ValueError if the file now holds others."""
        if isinstance(source, GaussianSource):
            return cls(_gaussian_features(source), source)
        exemplars = cls.load(source.path, source.dataset or None)
        if exemplars.sha256 != source.sha256:
            raise ValueError(
                f"{source.path} holds other features than the run was trained on (sha256 "
                f"{exemplars.sha256[:12]}, expected {source.sha256[:12]}); restore that file."
            )
        return cls(exemplars.features, source)

    @classmethod
    def omniglot(
        cls, root: PathLike, n_exemplars: int = 5, seed: int = 0, *, network: Network = "resnet18"
    ) -> "Exemplars":
        """Make 512 features of Omniglot's 1,623 characters, by torchvision (`[omniglot]` extra).

        `network`, an ImageNet classifier of torchvision's, is "resnet18", as in the paper, or
        "squeezenet1_1"; `ih_interp.tasks.omniglot` says which layer is taken. Images and weights
        are downloaded into `root` where they are missing.
        """
        from ih_interp.tasks.omniglot import omniglot_features

        root = as_path(root, "root")
        return cls(omniglot_features(root, network, n_exemplars=n_exemplars, seed=seed))

    def save(self, path: PathLike) -> "Exemplars":
        """Write `.npz`, whole or not at all; return the exemplars with that file as source."""
        path = as_path(path, "The path of a feature file")
        if path.suffix != ".npz":
            raise ValueError(f"Exemplars are saved as .npz; got {path}.")
        file = io.BytesIO()
        np.savez(file, features=self.settled.cpu().numpy())
        write_atomic(path, file.getvalue())
        return Exemplars.load(path)


def features_digest(features: Tensor) -> str:
    """Return the SHA-256 of shape and float32 bytes."""
    digest = hashlib.sha256(str(tuple(features.shape)).encode())
    digest.update(features.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _same_bits(kept: Tensor, features: Tensor) -> bool:
    a, b = ((each.shape, each.dtype, each.device) for each in (kept, features))
    return a == b and torch.equal(kept.view(torch.int32), features.detach().view(torch.int32))


def _as_float32(array: "np.ndarray | Tensor") -> Float[Tensor, "class exemplar feature"]:
    """Return real numbers as float32, in memory of their own; ValueError for other values."""
    if isinstance(array, Tensor):
        is_real = not (array.is_complex() or array.dtype == torch.bool)
    else:
        is_real = array.dtype.kind in "fiu"
    if array.ndim != 3 or not is_real:
        raise ValueError(
            f"the array is {array.dtype} of shape {tuple(array.shape)}; "
            "numbers of shape class x exemplar x feature were expected."
        )
    if isinstance(array, Tensor):
        return array.detach().to("cpu", torch.float32, copy=True)
    with np.errstate(over="ignore"):  # too large numbers become infinite, and are refused
        return torch.from_numpy(array.astype(np.float32, order="C"))


def _read(path: Path, dataset: str | None) -> tuple[str, np.ndarray]:
    """Return the array of a file and its name there."""
    if path.suffix == ".h5":
        name = OMNIGLOT_DATASET if dataset is None else dataset
        return name, read_h5(path, name)
    if path.suffix == ".npz":
        return read_npz(path, dataset)
    if dataset is not None:
        raise ValueError(f"{path} holds one array without a name; leave dataset={dataset!r} out.")
    return "", read_npy_file(path)


@functools.lru_cache(maxsize=16)
def _gaussian_digest(source: GaussianSource) -> str:
    return features_digest(_gaussian_features(source))


@plain_torch()
def _gaussian_features(source: GaussianSource) -> Float[Tensor, "class exemplar feature"]:
    between, within, norm, decay = 0.73, 0.88, 27.0, 1.16  # measured on Omniglot; see `gaussian`
    generator, n = torch.Generator().manual_seed(source.seed), source.n_features

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    basis = torch.linalg.qr(normal(n, n)).Q
    variances = torch.arange(1, n + 1, dtype=torch.float64) ** -decay
    spread = (variances / variances.sum()).sqrt()
    mean = normal(n)
    mean = mean / mean.norm() * between**0.5
    of_class = normal(source.n_classes, 1, n) * spread * (within - between) ** 0.5
    of_exemplar = normal(source.n_classes, source.n_exemplars, n) * spread * (1 - within) ** 0.5
    features = norm * (mean + (of_class + of_exemplar) @ basis.T)
    return ((features / GRAIN).round() * GRAIN).float()
