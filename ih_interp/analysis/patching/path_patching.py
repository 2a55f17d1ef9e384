"""Path patching: the effect of edges between heads, exact through LayerNorm, attention and MLPs.

In one run, the base, chosen edges carry what their senders wrote in another run, the source. Only
the receivers' queries, keys or values get it; all after them runs freely.
"""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ih_interp._torch_state import in_single
from ih_interp.analysis import _passes as passes
from ih_interp.analysis._passes import Ablation, HeadsOf, Means
from ih_interp.analysis.checks import Positive, checked_in_plain_torch
from ih_interp.analysis.patching._patched_pass import Edges, Patch
from ih_interp.batch import Batch
from ih_interp.clamps._active import rows_per_pass
from ih_interp.evaluation import Metric, at_asked, measured
from ih_interp.hooked_model import HookedModel
from ih_interp.types import HeadName

Direction: TypeAlias = Literal["noise", "denoise"]
"""`noise` puts corrupted activations into the clean run, `denoise` clean into the corrupted."""

RunName: TypeAlias = Literal["clean", "corrupted"]

Effects: TypeAlias = Float[Tensor, "batch ..."]


@checked_in_plain_torch()
def path_patch(
    model: HookedModel,
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
    batch_size: Positive | None = None,
) -> Float[Tensor, ""] | Float[Tensor, " batch"]:
    """Return the effect of all edges from senders to receivers, patched jointly.

    `metric(patched run) - metric(base run)`, for the clean batch's target and context (Wang et al.
    2022); its mean over sequences, or `[batch]` with `per_sequence=True`. 0 for an edge that
    carries nothing. With a metric that is higher for better models, `noise` gives negative effects
    for edges that serve the behaviour and `denoise` positive ones. `normalise=True` divides by the
    mean over sequences of `metric(source run) - metric(base run)`: 1 for an edge that alone carries
    the whole difference, whichever the metric or direction.

    A receiver's queries, keys or values (`via`) are computed by the model's own LN1 from its input
    with `sender in the source run - sender in this run` added, so nothing is linearised; "output"
    as a receiver is the final residual stream, the direct effect on the logits. `middle` heads add
    the paths through any of them, in order: they compute q, k and v from patched inputs, and what
    that changes goes along patched edges only. Other heads and MLPs get none of it before a
    receiver (the treeified computation of Goldowsky-Dill et al. 2023). With grouped-query attention
    a head's queries are its own, its keys and values those of all heads of its group: a receiver
    named by "k" or "v" is the key-value head that it reads.

    `corrupted` has as many sequences as `clean`, of the same lengths; the metric is about `clean`'s
    targets, context and foils, and is the mean over a sequence's asked positions. It gives the
    corrupted run with `ablation="resample"`; with "zero" and "mean" that is the clean sequences
    with what senders write set to 0, or to its mean at each position over the sequences of
    `corrupted` that are so long, or of `clean` for None. `direction="noise"` has the base clean and
    the source corrupted, "denoise" the reverse. `metric` is one of `evaluation.SCALES`, or a
    function of logits `[asked, token]` and a batch. At most `batch_size` sequences go through a
    pass.

    Clamps and hooks act in every run; those made for a batch must be made for `clean`, and act in
    the corrupted run as they do there. There are two passes for the runs, one for each layer of
    receivers, up to it, and one with all patched; hooks act once in each. Weights in half precision
    give effects that are rounded as the logits are. Raises ValueError for heads that no edge
    connects, clamps that replace the stream between them, sequences of other shapes, and models in
    which norms, code or hooks make what attention adds other than the sum of its heads' z W_O.
    """
    edges = _edges(model, senders, receivers, via, middle)
    pair = Pair(model, clean, corrupted, direction, ablation, metric)
    means = pair.means(edges.senders, batch_size)
    with passes.whole_blocks(model, min(edges.senders), max(edges.above(model))):
        parts = [_effect(part, edges, means, normalise) for part in pair.split(batch_size)]
    effect, whole = (torch.cat(column) for column in zip(*parts, strict=True))
    return share(effect, whole, normalise=normalise, per_sequence=per_sequence)


def share(effect: Effects, whole: Effects, *, normalise: bool, per_sequence: bool) -> Tensor:
    """Return effects or their mean over sequences, divided by the mean whole difference if asked.

    Raises ValueError where that is 0.
    """
    if normalise:
        mean = whole.double().mean(dim=0)
        if bool((mean == 0).any()):
            raise ValueError(
                "The clean and the corrupted run have the same mean metric: there is no difference "
                "to share; give another corruption or metric, or normalise=False."
            )
        effect = (effect.double() / mean).to(effect)
    return effect if per_sequence else effect.double().mean(dim=0).to(effect)


