"""The wiring between two layers: the effect of every single edge, all of them in one call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm import tqdm
from transformer_lens import HookedTransformer

from ih_interp._reprs import short_repr
from ih_interp._torch_state import plain_torch
from ih_interp.analysis._passes import Input, inputs_named, refuse_cuts, whole_blocks
from ih_interp.analysis.checks import refuse_wrong
from ih_interp.analysis.dynamics.trace import refuse_other_function, trace
from ih_interp.analysis.patching._all_edges import Plan, effects_of
from ih_interp.analysis.patching.path_patching import Ablation, Direction, Pair, share
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
    """Whether an edge that serves the behaviour has a positive effect."""

    @property
    def use(self) -> Float[Tensor, "*batch via sender receiver"]:
        """Effects with the sign that makes an edge positive where it serves the behaviour."""
        return self.effects if self.higher_is_used else -self.effects

    def through(self, via: str) -> Float[Tensor, "*batch sender receiver"]:
        """`use` through one of the inputs: what the measures of `redundancy` take."""
        if via not in self.via:
            raise ValueError(f"via={via!r} was not patched; choose from {', '.join(self.via)}.")
        return self.use[..., self.via.index(via), :, :]  # pyright: ignore[reportArgumentType]

    def table(self) -> pd.DataFrame:
        """One row an edge: `via`, `sender`, `receiver` ("L0H2"), `effect`, `use`; means."""
        shape = self.effects.shape[-3:]
        effect, use = (
            values.reshape(-1, *shape).double().mean(dim=0).tolist()
            for values in (self.effects, self.use)
        )
        rows = [
            {
                "via": via,
                "sender": str(Head(self.sender_layer, s)),
                "receiver": str(Head(self.receiver_layer, r)),
                "effect": effect[v][s][r],
                "use": use[v][s][r],
            }
            for v, via in enumerate(self.via)
            for s in range(shape[1])
            for r in range(shape[2])
        ]
        return pd.DataFrame(rows)


@plain_torch()
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
    """The effect of every edge from a head of one layer to one input of a head of another.

    Each is what `path_patch` gives for that sender, receiver and input alone, with the same
    options and signs; `effects` are `[via, sender, receiver]`, or `[batch, via, sender, receiver]`
    with `per_sequence=True`. `receiver_layer` is the last by default. `progress` shows a bar.

    Where the receivers are the last layer of an attention-only model and nobody hooks it, only the
    last position is recomputed, for all edges at once; elsewhere the model runs on from the
    receivers' layer, under everybody's hooks. Raises ValueError as `path_patch` does, and unless
    0 <= sender_layer < receiver_layer < n_layers.
    """
    refuse_wrong(
        via=via,
        model=model,
        clean=clean,
        corrupted=corrupted,
        direction=direction,
        ablation=ablation,
        per_sequence=per_sequence,
        normalise=normalise,
        sender_layer=sender_layer,
        receiver_layer=receiver_layer,
        metric=metric,
    )
    names = inputs_named(via)
    top = model.cfg.n_layers - 1 if receiver_layer is None else receiver_layer
    if not 0 <= sender_layer < top < model.cfg.n_layers:
        raise ValueError(
            f"There is no edge from layer {sender_layer} to layer {top} in a model of "
            f"{model.cfg.n_layers} layers; senders stand below receivers, layers count from 0."
        )
    refuse_cuts(model, sender_layer, top)
    pair = Pair.of(model, clean, corrupted, direction, ablation)
    means = pair.means({sender_layer: range(model.cfg.n_heads)})
    parts = pair.split()
    total = len(parts) * len(names) * model.cfg.n_heads**2
    with (
        whole_blocks(model, sender_layer, top),
        tqdm(total=total, disable=not progress, unit="edge") as bar,
    ):
        plan = Plan(sender_layer, top, names, metric, normalise, bar.update)
        found = [effects_of(part, plan, means) for part in parts]
    effect, whole = (torch.cat(column) for column in zip(*found, strict=True))
    shares = share(effect, whole[:, None, :, None] if normalise else None, per_sequence)
    lower = normalise is False and isinstance(metric, str) and metric in LOWER_IS_BETTER
    positive = normalise or (direction == "denoise") != lower
    return Wiring(shares, names, sender_layer, top, positive)


@plain_torch()
def wiring_over_training(
    run: Run,
    corrupt: Any,
    *,
    batch: Batch | None = None,
    steps: Sequence[int] | None = None,
    progress: bool = False,
    **options: Any,
) -> pd.DataFrame:
    """The wiring at every checkpoint of a run, under the run's clamps: one row an edge and step.

    Columns: `step`, `sequences`, `via`, `sender`, `receiver`, `effect`, `use`. `corrupt` makes
    corrupted sequences from clean ones, as `corruptions.swap_exemplars` does; `options` are those
    of `wiring_map`. `batch` is by default, as in `trace`, a fixed sample of at most 4,096 training
    sequences. Long batches are measured in chunks, and means for `ablation="mean"` are then those
    of a chunk. Raises as `wiring_map` and `trace` do, and for `normalise`, `per_sequence`.
    """
    refused = {"normalise", "per_sequence"} & {name for name, on in options.items() if on}
    if refused:
        raise ValueError(f"{', '.join(sorted(refused))} is no mean over sequences; leave it out.")
    refuse_other_function(corrupt, "corrupt", "batch")
    last: dict[str, Wiring] = {}

    def measure(model: HookedTransformer, part: Batch) -> dict[str, float]:
        found = last["wiring"] = wiring_map(model, part, corrupt(part), **options)
        table = found.table()
        return dict(zip(table.index.astype(str), table["effect"], strict=True))

    rows = trace(run, measure, batch=batch, steps=steps, progress=progress)
    edges = last["wiring"].table()[["via", "sender", "receiver"]]
    table = rows[["step", "sequences"]].join(edges.loc[rows["name"].astype(int)].reset_index())
    sign = 1 if last["wiring"].higher_is_used else -1
    table = table.drop(columns="index").assign(effect=rows["value"], use=sign * rows["value"])
    table.attrs |= rows.attrs
    return table
