"""Refusals, before anything runs, of clamps that cannot act together."""

import itertools
from collections.abc import Sequence

from ih_interp.clamps.base import AbstractClamp, Shape, Site
from ih_interp.types import Head


def refuse_conflicts(clamps: Sequence[AbstractClamp], shape: Shape) -> None:
    """Raise ValueError where two clamps set one thing, or one makes another void throughout."""
    for one, other in itertools.combinations(clamps, 2):
        for site in sorted(one.sites(shape) & other.sites(shape), key=str):
            raise ValueError(
                f"Two clamps set the {_place(site)}: {one} and {other}. "
                "The later would win in silence, whatever their schedules are; drop one."
            )
    for one, other in itertools.permutations(clamps, 2):
        # A scheduled one is off for a time, in which the other acts.
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
