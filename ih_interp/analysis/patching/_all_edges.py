"""Every edge between two layers: at the last position alone, or by the model from there on."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp._stock import is_hooked, other_module, starts_late
from ih_interp.analysis._passes import Input, into_stream, written_by, written_points
from ih_interp.analysis.patching._last_layer import LastRow, from_layer, stands_alone
from ih_interp.analysis.patching._patched_pass import Edges, Patch
from ih_interp.analysis.patching.path_patching import Means, Pair, Seen, values_of
from ih_interp.evaluation import Metric, measured

FAST_CHUNK = 256
"""Sequences at once where only the last row is computed: 64 edges of more leave the cache."""


class Plan(NamedTuple):
    """What is measured of the edges between two layers."""

    sender_layer: int
    receiver_layer: int
    via: tuple[Input, ...]
    metric: Metric
    normalise: bool
    done: Callable[[int], object]
    """Is told how many edges have been measured."""


class Start(NamedTuple):
    """Where receivers start from; one base for all senders, or one each (`base` long)."""

    resid: Float[Tensor, "base batch pos d_model"]
    """The receivers' layer's input in the base run."""
    change: Float[Tensor, "sender batch pos d_model"]
    """What each sender's edge adds to it."""
    before: Float[Tensor, "base batch"]
    """The metric of the base run."""
    whole: Float[Tensor, "sender batch"]
    """The metric of the source run minus that of the base run, where it is asked for."""
    others: dict[str, Tensor | None]
    """What else a layer is given in the base run, by keyword."""


def effects_of(pair: Pair, plan: Plan, means: Means) -> tuple[Tensor, Tensor]:
    """Effects `[batch, via, sender, receiver]` and whole differences `[batch, sender]`."""
    if not starts_late(pair.model):
        return _edge_by_edge(pair, plan, means)
    start = _start(pair, plan, means)
    after = (
        _last_row(pair, plan, start)
        if stands_alone(pair.model, plan.receiver_layer)
        else _whole_layers(pair, plan, start)
    )
    effect = after - start.before[None, :, None]
    return effect.permute(3, 0, 1, 2), start.whole.T


def _edge_by_edge(pair: Pair, plan: Plan, means: Means) -> tuple[Tensor, Tensor]:
    """The same by whole passes, of models that may not be run from a layer on."""
    heads = range(pair.model.cfg.n_heads)
    effects = torch.empty(len(pair.clean), len(plan.via), len(heads), len(heads))
    whole = torch.empty(len(pair.clean), len(heads))
    for sender, (v, letter), receiver in product(heads, enumerate(plan.via), heads):
        edges = Edges({plan.sender_layer: [sender]}, {plan.receiver_layer: [receiver]}, (letter,))
        own = {layer: ([sender], value[:, [sender]]) for layer, (_, value) in means.items()}
        found = values_of(pair, edges, plan.metric, own, plan.normalise)
        effects = effects.to(found.base)
        effects[:, v, sender, receiver] = found.patched - found.base
        whole = whole.to(found.base)
        whole[:, sender] = found.source - found.base
        plan.done(1)
    return effects, whole


def _start(pair: Pair, plan: Plan, means: Means) -> Start:
    model, layer, noise = pair.model, plan.sender_layer, pair.direction == "noise"
    heads, names = list(range(model.cfg.n_heads)), written_points(model, [layer])
    # The base comes last: hooks that remember a pass remember that one.
    if noise:
        corrupted_runs = list(_corrupted_runs(pair, plan, means))
        clean_run = pair.run(pair.clean, names, plan.receiver_layer)
    else:
        clean_run = pair.run(pair.clean, names, plan.receiver_layer)
        corrupted_runs = list(_corrupted_runs(pair, plan, means))
    clean_written = written_by(model, clean_run.kept, {layer: heads})[layer]
    if corrupted_runs:
        written = [written_by(model, s.kept, {layer: heads})[layer] for s in corrupted_runs]
        # With a run for each sender, each counts only for its own.
        own = written if len(written) > 1 else written * len(heads)
        corrupted = torch.stack([own[head][:, :, head] for head in heads], dim=2)
    else:
        corrupted = means[layer][1].to(clean_written)
    new = corrupted - clean_written if noise else clean_written - corrupted
    base, source = ([clean_run], corrupted_runs) if noise else (corrupted_runs, [clean_run])
    before = torch.stack([measured(plan.metric, seen.logits, pair.clean) for seen in base])
    whole = torch.zeros_like(before)
    if plan.normalise:
        whole = torch.stack([measured(plan.metric, seen.logits, pair.clean) for seen in source])
        whole = whole - before
    given = [seen.entered[0] for seen in base]
    return Start(
        torch.stack([entered.resid for entered in given]),
        into_stream(model, layer, heads, new).movedim(2, 0),
        before,
        whole.expand(len(heads), -1),
        given[0].others,
    )


