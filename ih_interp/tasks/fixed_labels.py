"""Few-shot sequences whose labels are fixed: answers stand in the weights and in the context."""

from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Int
from pydantic import Field, model_validator
from torch import Tensor

from ih_interp._expect import expect
from ih_interp.tasks.base import refuse_other_split
from ih_interp.tasks.exemplars import Exemplars
from ih_interp.tasks.pairs import Items, PairsConfig, PairsTask

IN_CONTEXT = {"burstiness": 1, "distractor": True}
IN_WEIGHTS = {"burstiness": 0, "rest": "unique"}

OF_SPLIT: dict[str, dict[str, Any]] = {
    "train": {},
    "icl": {**IN_CONTEXT, "labels": "first_two"},
    "flip_icl": {**IN_CONTEXT, "labels": "flipped"},
    "pure_iwl": {**IN_WEIGHTS, "labels": "fixed"},
    "iwl_copy_avail": {**IN_WEIGHTS, "labels": "copy_available"},
}
"""The fields in which each split differs from the task."""


class FixedLabels(PairsConfig):
    """The few-shot task of Singh et al. (2025), in which a class has one label: its number.

    A network can answer from its weights or from the context, and splits tell which it does:

        train           the fields below ("train_eval" in the published code)
        icl             the query's class and another get labels 0 and 1 in random order
        flip_icl        the query's class and another exchange their labels, and so does the target
        pure_iwl        the context lacks the query's class and its label
        iwl_copy_avail  it lacks the class, and a random pair has the query's label

    The two in-context splits show both classes once, and fill the context up as training does. In
    the two in-weights splits all classes differ. Sequences whose context lacks the target have no
    `answers`, and NaN in the in-context metrics.
    """

    kind: Literal["fixed_labels"] = "fixed_labels"
    splits: ClassVar[tuple[str, ...]] = tuple(OF_SPLIT)

    burstiness: int = Field(default=1, ge=0)
    """Pairs of the query's class that are put into the context."""
    distractor: bool = True
    """Whether as many pairs of one other class are put there."""
    rest: Literal["free", "no_support", "unique"] = "free"
    """The context's other classes: any, never the query's, or all different and unlike those."""
    labels: Literal["fixed", "relabelled", "first_two", "flipped", "copy_available"] = "fixed"
    """The labels: fixed; the query's class and the distractor have two random ones, or the first
    two, or each other's; or a random pair has the query's label."""
    matched: bool = False
    """Whether the query's pairs show the query's own exemplar, and the distractor's share one."""
    zipf: float = Field(default=0.0, ge=0, le=4)
    """Exponent of the distribution of classes, p(rank) ~ rank ** -zipf; 0 is uniform."""

    @model_validator(mode="after")
    def _fits(self) -> "FixedLabels":
        n_put = self.burstiness * (1 + self.distractor)
        if n_put > self.n_pairs:
            raise ValueError(
                f"burstiness={self.burstiness}, distractor={self.distractor} put {n_put} pairs "
                f"into a context of n_pairs={self.n_pairs}; lower burstiness."
            )
        if self.n_train_classes <= self.n_pairs:
            raise ValueError(
                f"n_train_classes={self.n_train_classes}: expected more than n_pairs="
                f"{self.n_pairs}, as the classes of some sequences all differ."
            )
        if self.labels in ("relabelled", "first_two", "flipped") and not (
            self.burstiness and self.distractor
        ):
            raise ValueError(
                f"labels={self.labels!r}: expected burstiness of at least 1 and distractor=True, "
                "for two classes that get other labels."
            )
        return self

    def structure(self) -> Any:
        drawn = {"burstiness", "distractor", "rest", "labels", "matched", "zipf"}
        return self.model_dump(mode="json", exclude=drawn)

    @property
    def d_vocab_out(self) -> int:
        return self.n_train_classes

    def over(self, exemplars: Exemplars) -> "FixedLabelsTask":
        return FixedLabelsTask(exemplars, self)


