"""The effects of all edges between two layers.

Base and source run once. Where the receivers' layer is all that is left, its last position is then
computed for all edges at once; elsewhere each edge is a pass of the model. For the paper's model
(2 layers of 8 heads) and 784 sequences the first takes 0.15 s, and a pass per edge some 6 s.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp.analysis._passes import Input, into_stream, written_by, written_points
from ih_interp.analysis.patching._last_layer import LastRow, stands_alone
from ih_interp.analysis.patching._patched_pass import Edges, Patch
from ih_interp.analysis.patching.path_patching import Means, Pair, RunName, Seen
from ih_interp.evaluation import measured

FAST_CHUNK = 256
"""Sequences at once where only the last row is computed: 64 times as many edges fill the cache."""


class Plan(NamedTuple):
    """A description of the edges to measure, and a function that hears how many are done."""

    sender_layer: int
    receiver_layer: int
    via: tuple[Input, ...]
    normalise: bool
    done: Callable[[int], object]

    @property
    def read(self) -> str:
        """The hook point of what receivers read."""
        return f"blocks.{self.receiver_layer}.hook_resid_pre"


def effects_of(pair: Pair, plan: Plan, means: Means) -> tuple[Tensor, Tensor]:
    """Return effects `[batch, via, sender, receiver]` and whole differences `[batch, sender]`.

    Whole differences are 0 where they are not asked for.
    """
    model, layer, n_heads = pair.model, plan.sender_layer, pair.model.cfg.n_heads
    # The base runs last: hooks that remember a pass remember this one.
    source, base = (_runs(pair, plan, means, which) for which in pair.order)
    old = _written(model, layer, base)
    new = _written(model, layer, source) if source else means[layer][1].to(old)
    change = into_stream(model, layer, range(n_heads), new - old).movedim(2, 0)
    before = torch.stack([pair.measured(seen.logits) for seen in base])
    whole = torch.zeros_like(before)
    if plan.normalise:
        whole = torch.stack([pair.measured(seen.logits) for seen in source]) - before
    if stands_alone(model, plan.receiver_layer):
        resid = torch.stack([seen.kept[plan.read] for seen in base])
        after = _last_row(pair, plan, resid, change)
    else:
        after = _edge_by_edge(pair, plan, change, means)
    effect = after - before[None, :, None]
    return effect.permute(3, 0, 1, 2), whole.expand(n_heads, -1).T


def _runs(pair: Pair, plan: Plan, means: Means, which: RunName) -> list[Seen]:
    """Return one run for all senders, or one with each ablated; none where none is needed."""
    alone = which == "corrupted" and pair.ablation != "resample"
    if alone and pair.direction == "noise" and not plan.normalise:
        return []  # what is put in the senders' place is known
    names = [*written_points(pair.model, [plan.sender_layer]), plan.read]
    runs: list[Seen] = []
    for head in range(pair.model.cfg.n_heads if alone else 1):
        with pair.being(which, _alone(means, head)) as batch:
            runs.append(pair.run(batch, names))
    return runs


def _alone(means: Means, head: int) -> Means:
    """Return what one head of the senders' layer alone is set to."""
    return {layer: ([head], values[:, [head]]) for layer, (_, values) in means.items()}


def _written(
    model: HookedTransformer, layer: int, runs: list[Seen]
) -> Float[Tensor, "batch pos head d"]:
    """Return what each head of the senders' layer writes, in its own run if there are several."""
    heads = list(range(model.cfg.n_heads))
    each = [written_by(model, seen.kept, {layer: heads})[layer] for seen in runs]
    if len(each) == 1:
        return each[0]
    return torch.stack([one[:, :, head] for head, one in enumerate(each)], dim=2)


def _last_row(
    pair: Pair,
    plan: Plan,
    resids: Float[Tensor, "base batch pos d_model"],
    change: Float[Tensor, "sender batch pos d_model"],
) -> Float[Tensor, "via sender receiver batch"]:
    """Return the metric with each edge patched, from the last layer's last position alone."""
    last, found = LastRow(pair.model), list[Tensor]()
    for rows in torch.arange(len(pair.clean)).split(FAST_CHUNK):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        resid = resids[:, part]
        base, patched = last.read(resid), last.read(resid + change[:, part])
        q, k, v = last.queries(base), last.keys(base), last.values(base)
        pattern = last.pattern(q, k)
        z = last.z(pattern, v)
        at_end = resid[..., -1, :] + last.written(z).sum(dim=0) + last.attn.b_O
        by_input = []
        for letter in plan.via:
            if letter == "q":
                new = last.z(last.pattern(last.queries(patched), k), v)
            elif letter == "k":
                new = last.z(last.pattern(q, last.keys(patched)), v)
            else:
                new = last.z(pattern, last.values(patched))
            logits = last.logits(at_end + last.written(new - z))
            by_input.append(measured(pair.metric, logits, pair.clean[part]).transpose(0, 1))
        found.append(torch.stack(by_input))
    plan.done(found[0][..., 0].numel())
    return torch.cat(found, dim=-1)


def _edge_by_edge(
    pair: Pair, plan: Plan, change: Float[Tensor, "sender batch pos d_model"], means: Means
) -> Float[Tensor, "via sender receiver batch"]:
    """Return the metric with each edge patched, by one pass per edge."""
    heads, after = range(pair.model.cfg.n_heads), list[Tensor]()
    for letter, sender, receiver in product(plan.via, heads, heads):
        edges = Edges({}, {plan.receiver_layer: [receiver]}, (letter,))
        patch = Patch(pair.model, edges, changes={plan.sender_layer: change[sender]})
        with pair.being(pair.order[1], _alone(means, sender)) as batch, patch.applied():
            after.append(pair.measured(pair.run(batch).logits))
        plan.done(1)
    return torch.stack(after).unflatten(0, (len(plan.via), len(heads), len(heads)))