def _corrupted_runs(pair: Pair, plan: Plan, means: Means) -> Iterator[Seen]:
    """One for all senders, or one with each sender alone ablated; none where none is needed."""
    names, layer = written_points(pair.model, [plan.sender_layer]), plan.receiver_layer
    needed = pair.direction == "denoise" or plan.normalise
    if pair.ablation != "resample":
        # What noise puts in their place is known without a run.
        heads, values = means[plan.sender_layer]
        for at, head in enumerate(heads if needed else ()):
            with pair.corrupting({plan.sender_layer: ([head], values[:, at : at + 1])}) as batch:
                yield pair.run(batch, names, layer)
    elif needed:
        yield pair.run(pair.corrupted, names, layer)
    else:
        with pair.kept(pair.corrupted, names) as kept:
            pair.model(pair.clean.tokens, stop_at_layer=plan.sender_layer + 1)
        yield Seen(torch.empty(0, 0), kept)


def _last_row(pair: Pair, plan: Plan, start: Start) -> Float[Tensor, "via sender receiver batch"]:
    """The metric of every edge, where the last position of the last layer is all there is."""
    last, found = LastRow(pair.model), list[Tensor]()
    for rows in torch.arange(len(pair.clean)).split(FAST_CHUNK):
        part = slice(int(rows[0]), int(rows[-1]) + 1)
        resid, clean = start.resid[:, part], pair.clean[part]
        base, patched = last.read(resid), last.read(resid + start.change[:, part])
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
            by_input.append(measured(plan.metric, logits, clean).transpose(0, 1))
        found.append(torch.stack(by_input))
    plan.done(found[0][..., 0].numel())
    return torch.cat(found, dim=-1)


def _whole_layers(
    pair: Pair, plan: Plan, start: Start
) -> Float[Tensor, "via sender receiver batch"]:
    """The metric of every edge, by the model from the receivers' layer on."""
    model, layer = pair.model, plan.receiver_layer
    resid = start.resid.expand(len(start.change), *start.resid.shape[1:])
    # Hooks and other code may be made for this many sequences; without any, senders go together.
    together = not any(
        is_hooked(part) or other_module(model, part) for part in [model, *from_layer(model, layer)]
    )
    senders = torch.arange(len(resid)).split(len(resid) if together else 1)
    values = torch.empty(len(plan.via), len(resid), model.cfg.n_heads, len(pair.clean)).to(resid)
    for v, letter in enumerate(plan.via):
        for receiver in range(model.cfg.n_heads):
            for group in senders:
                logits = _from_layer(model, plan, start, resid[group], group, letter, receiver)
                found = measured(plan.metric, logits, pair.clean)
                values[v, group, receiver] = found.to(values)
                plan.done(len(group))
    return values


def _from_layer(
    model: HookedTransformer,
    plan: Plan,
    start: Start,
    resid: Tensor,
    senders: Tensor,
    letter: Input,
    receiver: int,
) -> Float[Tensor, "sender batch label"]:
    """Logits with one edge of each of these senders patched."""
    n, size = len(senders), resid.shape[1]

    def of_each(value: Tensor | None) -> Tensor | None:
        return None if value is None else torch.cat([value.expand(size, *value.shape[1:])] * n)

    others = {name: of_each(value) for name, value in start.others.items()}
    patch = Patch(
        model,
        Edges({}, {plan.receiver_layer: [receiver]}, (letter,)),
        changes={plan.sender_layer: start.change[senders].flatten(end_dim=1)},
    )
    with patch.applied():
        flat = resid.flatten(end_dim=1)
        logits = model(flat, start_at_layer=plan.receiver_layer, **others)
    return logits[:, -1].unflatten(0, (n, -1))
