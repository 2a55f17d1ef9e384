"""Ablation one plain pass at a time, and sequences asked here and there, for all models."""

import numpy as np
import torch

from ih_interp.batch import Batch
from ih_interp.types import Head

HEADS = ["L2H1", "L0H3", "L2H0"]
SCALES = ["loss", "logit_difference", "probability", "accuracy"]
LENGTHS = torch.tensor([10, 7, 10, 5, 7, 10])


def asked_here_and_there(n_tokens=30, n_outputs=30, lengths=LENGTHS, seed=0):
    """Padded sequences, each asked at two places at least, its last token among them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), int(lengths.max()))
    tokens = torch.randint(n_tokens, shape, generator=generator)
    targets = torch.randint(n_outputs, shape, generator=generator)
    is_asked = torch.rand(shape, generator=generator) < 0.4
    is_asked[:, 1] = is_asked[range(len(lengths)), lengths - 1] = True
    is_asked &= torch.arange(shape[1]) < lengths[:, None]
    foils = torch.randint(n_outputs, (len(lengths), 3), generator=generator)
    foils[0, 1:] = -100
    return Batch(tokens, torch.where(is_asked, targets, -100), lengths=lengths, foils=foils)


def literal_metrics(logits, batch):
    """[metric, batch] of `SCALES`, position by position."""
    found = np.zeros((len(SCALES), len(batch)))
    for i in range(len(batch)):
        places = [p for p in range(batch.tokens.shape[1]) if int(batch.targets[i, p]) >= 0]
        foils = [int(foil) for foil in batch.foils[i] if foil >= 0]
        for p in places:
            row, t = logits[i, p].double(), int(batch.targets[i, p])
            log_p = row.log_softmax(-1)
            others = sum(float(row[foil]) for foil in foils) / len(foils)
            values = (-log_p[t], row[t] - others, log_p[t].exp(), row.argmax() == t)
            found[:, i] += np.array([float(value) for value in values]) / len(places)
    return found


@torch.no_grad()
def by_brute_force(model, batch, heads, *, value=None, scale=None, on=None):
    """[metric, batch, subset]: a whole pass with plain hooks for every subset, one by one.

    `value` is what stands in for z, [batch or 1, pos, head in order, d_head]; None is zero.
    """
    heads = [Head.parse(head) for head in heads]
    columns = []
    for subset in range(2 ** len(heads)) if on is None else on:

        def ablate(z, hook, subset=subset):
            z = z.clone()
            for i, head in enumerate(heads):
                if head.layer == hook.layer() and not subset >> i & 1:
                    z[:, :, head.head] = 0 if value is None else value[:, :, i].to(z)
            return z

        hooks = [(f"blocks.{layer}.attn.hook_z", ablate) for layer in {h.layer for h in heads}]
        if scale is not None:
            hooks.append(("ln_final.hook_scale", lambda _, hook: scale))
        logits = model.run_with_hooks(batch.tokens, fwd_hooks=hooks)
        columns.append(literal_metrics(logits, batch))
    return np.stack(columns, axis=-1)


def clean_z(model, tokens, heads):
    with torch.no_grad():
        _, cache = model.run_with_cache(tokens)
    return torch.stack(
        [cache["z", head.layer][:, :, head.head] for head in map(Head.parse, heads)], dim=2
    )
