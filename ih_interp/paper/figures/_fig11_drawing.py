"""Figure 11: maps of which head of layer 0 serves which head of layer 1."""

from collections.abc import Mapping
from itertools import product

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure

from ih_interp.plots.maps import DIVERGING, draw_map

MAPS: Mapping[str, str] = {
    "one ablated": "change of accuracy,\none head of layer 0 ablated",
    "one left": "accuracy,\none head of layer 0 left",
    "composition": "-composition",
}
"""Columns of Figure 11, and their titles."""

PATHS: Mapping[str, tuple[str, str]] = {
    "patterns": ("through patterns (values preserved)", "K"),
    "values": ("through values (patterns preserved)", "V"),
}
"""Rows of Figure 11: how layer 1 reads, and the kind of composition with layer 0."""

SMALL = 1.55  # inches a further network takes in Figure 11


def plot_wiring_maps(table: pd.DataFrame, figure: Figure) -> None:
    """Draw Figure 11: six maps of the first network with their values, and others' small below.

    Columns `seed`, `map` (a key of `MAPS`), `through` (of `PATHS`), `sender`, `receiver`,
    `previous_token`, `value`, `neutral`. Names of previous-token heads are bold. All networks share
    the colours of a map, white (or lightest) at `neutral`. The figure grows with the networks.
    """
    first, *others = sorted(table["seed"].unique())
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + SMALL * len(others))
    heights = [height, *[SMALL] * len(others)]
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    _draw_large(table, table[table["seed"] == first], parts[0])
    for seed, part in zip(others, parts[1:], strict=True):
        axes = part.subplots(1, len(MAPS) * len(PATHS))
        for (through, name), ax in zip(product(PATHS, MAPS), axes, strict=True):
            _draw_one(table, table[table["seed"] == seed], ax, name, through, written=False)
            ax.set_title(_short_title(name, through), fontsize=7)
        axes[0].set_ylabel(f"seed {seed}\nlayer 1")


def _draw_large(table: pd.DataFrame, network: pd.DataFrame, part: SubFigure) -> None:
    axes = part.subplots(len(PATHS), len(MAPS))
    for (row, through), (column, name) in product(enumerate(PATHS), enumerate(MAPS)):
        ax = axes[row, column]
        _draw_one(table, network, ax, name, through, written=True)
        words, letter = PATHS[through]
        ax.set_title(f"{letter}-composition" if name == "composition" else MAPS[name])
        ax.set(xlabel="head of layer 0" if row else "", ylabel="")
        if column == 0:
            ax.set_ylabel(f"{words}\nhead of layer 1")


def _draw_one(
    table: pd.DataFrame, network: pd.DataFrame, ax: Axes, name: str, through: str, *, written: bool
) -> None:
    of_map = table[table["map"] == name]
    neutral = float(of_map["neutral"].mean())
    reach = float((of_map["value"] - neutral).abs().max()) or 1.0
    one = network[(network["map"] == name) & (network["through"] == through)]
    values = one.pivot_table(index="receiver", columns="sender", values="value")
    is_left = name == "one left"
    shades = Normalize(neutral if is_left else neutral - reach, neutral + reach)
    colours = "Greys" if is_left else DIVERGING
    draw_map(
        values, ax, shades=shades, colours=colours, reach=min(abs(reach), 0.5), written=written
    )
    if not written:
        ax.set(xticks=[], yticks=[])
        return
    previous = set(one.loc[one["previous_token"], "sender"])
    for label in ax.get_xticklabels():
        label.set_fontweight("bold" if label.get_text() in previous else "normal")


def _short_title(name: str, through: str) -> str:
    letter = PATHS[through][1]
    return f"{letter}-composition" if name == "composition" else f"{name}, {through}"
