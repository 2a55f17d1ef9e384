"""What callers say of how a drawing looks: palettes, and settings of its artists."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any, TypeAlias

import matplotlib as mpl
import numpy as np
from matplotlib import cbook, colormaps
from matplotlib.colors import is_color_like
from matplotlib.lines import Line2D

from ih_interp._columns import shown
from ih_interp.types import expect

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
    expect(palette, (Mapping, Sequence, np.ndarray), "palette", 'write {"match": "red"}')
    if isinstance(palette, Mapping):
        keyed = {shown(key): colour for key, colour in palette.items()}
        chosen = {name: keyed[shown(name)] for name in names if shown(name) in keyed}
    else:
        if isinstance(palette, str):
            palette = _colours_called(palette, len(names))
        chosen = dict(zip(names, cycle(palette), strict=False))
    wrong = [colour for colour in chosen.values() if not is_color_like(colour)]
    if wrong:
        raise ValueError(f"palette holds {wrong[0]!r}: a colour was expected, as red or #0072B2.")
    return chosen


def _colours_called(palette: str, n: int) -> Sequence[Any]:
    if palette in mpl.color_sequences:
        return mpl.color_sequences[palette]
    if palette not in colormaps:
        raise ValueError(f"palette={palette!r}: a colour map was expected, such as viridis.")
    many = colormaps[palette].resampled(n)
    return [many(place) for place in range(n)]


def looking(given: Mapping[str, Any], kind: type = Line2D, /, **own: Any) -> dict[str, Any]:
    """Return how an artist looks: what the caller gave (`lw` is `linewidth`), and else its own.

    Raises TypeError for a setting that comes under two names.
    """
    try:
        found = cbook.normalize_kwargs(dict(given), kind)  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        raise TypeError(f"How it looks was said twice: {error}.") from error
    return own | found
