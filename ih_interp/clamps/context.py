"""`clamped`, which puts clamps on a model for one block of code."""

import inspect
import itertools
import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, cast

from torch.utils._pytree import tree_map

from ih_interp._expect import expect, integer
from ih_interp._sequences import refuse_other_exemplars
from ih_interp.batch import Batch
from ih_interp.clamps._active import Active, activated, active, by_own_names, refuse_removed
from ih_interp.clamps._blending import blended, frozen_by
from ih_interp.clamps.base import EMBEDDING, AbstractClamp, Setting, Shape, Site, head_mask
from ih_interp.clamps.schedules import Metrics
from ih_interp.hooked_model import HookedModel, expect_model
from ih_interp.types import Head


class ClampUnchangedWarning(UserWarning):
    """A warning that a clamp set every activation to the value that it had."""


def in_order(clamps: Sequence[AbstractClamp]) -> tuple[AbstractClamp, ...]:
    """Return clamps in the order in which their hooks are added: by stage, then by kind."""
    return tuple(sorted(clamps, key=lambda clamp: (clamp.stage, clamp.kind)))


def _refuse_no_clamps(clamps: object) -> None:
    """Raise TypeError for anything but a list of clamps, one clamp alone included."""
    remedy = "write [ih.clamps.match('L1H3')]; ih.clamps.parse reads JSON"
    if isinstance(clamps, AbstractClamp):
        raise TypeError(f"clamps={clamps}: expected a list and one clamp came; write [clamp].")
    expect(clamps, Sequence, f"clamps={clamps!r}", remedy)
    for clamp in cast(Sequence[object], clamps):
        more = "; unpack several with a star" if isinstance(clamp, Sequence) else ""
        expect(clamp, AbstractClamp, f"Each of clamps, {clamp!r} here", f"{remedy}{more}")


def check(model: HookedModel, clamps: Sequence[AbstractClamp]) -> None:
    """Refuse clamps that the model cannot take, or that cannot act together (ValueError)."""
    _refuse_no_clamps(clamps)
    shape = Shape.of(model)
    for clamp in clamps:
        head_mask(_heads_of(clamp), shape)
        clamp.tensors(shape)
        clamp.prepare(model)
        _refuse_sites(clamp, shape)
    refuse_conflicts(clamps, shape)


def _heads_of(clamp: AbstractClamp) -> list[Head]:
    """Return the heads that a clamp's fields name."""
    values = [getattr(clamp, name) for name in type(clamp).model_fields]
    several = [(v,) if isinstance(v, Head) else v for v in values]
    return [v for part in several if isinstance(part, tuple) for v in part if isinstance(v, Head)]


def _refuse_sites(clamp: AbstractClamp, shape: Shape) -> None:
    sites: Any = clamp.sites(shape)
    found = list(sites) if isinstance(sites, Iterable) else []
    if not found or not all(isinstance(site, Site) for site in found):
        raise TypeError(
            f"sites() of {clamp} gives {sites!r}: expected at least one ih.clamps.Site(point, "
            'layer, head), such as {Site("pattern", 0, 3)}, by which conflicts are found.'
        )
    for site in sorted(found, key=str):
        is_layer = EMBEDDING <= site.layer <= shape.n_layers
        if not (is_layer and (site.head is None or 0 <= site.head < shape.n_heads)):
            raise ValueError(
                f"{clamp} sets {site}: expected layers and heads of a model of {shape.n_layers} "
                f"layers x {shape.n_heads} heads, from 0 (the embedding is layer {EMBEDDING})."
            )


def refuse_conflicts(clamps: Sequence[AbstractClamp], shape: Shape) -> None:
    """Raise ValueError where two clamps set one thing, or one makes another void throughout."""
    sites = {id(clamp): sorted(clamp.sites(shape), key=str) for clamp in clamps}
    for one, other in itertools.combinations(clamps, 2):
        for pair in itertools.product(sites[id(one)], sites[id(other)]):
            if pair[0].overlaps(pair[1]):
                raise ValueError(
                    f"Two clamps set the {_place(*pair)}: {one} and {other}. "
                    "The later would win in silence, whatever their schedules are; drop one."
                )
    for one, other in itertools.permutations(clamps, 2):
        # A clamp with a schedule is off for a time, in which the other one acts.
        if not other.is_scheduled and (why := _void(one, other, shape)):
            raise ValueError(f"{one} is void{why}. Drop one.")


def _place(*sites: Site) -> str:
    """Return in words what sites that overlap have in common."""
    point, layer = max((site.point for site in sites), key=len), sites[0].layer
    head = next((site.head for site in sites if site.head is not None), None)
    row = next((site.row for site in sites if site.row), None)
    where = f"layer {layer}" if head is None else str(Head(layer, head))
    return f"{point} of {where}" + (f", {row} rows" if row else "")


