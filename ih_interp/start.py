"""Starts: the weights of a run before its first update, as values with a `kind`.

    ih.RunConfig(start=ih.start.FromRun(run="runs/main", step=500))

A start of your own is a subclass of `AbstractStart` with a `kind` and `weights`.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, TypeAlias, cast

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from ih_interp._config_base import short
from ih_interp.clamps.grafts import read_source
from ih_interp.hooked_model import HookedModel
from ih_interp.interop.icl_dynamics import load_icl_dynamics
from ih_interp.model import trained_parameters
from ih_interp.registry import Kinded
from ih_interp.storage.atomic import as_path
from ih_interp.tasks.base import Task
from ih_interp.tasks.few_shot import FewShotTask

Place: TypeAlias = Annotated[str, BeforeValidator(lambda path: str(as_path(path, "path")))]
"""A path as JSON has it; a `Path` may be given."""


class AbstractStart(Kinded):
    """A start: the weights before the first update. The optimiser's moments begin at 0."""

    family: ClassVar[str] = "start"

    @abstractmethod
    def weights(self, model: HookedModel, task: Task) -> Mapping[str, Tensor]:
        """Return a weight for every trained parameter of the model, which has the seed's."""

    def pinned(self) -> "AbstractStart":
        """Return the start with digests of the files that it reads, for a run to record."""
        return self

    @property
    def identity(self) -> "AbstractStart":
        """Return what the numbers depend on, without the paths of files whose digests it has."""
        return self


def starting_weights(start: AbstractStart, model: HookedModel, task: Task) -> dict[str, Tensor]:
    """Return a run's first weights; ValueError where they are not the model's."""
    own, given = trained_parameters(model), start.weights(model, task)
    if differing := sorted(set(own) ^ set(given)):
        raise ValueError(f"{start!r} has other weights than the model: {short(differing)}.")
    for name, weight in own.items():
        there, here = tuple(given[name].shape), tuple(weight.shape)
        if there != here:
            raise ValueError(f"{start!r}: {name} has shape {there}: expected the model's, {here}.")
        if not bool(given[name].isfinite().all()):
            raise ValueError(f"{start!r}: {name} holds NaN or infinity.")
    # Copies, in the order and of the layout of the model's own.
    return {n: torch.empty_like(w).copy_(given[n]) for n, w in own.items()}


class FromSeed(AbstractStart):
    """A start from weights drawn from `seeds.init`."""

    kind: Literal["seed"] = "seed"

    def weights(self, model: HookedModel, task: Task) -> Mapping[str, Tensor]:  # noqa: ARG002
        return trained_parameters(model)


class _Stored(AbstractStart):
    """A start from a file, bound to its content once a run is recorded."""

    sha256: str | None = None
    """Digest of what is read, which must be the same; None takes what is there."""
    places: ClassVar[dict[str, object]]
    """Its fields that say where the file lies, without which it is the same start."""

    @property
    @abstractmethod
    def digest(self) -> str:
        """The digest of what is there."""

    @abstractmethod
    def read(self, task: Task) -> Mapping[str, Tensor]:
        """Return the weights that are there."""

    @property
    def identity(self) -> "AbstractStart":
        return self if self.sha256 is None else self.model_copy(update=self.places)

    def weights(self, model: HookedModel, task: Task) -> Mapping[str, Tensor]:  # noqa: ARG002
        if self.sha256 not in (None, self.digest):
            raise ValueError(
                f"{self!r}: the weights there have the digest {self.digest}; restore those, or "
                "leave sha256 out to take these."
            )
        return self.read(task)

    def pinned(self) -> "AbstractStart":
        return self if self.sha256 else self.model_copy(update={"sha256": self.digest})


class FromRun(_Stored):
    """A start from a checkpoint of another run with a model of the same sizes."""

    positional: ClassVar = ("run", "step")
    places: ClassVar = {"run": ""}
    kind: Literal["run"] = "run"
    run: Place
    """That run's folder; it is read once, and need not be there afterwards."""
    step: int = Field(ge=0)
    """Which checkpoint of that run, in updates."""

    @property
    def digest(self) -> str:
        return read_source(Path(self.run), self.step).sha256

    def read(self, task: Task) -> Mapping[str, Tensor]:  # noqa: ARG002
        return read_source(Path(self.run), self.step).weights


class FromICLDynamics(_Stored):
    """A start from a checkpoint of the published code, for the task that it was trained on."""

    positional: ClassVar = ("path", "config")
    places: ClassVar = {"path": "", "config": None}
    kind: Literal["icl_dynamics"] = "icl_dynamics"
    path: Place
    """The `.eqx` file."""
    config: Place | None = None
    """Its `config.json`; None for the one beside it."""

    @property
    def digest(self) -> str:
        return hashlib.sha256(Path(self.path).read_bytes()).hexdigest()

    def read(self, task: Task) -> Mapping[str, Tensor]:
        config = Path(self.config or Path(self.path).with_name("config.json"))
        return trained_parameters(load_icl_dynamics(self.path, config, cast(FewShotTask, task)))
