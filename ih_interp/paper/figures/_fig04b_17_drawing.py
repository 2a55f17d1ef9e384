"""Heads trained alone, in pairs and all together: their learning, and what it goes with."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes

from ih_interp.plots._style import (
    HEAD_COLOURS,
    HEAD_MARKERS,
    count_sequences,
    head_colour,
    head_marker,
    head_place,
)
from ih_interp.plots.curves import guess_line

ALL_HEADS = "all heads"
"""Names the network with every head, in the column `heads`."""


def plot_learning_of_heads(table: pd.DataFrame, ax: Axes) -> Axes:
    """Figures 4b and 17: training loss of networks that differ in their heads, for one seed.

    Columns `sequences`, `loss`, and `heads` of the last layer that the network has: "L1H3",
    "L1H3 + L1H0" or `ALL_HEADS`, which is dashed. A curve looks as its last head does elsewhere;
    beside pairs, a head alone is thicker.
    """
    names = list(dict.fromkeys(table["heads"]))
    pairs = any("+" in name for name in names)
    for name in names:
        curve = table[table["heads"] == name].sort_values("sequences")
        if name == ALL_HEADS:
            ax.plot(curve["sequences"], curve["loss"], "--", color="0.3", label=name, zorder=3)
            continue
        last = name.split(" + ")[-1]
        ax.plot(
            curve["sequences"],
            curve["loss"],
            color=head_colour(last),
            marker=head_marker(last),
            markevery=_places(len(curve), last),
            markersize=4,
            linewidth=2.4 if pairs and "+" not in name else 1.2,
            label=_in_legend(name) if pairs else name,
        )
    guess_line(ax)
    count_sequences(ax)
    ax.set(ylabel="training loss (nats)", ylim=(0, None))
    ax.legend(loc="center left", bbox_to_anchor=(1.08, 0.5))
    return ax


def plot_strength_against(
    table: pd.DataFrame, ax: Axes, *, names: Mapping[int, str], ylabel: str
) -> Axes:
    """A panel of Figure 18: a number of every head against its strength beside all others.

    Columns `seed`, `strength`, `value`, `observed`; a point that is not observed lies higher than
    drawn: it is open, with an arrow. Every seed of `names`, which say what the legend does, has a
    colour and a marker.
    """
    for place, (seed, name) in enumerate(names.items()):
        rows = table[table["seed"] == seed]
        turns, number = divmod(place, len(HEAD_COLOURS))
        colour = HEAD_COLOURS[number]
        marker = HEAD_MARKERS[(number + turns) % len(HEAD_MARKERS)]  # another each turn
        seen = rows["observed"].to_numpy(dtype=bool)
        ax.scatter(
            rows["strength"],
            rows["value"],
            facecolors=[colour if is_seen else "none" for is_seen in seen],
            edgecolors=colour,
            marker=marker,
            s=26,
            zorder=3,
        )
        ax.scatter([], [], c=colour, marker=marker, s=26, label=name)  # filled in the legend
        for strength, value in rows.loc[~seen, ["strength", "value"]].to_numpy(dtype=float):
            ax.annotate(
                "",
                xy=(strength, value),
                xytext=(0, 14),
                textcoords="offset points",
                arrowprops={"arrowstyle": "<-", "color": colour, "linewidth": 0.9},
            )
    ax.margins(x=0.08, y=0.12)
    ax.set(xlabel="induction strength, all heads on", ylabel=ylabel)
    ax.legend(loc="upper left", bbox_to_anchor=(-0.05, -0.22), fontsize=8, ncols=1)
    return ax


def _places(n_points: int, head: str) -> tuple[int, int]:
    """Where a curve has markers: six, at other places than those of other heads."""
    step = max(1, n_points // 6)
    number = head_place(head)[1] % len(HEAD_MARKERS)
    return (number * step // len(HEAD_MARKERS), step)


def _in_legend(name: str) -> str:
    """The other head of a pair, as "+ L1H0"; or "L1H3 alone"."""
    return "+ " + name.split(" + ")[1] if "+" in name else f"{name} alone"
