"""The rule that chooses the heads which a network's clamps and figures are about."""

from typing import NamedTuple

from ih_interp.analysis.heads.attention import (
    induction_strength,
    previous_token_chance,
    previous_token_score,
)
from ih_interp.runs import Run
from ih_interp.types import Batch, Head

LIKE_THE_FIRST = 0.5
"""The share of the best previous-token score above chance that makes a previous-token head."""


class Circuit(NamedTuple):
    """The heads of one network, chosen by `choose_circuit`."""

    induction: Head
    """The head of the last layer with the largest induction strength."""
    previous_token: tuple[Head, ...]
    """The heads of layer 0 that attend to the previous token at labels, the strongest first."""
    unlike: Head
    """The head of layer 0 that attends there the least."""

    def __str__(self) -> str:
        previous = ", ".join(map(str, self.previous_token))
        return (
            f"{self.induction} is the strongest induction head; {previous} attend to the previous "
            f"token, {self.unlike} the least"
        )


def choose_circuit(run: Run, batch: Batch | None = None) -> Circuit:
    """Return the heads of a network at the end of its run, over every training sequence or `batch`.

    Previous-token heads are those whose `previous_token_score` at labels, less chance, is at least
    half of the best one's; in the paper's network these are its L1H1, L1H2 and L1H5.
    """
    model = run.model()
    batch = run.task.enumerate("train") if batch is None else batch
    last = model.cfg.n_layers - 1
    strength = induction_strength(model, batch)[last]
    chance = previous_token_chance(batch.tokens.shape[1], "labels")
    above = previous_token_score(model, batch, rows="labels")[0] - chance
    if bool(strength.isnan().any() or above.isnan().any()):
        raise ValueError(f"{run.folder}: expected scores of heads at its end, got NaN.")
    order = above.argsort(descending=True).tolist()
    like = [head for head in order if above[head] >= LIKE_THE_FIRST * above[order[0]]]
    return Circuit(
        induction=Head(last, int(strength.argmax())),
        previous_token=tuple(Head(0, head) for head in like or order[:1]),
        unlike=Head(0, order[-1]),
    )
