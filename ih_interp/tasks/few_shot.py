"""The few-shot task: pairs of exemplar and label, then a query that only its context can label.

A sequence is `x1 l1 x2 l2 ... xq`. The context holds the query's class with its label; labels are
sampled anew for every sequence, so that only an induction circuit can predict them.
"""

import itertools
import math
from functools import cached_property
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import torch
from jaxtyping import Int
from pydantic import Field, model_validator
from torch import Tensor

from ih_interp._expect import expect
from ih_interp._torch_state import plain_torch
from ih_interp.batch import Batch
from ih_interp.tasks.exemplars import Exemplars
from ih_interp.tasks.pairs import Items, PairsConfig, PairsTask
from ih_interp.tasks.sampling import MAX_ENUMERATED, label_split, without_repetition

Split: TypeAlias = Literal["train", "test_exemplars", "test_relabel", "other_exemplars"]
"""`train`; `test_exemplars`: unseen classes (the paper's "test (exemplars)"); `test_relabel`: label
sets held out of training ("test (relabel)"); `other_exemplars`: other exemplars of seen classes."""

SPLITS: tuple[Split, ...] = get_args(Split)


class TaskConfig(PairsConfig):
    """The few-shot task; defaults are those of Singh et al. 2024 and its published code.

    `build` loads the exemplars and returns the `FewShotTask` that samples.
    """

    kind: Literal["few_shot"] = "few_shot"
    splits: ClassVar[tuple[str, ...]] = SPLITS

    n_labels: int = Field(default=5, ge=2, le=100_000)
    """Labels, of which every sequence gives its classes some at random; also the logits."""
    n_copies: int = Field(default=1, ge=1)
    """Pairs that show the query's class; the others show one class each."""
    n_test_classes: int | None = Field(default=None, ge=0)
    """Unseen classes, the last ones of the file; None takes up to 100 of those not trained on."""
    held_out_labels: float = Field(default=0.2, ge=0, lt=1)
    """Share of the label sets kept out of training."""
    label_split_seed: int = Field(default=20, ge=0, lt=2**32)
    """The seed of the choice of label sets to hold out."""

    @model_validator(mode="after")
    def _fits(self) -> "TaskConfig":
        if self.n_copies >= self.n_pairs:
            raise ValueError(
                f"n_copies={self.n_copies}: expected fewer than n_pairs={self.n_pairs}, so that "
                "the context holds another class."
            )
        k = self.n_context_classes
        for name, n in (("n_labels", self.n_labels), ("n_train_classes", self.n_train_classes)):
            if n < k:
                raise ValueError(f"{name}={n}: expected at least {k}, the classes in a context.")
        return self

    @property
    def n_context_classes(self) -> int:
        """The number of distinct classes, and labels, in a context."""
        return self.n_pairs - self.n_copies + 1

    @property
    def d_vocab_out(self) -> int:
        return self.n_labels

    def structure(self) -> Any:
        return self.model_dump(mode="json", exclude={"label_split_seed", "n_test_classes"})

    def over(self, exemplars: Exemplars) -> "FewShotTask":
        return FewShotTask(exemplars, self)


