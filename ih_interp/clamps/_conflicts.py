"""Clamps that cannot act together are refused in words, before anything runs."""

import itertools
from collections.abc import Sequence

from ih_interp.clamps.base import AbstractClamp, Shape, Site
from ih_interp.types import Head


def refuse_conflicts(clamps: Sequence[AbstractClamp], shape: Shape) -> None:
    """Raise ValueError where two clamps set one thing, or one makes another void throughout."""
    for one, other in itertools.combinations(clamps, 2):
        _refuse_same_site(one, other, shape)
    for one, other in itertools.permutations(clamps, 2):
        if other.is_scheduled:  # while it is off, the one acts
            continue
        _refuse_void_scores(one, other, shape)
        _refuse_void_pattern(one, other, shape)
        _refuse_void_layers(one, other, shape)


def _place(site: Site) -> str:
    where = f"layer {site.layer}" if site.head is None else str(Head(site.layer, site.head))
    return f"{site.what} of {where}" + (f", {site.row} rows" if site.row else "")


def _refuse_same_site(one: AbstractClamp, other: AbstractClamp, shape: Shape) -> None:
    for site in sorted(one.sites(shape) & other.sites(shape), key=str):
        raise ValueError(
            f"Two clamps set the {_place(site)}: {one} and {other}. "
            "The later would win in silence, whatever their schedules are; drop one."
        )


def _refuse_void_scores(scores: AbstractClamp, pattern: AbstractClamp, shape: Shape) -> None:
    """A clamp on scores is void where the pattern itself is set."""
    set_patterns = pattern.sites(shape)
    for site in sorted(scores.sites(shape), key=str):
        if not site.what.startswith("scores:"):
            continue
        hidden = {site._replace(what="pattern"), Site("preserved pattern", site.layer)}
        if hidden & set_patterns:
            raise ValueError(
                f"{scores} is void: {pattern} sets the {_place(site._replace(what='pattern'))}, "
                "which the scores no longer reach. Drop one."
            )


def _refuse_void_pattern(pattern: AbstractClamp, copy: AbstractClamp, shape: Shape) -> None:
    """A clamp on patterns is void in a layer of which the output is one head's scores."""
    read = {site.layer for site in copy.sites(shape) if site.what == "scores read"}
    for site in sorted(pattern.sites(shape), key=str):
        if site.what == "pattern" and site.layer in read:
            raise ValueError(
                f"{pattern} is void: {copy} reads scores, which no {_place(site)} changes. "
                "Drop one."
            )


def _refuse_void_layers(void: AbstractClamp, by: AbstractClamp, shape: Shape) -> None:
    """A clamp is void where another cuts its layer off from the output."""
    cut = by.voids(shape)
    inside = sorted({site.layer for site in void.sites(shape)} & set(cut))
    if inside and void.kind != "preserve":  # which holds every layer: the others still matter
        where = ", ".join("the embedding" if layer < 0 else f"layer {layer}" for layer in inside)
        raise ValueError(
            f"{void} is void at {where}: under {by} nothing there reaches the output. Drop one."
        )
