"""Path patching: the effect of edges between heads, exact through LayerNorm, attention and MLPs.

One run of the model, the base, gets on chosen edges what their senders wrote in another run, the
source. Only the receivers' queries, keys or values see it; all after them runs freely.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp._torch_state import plain_torch
from ih_interp.analysis._metrics import Metric, measured
from ih_interp.analysis._passes import (
    Ablation,
    Entered,
    HeadName,
    HeadsOf,
    by_layer,
    chunk_size,
    entering,
    inputs_named,
    reading,
    recording,
    refuse_cuts,
    refuse_shape,
    set_heads,
    whole_blocks,
    written_by,
    written_points,
)
from ih_interp.analysis.checks import refuse_wrong
from ih_interp.analysis.patching._patched_pass import Edges, Patch
from ih_interp.types import Batch, expect

Direction: TypeAlias = Literal["noise", "denoise"]
"""`noise` puts corrupted activations into the clean run, `denoise` clean into the corrupted."""

Means: TypeAlias = Mapping[int, tuple[Sequence[int], Tensor]]
"""Heads of a layer, and what they are set to, `[pos, head, d]`."""


@plain_torch()
def path_patch(
    model: HookedTransformer,
    clean: Batch,
    corrupted: Batch | None,
    senders: Iterable[HeadName],
    receivers: Iterable[HeadName | Literal["output"]] | Literal["output"],
    *,
    via: str | Sequence[str] = ("q", "k", "v"),
    middle: Iterable[HeadName] = (),
    direction: Direction = "noise",
    ablation: Ablation = "resample",
    metric: Metric = "logit_difference",
    per_sequence: bool = False,
    normalise: bool = False,
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Effect of all edges from senders to receivers, patched jointly (Wang et al. 2022).

    `metric(patched run) - metric(base run)`, for the clean batch's target and context; its mean
    over sequences, or `[batch]` with `per_sequence=True`. 0 for an edge that carries nothing. With
    a metric that is higher for better models, `noise` gives negative effects for edges that serve
    the behaviour and `denoise` positive ones. `normalise=True` divides by the mean over sequences
    of `metric(source run) - metric(base run)`: then 1 is an edge that alone carries all of the
    difference, whichever the metric or direction, and 0 one that carries none of it.

    A receiver's queries, keys or values (`via`) are computed by the model's own LN1 from its input
    with `sender in the source run - sender in this run` added, so nothing is linearised; "output"
    as a receiver is the final residual stream, the direct effect on the logits. `middle` heads,
    between all senders and receivers, add the paths through any of them, in order: they compute
    from patched inputs, all three, and go along patched edges only. All other heads and MLPs see
    none of it before a receiver (the treeified computation of Goldowsky-Dill et al. 2023).

    Args:
        model: any HookedTransformer whose heads add up; GQA is refused.
        clean: the sequences, with the target and the context that the metric is about.
        corrupted: as many sequences, from `corruptions`; None for zero, and for means over `clean`.
        senders: heads, `"L0H2"` or `(0, 2)`.
        receivers: heads above them, or "output".
        via: which of the receivers' inputs, "q", "k", "v".
        middle: heads of layers between.
        direction: `noise`: base clean, source corrupted; `denoise`: the other way round.
        ablation: the corrupted run. `resample`: the corrupted sequences. `zero`, `mean`: the clean
            ones, with what senders write set to 0, or to its mean over the corrupted sequences,
            for all who read it.
        metric: a scale of `metrics.SCALES`, or a function of logits `[batch, label]` and a batch.
        per_sequence: one effect per sequence.
        normalise: divide by the whole difference between the two runs.

    Active clamps and hooks act in every run as in a pass of the model; those made for a batch must
    be made for `clean`, and act in the corrupted run as they do there. Attention of another class
    computes as it does. Raises ValueError for heads that no edge connects, clamps that replace the
    stream between them, sequences of other shapes, and models in which an edge is not defined:
    those where code or hooks make what attention adds other than the sum of its heads' z W_O.
    """
    refuse_wrong(
        model=model,
        clean=clean,
        corrupted=corrupted,
        via=via,
        direction=direction,
        ablation=ablation,
        metric=metric,
        per_sequence=per_sequence,
        normalise=normalise,
    )
    edges = _edges(model, senders, receivers, via, middle)
    pair = Pair.of(model, clean, corrupted, direction, ablation)
    means = pair.means(edges.senders)
    top = max([*edges.receivers, *[model.cfg.n_layers] * edges.to_output])
    with whole_blocks(model, min(edges.senders), top):
        values = [values_of(part, edges, metric, means, normalise) for part in pair.split()]
    patched, base, source = (torch.cat(column) for column in zip(*values, strict=True))
    return share(patched - base, source - base if normalise else None, per_sequence)


