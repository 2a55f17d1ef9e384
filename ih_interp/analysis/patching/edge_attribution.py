"""Edge attribution: a first-order estimate of every edge's effect, by one backward pass.

For models in which a pass per edge takes too long (Syed et al. 2023, arXiv 2310.10348; Nanda 2023,
attribution patching). Exact effects of a sample of edges say how far off the estimates are.
"""

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ih_interp._reprs import short_repr
from ih_interp._torch_state import in_single
from ih_interp.analysis import _passes as passes
from ih_interp.analysis._passes import Ablation, Input, Means
from ih_interp.analysis.checks import Positive, Seed, checked_in_plain_torch
from ih_interp.analysis.patching._each_edge import stacked
from ih_interp.analysis.patching.path_patching import Direction, Pair, path_patch
from ih_interp.analysis.patching.wiring import Wirings, gathered, pairs_of_layers
from ih_interp.batch import Batch
from ih_interp.evaluation import Metric
from ih_interp.hooked_model import HookedModel
from ih_interp.types import Head, Residual

FLAT = ("accuracy", "in_context_accuracy")
"""Scales without a gradient."""


@short_repr
class EdgeAttribution(NamedTuple):
    """Estimates of effects, and exact effects of a sample of edges beside them."""

    wirings: Wirings
    """The estimates, of pairs of layers."""
    sample: pd.DataFrame
    """One row per edge drawn: `via`, `sender`, `receiver`, `estimate`, `effect`, `error`."""


@checked_in_plain_torch(gradient=True)
def edge_attribution(
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
    sample: Positive = 30,
    seed: Seed = 0,
    batch_size: Positive | None = None,
) -> EdgeAttribution:
    """Return a first-order estimate of every edge's effect, by one backward pass.

    The estimate of `wiring_maps`' effect from sender s to input i of receiver r is

        sum over positions of (s in the source run - s in the base run) . d metric / d x

    with x the residual stream that only r's input i reads, and the derivative in the base run. It
    is exact in the limit of small changes, and in the metric's units; 0 where an edge carries
    nothing or the metric does not depend on it. Where attention or norms saturate it may be far
    off, with another sign (Nanda 2023): `sample` edges, drawn with `seed`, are patched exactly, and
    `error` is estimate minus effect. Other arguments are those of `wiring_maps`.

    Raises ValueError as `wiring_maps` does, for a metric without a gradient, and for
    `direction="denoise"` with an ablation, in which each sender has a base run of its own.
    """
    given, names = pairs_of_layers(model, layer_pairs), passes.inputs_named(via)
    if metric in FLAT:
        raise ValueError(f"metric={metric!r} has no gradient: expected another, such as 'logit'.")
    if direction == "denoise" and ablation != "resample":
        raise ValueError(
            f"direction='denoise' with ablation={ablation!r} has a base run for each sender: "
            "expected direction='noise' or ablation='resample'; or use wiring_maps."
        )
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise ValueError(
            "The model's weights were made in torch.inference_mode, through which no gradient "
            "passes: expected others; give copy.deepcopy(model), made outside of it."
        )
    pair = Pair(model, clean, corrupted, direction, ablation, metric)
    with torch.no_grad():
        means = pair.means(
            dict.fromkeys(sorted({s for s, _ in given}), range(model.cfg.n_heads)), batch_size
        )
    with passes.whole_blocks(model, min(s for s, _ in given), max(r for _, r in given)):
        parts = [_estimates(part, given, names, means) for part in pair.split(batch_size)]
    effects = {ends: torch.cat([part[ends] for part in parts]) for ends in given}
    if not per_sequence:
        effects = {ends: each.double().mean(dim=0).to(each) for ends, each in effects.items()}
    wirings = gathered(pair, names, effects)
    return EdgeAttribution(wirings, _sample(pair, wirings.table(), sample, seed, batch_size))


