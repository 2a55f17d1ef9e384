"""`clamped`, which puts clamps on a model for one block of code."""

import itertools
import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from torch.utils._pytree import tree_map
from transformer_lens import HookedTransformer

from ih_interp.clamps._active import Active, activated, active, refuse_removed
from ih_interp.clamps.base import EMBEDDING, AbstractClamp, Setting, Shape, Site, hooks_of
from ih_interp.clamps.schedules import Metrics
from ih_interp.model import refuse_other_exemplars
from ih_interp.types import Batch, Head, expect, integer

ORDER = (
    "preserve",
    "perfect_layer_one",
    "graft_in",
    "ablate_embedding",
    "ablate_heads",
    "previous_token_attention",
    "induction_attention",
    "match_attention",
    "attention_temperature",
    "forbid_previous_token",
    "attend_labels_only",
    "copy_from_attention",
    "perfect_match_and_copy",
    "graft_out",
)
"""The order of hooks at one hook point. Two clamps that set the same thing raise an error."""


class ClampUnchangedWarning(UserWarning):
    """A warning that a clamp set every activation to the value that it had."""


def in_order(clamps: Sequence[AbstractClamp]) -> tuple[AbstractClamp, ...]:
    """Return clamps in the order in which their hooks are added, a user's own kinds last."""
    place = {kind: number for number, kind in enumerate(ORDER)}
    return tuple(sorted(clamps, key=lambda clamp: place.get(clamp.kind, len(ORDER))))


def _refuse_no_clamps(clamps: object) -> None:
    """Raise TypeError for anything but a list of clamps, one clamp alone included."""
    remedy = "write [ih.clamps.match('L1H3')]; ih.clamps.parse reads JSON"
    if isinstance(clamps, AbstractClamp):
        raise TypeError(f"clamps={clamps}: expected a list and one clamp came; write [clamp].")
    expect(clamps, Sequence, f"clamps={clamps!r}", remedy)
    for clamp in cast(Sequence[object], clamps):
        more = "; unpack several with a star" if isinstance(clamp, Sequence) else ""
        expect(clamp, AbstractClamp, f"Each of clamps, {clamp!r} here", f"{remedy}{more}")


def check(model: HookedTransformer, clamps: Sequence[AbstractClamp]) -> None:
    """Refuse clamps that the model cannot take, or that cannot act together (ValueError)."""
    _refuse_no_clamps(clamps)
    shape = Shape.of(model)
    for clamp in clamps:
        clamp.tensors(shape)
        clamp.prepare(model)
        if clamp.is_own:
            _refuse_sites(clamp, shape)
    refuse_conflicts(clamps, shape)


def _refuse_sites(clamp: AbstractClamp, shape: Shape) -> None:
    sites: Any = clamp.sites(shape)
    if not isinstance(sites, Iterable) or not all(isinstance(site, Site) for site in sites):
        raise TypeError(
            f"sites() of {clamp} gives {sites!r}: expected a set of ih.clamps.Site(what, layer, "
            "head), or an empty one."
        )
    for site in sorted(sites, key=str):
        is_layer = EMBEDDING <= site.layer <= shape.n_layers
        if not (is_layer and (site.head is None or 0 <= site.head < shape.n_heads)):
            raise ValueError(
                f"{clamp} sets {site}: expected layers and heads of a model of {shape.n_layers} "
                f"layers x {shape.n_heads} heads, from 0 (the embedding is layer {EMBEDDING})."
            )


def refuse_conflicts(clamps: Sequence[AbstractClamp], shape: Shape) -> None:
    """Raise ValueError where two clamps set one thing, or one makes another void throughout."""
    for one, other in itertools.combinations(clamps, 2):
        for site in sorted(one.sites(shape) & other.sites(shape), key=str):
            raise ValueError(
                f"Two clamps set the {_place(site)}: {one} and {other}. "
                "The later would win in silence, whatever their schedules are; drop one."
            )
    for one, other in itertools.permutations(clamps, 2):
        # A clamp with a schedule is off for a time, in which the other one acts.
        if not other.is_scheduled and (why := _void(one, other, shape)):
            raise ValueError(f"{one} is void{why}. Drop one.")


def _place(site: Site) -> str:
    where = f"layer {site.layer}" if site.head is None else str(Head(site.layer, site.head))
    return f"{site.what} of {where}" + (f", {site.row} rows" if site.row else "")


def _void(one: AbstractClamp, by: AbstractClamp, shape: Shape) -> str | None:
    """Return why nothing that `one` sets reaches the output under `by`; None if it does."""
    sites, others = sorted(one.sites(shape), key=str), by.sites(shape)
    for site in sites:
        pattern = site._replace(what="pattern")
        set_after = {pattern, Site("preserved pattern", site.layer)} & others
        if site.what.startswith("scores:") and set_after:
            return f": {by} sets the {_place(pattern)}, which the scores no longer reach"
    read = {site.layer for site in others if site.what == "scores read"}
    for site in sites:
        if site.what == "pattern" and site.layer in read:
            return f": {by} reads scores, which no {_place(site)} changes"
    cut = sorted({site.layer for site in sites} & set(by.voids(shape)))
    if cut and one.kind != "preserve":  # it holds every layer, and the others still matter
        where = ", ".join("the embedding" if layer < 0 else f"layer {layer}" for layer in cut)
        return f" at {where}: under {by} nothing there reaches the output"
    return None


