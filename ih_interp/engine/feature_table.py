"""The rows of the feature table that some sequences show, and tokens renumbered to them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ih_interp.batch import Batch
from ih_interp.tasks.base import Task
from ih_interp.tasks.pairs import PairsTask, features_by_token


@dataclass(frozen=True)
class Rows:
    """Some rows of the feature table, and tokens renumbered to them.

    Of the table's thousands of exemplars, training and evaluation show dozens: it is less work to
    project those once than to gather every sequence's.
    """

    features: Float[Tensor, "row feature"] | None = None
    """None for tasks without exemplars, whose tokens stay what they are."""
    renumber: Int[Tensor, " token"] | None = None

    @classmethod
    def of_splits(cls, task: Task, splits: Sequence[str]) -> "Rows":
        """Return the rows that sequences of these splits can show."""
        if not isinstance(task, PairsTask):
            return cls()
        shown = torch.cat([task.exemplar_tokens(split) for split in splits])
        return cls.of_tokens(features_by_token(task.exemplars), task.n_labels, shown)

    @classmethod
    def of_tokens(
        cls, features: Float[Tensor, "row feature"], n_labels: int, tokens: Int[Tensor, "*shape"]
    ) -> "Rows":
        """Return the rows that these tokens show, of a table of features in token order."""
        exemplars = tokens.unique()
        exemplars = exemplars[exemplars >= n_labels]
        renumber = torch.full((n_labels + len(features),), -1)
        renumber[:n_labels] = torch.arange(n_labels)
        renumber[exemplars] = n_labels + torch.arange(len(exemplars))
        return cls(features[exemplars - n_labels].clone(), renumber)

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The features by the name that they have in the model."""
        return {} if self.features is None else {"embed.features": self.features}

    def of(self, batch: Batch) -> Batch:
        """Return the sequences with their tokens renumbered."""
        if self.renumber is None:
            return batch
        tokens = self.renumber[batch.tokens]
        if bool((tokens < 0).any()):
            raise ValueError("The sequences show exemplars that are not among these rows.")
        return batch.replace(tokens=tokens, task=None)