class FixedLabelsTask(PairsTask):
    """Sequences of `FixedLabels` over given exemplars; tokens are as a `FewShotTask`'s."""

    splits = tuple(OF_SPLIT)

    def __init__(self, exemplars: Exemplars, config: FixedLabels) -> None:
        expect(config, FixedLabels, "The task's configuration", "write ih.tasks.FixedLabels(...)")
        super().__init__(exemplars, config)
        ranks = torch.arange(1, config.n_train_classes + 1, dtype=torch.float64)
        # Whole numbers, so that a class is left out exactly; every class has at least 1.
        self._mass = ((ranks**-config.zipf) * 2**40).long() + 1

    @cached_property
    def _tokens(self) -> Int[Tensor, " token"]:
        classes = torch.arange(self.config.n_train_classes)
        shown = torch.arange(self.config.n_train_exemplars)
        return self.token(*torch.meshgrid(classes, shown, indexing="ij")).flatten()

    def exemplar_tokens(self, split: Any) -> Int[Tensor, " token"]:
        refuse_other_split(self, split)
        return self._tokens

    def _items(self, split: Any, n: int, generator: torch.Generator) -> tuple[Items, Items, Items]:
        refuse_other_split(self, split)
        config: FixedLabels = self.config.replace(**OF_SPLIT[split])
        slots = self._slots(config)
        classes = self._classes(config, slots, n, generator)
        order = torch.rand(n, config.n_pairs, generator=generator).argsort(dim=1) + 1
        order = torch.cat([order, torch.zeros(n, 1, dtype=torch.int64)], dim=1)
        shape = (n, config.n_pairs + 1)
        shown = torch.randint(config.n_train_exemplars, shape, generator=generator)
        if config.matched:
            first = [slots.index(slot) if slot >= 0 else i for i, slot in enumerate(slots)]
            shown = shown[:, first]
        labels = self._labels(config, classes, generator)
        return classes.gather(1, order), shown.gather(1, order), labels.gather(1, order)

    @staticmethod
    def _slots(config: FixedLabels) -> list[int]:
        """Return what the query and each pair show: 0 its class, 1 the distractor, -1 the rest."""
        put = [0] * config.burstiness + [1] * config.burstiness * config.distractor
        return [0, *put, *[-1] * (config.n_pairs - len(put))]

    def _classes(
        self, config: FixedLabels, slots: list[int], n: int, generator: torch.Generator
    ) -> Items:
        """Draw the classes of the query and of every pair, before the context is shuffled."""
        found = [self._draw([], n, generator)]
        found += [self._draw(found, n, generator)] * (1 in slots)
        drawn = [found[slot] for slot in slots if slot >= 0]
        for _ in range(slots.count(-1)):
            avoided = {"free": [], "no_support": found[:1], "unique": found}[config.rest]
            drawn.append(self._draw(avoided, n, generator))
            found.append(drawn[-1])
        return torch.stack(drawn, dim=1)

    def _draw(
        self, taken: list[Int[Tensor, " n"]], n: int, generator: torch.Generator
    ) -> Int[Tensor, " n"]:
        """Draw classes from their distribution without those taken, which differ among them."""
        above = self._mass.cumsum(dim=0)
        left = above[-1] - sum(self._mass[each] for each in taken)
        place = (torch.rand(n, dtype=torch.float64, generator=generator) * left).long()
        for each in torch.stack(taken).sort(dim=0).values if taken else ():
            mass = self._mass[each]
            place = place + torch.where(place >= above[each] - mass, mass, 0)
        return torch.searchsorted(above, place, right=True)

    def _labels(self, config: FixedLabels, classes: Items, generator: torch.Generator) -> Items:
        """Return the labels of the query and of every pair; the query's is the target."""
        n, query = len(classes), classes[:, :1]
        if config.labels == "fixed":
            return classes
        if config.labels == "copy_available":
            pair = torch.randint(1, config.n_pairs + 1, (n, 1), generator=generator)
            return classes.scatter(1, pair, query)
        other = classes[:, 1 + config.burstiness :][:, :1]
        if config.labels == "flipped":
            pair = torch.cat([other, query], dim=1)
        else:
            n_labels = self.n_labels if config.labels == "relabelled" else 2
            pair = torch.randint(n_labels, (n, 1), generator=generator)
            step = torch.randint(1, n_labels, (n, 1), generator=generator)
            pair = torch.cat([pair, (pair + step) % n_labels], dim=1)
        labels = torch.where(classes == query, pair[:, :1], classes)
        return torch.where(classes == other, pair[:, 1:], labels)