class FewShotTask(PairsTask):
    """Sequences of a `TaskConfig` over given exemplars.

    The query's class and then the others are uniform over the split's classes without repetition;
    the label set is uniform over the split's, in uniform order; the order of the context is
    uniform; exemplars are uniform and independent.

    Tokens: label `l` is token `l`; exemplar `e` of class `c` is `n_labels + c * n_exemplars + e`.
    """

    def __init__(self, exemplars: Exemplars, config: TaskConfig | None = None) -> None:
        config = TaskConfig() if config is None else config
        expect(config, TaskConfig, "The task's configuration", "write ih.TaskConfig(...)")
        super().__init__(exemplars, config)
        left, n_test = exemplars.n_classes - config.n_train_classes, config.n_test_classes
        self._refuse_more("n_test_classes", n_test or 0, left)
        self.n_test_classes = min(100, left) if n_test is None else n_test
        sizes = (config.n_labels, config.n_context_classes, config.held_out_labels)
        sets = label_split(*sizes, config.label_split_seed)
        self.train_label_sets, self.test_label_sets = sets

    @cached_property
    def splits(self) -> tuple[Split, ...]:
        """The splits that are not empty: some need unseen classes, exemplars or label sets."""
        return tuple(split for split in SPLITS if self._missing(split) is None)

    @plain_torch()
    def exemplar_tokens(self, split: Split) -> Int[Tensor, " token"]:
        """Return the tokens that the split can show; ValueError for an empty split."""
        classes, exemplars, _ = self._split(split)
        return self.token(*torch.meshgrid(classes, exemplars, indexing="ij")).flatten()

    def _items(
        self, split: Split, n: int, generator: torch.Generator
    ) -> tuple[Items, Items, Items]:
        classes, exemplars, label_sets = self._split(split)
        k = self.config.n_context_classes

        def draw(high: int) -> Int[Tensor, " n"]:
            return torch.randint(high, (n,), generator=generator)

        def shuffled(size: int) -> Int[Tensor, "n size"]:
            return torch.rand(n, size, generator=generator).argsort(dim=1)

        chosen = without_repetition([draw(len(classes) - i) for i in range(k)])
        labels = label_sets[draw(len(label_sets))].gather(1, shuffled(k))
        # The class that each pair of the context shows; 0 is the query's.
        in_order = (torch.arange(self.config.n_pairs) - self.config.n_copies + 1).clamp(min=0)
        member = in_order[shuffled(self.config.n_pairs)]
        member = torch.cat([member, torch.zeros(n, 1, dtype=torch.int64)], dim=1)
        which = torch.randint(len(exemplars), member.shape, generator=generator)
        return classes[chosen].gather(1, member), exemplars[which], labels.gather(1, member)

    def n_sequences(self, split: Split = "train") -> int:
        """Return the number of different sequences of the split: 78,400 for the paper's task.

        It is the product of the numbers of ordered classes, ordered labels, places of the query's
        class in the context, and exemplars.
        """
        classes, exemplars, label_sets = self._split(split)
        config = self.config
        k, items = config.n_context_classes, config.n_pairs + 1
        orders = len(label_sets) * math.factorial(k) * math.comb(config.n_pairs, config.n_copies)
        return math.perm(len(classes), k) * orders * len(exemplars) ** items

    @plain_torch()
    def enumerate(self, split: Any = "train") -> Batch:
        """Return every sequence of the split once; ValueError above 10 million: `sample` those."""
        size, config = self.n_sequences(split), self.config
        if size > MAX_ENUMERATED:
            raise ValueError(
                f"{split!r} has {number(size)} sequences, too many to list; use sample, as "
                f"task.sample({split!r}, 1_000, seed=0)."
            )
        classes, exemplars, label_sets = self._split(split)
        k, items = config.n_context_classes, config.n_pairs + 1
        places = list(itertools.combinations(range(config.n_pairs), config.n_copies))
        others = torch.ones(len(places), config.n_pairs, dtype=torch.int64)
        others.scatter_(1, torch.tensor(places), 0)
        chosen = torch.tensor(list(itertools.permutations(classes.tolist(), k)))
        labels = torch.tensor([p for s in label_sets.tolist() for p in itertools.permutations(s)])
        member = others.cumsum(dim=1) * others
        images = torch.tensor(list(itertools.product(exemplars.tolist(), repeat=items)))
        axes = (len(chosen), len(labels), len(member), len(images))
        c, l, m, d = torch.unravel_index(torch.arange(size), axes)  # noqa: E741
        members = torch.cat([member[m], torch.zeros(size, 1, dtype=torch.int64)], dim=1)
        return self.batch(chosen[c].gather(1, members), images[d], labels[l].gather(1, members))

    def _parts(self, split: Split) -> tuple[Tensor, Tensor, Tensor]:
        """Return the classes, exemplars and label sets of a split; any of them may be empty."""
        n_classes, n_train = self.exemplars.n_classes, self.config.n_train_exemplars
        classes = torch.arange(self.config.n_train_classes)
        if split == "test_exemplars":
            classes = torch.arange(n_classes - self.n_test_classes, n_classes)
        exemplars = torch.arange(self.exemplars.n_exemplars)
        exemplars = exemplars[n_train:] if split == "other_exemplars" else exemplars[:n_train]
        sets = self.test_label_sets if split == "test_relabel" else self.train_label_sets
        return classes, exemplars, torch.from_numpy(sets)

    def _missing(self, split: Split) -> str | None:
        """Return why a split has no sequences, or None."""
        (classes, exemplars, label_sets), k = self._parts(split), self.config.n_context_classes
        if len(classes) < k:
            return f"it needs {k} unseen classes and {len(classes)} are left"
        if len(label_sets) == 0:
            return "no label set is held out; raise n_labels or held_out_labels"
        if len(exemplars) == 0:
            return "every exemplar of a class is trained on; lower n_train_exemplars"
        return None

    def _split(self, split: Split) -> tuple[Tensor, Tensor, Tensor]:
        """Return the classes, exemplars and label sets of a split; ValueError for an empty one."""
        expect(split, str, f"split={split!r}")
        if split not in SPLITS:
            raise ValueError(f"split={split!r}: choose from {', '.join(SPLITS)}.")
        if (reason := self._missing(split)) is not None:
            raise ValueError(f"The split {split!r} is empty: {reason}.")
        return self._parts(split)


def number(count: int) -> str:
    """Return a count as text; Python refuses to write one of thousands of digits."""
    return f"{count:,}" if count < 10**15 else f"10^{math.log10(count):.1f}"
