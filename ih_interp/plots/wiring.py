"""Wirings: maps of which head feeds which, and how edges and redundancy change over training."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize

from ih_interp._columns import equal, shown
from ih_interp.plots._palettes import Palette, looking
from ih_interp.plots._style import (
    Line,
    condition_lines,
    count_sequences,
    drawing,
    head_place,
    known_first,
)
from ih_interp.plots._tables import (
    ONE_NETWORK,
    ONE_NETWORK_AND_TIME,
    distinct,
    expect_numbers,
    expect_once,
    expect_table,
    rows_where,
)
from ih_interp.plots.curves import draw_heads
from ih_interp.plots.maps import DIVERGING, draw_map, heads_by_heads
from ih_interp.plots.seeds import plot_curve

VIA_LINES: dict[str, tuple[str, Line]] = {
    "q": ("queries", Line("#0072B2", (0, (5, 1)))),
    "k": ("keys", Line("#000000")),
    "v": ("values", Line("#D55E00", (0, (3, 1, 1, 1)))),
}
"""The inputs of a receiver, what they are called, and their lines."""

MEASURES = {
    "many_to_many": "many-to-many index",
    "fan_in": "fan-in (senders a receiver)",
    "fan_out": "fan-out (receivers a sender)",
    "effective_senders": "effective number of senders",
    "effective_receivers": "effective number of receivers",
}
"""Measures of `redundancy`, as an axis calls them; the first three lie in [0, 1]."""


@drawing
def plot_wiring(
    table: pd.DataFrame,
    ax: Axes,
    *,
    via: str = "k",
    column: str = "use",
    reach: float | None = None,
    cmap: str | Colormap = DIVERGING,
    **look: Any,
) -> Axes:
    """Map of receivers (rows) by senders (columns) for one input, every value written in.

    Columns `via`, `sender`, `receiver` ("L0H2") and the one drawn, as in `Wiring.table`. White is
    0, orange above it (with `use`: serves the behaviour) and purple below, both as far as `reach`,
    by default the furthest value. `cmap` is another map of colours, and `look` goes to `imshow`.
    Raises ValueError for an input that the table lacks.
    """
    expect_table(table, "via", "sender", "receiver", column)
    there = rows_where(table, via=via)
    title = f"Path patching through {_input(via)}: {column}"
    return _map(there, ax, column, title, reach=reach, cmap=cmap, look=look)


@drawing
def plot_preserving(
    table: pd.DataFrame,
    ax: Axes,
    *,
    column: str = "accuracy_change",
    title: str = "",
    cmap: str | Colormap | None = None,
    **look: Any,
) -> Axes:
    """Figure 11, columns 1 and 2: accuracy, loss or a change of it, receivers by senders.

    Columns `sender`, `receiver` and the one drawn, as in `Preserving.table`. Changes are coloured
    about 0, white; accuracies and losses from light to dark. Layers count from 0 here. `cmap` is
    another map of colours, and `look` goes to `imshow`.
    """
    expect_table(table, "sender", "receiver", column)
    about_0 = column.endswith("change")
    cmap = cmap or (DIVERGING if about_0 else "Greys")
    title = title or (column.replace("_", " ") if about_0 else column)
    return _map(table, ax, column, title, about_0=about_0, cmap=cmap, look=look)


@drawing
def plot_wiring_over_training(
    table: pd.DataFrame,
    ax: Axes,
    *,
    receiver: str,
    via: str = "k",
    column: str = "use",
    palette: Palette | None = None,
    **look: Any,
) -> Axes:
    """Every sender's edge to one receiver over training.

    Columns `sequences`, `via`, `sender`, `receiver` and the one drawn, as in
    `wiring_over_training`. `palette` gives colours of senders, `look` what else their lines have.
    Raises ValueError for a receiver or an input that the table lacks.
    """
    expect_table(table, "sequences", "via", "sender", "receiver", column)
    there = rows_where(table, via=via, receiver=receiver)
    expect_once(there, "sequences", "sender", remedy=ONE_NETWORK)
    senders = sorted(distinct(there["sender"]), key=head_place)
    draw_heads(there, ax, senders, by="sender", y=column, palette=palette, look=look)
    count_sequences(ax)
    ax.set(ylabel=f"{column} of the edge", title=f"Edges into the {_input(via)} of {receiver}")
    ax.legend(title="sender", loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


@drawing
def plot_redundancy_over_training(
    table: pd.DataFrame,
    ax: Axes,
    *,
    name: str = "many_to_many",
    palette: Palette | None = None,
    **look: Any,
) -> Axes:
    """One measure of redundancy over training, a line with its interval for each input.

    Columns `sequences`, `via`, `name`, `value`, `low`, `high`, as in `redundancy_over_training`;
    `name` as there, "many_to_many" or "effective_senders L1H3". `palette` gives colours of inputs,
    `look` what else their lines have. Raises ValueError for a name that the table lacks.
    """
    expect_table(table, "sequences", "via", "name", "value", "low", "high")
    there = rows_where(table, name=name)
    expect_once(there, "sequences", "via", remedy=ONE_NETWORK)
    inputs = known_first(distinct(there["via"]), VIA_LINES)
    known = {via: line for via, (_, line) in VIA_LINES.items()}
    expect_numbers(there, "low", "high", gaps=True)
    for via, line in condition_lines(inputs, known, palette).items():
        curve = there[equal(there["via"], via)].sort_values("sequences")
        own = looking(look, color=line.colour, linestyle=line.dash, label=_input(via))
        plot_curve(curve, ax, x="sequences", y="value", **own)
        ax.fill_between(
            curve["sequences"],
            curve["low"],
            curve["high"],
            color=own["color"],
            alpha=0.2,
            linewidth=0,
        )
    measure, _, head = name.partition(" ")
    label = MEASURES.get(measure, measure)
    count_sequences(ax)
    ax.set(ylabel=label, title=f"Redundancy of the wiring{f', {head}' if head else ''}")
    if not head:
        ax.set_ylim(0, 1)
    ax.legend(title="through")
    return ax


def _input(via: object) -> str:
    """An input of a receiver in words; itself where it has none."""
    return VIA_LINES[shown(via)][0] if shown(via) in VIA_LINES else shown(via)


def _map(
    table: pd.DataFrame,
    ax: Axes,
    column: str,
    title: str,
    *,
    cmap: str | Colormap,
    look: dict[str, Any],
    reach: float | None = None,
    about_0: bool = True,
) -> Axes:
    """Receivers by senders; a map about 0 is centred there, another runs from its least value."""
    expect_once(table, "receiver", "sender", remedy=ONE_NETWORK_AND_TIME)
    values = heads_by_heads(table, "receiver", "sender", column)
    cells = values.to_numpy(dtype=float)
    reach = reach or float(np.nanmax(np.abs(cells))) or 1.0
    shades = Normalize(-reach, reach)
    if not about_0:
        shades = Normalize(float(np.nanmin(cells)), float(np.nanmax(cells)))
    draw_map(values, ax, shades=shades, colours=cmap, reach=reach, **look)
    ax.set(xlabel="sender", ylabel="receiver", title=title)
    return ax
