"""Which heads a network's clamps and figures are about, by rule."""

from typing import NamedTuple

from ih_interp.analysis.heads.attention import (
    induction_strength,
    previous_token_chance,
    previous_token_score,
)
from ih_interp.runs import Run
from ih_interp.types import Batch, Head

LIKE_THE_FIRST = 0.5  # a previous-token head is above chance by this share of the best one


class Circuit(NamedTuple):
    """The heads of one network, chosen by `choose_circuit`."""

    induction: Head
    """Of the last layer, the one with the largest induction strength."""
    previous_token: tuple[Head, ...]
    """Of layer 0, those that attend to the previous token at labels, the strongest first."""
    unlike: Head
    """Of layer 0, the one that attends there the least."""

    def __str__(self) -> str:
        previous = ", ".join(map(str, self.previous_token))
        return (
            f"{self.induction} is the strongest induction head; {previous} attend to the previous "
            f"token, {self.unlike} the least"
        )


def choose_circuit(run: Run, batch: Batch | None = None) -> Circuit:
    """The heads of a network at the end of its run, over every training sequence or `batch`.

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
        raise ValueError(f"{run.folder} has heads of NaN at its end, none of which is the best.")
    order = above.argsort(descending=True).tolist()
    like = [head for head in order if above[head] >= LIKE_THE_FIRST * above[order[0]]]
    return Circuit(
        induction=Head(last, int(strength.argmax())),
        previous_token=tuple(Head(0, head) for head in like or order[:1]),
        unlike=Head(0, order[-1]),
    )
