"""The wiring between two layers: the effect of every single edge, all in one call.

Base and source run once. Where the receivers' layer is all that is left, its last position is then
computed for all edges at once; elsewhere each edge is a pass of the model. For the paper's model
(2 layers of 8 heads) and 784 sequences the first takes 0.15 s, and a pass per edge some 6 s.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ih_interp._reprs import short_repr
from ih_interp.analysis import _passes as passes
from ih_interp.analysis._passes import Ablation, Input, Means
from ih_interp.analysis.checks import checked_in_plain_torch
from ih_interp.analysis.dynamics.trace import refuse_other_function, trace
from ih_interp.analysis.patching._last_layer import LastRow, stands_alone
from ih_interp.analysis.patching._patched_pass import Edges, Patch
from ih_interp.analysis.patching.path_patching import Direction, Pair, RunName, Seen, share
from ih_interp.batch import Batch
from ih_interp.checkpoints import Checkpoints
from ih_interp.evaluation import LOWER_IS_BETTER, Metric, measured
from ih_interp.hooked_model import HookedModel
from ih_interp.types import Head

FAST_CHUNK = 256
"""Sequences at once where only the last row is computed: 64 times as many edges fill the cache."""

Changes: TypeAlias = Float[Tensor, "sender batch pos d_model"]


@short_repr
@dataclass(frozen=True)
class Wiring:
    """Effects of the edges between two layers, and how they were measured."""

    effects: Float[Tensor, "*batch via sender receiver"]
    via: tuple[Input, ...]
    sender_layer: int
    receiver_layer: int
    higher_is_used: bool
    """Whether edges that serve the behaviour have positive effects."""

    @property
    def use(self) -> Float[Tensor, "*batch via sender receiver"]:
        """The effects, with the sign by which edges that serve the behaviour are positive."""
        return self.effects if self.higher_is_used else -self.effects

    def through(self, via: str) -> Float[Tensor, "*batch sender receiver"]:
        """Return `use` through one of the inputs, for the measures of `redundancy`."""
        if via not in self.via:
            raise ValueError(f"via={via!r}: expected a patched input, {', '.join(self.via)}.")
        return self.use[..., self.via.index(via), :, :]  # pyright: ignore[reportArgumentType]

    def table(self) -> pd.DataFrame:
        """Return one row per edge: `via`, `sender`, `receiver` ("L0H2"), `effect`, `use`; means."""
        _, n_senders, n_receivers = shape = self.effects.shape[-3:]
        senders = [str(Head(self.sender_layer, head)) for head in range(n_senders)]
        receivers = [str(Head(self.receiver_layer, head)) for head in range(n_receivers)]
        edges = product(self.via, senders, receivers)
        table = pd.DataFrame(edges, columns=["via", "sender", "receiver"])
        for name, values in (("effect", self.effects), ("use", self.use)):
            table[name] = values.reshape(-1, shape.numel()).double().mean(dim=0).tolist()
        return table


@checked_in_plain_torch()
def wiring_map(
    model: HookedModel,
    clean: Batch,
    corrupted: Batch | None,
    *,
    sender_layer: int = 0,
    receiver_layer: int | None = None,
    via: str | Sequence[str] = ("q", "k", "v"),
    direction: Direction = "noise",
    ablation: Ablation = "resample",
    metric: Metric = "logit_difference",
    per_sequence: bool = False,
    normalise: bool = False,
    progress: bool = False,
) -> Wiring:
    """Return the effect of every edge from a head of one layer to one input of a head of another.

    Each is that of `path_patch` for this sender, receiver and input alone, with the same options
    and signs; `effects` are `[via, sender, receiver]`, or `[batch, via, sender, receiver]` with
    `per_sequence=True`. `receiver_layer` is the last by default. `progress` shows a bar.

    Raises ValueError as `path_patch` does, and for senders that are not below receivers.
    """
    names = passes.inputs_named(via)
    top = model.cfg.n_layers - 1 if receiver_layer is None else receiver_layer
    if not 0 <= sender_layer < top < model.cfg.n_layers:
        raise ValueError(
            f"sender_layer={sender_layer}, receiver_layer={top}: expected senders below receivers "
            f"in a model of {model.cfg.n_layers} layers, which count from 0."
        )
    pair = Pair(model, clean, corrupted, direction, ablation, metric)
    means = pair.means({sender_layer: range(model.cfg.n_heads)})
    parts = pair.split()
    total = len(parts) * len(names) * model.cfg.n_heads**2
    with (
        passes.whole_blocks(model, sender_layer, top),
        tqdm(total=total, disable=not progress, unit="edge") as bar,
    ):
        options = (sender_layer, top, names, normalise, bar.update, means)
        found = [_Edges(part, *options).effects() for part in parts]
    effect, whole = (torch.cat(column) for column in zip(*found, strict=True))
    whole = whole[:, None, :, None]
    shares = share(effect, whole, normalise=normalise, per_sequence=per_sequence)
    lower = normalise is False and isinstance(metric, str) and metric in LOWER_IS_BETTER
    positive = normalise or (direction == "denoise") != lower
    return Wiring(shares, names, sender_layer, top, positive)


@checked_in_plain_torch()
def wiring_over_training(
    checkpoints: Checkpoints,
    corrupt: Callable[[Batch], Batch],
    *,
    batch: Batch | None = None,
    steps: Sequence[int] | None = None,
    progress: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """Return the wiring at every checkpoint, of a run under the run's clamps.

    One row per edge and step, with `step`, `sequences` where they are known, `via`, `sender`,
    `receiver`, `effect` and `use`. `corrupt` makes corrupted sequences from clean ones, as
    `swap_exemplars` does; `options` are those of `wiring_map`. `batch` is by default, as in
    `trace`, a fixed sample of at most 4,096 of a run's training sequences. Long batches are
    measured in chunks, each with its own means for `ablation="mean"`. Raises as `wiring_map` and
    `trace` do, and ValueError for `normalise` and `per_sequence`.
    """
    refused = {"normalise", "per_sequence"} & {name for name, on in options.items() if on}
    if refused:
        raise ValueError(f"{', '.join(sorted(refused))}: expected a mean over sequences; omit it.")
    refuse_other_function(corrupt, "corrupt", "batch")
    last: list[Wiring] = []

    def measure(model: HookedModel, part: Batch) -> dict[str, float]:
        last[:] = [wiring_map(model, part, corrupt(part), **options)]
        table = last[0].table()
        names = table["via"] + "|" + table["sender"] + "|" + table["receiver"]
        return dict(zip(names, table["effect"], strict=True))

    rows = trace(checkpoints, measure, batch=batch, steps=steps, progress=progress)
    edges = ["via", "sender", "receiver"]
    rows[edges] = rows["name"].str.split("|", expand=True)
    rows["effect"] = rows["value"]
    rows["use"] = rows["value"] if last[0].higher_is_used else -rows["value"]
    return rows.drop(columns=["name", "value"])


@dataclass(frozen=True)
class _Edges:
    """The edges to measure in a pair of runs, and a function that hears how many are done."""

    pair: Pair
    sender_layer: int
    receiver_layer: int
    via: tuple[Input, ...]
    normalise: bool
    done: Callable[[int], object]
    means: Means

    def effects(self) -> tuple[Tensor, Tensor]:
        """Return effects `[batch, via, sender, receiver]` and whole differences `[batch, sender]`.

        Whole differences are 0 where they are not asked for.
        """
        pair, layer, n_heads = self.pair, self.sender_layer, self.pair.model.cfg.n_heads
        # The base runs last: hooks that remember a pass remember this one.
        source, base = (self._runs(which) for which in pair.order)
        old = self._written(base)
        new = self._written(source) if source else self.means[layer][1].to(old)
        change = passes.into_stream(pair.model, layer, range(n_heads), new - old).movedim(2, 0)
        before = torch.stack([pair.measured(seen.logits) for seen in base])
        whole = torch.zeros_like(before)
        if self.normalise:
            whole = torch.stack([pair.measured(seen.logits) for seen in source]) - before
        if stands_alone(pair.model, self.receiver_layer):
            read = f"blocks.{self.receiver_layer}.hook_resid_pre"
            after = self._last_row(torch.stack([seen.kept[read] for seen in base]), change)
        else:
            after = self._one_by_one(change)
        effect = after - before[None, :, None]
        return effect.permute(3, 0, 1, 2), whole.expand(n_heads, -1).T

    def _runs(self, which: RunName) -> list[Seen]:
        """Return one run for all senders, or one with each ablated; none where none is needed."""
        pair, model = self.pair, self.pair.model
        alone = which == "corrupted" and pair.ablation != "resample"
        if alone and pair.direction == "noise" and not self.normalise:
            return []  # what is put in the senders' place is known
        points = passes.written_points(model, [self.sender_layer])
        names = [*points, f"blocks.{self.receiver_layer}.hook_resid_pre"]
        heads = range(model.cfg.n_heads if alone else 1)
        return [pair.run(which, names, means=self._alone(head)) for head in heads]

    def _alone(self, head: int) -> Means:
        """Return what one head of the senders' layer alone is set to."""
        return {layer: ([head], values[:, [head]]) for layer, (_, values) in self.means.items()}

    def _written(self, runs: list[Seen]) -> Float[Tensor, "batch pos head d"]:
        """Return what each sender writes, in its own run if there are several."""
        model, layer = self.pair.model, self.sender_layer
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

    def _one_by_one(self, change: Changes) -> Float[Tensor, "via sender receiver batch"]:
        """Return the metric with each edge patched, by one pass per edge."""
        pair, heads, after = self.pair, range(self.pair.model.cfg.n_heads), list[Tensor]()
        for letter, sender, receiver in product(self.via, heads, heads):
            edges = Edges({}, {self.receiver_layer: [receiver]}, (letter,))
            patch = Patch(pair.model, edges, changes={self.sender_layer: change[sender]})
            seen = pair.run(pair.order[1], means=self._alone(sender), patch=patch)
            after.append(pair.measured(seen.logits))
            self.done(1)
        return torch.stack(after).unflatten(0, (len(self.via), len(heads), len(heads)))
