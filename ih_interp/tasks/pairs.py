"""The base of tasks of exemplars and labels: sequences `x1 l1 ... xq` over given exemplars."""

from abc import abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor

from ih_interp._config_base import Frozen
from ih_interp._expect import as_indices, expect
from ih_interp._torch_state import plain_torch
from ih_interp.batch import Answers, Batch, Layout
from ih_interp.tasks.base import (
    AbstractTask,
    SequenceMetric,
    Task,
    as_generator,
    not_listed,
    sample_size,
)
from ih_interp.tasks.exemplars import Exemplars, ExemplarSource, FileSource, GaussianSource

Items: TypeAlias = Int[Tensor, "batch item"]
"""One number for every pair of a sequence, and then for its query."""


class PairsConfig(AbstractTask):
    """The base of tasks whose sequences are pairs of exemplar and label, and a query to label."""

    asks_last: ClassVar[bool] = True

    exemplars: ExemplarSource | None = GaussianSource()
    """The source of features; where `ih.Exemplars` are given, theirs is recorded. None for features
    that only this process has."""
    n_train_classes: int = Field(default=50, ge=2)
    """Classes trained on, the first ones of the file."""
    n_pairs: int = Field(default=2, ge=2, le=10_000)
    """(exemplar, label) pairs in the context."""
    n_train_exemplars: int = Field(default=1, ge=1)
    """Exemplars of a class seen in training; with 1 the query equals its copy in the context."""

    @field_validator("exemplars", mode="before")
    @classmethod
    def _source_of(cls, value: object) -> object:
        if isinstance(value, Exemplars):
            return value.recorded_source
        if value is not None and not isinstance(value, Frozen | Mapping):
            raise ValueError(
                f"exemplars={value!r}: expected exemplars or their source, "
                "ih.Exemplars.gaussian(...) or ih.Exemplars.load(path)."
            )
        return value

    @abstractmethod
    def over(self, exemplars: Exemplars) -> "PairsTask":
        """Return the task that draws sequences over these exemplars."""

    @property
    def d_vocab(self) -> int:
        return self.build().d_vocab

    @property
    @abstractmethod
    def d_vocab_out(self) -> int:
        """The number of labels."""

    @property
    def n_ctx(self) -> int:
        return 2 * self.n_pairs + 1

    def sample(self, split: str, n: int, *, generator: torch.Generator) -> Batch:
        """Load the exemplars and draw `n` sequences."""
        return self.build().sample(split, n, generator=generator)

    def build(self) -> "PairsTask":
        if self.exemplars is None:
            raise ValueError(
                "The exemplars of this task have no source: save them first, exemplars = "
                f"exemplars.save(path), and give {type(self).__name__}(exemplars=exemplars)."
            )
        return self.over(Exemplars.from_source(self.exemplars))

    @property
    def identity(self) -> "PairsConfig":
        """Return what the numbers depend on: no places of files with known digests."""
        if isinstance(self.exemplars, FileSource):
            return self.replace(exemplars=self.exemplars.model_copy(update={"path": ""}))
        return self


