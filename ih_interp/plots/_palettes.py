"""Settings of a plot's look that callers give: palettes, and keyword settings of artists."""

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

Palette: TypeAlias = Mapping[Any, Any] | Sequence[Any] | str | None
"""Colours by the name of what they colour, in the plot's order, or the name of a colour map."""


def palette_colours(palette: Palette, names: Iterable[Any]) -> dict[Any, Any]:
    """Return the colours that a palette gives to these names; a mapping may leave out some names.

    Raises TypeError for another kind of palette, and ValueError for an unknown colour or map.

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
            palette = _colours_of_map(palette, len(names))
        chosen = dict(zip(names, cycle(palette), strict=False))
    wrong = [colour for colour in chosen.values() if not is_color_like(colour)]
    if wrong:
        raise ValueError(f"palette holds {wrong[0]!r}: expected a colour, such as red or #0072B2.")
    return chosen


def _colours_of_map(name: str, n: int) -> Sequence[Any]:
    if name in mpl.color_sequences:
        return mpl.color_sequences[name]
    if name not in colormaps:
        raise ValueError(f"palette={name!r}: expected a colour map, such as viridis.")
    return [tuple(colour) for colour in colormaps[name].resampled(n)(range(n))]


def looking(given: Mapping[str, Any], kind: type = Line2D, /, **own: Any) -> dict[str, Any]:
    """Return an artist's settings: the caller's (`lw` is `linewidth`), else the plot's own.

    Raises TypeError for a setting that comes under two names.
    """
    return own | cbook.normalize_kwargs(dict(given), kind)  # pyright: ignore[reportArgumentType]
