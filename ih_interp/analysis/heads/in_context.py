"""The gain of the whole model from context: how the loss falls along a sequence.

Of a `Batch` the loss is that of its targets. Plain tokens are predicted one by one: position i is
asked for token i + 1, as in `Batch(tokens[:, :-1], tokens[:, 1:])`, which `ih.trace` takes.
"""

from collections.abc import Iterator
from typing import Annotated, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ih_interp._sequences import refuse_outside
from ih_interp._torch_state import in_single
from ih_interp.analysis.checks import Within, checked_in_plain_torch
from ih_interp.analysis.heads.pattern_scores import Sequences
from ih_interp.batch import NOT_ASKED, Batch
from ih_interp.clamps._active import rows_per_pass
from ih_interp.hooked_model import HookedModel

ASKED = "give Batch(tokens[:, :-1], tokens[:, 1:]), or tokens"
Position: TypeAlias = Annotated[int, Within(0)]


@checked_in_plain_torch(ASKED)
def loss_by_position(model: HookedModel, batch: Sequences) -> dict[int, float]:
    """Return the mean loss at every position that is asked, in nats, by the position, from 0.

    `- ln p(target)` at that position, the mean over the sequences that are asked there; positions
    where nothing is asked are left out. Chance, a uniform guess, is ln d_vocab_out. It falls with
    the position where the model learns in context (Kaplan et al. 2020, arXiv:2001.08361). In
    `ih.trace` each position is a name; of more than 1,024 sequences it weighs every 1,024 by their
    number, whether they are asked there or not. Raises ValueError where nothing is asked.
    """
    asked_of = _asked(model, batch)
    losses = torch.cat(list(_losses(model, asked_of, slice(None))))
    asked = asked_of.asked
    n_asked = asked.sum(dim=0)
    means = torch.where(asked, losses.double(), 0).sum(dim=0) / n_asked
    return {place: float(means[place]) for place in n_asked.nonzero()[:, 0].tolist()}


@checked_in_plain_torch(ASKED)
def in_context_score(
    model: HookedModel, batch: Sequences, *, early: Position = 50, late: Position = 500
) -> float:
    """Return the loss late in the context minus the loss early, in nats; chance 0.

    `mean over sequences of loss[late] - loss[early]`, the in-context-learning score of Olsson et
    al. (2022, arXiv:2209.11895): below 0 where the model learns in context, about -0.4 in their
    language models. `early` and `late` are positions from 0, at which the next token is asked. The
    standard error over sequences may be as large as the score: give hundreds. Raises ValueError
    unless every sequence is asked at both.
    """
    asked_of = _asked(model, batch)
    n_positions = asked_of.tokens.shape[1]
    if not early < late < n_positions:
        raise ValueError(
            f"early={early}, late={late}: expected positions in order, and less than "
            f"{n_positions}, as many as are asked."
        )
    places = [int(early), int(late)]
    if not bool(asked_of.asked[:, places].all()):
        raise ValueError(
            f"targets: expected one at the positions {early} and {late} of every sequence, got "
            f"{int(asked_of.asked[:, places].all(dim=1).sum())} of {len(asked_of)} sequences."
        )
    losses = torch.cat(list(_losses(model, asked_of, places)))
    return float((losses[:, 1] - losses[:, 0]).double().mean())


def _asked(model: HookedModel, batch: Sequences) -> Batch:
    """Return a batch as it is, or that which asks for the next token everywhere."""
    if isinstance(batch, Batch):
        if not bool(batch.asked.any()):
            raise ValueError("targets: expected one at least; nothing is asked.")
        return batch
    if batch.shape[1] < 2:
        raise ValueError(
            f"batch has {batch.shape[1]} position: expected a next token, two or more."
        )
    refuse_outside("batch: expected tokens that are outputs", batch, model.cfg.d_vocab_out)
    return Batch(batch[:, :-1], batch[:, 1:])


def _losses(
    model: HookedModel, batch: Batch, places: slice | list[int]
) -> Iterator[Float[Tensor, "batch place"]]:
    """Yield the loss at positions, pass by pass; where nothing is asked it means nothing."""
    for part in batch.split(rows_per_pass(model, batch.tokens)):
        logits, targets = model(part.tokens)[:, places], part.targets[:, places]
        target = torch.where(targets == NOT_ASKED, 0, targets)[..., None]
        yield -in_single(logits).log_softmax(dim=-1).gather(-1, target)[..., 0]