def share(
    effect: Float[Tensor, "batch ..."], whole: Float[Tensor, "batch ..."] | None, per_sequence: bool
) -> Tensor:
    """Effects, or their mean over sequences, over the mean of the whole difference if given.

    Raises ValueError where that is 0: clean and corrupted runs that do not differ.
    """
    if whole is not None:
        mean = whole.double().mean(dim=0)
        if bool((mean == 0).any()):
            raise ValueError(
                "The clean and the corrupted run have the same mean metric: there is no difference "
                "to share; give another corruption or metric, or normalise=False."
            )
        effect = (effect.double() / mean).to(effect)
    return effect if per_sequence else effect.double().mean(dim=0).to(effect)


class Values(NamedTuple):
    """The metric of every sequence in three runs; the source's is the base's where nobody asks."""

    patched: Float[Tensor, " batch"]
    base: Float[Tensor, " batch"]
    source: Float[Tensor, " batch"]


class Seen(NamedTuple):
    """One run: logits of the last position, and activations by hook name."""

    logits: Float[Tensor, "batch label"]
    kept: dict[str, Tensor]
    entered: Sequence[Entered] = ()
    """What the pass gave a layer, where one was named."""


@dataclass(frozen=True)
class Pair:
    """A clean and a corrupted run of a model, and which of them is the base."""

    model: HookedTransformer
    clean: Batch
    corrupted: Batch
    direction: Direction
    ablation: Ablation

    @classmethod
    def of(
        cls,
        model: HookedTransformer,
        clean: Batch,
        corrupted: Batch | None,
        direction: str,
        ablation: str,
    ) -> "Pair":
        """Checked; ValueError says what does not fit."""
        expect(model, HookedTransformer, "The model", "a run's is run.model(step)")
        expect(clean, Batch, "The clean batch", "give the Batch itself, not its tokens")
        refuse_shape(model)
        for name, value, kind in (
            ("direction", direction, Direction),
            ("ablation", ablation, Ablation),
        ):
            if value not in get_args(kind):
                raise ValueError(f"{name}={value!r}; choose from {', '.join(get_args(kind))}.")
        if corrupted is None:
            if ablation == "resample":
                raise ValueError("Resampling needs corrupted sequences; see analysis.corruptions.")
            corrupted = clean
        expect(corrupted, Batch, "The corrupted batch", "give the Batch itself, not its tokens")
        if clean.tokens.shape != corrupted.tokens.shape:
            raise ValueError(
                f"Clean sequences are {tuple(clean.tokens.shape)} and corrupted ones "
                f"{tuple(corrupted.tokens.shape)}; as many of the same length were expected."
            )
        return cls(model, clean, corrupted, direction, ablation)  # pyright: ignore

    def split(self) -> "list[Pair]":
        """The same in chunks."""
        size = chunk_size(self.model, len(self.clean))
        batches = zip(self.clean.split(size), self.corrupted.split(size), strict=True)
        return [Pair(self.model, *both, self.direction, self.ablation) for both in batches]

    def means(self, heads: HeadsOf) -> Means:
        """What heads are set to where the ablation sets them: 0, or means over the corrupted."""
        if self.ablation == "resample":
            return {}
        total: dict[int, Tensor] = {}
        for part in self.split():
            seen = part.run(part.corrupted, written_points(self.model, heads))
            for layer, written in written_by(self.model, seen.kept, heads).items():
                total[layer] = total.get(layer, 0.0) + written.double().sum(dim=0)
        scale = 0.0 if self.ablation == "zero" else 1 / len(self.corrupted)
        return {layer: (heads[layer], scale * total[layer]) for layer in heads}

    def run(self, batch: Batch, names: Iterable[str] = (), layer: int | None = None) -> Seen:
        """Run these sequences, and keep the named activations and a layer's input."""
        entered: Sequence[Entered] = ()
        with ExitStack() as stack:
            kept = stack.enter_context(self.kept(batch, names))
            if layer is not None:
                entered = stack.enter_context(entering(self.model, layer))
            logits = self.model(self.clean.tokens)[:, -1]
        return Seen(logits, kept, entered)

    @contextmanager
    def kept(self, batch: Batch, names: Iterable[str]) -> Generator[dict[str, Tensor]]:
        """Inside, the model's passes of the clean tokens are passes of these sequences."""
        with ExitStack() as stack:
            if batch is not self.clean:
                stack.enter_context(reading(self.model, batch.tokens))
            yield stack.enter_context(recording(self.model, names))

    @contextmanager
    def corrupting(self, means: Means) -> Generator[Batch]:
        """Inside, a pass of the given batch by `run` is the corrupted run."""
        if self.ablation == "resample":
            yield self.corrupted
        else:
            with set_heads(self.model, means):
                yield self.clean


