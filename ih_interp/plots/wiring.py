"""Wirings: maps of which head feeds which, and how edges and redundancy change over training."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from ih_interp.plots.maps import DIVERGING, draw_map
from ih_interp.plots.style import (
    Line,
    count_sequences,
    head_colour,
    head_marker,
    head_order,
    head_place,
)
from ih_interp.plots.tables import (
    ONE_NETWORK,
    ONE_NETWORK_AND_TIME,
    expect_once,
    expect_table,
    rows_where,
)

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


def plot_wiring(
    table: pd.DataFrame,
    ax: Axes,
    *,
    via: str = "k",
    column: str = "use",
    reach: float | None = None,
) -> Axes:
    """Map of receivers (rows) by senders (columns) for one input, every value written in.

    Columns `via`, `sender`, `receiver` ("L0H2") and the one drawn, as in `Wiring.table`. White is
    0, orange above it (with `use`: serves the behaviour) and purple below, both as far as `reach`,
    by default the furthest value. Raises ValueError for an input that the table lacks.
    """
    expect_table(table, "via", "sender", "receiver", column)
    there = rows_where(table, via=via)
    name, _ = VIA_LINES[via]
    return _map(there, ax, column, reach, f"Path patching through {name}: {column}")


def plot_preserving(
    table: pd.DataFrame, ax: Axes, *, column: str = "accuracy_change", title: str = ""
) -> Axes:
    """Figure 11, columns 1 and 2: accuracy, loss or a change of it, receivers by senders.

    Columns `sender`, `receiver` and the one drawn, as in `Preserving.table`. Changes are coloured
    about 0, white; accuracies and losses from light to dark. Layers count from 0 here.
    """
    expect_table(table, "sender", "receiver", column)
    if column.endswith("change"):
        return _map(table, ax, column, None, title or column.replace("_", " "))
    return _map(table, ax, column, None, title or column, colours="Greys")


def plot_wiring_over_training(
    table: pd.DataFrame, ax: Axes, *, receiver: str, via: str = "k", column: str = "use"
) -> Axes:
    """Every sender's edge to one receiver over training.

    Columns `sequences`, `via`, `sender`, `receiver` and the one drawn, as in
    `wiring_over_training`. Raises ValueError for a receiver or an input that the table lacks.
    """
    expect_table(table, "sequences", "via", "sender", "receiver", column)
    there = rows_where(table, via=via, receiver=receiver)
    expect_once(there, "sequences", "sender", remedy=ONE_NETWORK)
    for sender in sorted(there["sender"].unique(), key=head_place):
        of_sender = there[there["sender"] == sender].sort_values("sequences")
        ax.plot(
            of_sender["sequences"],
            of_sender[column],
            color=head_colour(sender),
            marker=head_marker(sender),
            markevery=max(1, len(of_sender) // 6),
            markersize=4,
            label=sender,
        )
    ax.axhline(0, color="0.6", linewidth=0.8, linestyle=":")
    count_sequences(ax)
    name, _ = VIA_LINES[via]
    ax.set(ylabel=f"{column} of the edge", title=f"Edges into the {name} of {receiver}")
    ax.legend(title="sender", loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def plot_redundancy_over_training(
    table: pd.DataFrame, ax: Axes, *, name: str = "many_to_many"
) -> Axes:
    """One measure of redundancy over training, a line with its interval for each input.

    Columns `sequences`, `via`, `name`, `value`, `low`, `high`, as in `redundancy_over_training`;
    `name` as there, "many_to_many" or "effective_senders L1H3". Raises ValueError for a name that
    the table lacks.
    """
    expect_table(table, "sequences", "via", "name", "value", "low", "high")
    there = rows_where(table, name=name)
    expect_once(there, "sequences", "via", remedy=ONE_NETWORK)
    for via, (label, line) in VIA_LINES.items():
        curve = there[there["via"] == via].sort_values("sequences")
        if curve.empty:
            continue
        ax.plot(
            curve["sequences"], curve["value"], color=line.colour, linestyle=line.dash, label=label
        )
        ax.fill_between(
            curve["sequences"],
            curve["low"],
            curve["high"],
            color=line.colour,
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


def _map(
    table: pd.DataFrame,
    ax: Axes,
    column: str,
    reach: float | None,
    title: str,
    *,
    colours: str = DIVERGING,
) -> Axes:
    """Receivers by senders; a diverging map is centred at 0, another runs from its least value."""
    expect_once(table, "receiver", "sender", remedy=ONE_NETWORK_AND_TIME)
    table = table.dropna(subset=[column])
    expect_table(table)
    values = table.pivot_table(index="receiver", columns="sender", values=column)
    values = values.sort_index(key=head_order).sort_index(key=head_order, axis=1)
    cells = values.to_numpy(dtype=float)
    if colours == DIVERGING:
        reach = reach or float(np.nanmax(np.abs(cells))) or 1.0
        shades = Normalize(-reach, reach)
    else:
        reach = float(np.nanmax(np.abs(cells))) or 1.0
        shades = Normalize(float(np.nanmin(cells)), float(np.nanmax(cells)))
    draw_map(values, ax, shades=shades, colours=colours, reach=reach)
    ax.set(xlabel="sender", ylabel="receiver", title=title)
    return ax
