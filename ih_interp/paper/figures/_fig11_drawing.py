"""Figures 11 and 12, Table 1, and composition before training, for one network or several."""

from collections.abc import Mapping
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure

from ih_interp.plots._style import HEAD_COLOURS, HEAD_MARKERS, Line, count_sequences
from ih_interp.plots._tables import expect_known
from ih_interp.plots.maps import DIVERGING, draw_map
from ih_interp.plots.seeds import plot_over_seeds

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
"""Rows of Figure 11: how layer 1 reads, and the composition that goes with it."""

REMOVED_LINES: Mapping[str, tuple[str, Line]] = {
    "last layer": ("without the heads of layer 1", Line("#D55E00", (0, (5, 1)))),
    "direct path": ("without layer 0's direct path", Line("#000000")),
}
"""What Figure 12 removes, its label and line."""

SMALL = 1.55  # inches a further network takes in Figure 11


def plot_wiring_maps(table: pd.DataFrame, figure: Figure) -> None:
    """Figure 11: six maps of the first network, every value written in, and others' in small below.

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


def plot_removed(table: pd.DataFrame, ax: Axes) -> Axes:
    """Figure 12: loss over training without a part, less the loss with it.

    Columns `seed`, `sequences`, `removed` (a key of `REMOVED_LINES`), `loss_change`.
    """
    expect_known(table, "removed", REMOVED_LINES)
    for removed, (label, line) in REMOVED_LINES.items():
        curve = table[table["removed"] == removed]
        plot_over_seeds(curve, ax, label, line, y="loss_change")
    ax.axhline(0, color="0.6", linewidth=0.8, linestyle=":")
    count_sequences(ax)
    ax.set(
        ylabel="increase of the loss (nats)",
        title="What the output loses without a part (layers from 0)",
        xlim=(0, float(table["sequences"].max())),
    )
    ax.legend(loc="center right")
    return ax


def plot_preserving_groups(table: pd.DataFrame, ax: Axes) -> Axes:
    """Table 1 as a table: accuracy without two groups of layer 0's heads.

    Columns `seed`, `group` ("previous-token" or "others"), `ablated`, `preserved` ("patterns" or
    "values"), `accuracy`. A row a network and group, and of several networks their median and
    range; the grey of a cell is what is missing of accuracy 1.
    """
    keys = ["group", "seed", "ablated"]
    wide = table.set_index([*keys, "preserved"])["accuracy"].unstack("preserved").reset_index()
    seeds = sorted(wide["seed"].unique())
    rows: list[tuple[str, str, list[str], list[float]]] = []
    for group in ("previous-token", "others"):
        of_group = wide[wide["group"] == group].sort_values("seed")
        values = of_group[["patterns", "values"]].to_numpy(dtype=float)
        for n, seed in enumerate(seeds):
            words = f"seed {seed}: {of_group['ablated'].iloc[n] or 'none'}"
            cells = ["" if np.isnan(value) else f"{value:.4f}" for value in values[n]]
            rows.append((group if n == 0 else "", words, cells, list(values[n])))
        there = values[~np.isnan(values).any(axis=1)]
        if len(there) > 1:
            middle, low, high = np.median(there, axis=0), there.min(axis=0), there.max(axis=0)
            cells = [
                f"{m:.4f} ({a:.3f} to {b:.3f})" for m, a, b in zip(middle, low, high, strict=True)
            ]
            rows.append(("", "median (range)", cells, list(middle)))
    _draw_rows(rows, ax)
    ax.set_title("Accuracy with heads of layer 0 ablated, and patterns or values preserved")
    return ax


def plot_composition_before(table: pd.DataFrame, figure: Figure) -> None:
    """How strongly pairs of heads compose before training, against what they do alone at its end.

    Columns `seed`, `through` (a key of `PATHS`), `start`, `accuracy`. A panel each for K and V, a
    marker a network; what works best in it is ringed. The dashed line is the mean at the start.
    """
    seeds = sorted(table["seed"].unique())
    for ax, (through, (_, letter)) in zip(
        figure.subplots(1, len(PATHS), sharey=True), PATHS.items(), strict=True
    ):
        panel = table[table["through"] == through]
        for n, seed in enumerate(seeds):
            rows = panel[panel["seed"] == seed]
            colour = HEAD_COLOURS[(0, 5, 6, 3, 7)[n % 5]]
            marker = HEAD_MARKERS[n % len(HEAD_MARKERS)]
            ax.plot(
                rows["start"],
                rows["accuracy"],
                marker,
                color=colour,
                markersize=4,
                alpha=0.7,
                label=f"seed {seed}",
                linestyle="",
            )
            best = rows.iloc[int(rows["accuracy"].argmax())]
            ax.plot(best["start"], best["accuracy"], "o", mfc="none", mec=colour, markersize=11)
        ax.axvline(float(panel["start"].mean()), color="0.5", linewidth=0.9, linestyle="--")
        ax.set(
            xlabel=f"{letter}-composition before training", title=f"Pairs acting through {through}"
        )
    left, right = figure.axes
    left.set_ylabel("accuracy at the end, that pair alone")
    right.legend(title="ringed: best pair", loc="center left", bbox_to_anchor=(1, 0.5))


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


def _draw_rows(rows: list[tuple[str, str, list[str], list[float]]], ax: Axes) -> None:
    """A table with rules above, below and under its head; cells darker the less accurate."""
    n_rows = len(rows)
    columns = (0.0, 0.19, 0.72, 0.91)
    ax.set(xlim=(0, 1), ylim=(n_rows - 0.5, -2.1))
    ax.axis("off")
    for x, words in zip(
        columns[1:],
        ("heads of layer 0 ablated", "patterns\npreserved", "values\npreserved"),
        strict=True,
    ):
        ax.text(x, -1.3, words, ha="left" if x < 0.5 else "center", va="center", fontweight="bold")
    for y in (-2.1, -0.5, n_rows - 0.5):
        ax.axhline(y, color="black", linewidth=0.8)
    for y, (group, words, cells, values) in enumerate(rows):
        ax.text(0, y, group, va="center", fontweight="bold")
        ax.text(columns[1], y, words, va="center", fontsize=9)
        for x, cell, value in zip(columns[2:], cells, values, strict=True):
            if not np.isnan(value):
                shade = 1 - 0.5 * (1 - value)
                ax.axhspan(y - 0.5, y + 0.5, x - 0.09, x + 0.09, color=str(shade), linewidth=0)
            ax.text(x, y, cell, ha="center", va="center", fontsize=9 if len(cell) < 9 else 6.5)
