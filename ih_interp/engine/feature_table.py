"""The rows of the feature table that some sequences show, and tokens renumbered to them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ih_interp.tasks.few_shot import FewShotTask, Split, features_by_token
from ih_interp.types import Batch


@dataclass(frozen=True)
class Rows:
    """Some rows of the feature table, and tokens renumbered to them.

    Of the table's thousands of exemplars, training and evaluation show dozens: it is less work to
    project those once than to gather every sequence's.
    """

    features: Float[Tensor, "row feature"]
    renumber: Int[Tensor, " token"]

    @classmethod
    def of_splits(cls, task: FewShotTask, splits: Sequence[Split]) -> "Rows":
        """Return the rows that sequences of these splits can show."""
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

    def of(self, batch: Batch) -> Batch:
        """Return the sequences with their tokens renumbered."""
        tokens = self.renumber[batch.tokens]
        if bool((tokens < 0).any()):
            raise ValueError("The sequences show exemplars that are not among these rows.")
        return Batch(tokens, batch.target)
