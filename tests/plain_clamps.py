"""Clamps written by hand as hooks of TransformerLens, for oracles, and sequences that they fit."""

import torch
from bridges import tokens_for

from ih_interp.batch import Batch
from ih_interp.clamps import (
    AblateHeads,
    AttendLabelsOnly,
    AttentionTemperature,
    ForbidPreviousToken,
    InductionAttention,
    PreviousTokenAttention,
)


def sequences(model):
    """Random tokens that are asked at two positions, with answers among candidates."""
    tokens = tokens_for(model)
    answers = torch.zeros(3, 9, 9, dtype=torch.bool)
    answers[:, 8, 3] = answers[:, 6, 2] = True
    candidates = answers.clone()
    candidates[:, 8, 5] = candidates[:, 6, 4] = True
    targets = torch.full((3, 9), -100)
    targets[:, 8], targets[:, 6] = tokens[:, 3], tokens[:, 2]
    return Batch(tokens, targets, answers=answers, candidates=candidates)


def by_plain_hooks(batch, layer=1):
    """What six clamps are, written as hooks of TransformerLens by hand, with their points."""

    def no_z(z, hook):
        z = z.clone()
        z[:, :, 1] = 0
        return z

    def to_previous(pattern, hook):
        pattern = pattern.clone()
        rows = torch.arange(1, pattern.shape[-1])
        pattern[:, 2] = 0
        pattern[:, 2, 0, 0] = 1
        pattern[:, 2, rows, rows - 1] = 0.9
        pattern[:, 2, rows, rows] = 0.1
        return pattern

    def not_to_previous(scores, hook):
        scores = scores.clone()
        rows = torch.arange(1, scores.shape[-1])
        scores[:, 2, rows, rows - 1] = -1e9
        return scores

    def to_answers(pattern, hook):
        pattern = pattern.clone()
        pattern[:, 3, [6, 8]] = 0
        pattern[:, 3, 8, 3], pattern[:, 3, 8, 5] = 0.8, 0.2
        pattern[:, 3, 6, 2], pattern[:, 3, 6, 4] = 0.8, 0.2
        return pattern

    def colder(scores, hook):
        scores = scores.clone()
        scores[:, 3] = scores[:, 3] / 0.5
        return scores

    def only_candidates(scores, hook):
        scores = scores.clone()
        others = batch.asked[..., None] & ~batch.candidates
        scores[:, 1] = scores[:, 1].masked_fill(others, -1e9)
        return scores

    of, head = f"blocks.{layer}.attn.", f"L{layer}H"
    return [
        (AblateHeads(heads=[f"{head}1"]), f"{of}hook_z", no_z),
        (
            PreviousTokenAttention(heads=[f"{head}2"], strength=0.9),
            f"{of}hook_pattern",
            to_previous,
        ),
        (ForbidPreviousToken(heads=[f"{head}2"]), f"{of}hook_attn_scores", not_to_previous),
        (InductionAttention(heads=[f"{head}3"], strength=0.8), f"{of}hook_pattern", to_answers),
        (
            AttentionTemperature(heads=[f"{head}3"], temperature=0.5),
            f"{of}hook_attn_scores",
            colder,
        ),
        (AttendLabelsOnly(heads=[f"{head}1"]), f"{of}hook_attn_scores", only_candidates),
    ]