class Seen(NamedTuple):
    """The logits of a run at asked positions, and its activations by hook name."""

    logits: Float[Tensor, "asked token"]
    kept: dict[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """A clean and a corrupted run of a model, a direction between them and a metric.

    Raises ValueError for models without edges and for sequences that do not fit together.
    """

    model: HookedModel
    clean: Batch
    given: Batch | None
    direction: Direction
    ablation: Ablation
    metric: Metric

    def __post_init__(self) -> None:
        passes.refuse_shape(self.model)
        if self.given is None and self.ablation == "resample":
            raise ValueError(
                "corrupted=None: expected sequences to resample from; see analysis.corruptions."
            )
        shape, other = self.clean.tokens.shape, self.corrupted.tokens.shape
        if shape != other:
            raise ValueError(
                f"corrupted: expected {tuple(shape)} tokens, as many sequences as in clean and of "
                f"the same length, got {tuple(other)}."
            )
        if not torch.equal(self.clean.present, self.corrupted.present):
            raise ValueError(
                "corrupted: expected sequences as long as those of clean; give both the same "
                "lengths, Batch(tokens, targets, lengths=...)."
            )

    @property
    def corrupted(self) -> Batch:
        """The corrupted sequences, or the clean ones where none are given."""
        return self.clean if self.given is None else self.given

    def split(self, most: int | None = None) -> "list[Pair]":
        """Return pairs of as many sequences as one pass takes, or of at most so many."""
        size = rows_per_pass(self.model, self.clean.tokens, most)
        batches = zip(self.clean.split(size), self.corrupted.split(size), strict=True)
        return [replace(self, clean=clean, given=corrupted) for clean, corrupted in batches]

    @property
    def order(self) -> tuple[RunName, RunName]:
        """The names of the source run and of the base run."""
        return ("corrupted", "clean") if self.direction == "noise" else ("clean", "corrupted")

    def measured(self, logits: Float[Tensor, "*any asked token"]) -> Float[Tensor, "*any batch"]:
        """Return the metric of every clean sequence, of half precision in float32."""
        return measured(self.metric, in_single(logits), self.clean)

    def means(self, heads: HeadsOf, most: int | None = None) -> Means:
        """Return values to set heads to: 0, or means over `corrupted`; for resampling none.

        Padding is in no mean; where no sequence is so long it does not matter what is set.
        """
        cfg, n_positions = self.model.cfg, self.clean.tokens.shape[1]
        if self.ablation == "resample":
            return {}
        if self.ablation == "zero":
            width = cfg.d_model if cfg.use_attn_result else cfg.d_head
            return {n: (of, torch.zeros(n_positions, len(of), width)) for n, of in heads.items()}
        total: dict[int, Tensor] = {}
        for part in replace(self, given=self.corrupted, ablation="resample").split(most):
            seen = part.run("corrupted", passes.written_points(self.model, heads))
            present = part.corrupted.present[:, :, None, None]
            for layer, written in passes.written_by(self.model, seen.kept, heads).items():
                values = torch.where(present, written, 0).double()
                total[layer] = total.get(layer, 0.0) + values.sum(dim=0)
        count = self.corrupted.present.sum(dim=0).clamp(min=1)[:, None, None]
        return {layer: (of, total[layer] / count) for layer, of in heads.items()}

    def run(
        self,
        which: RunName,
        names: Iterable[str] = (),
        *,
        means: Means | None = None,
        patch: Patch | None = None,
        reading: int | None = None,
    ) -> Seen:
        """Return the clean or the corrupted run, perhaps patched, and keep the named activations.

        The pass is that of the clean sequences, with heads set to means or with another embedding
        put in before all other hooks: clamps made for these sequences act as they do there. With a
        layer for the patch to read it ends there, without logits.
        """
        tokens, logits = self.clean.tokens, torch.empty(0, 0)
        with ExitStack() as stack:
            if which == "corrupted" and self.ablation != "resample":
                stack.enter_context(passes.set_heads(self.model, means or {}))
            elif which == "corrupted":
                stack.enter_context(passes.embedding_of(self.model, self.corrupted.tokens))
            kept = stack.enter_context(passes.recording(self.model, names))
            if patch is not None:
                stack.enter_context(patch.applied(reading))
            logits = at_asked(self.model(tokens), self.clean)
        return Seen(logits, kept)

    def patched(self, patch: Patch, means: Means | None = None) -> Float[Tensor, " batch"]:
        """Return the metric of the base run with a patch."""
        self.read(patch, means)
        return self.measured(self.run(self.order[1], means=means, patch=patch).logits)

    def read(self, patch: Patch, means: Means | None = None) -> None:
        """Have the receivers of a patch read their inputs in the base run, where they have not."""
        for layer in patch.unread():
            self.run(self.order[1], means=means, patch=patch, reading=layer)


def _effect(pair: Pair, edges: Edges, means: Means, normalise: bool) -> tuple[Tensor, Tensor]:
    """Return the effect and, if asked for, the whole difference of every sequence; else 0."""
    names = passes.written_points(pair.model, {*edges.senders, *edges.middle})
    clean, corrupted = pair.run("clean", names), pair.run("corrupted", names, means=means)
    source, base = (corrupted, clean) if pair.direction == "noise" else (clean, corrupted)
    every = {layer: range(pair.model.cfg.n_heads) for layer in edges.middle}
    patch = Patch(
        pair.model,
        edges,
        source=passes.written_by(pair.model, source.kept, edges.senders),
        frozen=passes.written_by(pair.model, base.kept, every),
    )
    patched, before = pair.patched(patch, means), pair.measured(base.logits)
    whole = pair.measured(source.logits) if normalise else before
    return patched - before, whole - before


def _edges(
    model: HookedModel,
    senders: Iterable[HeadName],
    receivers: Iterable[HeadName | Literal["output"]] | Literal["output"],
    via: str | Sequence[str],
    middle: Iterable[HeadName],
) -> Edges:
    if isinstance(receivers, str) and receivers == "output":
        receivers = [receivers]
    for name, heads in (("senders", senders), ("receivers", receivers), ("middle", middle)):
        if isinstance(heads, str):
            raise TypeError(f'{name}={heads!r}: expected a list of heads; write ["{heads}"].')
    given = list(receivers)
    reached = [one for one in given if not (isinstance(one, str) and one == "output")]
    layers = (passes.by_layer(senders, model), passes.by_layer(reached, model))
    to_output = len(reached) < len(given)
    edges = Edges(*layers, passes.inputs_named(via), passes.by_layer(middle, model), to_output)
    below, above = list(edges.senders), edges.above(model)
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
    for layer in between:
        if {*edges.middle[layer]} & {*edges.senders.get(layer, ())}:
            raise ValueError(f"A head of layer {layer} is both a sender and a middle head.")
    return edges
