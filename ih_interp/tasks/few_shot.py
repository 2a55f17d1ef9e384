"""The few-shot task: pairs of exemplar and label, then a query that only its context can label.

A sequence is `x1 l1 x2 l2 ... xq`. The query's class stands in the context with its label; the
labels are drawn anew for every sequence, so that nothing but an induction circuit can tell them.
"""

import itertools
import math
from functools import cached_property
from typing import Literal, TypeAlias, get_args

import torch
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from torch import Tensor

from ih_interp._config_base import Frozen
from ih_interp._torch_state import plain_torch
from ih_interp.tasks.exemplars import Exemplars
from ih_interp.tasks.sampling import MAX_ENUMERATED, label_split, members_with, without_repetition
from ih_interp.types import Batch, Layout, as_indices, expect, integer

Split: TypeAlias = Literal["train", "test_exemplars", "test_relabel", "other_exemplars"]
"""`train`; `test_exemplars`: unseen classes (the paper's "test (exemplars)"); `test_relabel`: label
sets held out of training ("test (relabel)"); `other_exemplars`: unseen drawings of seen classes."""

SPLITS: tuple[Split, ...] = get_args(Split)


class TaskConfig(Frozen):
    """What is drawn; defaults are the paper's (Singh et al. 2024, and its published code)."""

    n_train_classes: int = Field(default=50, ge=2)
    """Classes trained on, the first ones of the file."""
    n_labels: int = Field(default=5, ge=2, le=100_000)
    """Labels that a context's classes are given, anew in every sequence; also the logits."""
    n_pairs: int = Field(default=2, ge=2, le=10_000)
    """(exemplar, label) pairs in the context."""
    n_copies: int = Field(default=1, ge=1)
    """How many of them show the query's class; the others show one class each."""
    n_train_exemplars: int = Field(default=1, ge=1)
    """Drawings of a class seen in training; with 1 the query equals its copy in the context."""
    n_test_classes: int | None = Field(default=None, ge=0)
    """Unseen classes, the last ones of the file; None takes up to 100 of those not trained on."""
    held_out_labels: float = Field(default=0.2, ge=0, lt=1)
    """Share of the label sets kept out of training."""
    label_split_seed: int = Field(default=20, ge=0, lt=2**32)
    """Draws which label sets are held out."""

    @model_validator(mode="after")
    def _fits(self) -> "TaskConfig":
        if self.n_copies >= self.n_pairs:
            raise ValueError(
                f"n_copies={self.n_copies} leaves no other class in n_pairs={self.n_pairs}; "
                "lower n_copies."
            )
        if self.n_context_classes > self.n_labels:
            raise ValueError(
                f"{self.n_context_classes} classes in the context need as many labels; "
                f"n_labels={self.n_labels} is too few."
            )
        if self.n_context_classes > self.n_train_classes:
            raise ValueError(
                f"{self.n_context_classes} classes in the context need n_train_classes of at least "
                f"that; got {self.n_train_classes}."
            )
        return self

    @property
    def n_context_classes(self) -> int:
        """Distinct classes, and labels, in a context."""
        return self.n_pairs - self.n_copies + 1


