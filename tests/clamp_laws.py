"""One clamp of every kind, and what a model gives under clamps."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformer_lens import HookedTransformer

from ih_interp.batch import Batch
from ih_interp.clamps import (
    AblateEmbedding,
    AblateHeads,
    AbstractClamp,
    AttendLabelsOnly,
    AttentionTemperature,
    CopyFromAttention,
    ForbidPreviousToken,
    Freeze,
    Function,
    InductionAttention,
    PerfectLayerOne,
    PerfectMatchAndCopy,
    Preserve,
    PreviousTokenAttention,
    SimilarityAttention,
    clamped,
)


def halve(activation: Tensor, hook: object) -> Tensor:
    del hook
    return 0.5 * activation


EVERY_CLAMP: list[AbstractClamp] = [
    AblateHeads(heads=["L0H1", "L1H3"]),
    AblateEmbedding(),
    PreviousTokenAttention(heads=["L0H2", "L0H5"], strength=0.9),
    PreviousTokenAttention(heads=["L0H2"], queries="labels"),
    ForbidPreviousToken(heads=["L0H2", "L1H0"]),
    ForbidPreviousToken(heads=["L0H2"], queries="labels"),
    InductionAttention(heads=["L1H3", "L1H6"], strength=0.9),
    SimilarityAttention(heads=["L1H2"]),
    SimilarityAttention(heads=["L1H2"], temperature=0.5),
    AttentionTemperature(heads=["L1H3"], temperature=0.5),
    AttendLabelsOnly(heads=["L1H1"]),
    CopyFromAttention(head="L1H3"),
    PerfectLayerOne(),
    PerfectMatchAndCopy(),
    Preserve(what=["patterns"]),
    Preserve(what=["values", "keys", "queries"]),
    Freeze(parameters=["embed.*"], heads=["L0H3"], parts="qk"),
    Function(point="blocks.*.attn.hook_z", function=halve),
]
"""At least one of every kind that is registered, grafts apart: those need a run, test_grafts.py."""

every_clamp = pytest.mark.parametrize("clamp", EVERY_CLAMP, ids=str)


def logits_under(
    model: HookedTransformer, given: Sequence[AbstractClamp], batch: Batch, step: int | None = None
) -> Tensor:
    with clamped(model, given, batch, step=step):
        return model(batch.tokens)


def gradients_under(
    model: HookedTransformer, given: Sequence[AbstractClamp], batch: Batch, step: int | None = None
) -> dict[str, Tensor]:
    """Of every trained parameter; zeros where nothing reaches it."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    loss = cross_entropy(logits_under(model, given, batch, step)[:, -1], batch.target)
    found = torch.autograd.grad(loss, list(trained.values()), materialize_grads=True)
    return dict(zip(trained, found, strict=True))


def hook_counts(model: HookedTransformer) -> list[int]:
    return [
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in model.modules()
    ]