def values_of(pair: Pair, edges: Edges, metric: Metric, means: Means, normalise: bool) -> Values:
    """Return the metric with these edges patched, in the base run and, if asked, the source run."""
    model, clean = pair.model, pair.clean
    names = written_points(model, {*edges.senders, *edges.middle})
    clean_run = pair.run(clean, names)
    with pair.corrupting(means) as batch:
        corrupted_run = pair.run(batch, names)
    noise = pair.direction == "noise"
    base, source = (clean_run, corrupted_run) if noise else (corrupted_run, clean_run)
    patch = Patch(
        model,
        edges,
        source=written_by(model, source.kept, edges.senders),
        frozen=written_by(model, base.kept, edges.middle),
    )
    with ExitStack() as stack:
        batch = clean if noise else stack.enter_context(pair.corrupting(means))
        stack.enter_context(patch.applied())
        logits = pair.run(batch).logits
    patched, before = (measured(metric, seen, clean) for seen in (logits, base.logits))
    whole = measured(metric, source.logits, clean) if normalise else before
    return Values(patched, before, whole)


def _edges(
    model: HookedTransformer,
    senders: Iterable[HeadName],
    receivers: Iterable[HeadName | Literal["output"]] | Literal["output"],
    via: str | Sequence[str],
    middle: Iterable[HeadName],
) -> Edges:
    receivers = ["output"] if isinstance(receivers, str) and receivers == "output" else receivers
    for name, heads in (("senders", senders), ("receivers", receivers), ("middle", middle)):
        if isinstance(heads, str):
            raise TypeError(f'{name} are a list of heads, as ["L0H2"]; {heads!r} came.')
        expect(heads, Iterable, name, 'write ["L0H2"]')
    named = list(receivers)
    edges = Edges(
        by_layer(senders, model),
        by_layer([head for head in named if head != "output"], model),
        inputs_named(via),
        by_layer(middle, model),
        to_output="output" in named,
    )
    top = [model.cfg.n_layers] if edges.to_output else []
    below, above = list(edges.senders), [*edges.receivers, *top]
    if not below or not above:
        raise ValueError("An edge needs a sender and a receiver; name at least one of each.")
    if max(below) >= max(above) or min(above) <= min(below):
        raise ValueError(
            f"Senders in layers {below} do not all reach receivers in layers {above}: every sender "
            'needs a receiver above it, every receiver a sender below ("output" is above all).'
        )
    between = list(edges.middle)
    if between and not (min(below) < min(between) and max(between) < min(above)):
        raise ValueError(
            f"Middle heads in layers {between} are not between senders in layers {below} and "
            f"receivers in layers {above}."
        )
    shared = [
        layer for layer in between if {*edges.middle[layer]} & {*edges.senders.get(layer, ())}
    ]
    if shared:
        raise ValueError(f"A head of layer {shared[0]} is both a sender and a middle head.")
    refuse_cuts(model, min(below), max(above))
    return edges
