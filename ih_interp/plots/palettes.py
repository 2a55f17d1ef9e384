"""What callers say of how a drawing looks: palettes, and settings of its artists."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any, TypeAlias

import matplotlib as mpl
from matplotlib import cbook, colormaps
from matplotlib.lines import Line2D

from ih_interp.columns import shown

Palette: TypeAlias = Mapping[Any, Any] | Sequence[Any] | str
"""Colours by the name of what is drawn, in the order drawn, or the name of a colour map."""


def palette_colours(palette: Palette | None, names: Iterable[Any]) -> dict[Any, Any]:
    """Return what a palette says of these names; a mapping may leave out some, which keep theirs.

    >>> palette_colours({"match": "red"}, ["none", "match"])
    {'match': 'red'}
    """
    names = list(names)
    if palette is None:
        return {}
    if isinstance(palette, Mapping):
        keyed = {shown(key): colour for key, colour in palette.items()}
        return {name: keyed[shown(name)] for name in names if shown(name) in keyed}
    if isinstance(palette, str):
        many = colormaps.get_cmap(palette).resampled(len(names))
        palette = mpl.color_sequences.get(palette) or [many(place) for place in range(len(names))]
    return dict(zip(names, cycle(palette), strict=False))


def looking(given: Mapping[str, Any], kind: type = Line2D, /, **own: Any) -> dict[str, Any]:
    """Return how an artist looks: what the caller gave (`lw` is `linewidth`), and else its own."""
    return own | cbook.normalize_kwargs(dict(given), kind)  # pyright: ignore[reportArgumentType]