def _estimates(
    pair: Pair, layers: Sequence[tuple[int, int]], via: tuple[Input, ...], means: Means
) -> dict[tuple[int, int], Float[Tensor, "batch via sender receiver"]]:
    """Return the estimates of every sequence; NaN where several heads share a receiver."""
    model, heads = pair.model, range(pair.model.cfg.n_heads)
    senders = dict.fromkeys(sorted({sender for sender, _ in layers}), heads)
    names, (source, base) = passes.written_points(model, senders), pair.order
    new = {layer: value for layer, (_, value) in means.items()}
    if pair.ablation == "resample":
        with torch.no_grad():
            new = passes.written_by(model, pair.run(source, names).kept, senders)
    read = _Read({receiver for _, receiver in layers}, via)
    with read.kept(model):
        seen = pair.run(base, names)
    metric = pair.measured(seen.logits).sum()
    if not metric.requires_grad:
        raise ValueError("The metric has no gradient by the logits: compute it with torch alone.")
    derivatives, found = read.derivatives(metric), dict[tuple[int, int], Tensor]()
    old = passes.written_by(model, seen.kept, senders)
    for sender, receiver in layers:
        written = old[sender].detach()
        change = passes.into_stream(model, sender, heads, new[sender].to(written) - written)
        change = change.detach()
        each = [
            torch.einsum(
                "bpsd,rbpd->srb", in_single(change.detach()), in_single(derivatives[receiver, i])
            )
            for i in via
        ]
        found[sender, receiver] = stacked(each).permute(3, 0, 1, 2)
    return found


@dataclass
class _Read:
    """The inputs that receivers read in a pass; its graph begins at the lowest of them."""

    layers: set[int]
    via: tuple[Input, ...]
    streams: dict[int, Residual] = field(default_factory=dict[int, Tensor])
    inputs: dict[tuple[int, Input], Tensor] = field(default_factory=dict[tuple[int, Input], Tensor])

    @contextmanager
    def kept(self, model: HookedModel) -> Generator[None]:
        """Keep what receivers read in the pass in the block: inputs as attention makes them."""
        streams: list[Any] = [
            (f"blocks.{layer}.hook_resid_pre", partial(self._keep_stream, layer=layer))
            for layer in self.layers
        ]
        inputs: list[Any] = [
            (f"blocks.{layer}.attn.hook_{letter}", partial(self._keep_input, place=(layer, letter)))
            for layer, letter in product(self.layers, self.via)
        ]
        with passes.acting_first(model, inputs), model.hooks(fwd_hooks=streams):
            yield

    def _keep_stream(self, resid: Residual, *, layer: int, **_: Any) -> Residual:
        resid = resid.detach().requires_grad_() if layer == min(self.layers) else resid
        self.streams[layer] = resid
        return resid

    def _keep_input(self, value: Tensor, *, place: tuple[int, Input], **_: Any) -> Tensor:
        self.inputs[place] = value
        return value  # a bridge shows a view, which is in the graph only if it is given back

    def derivatives(
        self, metric: Float[Tensor, ""]
    ) -> dict[tuple[int, Input], Float[Tensor, "receiver batch pos d_model"]]:
        """Return the metric's derivatives by the stream that one head's input alone reads."""
        options: Any = {"retain_graph": True, "materialize_grads": True}
        gradients = torch.autograd.grad(metric, list(self.inputs.values()), **options)
        found: dict[tuple[int, Input], Tensor] = {}
        for (place, value), gradient in zip(self.inputs.items(), gradients, strict=True):
            by_head: list[Tensor] = []
            for head in range(value.shape[2]):
                chosen = torch.zeros_like(gradient)
                chosen[:, :, head] = gradient[:, :, head]
                by_head += torch.autograd.grad(value, self.streams[place[0]], chosen, **options)
            found[place] = torch.stack(by_head)
        return found


def _sample(
    pair: Pair, table: pd.DataFrame, n_edges: int, seed: int, batch_size: int | None
) -> pd.DataFrame:
    """Return estimates and exact effects of some edges, drawn without replacement."""
    n_edges, shared = min(n_edges, len(table)), passes.heads_per_key(pair.model)
    drawn = np.sort(np.random.default_rng(seed).choice(len(table), n_edges, replace=False))
    chosen = table.loc[drawn, ["via", "sender", "receiver", "effect"]].reset_index(drop=True)
    chosen = chosen.rename(columns={"effect": "estimate"})
    effects: list[float] = []
    for via, sender, receiver in zip(chosen.via, chosen.sender, chosen.receiver, strict=True):
        layer, kind, head = re.split("(H|KV)", receiver[1:])
        read = Head(int(layer), int(head) * (shared if kind == "KV" else 1))
        effect = path_patch(
            pair.model,
            pair.clean,
            pair.given,
            [sender],
            [read],
            via=via,
            direction=pair.direction,
            ablation=pair.ablation,
            metric=pair.metric,
            batch_size=batch_size,
        )
        effects.append(float(effect))
    return chosen.assign(effect=effects, error=chosen["estimate"] - effects)
