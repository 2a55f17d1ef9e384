"""The effect of each edge in a pair of runs, by the quickest way that is the model's own.

That is the last row of an attention-only model, the layers from the receivers on, or the model.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ih_interp.analysis import _passes as passes
from ih_interp.analysis._passes import Input, Means
from ih_interp.analysis.patching._last_layer import LastRow, stands_alone
from ih_interp.analysis.patching._patched_pass import Edges, Patch
from ih_interp.analysis.patching._upper_layers import UpperLayers, run_alone
from ih_interp.analysis.patching.path_patching import Pair, RunName, Seen
from ih_interp.evaluation import measured

FAST_CHUNK = 256
"""Sequences at once where only the last row is computed: 64 times as many edges fill the cache."""

Changes: TypeAlias = Float[Tensor, "sender batch pos d_model"]

Effects: TypeAlias = tuple[
    Float[Tensor, "batch via sender receiver"], Float[Tensor, "batch sender"]
]
"""Effects, NaN where several heads share a receiver; and whole differences, 0 if not asked for."""


@dataclass(frozen=True)
class EachEdge:
    """The edges to measure in a pair of runs, and a function that hears how many are done."""

    pair: Pair
    above: Mapping[int, Sequence[int]]
    """The layers of receivers for each layer of senders."""
    via: tuple[Input, ...]
    normalise: bool
    done: Callable[[int], object]
    means: Means

    def effects(self) -> dict[tuple[int, int], Effects]:
        """Return the effects between all pairs of layers."""
        pair, model, found = self.pair, self.pair.model, dict[tuple[int, int], Effects]()
        runs: dict[RunName, list[Seen]] = {}
        for sender_layer, receiver_layers in self.above.items():
            if pair.ablation != "resample" or not runs:
                # The base runs last: hooks that remember a pass remember this one.
                runs = {which: self._runs(which, sender_layer) for which in pair.order}
            source, base = (runs[which] for which in pair.order)
            old = self._written(base, sender_layer)
            new = (
                self._written(source, sender_layer)
                if source
                else self.means[sender_layer][1].to(old)
            )
            each = passes.into_stream(model, sender_layer, range(model.cfg.n_heads), new - old)
            before = torch.stack([pair.measured(seen.logits) for seen in base])
            whole = torch.zeros_like(before)
            if self.normalise:
                whole = torch.stack([pair.measured(seen.logits) for seen in source]) - before
            whole = whole.expand(model.cfg.n_heads, -1).T
            for layer in receiver_layers:
                after = self._after((sender_layer, layer), base, each.movedim(2, 0))
                effect = (after - before[None, :, None]).permute(3, 0, 1, 2)
                found[sender_layer, layer] = (effect, whole)
        return found

    def _after(
        self, layers: tuple[int, int], base: list[Seen], change: Changes
    ) -> Float[Tensor, "via sender receiver batch"]:
        """Return the metric with each edge patched."""
        model, layer = self.pair.model, layers[1]
        if not run_alone(model, layer):
            return self._one_by_one(layers, change)
        points = UpperLayers.points(model, layer)
        kept = {name: torch.stack([seen.kept[name] for seen in base]) for name in points}
        if self.pair.clean.asks_last and stands_alone(model, layer):
            return self._last_row(kept[f"blocks.{layer}.hook_resid_pre"], change)
        return self._upper_layers(UpperLayers(model, layer, self.pair.clean, kept), change)

    def _runs(self, which: RunName, sender_layer: int) -> list[Seen]:
        """Return one run for all senders, or one with each ablated; none where none is needed."""
        pair, model = self.pair, self.pair.model
        alone = which == "corrupted" and pair.ablation != "resample"
        if alone and pair.direction == "noise" and not self.normalise:
            return []  # what is put in the senders' place is known
        senders = list(self.above) if pair.ablation == "resample" else [sender_layer]
        names = passes.written_points(model, senders)
        for layer in {layer for sender in senders for layer in self.above[sender]}:
            names += UpperLayers.points(model, layer) if run_alone(model, layer) else []
        heads = range(model.cfg.n_heads if alone else 1)
        return [pair.run(which, names, means=self._alone(sender_layer, head)) for head in heads]

    def _alone(self, layer: int, head: int) -> Means:
        """Return what one head of the senders' layer alone is set to."""
        if layer not in self.means:
            return {}
        return {layer: ([head], self.means[layer][1][:, [head]])}

    def _written(self, runs: list[Seen], layer: int) -> Float[Tensor, "batch pos head d"]:
        """Return what each sender writes, in its own run if there are several."""
        model = self.pair.model
        heads = {layer: range(model.cfg.n_heads)}
        each = [passes.written_by(model, seen.kept, heads)[layer] for seen in runs]
        if len(each) == 1:
            return each[0]
        return torch.stack([one[:, :, head] for head, one in enumerate(each)], dim=2)

    def _last_row(
        self, resids: Float[Tensor, "base batch pos d_model"], change: Changes
    ) -> Float[Tensor, "via sender receiver batch"]:
        """Return the metric with each edge patched, from the last layer's last position alone."""
        pair, last, found = self.pair, LastRow(self.pair.model), list[Tensor]()
        for rows in torch.arange(len(pair.clean)).split(FAST_CHUNK):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            resid = resids[:, part]
            base, patched = last.read(resid), last.read(resid + change[:, part])
            q, k, v = (last.project(base, letter) for letter in "qkv")
            pattern = last.pattern(q, k)
            z = last.z(pattern, v)
            at_end = resid[..., -1, :] + last.written(z).sum(dim=0) + last.attn.b_O
            by_input = []
            for letter in self.via:
                if letter == "q":  # nothing is named that need not stay: memory is used again
                    new = last.z(last.pattern(last.project(patched, "q"), k), v)
                elif letter == "k":
                    new = last.z(last.pattern(q, last.project(patched, "k")), v)
                else:
                    new = last.z(pattern, last.project(patched, "v"))
                logits = last.logits(at_end + last.written(new - z))
                by_input.append(measured(pair.metric, logits, pair.clean[part]).transpose(0, 1))
            found.append(torch.stack(by_input))
        self.done(found[0][..., 0].numel())
        return torch.cat(found, dim=-1)

    def _upper_layers(
        self, upper: UpperLayers, change: Changes
    ) -> Float[Tensor, "via sender receiver batch"]:
        """Return the metric with each edge patched, from the receivers' layer on."""
        pair, found = self.pair, list[Tensor]()
        for letter in self.via:
            parts: list[Tensor] = []
            for logits in upper.logits(letter, change):
                parts.append(pair.measured(logits))
                self.done(len(logits))
            found.append(torch.cat(parts).unflatten(0, (len(change), -1)))
        return stacked(found)

    def _one_by_one(
        self, layers: tuple[int, int], change: Changes
    ) -> Float[Tensor, "via sender receiver batch"]:
        """Return the metric with each edge patched, by one pass per edge."""
        pair, heads, found = self.pair, range(self.pair.model.cfg.n_heads), list[Tensor]()
        shared, (below, layer) = passes.heads_per_key(pair.model), layers
        receivers = {letter: heads[:: 1 if letter == "q" else shared] for letter in self.via}
        after = {letter: list[Tensor]() for letter in self.via}
        for sender in heads:
            every = Patch(pair.model, Edges({}, {layer: heads}, self.via))
            every.changes[below] = change[sender]
            pair.read(every, self._alone(below, sender))
            for letter, receiver in product(self.via, heads):
                if receiver in receivers[letter]:
                    edges = Edges({}, {layer: [receiver]}, (letter,))
                    patch = Patch(pair.model, edges, reads=every.reads)
                    after[letter].append(pair.patched(patch, self._alone(below, sender)))
                    self.done(1)
        found = [torch.stack(values).unflatten(0, (len(heads), -1)) for values in after.values()]
        return stacked(found)


def stacked(
    by_input: list[Float[Tensor, "sender _receiver batch"]],
) -> Float[Tensor, "via sender receiver batch"]:
    """Stack effects through each input, with NaN where it has fewer receivers."""
    most = max(values.shape[1] for values in by_input)
    nothing = [
        values.new_full((len(values), most - values.shape[1], values.shape[2]), torch.nan)
        for values in by_input
    ]
    return torch.stack([torch.cat(pair, 1) for pair in zip(by_input, nothing, strict=True)])