def _void(one: AbstractClamp, by: AbstractClamp, shape: Shape) -> str | None:
    """Return why nothing that `one` sets reaches the output under `by`; None if it does."""
    sites, others = sorted(one.sites(shape), key=str), sorted(by.sites(shape), key=str)
    for site, other in itertools.product(sites, others):
        pattern = site._replace(point="pattern")
        after = other._replace(point=other.point.removeprefix("preserved "))
        all_heads = other.head in (None, site.head)
        if site.point.split(":")[0] == "scores" and all_heads and after.overlaps(pattern):
            place = _place(pattern, after)
            return f": {by} sets the {place}, which the scores no longer reach"
        if site.point == "pattern" and other[:2] == ("scores read", site.layer):
            return f": {by} reads scores, which no {_place(site)} changes"
    held = ("preserved ", "frozen ")  # what stays what it is may well not matter in some layers
    cut = {site.layer for site in sites if not site.point.startswith(held)} & set(by.voids(shape))
    if cut:
        where = ", ".join("the embedding" if n < 0 else f"layer {n}" for n in sorted(cut))
        return f" at {where}: under {by} nothing there reaches the output"
    return None


SWITCHES = {
    "hook_result": "use_attn_result",
    "hook_attn_in": "use_attn_in",
    "hook_q_input": "use_split_qkv_input",
    "hook_k_input": "use_split_qkv_input",
    "hook_v_input": "use_split_qkv_input",
    "hook_mlp_in": "use_hook_mlp_in",
}
"""Hook points that TransformerLens reaches only where a switch of the model's `cfg` is on."""


def _why_silent(names: Sequence[str], cfg: Any) -> str:
    """Return in words why hooks at these points may not have fired, and what to do."""
    for name in names:
        point = name.rpartition(".")[2]
        switch = SWITCHES.get(point)
        if switch and not getattr(cfg, switch, False):
            instead = (
                ", or clamp z (hook_z), which needs no switch" if point == "hook_result" else ""
            )
            return (
                f"cfg.{switch} is off, and {point} is computed only where it is on: call "
                f"model.set_{switch}(True) before the block{instead}."
            )
    return "Run the whole model inside the block, or drop the clamp."


@contextmanager
def clamped(
    model: HookedModel,
    clamps: Sequence[AbstractClamp],
    batch: Batch | None = None,
    *,
    step: int | None = None,
    metrics: Metrics | None = None,
) -> Generator[HookedModel]:
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
    expect_model(model)
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
        _report(one, model)


def _ready(
    clamp: AbstractClamp,
    model: HookedModel,
    batch: Batch | None,
    step: int | None,
    metrics: Metrics | None,
) -> Active:
    """Return the clamp with its hooks, which are still to be placed."""
    gate: float | None = None
    if clamp.is_scheduled:
        if step is None:
            raise ValueError(f"{clamp} has a schedule: pass the step that it is at, step=...")
        gate = clamp.gate(step, metrics)
    tensors = tree_map(lambda t: t.to(model.W_U.device), clamp.tensors(Shape.of(model)))
    given: Any = clamp.hooks(Setting(model, batch, tensors, gate))
    pairs = list(given) if isinstance(given, Iterable) else [given]
    _refuse_hooks(clamp, pairs)
    pairs = by_own_names(model, clamp, pairs)
    # A clamp that does not say whether it reads the batch may do so.
    is_bound = batch is not None and clamp.needs_batch is not False
    frozen = frozen_by(model, [clamp], [tensors], [gate])
    return Active(clamp, blended(clamp, pairs, gate), is_bound=is_bound, frozen=frozen)


def _refuse_hooks(clamp: AbstractClamp, pairs: Sequence[Any]) -> None:
    for pair in pairs:
        try:
            name, function = pair
            inspect.signature(function).bind(None, hook=None)
            expect(name, str, "name")
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"hooks() of {clamp} gives {pair!r}: expected pairs of a hook point's name and a "
                'function of (activation, hook), [("blocks.1.attn.hook_z", halve)].'
            ) from error


def _refuse_wrong_order(outer: Sequence[Active], inner: Sequence[Active]) -> None:
    """Refuse clamps whose hooks, in one block, would come before those of an outer block."""
    for early, late in itertools.product(inner, outer):
        shared = sorted(early.points & late.points)
        if shared and in_order([late.clamp, early.clamp])[0] is early.clamp:
            raise ValueError(
                f"{early.clamp} comes before {late.clamp}, which is on the model already, at "
                f"{shared[0]}; give both to one clamped()."
            )


def _check_batch(model: HookedModel, clamps: Sequence[AbstractClamp], batch: Batch) -> None:
    if (n_positions := batch.tokens.shape[1]) > model.cfg.n_ctx:
        raise ValueError(f"Sequences have {n_positions} tokens; the model takes {model.cfg.n_ctx}.")
    refuse_other_exemplars(model, batch)
    for clamp in clamps:
        clamp.refuse_batch(batch)


def _report(one: Active, model: HookedModel) -> None:
    """Refuse a clamp that never fired; warn of one that changed nothing."""
    silent = [name for name, _ in one.given if name not in one.fired]
    if silent:
        raise ValueError(
            f"{one.clamp} never fired: no pass inside clamped() reached {', '.join(silent)}. "
            f"{_why_silent(silent, model.cfg)}"
        )
    if not (one.changed or one.frozen or one.clamp.is_scheduled):
        warnings.warn(
            f"{one.clamp} changed nothing: every activation that it set had that value already.",
            ClampUnchangedWarning,
            stacklevel=4,
        )
