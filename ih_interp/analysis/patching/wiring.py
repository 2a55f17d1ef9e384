"""The wiring between two layers: the effect of every single edge, all in one call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from transformer_lens import HookedTransformer

from ih_interp._reprs import short_repr
from ih_interp.analysis._passes import Ablation, Input, inputs_named, refuse_cuts, whole_blocks
from ih_interp.analysis.checks import checked_in_plain_torch
from ih_interp.analysis.dynamics.trace import refuse_other_function, trace
from ih_interp.analysis.patching._all_edges import Plan, effects_of
from ih_interp.analysis.patching.path_patching import Direction, Pair, share
from ih_interp.evaluation import LOWER_IS_BETTER, Metric
from ih_interp.runs import Run
from ih_interp.types import Batch, Head


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
    model: HookedTransformer,
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

    Where the receivers are the last layer of an attention-only model and no hook is on it, only the
    last position is recomputed, for all edges at once; elsewhere each edge is a pass of the model,
    under all hooks. Raises ValueError as `path_patch` does, and unless
    0 <= sender_layer < receiver_layer < n_layers.
    """
    names = inputs_named(via)
    top = model.cfg.n_layers - 1 if receiver_layer is None else receiver_layer
    if not 0 <= sender_layer < top < model.cfg.n_layers:
        raise ValueError(
            f"sender_layer={sender_layer}, receiver_layer={top}: expected senders below receivers "
            f"in a model of {model.cfg.n_layers} layers, which count from 0."
        )
    refuse_cuts(model, sender_layer, top)
    pair = Pair.of(model, clean, corrupted, direction, ablation, metric)
    means = pair.means({sender_layer: range(model.cfg.n_heads)})
    parts = pair.split()
    total = len(parts) * len(names) * model.cfg.n_heads**2
    with (
        whole_blocks(model, sender_layer, top),
        tqdm(total=total, disable=not progress, unit="edge") as bar,
    ):
        plan = Plan(sender_layer, top, names, normalise, bar.update)
        found = [effects_of(part, plan, means) for part in parts]
    effect, whole = (torch.cat(column) for column in zip(*found, strict=True))
    whole = whole[:, None, :, None]
    shares = share(effect, whole, normalise=normalise, per_sequence=per_sequence)
    lower = normalise is False and isinstance(metric, str) and metric in LOWER_IS_BETTER
    positive = normalise or (direction == "denoise") != lower
    return Wiring(shares, names, sender_layer, top, positive)


@checked_in_plain_torch()
def wiring_over_training(
    run: Run,
    corrupt: Callable[[Batch], Batch],
    *,
    batch: Batch | None = None,
    steps: Sequence[int] | None = None,
    progress: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """Return the wiring at every checkpoint of a run, under the run's clamps.

    One row per edge and step, with `step`, `sequences`, `via`, `sender`, `receiver`, `effect` and
    `use`. `corrupt` makes corrupted sequences from clean ones, as `swap_exemplars` does; `options`
    are those of `wiring_map`. `batch` is by default, as in `trace`, a fixed sample of at most 4,096
    training sequences. Long batches are measured in chunks, each with its own means for
    `ablation="mean"`. Raises as `wiring_map` and `trace` do, and ValueError for `normalise` and
    `per_sequence`.
    """
    refused = {"normalise", "per_sequence"} & {name for name, on in options.items() if on}
    if refused:
        raise ValueError(f"{', '.join(sorted(refused))}: expected a mean over sequences; omit it.")
    refuse_other_function(corrupt, "corrupt", "batch")
    last: list[Wiring] = []

    def measure(model: HookedTransformer, part: Batch) -> dict[str, float]:
        last[:] = [wiring_map(model, part, corrupt(part), **options)]
        table = last[0].table()
        names = table["via"] + "|" + table["sender"] + "|" + table["receiver"]
        return dict(zip(names, table["effect"], strict=True))

    rows = trace(run, measure, batch=batch, steps=steps, progress=progress)
    edges = ["via", "sender", "receiver"]
    rows[edges] = rows["name"].str.split("|", expand=True)
    rows["effect"] = rows["value"]
    rows["use"] = rows["value"] if last[0].higher_is_used else -rows["value"]
    return rows[["step", "sequences", *edges, "effect", "use"]]
