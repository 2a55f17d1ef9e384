"""Refusals of sequences that are not for a model."""

from jaxtyping import Int
from torch import Tensor

from ih_interp.batch import NOT_ASKED, Batch
from ih_interp.hooked_model import HookedModel
from ih_interp.tasks.exemplars import Exemplars


def refuse_other_sequences(model: HookedModel, batch: Batch) -> None:
    """Refuse tokens and targets that a model does not have, and exemplars that it does not embed.

    Raises ValueError; torch would say only which number is out of range.
    """
    refuse_outside("batch: expected tokens", batch.tokens, model.cfg.d_vocab)
    refuse_other_targets("batch", batch, model.cfg.d_vocab_out)
    refuse_other_exemplars(model, batch)


def refuse_other_targets(name: str, batch: Batch, n_tokens: int) -> None:
    """Refuse targets and foils that are none of so many tokens (ValueError)."""
    for what, asked in (("targets", batch.given_targets), ("foils", batch.foils)):
        if asked is not None:
            refuse_outside(f"{name}: expected {what}", asked[asked != NOT_ASKED], n_tokens)


def refuse_outside(expected: str, values: Int[Tensor, "*shape"], high: int) -> None:
    """Refuse whole numbers outside [0, high), with ValueError."""
    low_seen, high_seen = (int(values.min()), int(values.max())) if values.numel() else (0, 0)
    if low_seen < 0 or high_seen >= high:
        raise ValueError(
            f"{expected} in [0, {high}), got {low_seen} to {high_seen}; make them for this model."
        )


def refuse_other_exemplars(model: HookedModel, batch: Batch) -> None:
    """Refuse sequences of other exemplars than the model embeds, where both are known."""
    embed = getattr(model, "embed", None)
    own, theirs = getattr(embed, "exemplars", None), getattr(batch.task, "exemplars", None)
    if own is theirs or not (isinstance(own, Exemplars) and isinstance(theirs, Exemplars)):
        return
    if own.last_sha256 != theirs.last_sha256:
        raise ValueError(
            "The sequences show other exemplars than the model embeds, and the same tokens mean "
            "other drawings to it: draw them from the model's own task, run.task.sample(...)."
        )