@contextmanager
def clamped(
    model: HookedTransformer,
    clamps: Sequence[AbstractClamp],
    batch: Batch | None = None,
    *,
    step: int | None = None,
    metrics: Metrics | None = None,
) -> Generator[HookedTransformer]:
    """Run `model` on `batch.tokens` under clamps inside this block; leaving it restores the model.

    Gradients flow. Other hooks stay, `model.reset_hooks` takes off only those, and caches made
    inside see clamped values; a copy of the model made inside is free. `step` is the update that
    schedules are at; `from_level` also reads `metrics`, the rows of a run's metrics,
    `run.metrics.to_dict("records")`. Passes that a clamp reads run first, without any clamps.
    Nested blocks act as one block with the clamps of all.

    Raises ValueError, before anything is changed, for heads or layers that the model lacks, clamps
    that set the same thing or make each other void (in this block and those around it), and a
    missing batch, step or metrics; during the block for other sequences than the batch's, where a
    clamp depends on them; at its end for a clamp whose hooks never fired or were taken off before.
    Warns (`ClampUnchangedWarning`) of a clamp that changed nothing.
    """
    expect(model, HookedTransformer, "The model", "a run's is run.model(step)")
    _refuse_no_clamps(clamps)
    step = None if step is None else integer(step, f"step={step!r}")
    if batch is not None:
        expect(batch, Batch, "The batch", "give the Batch itself, not its tokens")
    if metrics is not None:
        expect(metrics, Sequence, "Metrics", "give rows, run.metrics.to_dict('records')")
    outer = active(model)
    refuse_removed(model)
    check(model, [*(one.clamp for one in outer), *clamps])
    clamps = in_order(clamps)
    if batch is not None:
        _check_batch(model, clamps, batch)
    inner = [_ready(clamp, model, batch, step, metrics) for clamp in clamps]
    _refuse_wrong_order(outer, inner)
    with ExitStack() as stack:
        for one in inner:
            one.place(stack, model, batch)
        stack.enter_context(activated(model, inner))
        yield model
        refuse_removed(model)
    for one in inner:
        _report(one)


def _ready(
    clamp: AbstractClamp,
    model: HookedTransformer,
    batch: Batch | None,
    step: int | None,
    metrics: Metrics | None,
) -> Active:
    """Return the clamp with its hooks, which are still to be placed."""
    gate: float | None = None
    if clamp.is_scheduled:
        if step is None:
            raise ValueError(f"{clamp} has a schedule: pass the step that it is at, step=...")
        gate = clamp.schedule.gate(step, metrics)
    if clamp.is_own and gate not in (None, 0.0, 1.0):
        raise ValueError(
            f"{clamp} has the gate {gate} at step {step}: expected 0 or 1, as nothing says whether "
            "a clamp of your own blends by it; use during, pulses or from_level."
        )
    tensors = tree_map(lambda t: t.to(model.W_U.device), clamp.tensors(Shape.of(model)))
    return Active(
        clamp,
        hooks_of(clamp, Setting(model, batch, tensors, gate)),
        # A clamp of the user's own may read the batch without declaring it.
        is_bound=batch is not None and (clamp.needs_batch or clamp.is_own),
        is_off=clamp.is_own and gate == 0,
    )


def _refuse_wrong_order(outer: Sequence[Active], inner: Sequence[Active]) -> None:
    """Refuse clamps whose hooks, in one block, would come before those of an outer block."""
    for early, late in itertools.product(inner, outer):
        shared = sorted(early.points & late.points)
        if shared and in_order([late.clamp, early.clamp])[0] is early.clamp:
            raise ValueError(
                f"{early.clamp} comes before {late.clamp}, which is on the model already, at "
                f"{shared[0]}; give both to one clamped()."
            )


def _check_batch(model: HookedTransformer, clamps: Sequence[AbstractClamp], batch: Batch) -> None:
    if (n_positions := batch.tokens.shape[1]) > model.cfg.n_ctx:
        raise ValueError(f"Sequences have {n_positions} tokens; the model takes {model.cfg.n_ctx}.")
    refuse_other_exemplars(model, batch)
    for clamp in clamps:
        clamp.refuse_batch(batch)


def _report(one: Active) -> None:
    """Refuse a clamp that never fired; warn of one that changed nothing."""
    silent = [name for name, _ in one.given if name not in one.fired]
    if silent:
        raise ValueError(
            f"{one.clamp} never fired: no pass inside clamped() reached {', '.join(silent)}. "
            "Run the whole model inside the block, or drop the clamp."
        )
    if not one.changed and not one.clamp.is_scheduled:
        warnings.warn(
            f"{one.clamp} changed nothing: every activation that it set had that value already.",
            ClampUnchangedWarning,
            stacklevel=4,
        )