class PairsTask:
    """The base of what draws sequences of a `PairsConfig` over given exemplars.

    Tokens: label `l` is token `l`; exemplar `e` of class `c` is `n_labels + c * n_exemplars + e`.
    """

    asks_last = True
    metrics: Mapping[str, SequenceMetric] = MappingProxyType({})
    splits: tuple[str, ...]

    def __init__(self, exemplars: Exemplars, config: PairsConfig) -> None:
        expect(exemplars, Exemplars, "Exemplars", "load a file with ih.Exemplars.load(path)")
        self.exemplars = exemplars
        self.config: Any = config.model_copy(update={"exemplars": exemplars.source})
        for name, n, most in (
            ("n_train_classes", config.n_train_classes, exemplars.n_classes),
            ("n_train_exemplars", config.n_train_exemplars, exemplars.n_exemplars),
        ):
            self._refuse_more(name, n, most)
        self.layout = Layout(config.n_pairs)

    def _refuse_more(self, name: str, n: int, most: int) -> None:
        if n > most:
            raise ValueError(
                f"{name}={n}: expected up to {most} of {self.exemplars.n_classes} classes of "
                f"{self.exemplars.n_exemplars} exemplars each; lower it or load more."
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.exemplars!r}, {self.config!r})"

    @property
    def n_labels(self) -> int:
        return self.config.d_vocab_out

    @property
    def d_vocab(self) -> int:
        """The number of tokens: labels and exemplars."""
        return self.n_labels + self.exemplars.n_classes * self.exemplars.n_exemplars

    @property
    def d_vocab_out(self) -> int:
        """The number of labels."""
        return self.n_labels

    @property
    def n_ctx(self) -> int:
        """The number of positions: pairs, and the query."""
        return self.layout.n_positions

    def answers(self, tokens: Tensor, targets: Tensor) -> Answers:
        """Return the labels of the context that equal the query's target."""
        return self.layout.answers(tokens, targets)

    def candidates(self, tokens: Tensor, targets: Tensor) -> Answers:
        """Return the labels of the context, for the query."""
        return self.layout.candidates(tokens, targets)

    @plain_torch()
    def sample(
        self,
        split: str,
        n: int,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> Batch:
        """Sample `n` sequences with replacement, from a generator, or from a new one of a seed.

        Raises ValueError for a split that the task lacks or that is empty, TypeError unless either
        a generator or a seed is given.
        """
        return self.batch(*self._items(split, sample_size(n), as_generator(generator, seed)))

    def enumerate(self, split: Any) -> Batch:
        """Return every sequence of the split once; ValueError where the task does not list them."""
        raise not_listed(self, split)

    @abstractmethod
    def _items(self, split: Any, n: int, generator: torch.Generator) -> tuple[Items, Items, Items]:
        """Draw the classes, exemplars and labels of the pairs in order, and then of the query."""

    @abstractmethod
    def exemplar_tokens(self, split: Any) -> Int[Tensor, " token"]:
        """Return the tokens of exemplars that the split can show."""

    def token(
        self, class_index: Int[Tensor, "*shape"], exemplar_index: Int[Tensor, "*shape"]
    ) -> Int[Tensor, "*shape"]:
        """Return the tokens of exemplars."""
        return self.n_labels + class_index.long() * self.exemplars.n_exemplars + exemplar_index

    @plain_torch()
    def batch(
        self,
        class_index: Int[Tensor, "batch item"],
        exemplar_index: Int[Tensor, "batch item"],
        label: Int[Tensor, "batch item"],
    ) -> Batch:
        """Return the sequences of these items: the pairs in order, then the query and its label.

        Raises TypeError for values that are not tensors, ValueError for indices that are not
        integers, are out of range, or are other than `[batch, n_pairs + 1]`.
        """
        items, shown = self.config.n_pairs + 1, self.exemplars
        class_index = _indices("class_index", class_index, items, shown.n_classes)
        exemplar_index = _indices("exemplar_index", exemplar_index, items, shown.n_exemplars)
        label = _indices("label", label, items, self.n_labels)
        if not len(class_index) == len(exemplar_index) == len(label):
            raise ValueError(
                f"class_index, exemplar_index and label are {len(class_index)}, "
                f"{len(exemplar_index)} and {len(label)} sequences: expected equal numbers."
            )
        tokens = self.token(class_index, exemplar_index)
        pairs = torch.stack([tokens[:, :-1], label[:, :-1]], dim=-1).flatten(start_dim=1)
        sequences = torch.cat([pairs, tokens[:, -1:]], dim=1)
        return Batch(sequences, label[:, -1], task=self)


def _indices(name: str, index: object, items: int, size: int) -> Int[Tensor, "batch item"]:
    """Return the indices as int64, so that no token overflows; refuse wrong ones."""
    if not isinstance(index, Tensor):
        raise TypeError(f"{name} is {type(index).__name__}; pass a tensor, torch.tensor(...).")
    index = as_indices(index, name)
    if index.ndim != 2 or index.shape[1] != items:
        raise ValueError(
            f"{name} has shape {tuple(index.shape)}: expected [batch, {items}], "
            f"{items - 1} pairs and then the query."
        )
    if len(index) and not (int(index.min()) >= 0 and int(index.max()) < size):
        raise ValueError(
            f"{name} runs from {int(index.min())} to {int(index.max())}: expected 0 to {size - 1}."
        )
    return index


def build_like(config: AbstractTask, other: Task) -> Task:
    """Build a task; one of exemplars takes those of another one of the same source."""
    if isinstance(config, PairsConfig) and isinstance(other, PairsTask):
        return config.over(other.exemplars)
    return config.build()


def features_by_token(exemplars: Exemplars) -> Float[Tensor, "row feature"]:
    """Return features in token order: row `i` belongs to token `n_labels + i`."""
    return exemplars.settled.flatten(end_dim=1)