class FewShotTask:
    """Sequences of a `TaskConfig` over given exemplars.

    Tokens: label `l` is token `l`; exemplar `e` of class `c` is `n_labels + c * n_exemplars + e`.
    """

    def __init__(self, exemplars: Exemplars, config: TaskConfig | None = None) -> None:
        expect(exemplars, Exemplars, "Exemplars", "load a file with ih.Exemplars.load(path)")
        self.exemplars = exemplars
        self.config = config = TaskConfig() if config is None else config
        expect(config, TaskConfig, "The task's configuration", "write ih.TaskConfig(...)")
        left = exemplars.n_classes - config.n_train_classes
        if left < 0:
            raise ValueError(
                f"n_train_classes={config.n_train_classes} but there are exemplars of only "
                f"{exemplars.n_classes} classes; lower it or load more."
            )
        if config.n_test_classes is not None and config.n_test_classes > left:
            raise ValueError(
                f"n_test_classes={config.n_test_classes} but training leaves {left} of "
                f"{exemplars.n_classes} classes; lower it or load more."
            )
        if config.n_train_exemplars > exemplars.n_exemplars:
            raise ValueError(
                f"n_train_exemplars={config.n_train_exemplars} but each class has "
                f"{exemplars.n_exemplars}; lower it."
            )
        self.n_test_classes = (
            min(100, left) if config.n_test_classes is None else config.n_test_classes
        )
        self.layout = Layout(config.n_pairs)
        self.train_label_sets, self.test_label_sets = label_split(
            config.n_labels,
            config.n_context_classes,
            config.held_out_labels,
            config.label_split_seed,
        )

    def __repr__(self) -> str:
        return f"FewShotTask({self.exemplars!r}, {self.config!r})"

    @property
    def n_labels(self) -> int:
        return self.config.n_labels

    @property
    def d_vocab(self) -> int:
        """Labels and exemplars."""
        return self.n_labels + self.exemplars.n_classes * self.exemplars.n_exemplars

    @cached_property
    def splits(self) -> tuple[Split, ...]:
        """The splits that have sequences: some need unseen classes, drawings or label sets."""
        return tuple(split for split in SPLITS if self._missing(split) is None)

    def token(
        self, class_index: Int[Tensor, "*shape"], exemplar_index: Int[Tensor, "*shape"]
    ) -> Int[Tensor, "*shape"]:
        """Token ids of exemplars."""
        return self.n_labels + class_index.long() * self.exemplars.n_exemplars + exemplar_index

    @plain_torch()
    def exemplar_tokens(self, split: Split) -> Int[Tensor, " token"]:
        """Tokens of every exemplar that the split can show; ValueError for an empty split."""
        classes, exemplars, _ = self._split(split)
        return self.token(*torch.meshgrid(classes, exemplars, indexing="ij")).flatten()

    @plain_torch()
    def batch(
        self,
        class_index: Int[Tensor, "batch item"],
        exemplar_index: Int[Tensor, "batch item"],
        label: Int[Tensor, "batch item"],
    ) -> Batch:
        """Explicit sequences: items are the pairs in order, then the query, its label the target.

        Raises TypeError for what is no tensor, ValueError for indices that are no integers, are out
        of range, or are other than `[batch, n_pairs + 1]`.
        """
        items = self.config.n_pairs + 1
        class_index = _indices("class_index", class_index, items, self.exemplars.n_classes)
        exemplar_index = _indices(
            "exemplar_index", exemplar_index, items, self.exemplars.n_exemplars
        )
        label = _indices("label", label, items, self.n_labels)
        if not len(class_index) == len(exemplar_index) == len(label):
            raise ValueError(
                f"class_index, exemplar_index and label are {len(class_index)}, "
                f"{len(exemplar_index)} and {len(label)} sequences; as many of each were expected."
            )
        tokens = self.token(class_index, exemplar_index)
        pairs = torch.stack([tokens[:, :-1], label[:, :-1]], dim=-1).flatten(start_dim=1)
        sequences = torch.cat([pairs, tokens[:, -1:]], dim=1)
        return Batch(sequences, label[:, -1], self.exemplars)

    @plain_torch()
    def sample(
        self,
        split: Split,
        n: int,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> Batch:
        """Draw `n` sequences with replacement, from a generator that goes on, or from a seed.

        The query's class, then the others, uniform over the split's classes without repetition; the
        labels a uniform draw from the split's label sets, in uniform order; the context in uniform
        order; drawings uniform and independent. `seed=0` draws what a new generator of seed 0 does.
        Raises ValueError for an empty split, TypeError unless a generator or a seed is given.
        """
        n = integer(n, f"n={n!r}")
        generator = _generator(generator, seed)
        if not 0 <= n <= MAX_ENUMERATED:
            raise ValueError(f"n={n}; up to {MAX_ENUMERATED:,} sequences can be drawn.")
        classes, exemplars, label_sets = self._split(split)
        k = self.config.n_context_classes

        def draw(high: int) -> Int[Tensor, " n"]:
            return torch.randint(high, (n,), generator=generator)

        def shuffled(size: int) -> Int[Tensor, "n size"]:
            return torch.rand(n, size, generator=generator).argsort(dim=1)

        chosen = without_repetition([draw(len(classes) - i) for i in range(k)])
        labels = label_sets[draw(len(label_sets))].gather(1, shuffled(k))
        member = self._members[shuffled(self.config.n_pairs)]
        member = torch.cat([member, torch.zeros(n, 1, dtype=torch.int64)], dim=1)
        which = torch.randint(len(exemplars), member.shape, generator=generator)
        return self.batch(
            classes[chosen].gather(1, member), exemplars[which], labels.gather(1, member)
        )

    def n_sequences(self, split: Split = "train") -> int:
        """Return how many different sequences the split has: 78,400 for the paper's task.

        Ordered choices of classes x ordered label sets x places of the query's class in the context
        x drawings.
        """
        classes, exemplars, label_sets = self._split(split)
        config = self.config
        k, items = config.n_context_classes, config.n_pairs + 1
        orders = len(label_sets) * math.factorial(k) * math.comb(config.n_pairs, config.n_copies)
        return math.perm(len(classes), k) * orders * len(exemplars) ** items

    @plain_torch()
    def enumerate(self, split: Split = "train") -> Batch:
        """Return every sequence of the split once, `n_sequences` of them.

        Raises ValueError above 10 million sequences; `sample` those.
        """
        size, config = self.n_sequences(split), self.config
        if size > MAX_ENUMERATED:
            raise ValueError(
                f"{split!r} has {number(size)} sequences, too many to list; use sample, as "
                f"task.sample({split!r}, 1_000, seed=0)."
            )
        classes, exemplars, label_sets = self._split(split)
        k, items = config.n_context_classes, config.n_pairs + 1
        places = list(itertools.combinations(range(config.n_pairs), config.n_copies))
        chosen = torch.tensor(list(itertools.permutations(classes.tolist(), k)))
        labels = torch.tensor([p for s in label_sets.tolist() for p in itertools.permutations(s)])
        member = torch.tensor([members_with(place, config.n_pairs) for place in places])
        drawing = torch.tensor(list(itertools.product(exemplars.tolist(), repeat=items)))
        axes = (len(chosen), len(labels), len(member), len(drawing))
        c, l, m, d = torch.unravel_index(torch.arange(size), axes)  # noqa: E741
        members = torch.cat([member[m], torch.zeros(size, 1, dtype=torch.int64)], dim=1)
        return self.batch(chosen[c].gather(1, members), drawing[d], labels[l].gather(1, members))

    @cached_property
    def _members(self) -> Int[Tensor, " pair"]:
        """Which of the context's classes each pair shows before shuffling; 0 is the query's."""
        return torch.tensor(members_with(tuple(range(self.config.n_copies)), self.config.n_pairs))

    def _missing(self, split: Split) -> str | None:
        """Why a split has no sequences, or None."""
        k = self.config.n_context_classes
        if split == "test_exemplars" and self.n_test_classes < k:
            return f"it needs {k} unseen classes and {self.n_test_classes} are left"
        if split == "test_relabel" and len(self.test_label_sets) == 0:
            return "no label set is held out; raise n_labels or held_out_labels"
        if (
            split == "other_exemplars"
            and self.exemplars.n_exemplars == self.config.n_train_exemplars
        ):
            return "every drawing of a class is trained on; lower n_train_exemplars"
        return None

    def _split(self, split: Split) -> tuple[Tensor, Tensor, Tensor]:
        """Classes, drawings and label sets of a split."""
        expect(split, str, f"split={split!r}")
        if split not in SPLITS:
            raise ValueError(f"{split!r} is no split; choose from {', '.join(SPLITS)}.")
        reason = self._missing(split)
        if reason is not None:
            raise ValueError(f"The split {split!r} is empty: {reason}.")
        n_classes, n_train = self.exemplars.n_classes, self.config.n_train_exemplars
        unseen_classes = split == "test_exemplars"
        unseen_drawings = split == "other_exemplars"
        start = n_classes - self.n_test_classes if unseen_classes else 0
        stop = n_classes if unseen_classes else self.config.n_train_classes
        sets = self.test_label_sets if split == "test_relabel" else self.train_label_sets
        return (
            torch.arange(start, stop),
            torch.arange(n_train, self.exemplars.n_exemplars)
            if unseen_drawings
            else torch.arange(n_train),
            torch.from_numpy(sets),
        )


def number(count: int) -> str:
    """Return a count in words; Python refuses to write one of thousands of digits."""
    return f"{count:,}" if count < 10**15 else f"10^{math.log10(count):.1f}"


def _generator(generator: torch.Generator | None, seed: int | None) -> torch.Generator:
    """The generator to draw from; TypeError where neither came, or both."""
    if (generator is None) == (seed is None):
        raise TypeError(
            "Sequences are drawn from a seed or a generator; give seed=0, or, to go on drawing, "
            "generator=torch.Generator().manual_seed(0)."
        )
    if seed is not None:
        seed = integer(seed, f"seed={seed!r}")
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed={seed}: a whole number from 0 to 2^63 - 1 was expected.")
        return torch.Generator().manual_seed(seed)
    expect(generator, torch.Generator, "generator", "use torch.Generator().manual_seed(0)")
    return generator  # pyright: ignore[reportReturnType]  # expect has refused None


def _indices(name: str, index: object, items: int, size: int) -> Int[Tensor, "batch item"]:
    """The indices as int64, in which no token overflows; refused unless they are indices."""
    if not isinstance(index, Tensor):
        raise TypeError(f"{name} is {type(index).__name__}; pass a tensor, torch.tensor(...).")
    index = as_indices(index, name)
    if index.ndim != 2 or index.shape[1] != items:
        raise ValueError(
            f"{name} has shape {tuple(index.shape)}; [batch, {items}] was expected: "
            f"{items - 1} pairs, then the query."
        )
    if len(index) and not (int(index.min()) >= 0 and int(index.max()) < size):
        raise ValueError(
            f"{name} runs from {int(index.min())} to {int(index.max())}; "
            f"it must lie in [0, {size})."
        )
    return index


def features_by_token(exemplars: Exemplars) -> Float[Tensor, "row feature"]:
    """Features in token order: row `i` belongs to token `n_labels + i`."""
    return exemplars.settled.flatten(end_dim=1)
