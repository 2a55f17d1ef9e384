"""The wiring between layers: the effect of every single edge, all in one call.

Base and source run once. Where the receivers' layer is all that is left, its last position is then
computed for all edges at once; elsewhere the layers from the receivers on, for many edges at once;
under hooks, clamps and in models of other code each edge is a pass of the model. For the paper's
model (2 layers of 8 heads) and 784 sequences the first takes 0.15 s, and a pass per edge some 6 s.
The second is 9 times as fast as whole passes over all pairs of layers of a model like GPT-2 (4
layers of 12 heads, d_model 768, 50,257 tokens; 4 prompts of 15 tokens), 6 times between two layers.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, product
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm

from ih_interp._reprs import short_repr
from ih_interp.analysis import _passes as passes
from ih_interp.analysis._passes import Ablation, Input
from ih_interp.analysis.checks import Positive, checked_in_plain_torch
from ih_interp.analysis.dynamics.trace import refuse_other_function, trace
from ih_interp.analysis.patching._each_edge import EachEdge
from ih_interp.analysis.patching.path_patching import Direction, Pair, share
from ih_interp.batch import Batch
from ih_interp.checkpoints import Checkpoints
from ih_interp.evaluation import LOWER_IS_BETTER, Metric
from ih_interp.hooked_model import HookedModel
from ih_interp.types import Head


@short_repr
@dataclass(frozen=True)
class Wiring:
    """Effects of the edges between two layers, and how they were measured."""

    effects: Float[Tensor, "*batch via sender receiver"]
    """With grouped-query attention, receivers through keys and values are key-value heads, which
    come first; the rest of their rows is NaN where queries are there too."""
    via: tuple[Input, ...]
    sender_layer: int
    receiver_layer: int
    higher_is_used: bool
    """Whether edges that serve the behaviour have positive effects."""
    n_key_value_heads: int | None = field(default=None, repr=False)
    """How many there are, with grouped-query attention."""

    @property
    def use(self) -> Float[Tensor, "*batch via sender receiver"]:
        """The effects, with the sign by which edges that serve the behaviour are positive."""
        return self.effects if self.higher_is_used else -self.effects

    def through(self, via: str) -> Float[Tensor, "*batch sender receiver"]:
        """Return `use` through one of the inputs, for the measures of `redundancy`."""
        if via not in self.via:
            raise ValueError(f"via={via!r}: expected a patched input, {', '.join(self.via)}.")
        use: Any = self.use[..., self.via.index(via), :, :]  # pyright: ignore[reportArgumentType]
        return use[..., : len(self.receivers(via))]

    def receivers(self, via: str) -> list[str]:
        """Return the names of what reads an input: "L1H0", or "L1KV0" where heads share keys."""
        if via == "q" or self.n_key_value_heads is None:
            return [str(Head(self.receiver_layer, h)) for h in range(self.effects.shape[-1])]
        return [f"L{self.receiver_layer}KV{head}" for head in range(self.n_key_value_heads)]

    def table(self) -> pd.DataFrame:
        """Return one row per edge: `via`, `sender`, `receiver` ("L0H2"), `effect`, `use`; means."""
        parts: list[pd.DataFrame] = []
        senders = [str(Head(self.sender_layer, head)) for head in range(self.effects.shape[-2])]
        for number, via in enumerate(self.via):
            receivers = self.receivers(via)
            edges = product([via], senders, receivers)
            part = pd.DataFrame(edges, columns=["via", "sender", "receiver"])
            for name, values in (("effect", self.effects), ("use", self.use)):
                chosen = values[..., number, :, : len(receivers)]
                part[name] = chosen.reshape(-1, len(part)).double().mean(dim=0).tolist()
            parts.append(part)
        return pd.concat(parts, ignore_index=True)


@short_repr
class Wirings(dict[tuple[int, int], Wiring]):
    """The wiring of pairs of layers, by the layers of senders and receivers."""

    def __missing__(self, layers: object) -> Wiring:
        raise KeyError(f"{layers!r}: expected a pair that was measured, {list(self)}.")

    def table(self) -> pd.DataFrame:
        """Return one row per edge of every pair, as `Wiring.table` does."""
        return pd.concat([wiring.table() for wiring in self.values()], ignore_index=True)


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
    batch_size: Positive | None = None,
    progress: bool = False,
) -> Wiring:
    """Return the effect of every edge from a head of one layer to one input of a head of another.

    Each is that of `path_patch` for this sender, receiver and input alone, with the same options
    and signs; `effects` are `[via, sender, receiver]`, or `[batch, via, sender, receiver]` with
    `per_sequence=True`. `receiver_layer` is the last by default. Keys and values that several heads
    share, with grouped-query attention, are one receiver, "L1KV0". At most `batch_size` sequences
    go through a pass. `progress` shows a bar. `wiring_maps` takes many layers.

    Raises ValueError as `path_patch` does, and for senders that are not below receivers.
    """
    top = model.cfg.n_layers - 1 if receiver_layer is None else receiver_layer
    if not 0 <= sender_layer < top < model.cfg.n_layers:
        raise ValueError(
            f"sender_layer={sender_layer}, receiver_layer={top}: expected senders below receivers "
            f"in a model of {model.cfg.n_layers} layers, which count from 0."
        )
    pair = Pair(model, clean, corrupted, direction, ablation, metric)
    options = (passes.inputs_named(via), per_sequence, normalise, batch_size, progress)
    return _wirings(pair, [(sender_layer, top)], *options)[sender_layer, top]


@checked_in_plain_torch()
def wiring_maps(
    model: HookedModel,
    clean: Batch,
    corrupted: Batch | None,
    *,
    layer_pairs: Sequence[tuple[int, int]] | None = None,
    via: str | Sequence[str] = ("q", "k", "v"),
    direction: Direction = "noise",
    ablation: Ablation = "resample",
    metric: Metric = "logit_difference",
    per_sequence: bool = False,
    normalise: bool = False,
    batch_size: Positive | None = None,
    progress: bool = False,
) -> Wirings:
    """Return `wiring_map` for pairs of layers, `(senders, receivers)`; by default for all.

    `wiring_maps(model, clean, corrupted)[0, 2]` is the wiring from layer 0 to layer 2, and
    `.table()` has every edge. Base and source run once for all. Raises as `wiring_map` does.
    """
    given = pairs_of_layers(model, layer_pairs)
    pair = Pair(model, clean, corrupted, direction, ablation, metric)
    options = (passes.inputs_named(via), per_sequence, normalise, batch_size, progress)
    return _wirings(pair, given, *options)


def pairs_of_layers(
    model: HookedModel, layer_pairs: Sequence[tuple[int, int]] | None
) -> list[tuple[int, int]]:
    """Return pairs of layers of a model, all for None; ValueError for others."""
    n_layers = model.cfg.n_layers
    given = [*combinations(range(n_layers), 2)] if layer_pairs is None else [*layer_pairs]
    wrong = [pair for pair in given if not 0 <= pair[0] < pair[1] < n_layers]
    if wrong or not given or len({*given}) < len(given):
        raise ValueError(
            f"layer_pairs={given}: expected different pairs of senders below receivers, at least "
            f"one, in a model of {n_layers} layers, which count from 0."
        )
    return given


def gathered(
    pair: Pair,
    via: tuple[Input, ...],
    effects: Mapping[tuple[int, int], Float[Tensor, "*batch via sender receiver"]],
    *,
    normalise: bool = False,
) -> Wirings:
    """Return effects between layers with how they were measured."""
    cfg, metric, shared = pair.model.cfg, pair.metric, passes.heads_per_key(pair.model)
    lower = not normalise and isinstance(metric, str) and metric in LOWER_IS_BETTER
    positive = normalise or (pair.direction == "denoise") != lower
    grouped = cfg.n_heads // shared if shared > 1 else None
    return Wirings(
        {ends: Wiring(each, via, *ends, positive, grouped) for ends, each in effects.items()}
    )


def _wirings(
    pair: Pair,
    layers: Sequence[tuple[int, int]],
    via: tuple[Input, ...],
    per_sequence: bool,
    normalise: bool,
    batch_size: int | None,
    progress: bool,
) -> Wirings:
    model = pair.model
    heads, shared = range(model.cfg.n_heads), passes.heads_per_key(model)
    above = {s: sorted(r for sender, r in layers if sender == s) for s, _ in sorted(layers)}
    means = pair.means(dict.fromkeys(above, heads), batch_size)
    parts = pair.split(batch_size)
    n_edges = sum(len(heads) ** 2 // (1 if letter == "q" else shared) for letter in via)
    with (
        passes.whole_blocks(model, min(above), max(r for _, r in layers)),
        tqdm(total=len(parts) * len(layers) * n_edges, disable=not progress, unit="edge") as bar,
    ):
        found = [
            EachEdge(part, above, via, normalise, bar.update, means).effects() for part in parts
        ]
    effects: dict[tuple[int, int], Tensor] = {}
    for ends in layers:
        parts_of_pair = (part[ends] for part in found)
        effect, whole = (torch.cat(column) for column in zip(*parts_of_pair, strict=True))
        whole = whole[:, None, :, None]
        effects[ends] = share(effect, whole, normalise=normalise, per_sequence=per_sequence)
    return gathered(pair, via, effects, normalise=normalise)


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
