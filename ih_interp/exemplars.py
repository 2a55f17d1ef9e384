"""Exemplar features: synthetic ones with the geometry of real ones, and real ones from a file."""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import h5py
import numpy as np
import torch
from jaxtyping import Float
from numpy.lib.npyio import NpzFile
from pydantic import Field
from torch import Tensor

from ih_interp.files import write_atomic
from ih_interp.frozen import Frozen

GRAIN = 2**-12  # synthetic features are multiples of it: every machine gets the same bits
OMNIGLOT_DATASET = "resnet18/224/feat"  # where the published code's feature file keeps them


class GaussianSource(Frozen):
    """Recipe of `Exemplars.gaussian`; the same recipe gives the same features."""

    kind: Literal["gaussian"] = "gaussian"
    n_classes: int = Field(default=200, ge=2)
    n_exemplars: int = Field(default=5, ge=1)
    n_features: int = Field(default=512, ge=1)
    seed: int = Field(default=0, ge=0)


class FileSource(Frozen):
    """Features in a file, with the digest that says whether it is still the same file."""

    kind: Literal["file"] = "file"
    path: str
    """As `Exemplars.load` found it: absolute, so that it holds in any working directory."""
    dataset: str
    sha256: str


ExemplarSource: TypeAlias = Annotated[GaussianSource | FileSource, Field(discriminator="kind")]
"""Where features came from, as a run records it."""


@dataclass(frozen=True, eq=False)
class Exemplars:
    """Frozen features of a few drawings (exemplars) of each of many characters (classes)."""

    features: Float[Tensor, "class exemplar feature"]
    """float32, finite; the model projects them and never trains them."""

    source: GaussianSource | FileSource | None = None
    """How to get them again; None for an array that only this process has."""

    def __post_init__(self) -> None:
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
        between classes and 0.88 within one, that norm 27 (as of measured features). The common mean
        and the decaying spectrum are what makes training pause near ln 2 before the phase change:
        isotropic features slide down without a plateau.

        Shape `[n_classes, n_exemplars, n_features]`. Raises ValueError for fewer than 2
        classes or other sizes below 1.
        """
        source = GaussianSource(
            n_classes=n_classes, n_exemplars=n_exemplars, n_features=n_features, seed=seed
        )
        return cls(_gaussian_features(source), source)

    @classmethod
    def load(cls, path: str | Path, dataset: str | None = None) -> "Exemplars":
        """Read features `[class, exemplar, feature]` from `.h5` or `.npz`.

        `dataset` names the array: by default "resnet18/224/feat" in `.h5`, as the published code's
        file, and "features" in `.npz`. Nothing is unpickled. Raises FileNotFoundError for a missing
        file, ValueError for one that cannot be read, lacks the array or holds bad values.
        """
        path = Path(path)
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
        features = torch.from_numpy(array.astype(np.float32))
        digest = features_digest(features)
        source = FileSource(path=str(path.resolve()), dataset=name, sha256=digest)
        return cls(features, source)

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
    def omniglot(cls, root: str | Path, n_exemplars: int = 5, seed: int = 0) -> "Exemplars":
        """ResNet18 features of Omniglot's 1,623 characters, by torchvision (`[omniglot]` extra).

        See `ih_interp.omniglot`; downloads images and weights into `root` where they are missing.
        """
        from ih_interp.omniglot import resnet18_features

        return cls(resnet18_features(Path(root), n_exemplars=n_exemplars, seed=seed))

    def save(self, path: str | Path) -> "Exemplars":
        """Write `.npz`, whole or not at all; the same exemplars with that file as their source."""
        path = Path(path)
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


def _gaussian_features(source: GaussianSource) -> Float[Tensor, "class exemplar feature"]:
    between, within, norm, decay = 0.73, 0.88, 27.0, 1.16  # measured on Omniglot; see `gaussian`
    generator = torch.Generator().manual_seed(source.seed)
    n = source.n_features

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


def _read_h5(path: Path, dataset: str) -> np.ndarray:
    try:
        with h5py.File(path, "r") as file:
            found = file.get(dataset)
            if not isinstance(found, h5py.Dataset):
                raise ValueError(f"{path} has no dataset {dataset!r}; it holds {list(file)}.")
            return np.asarray(found[()])
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} cannot be read as HDF5, it may be cut short: {error}") from error


def _read_npz(path: Path, dataset: str) -> np.ndarray:
    try:
        with path.open("rb") as file, NpzFile(file, allow_pickle=False) as arrays:
            if dataset in arrays:
                return np.asarray(arrays[dataset])
            names = sorted(arrays)
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as .npz, it may be cut short: {error}") from error
    raise ValueError(f"{path} has no array {dataset!r}; it holds {names}.")
