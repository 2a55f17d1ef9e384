"""How fast training is: the benchmark's table as bars."""

import pandas as pd
from matplotlib.axes import Axes

from ih_interp.plots.style import HEAD_COLOURS
from ih_interp.plots.tables import expect_table


def plot_speeds(table: pd.DataFrame, ax: Axes) -> Axes:
    """Updates a second of every contender, and beside each bar the ratio to the first.

    Columns `name`, `processes`, `updates_per_second`, `ratio`.
    """
    expect_table(table, "name", "processes", "updates_per_second", "ratio")
    several = table["processes"] > 1
    colours = [HEAD_COLOURS[1] if many else HEAD_COLOURS[5] for many in several]
    ax.barh(table["name"], table["updates_per_second"], color=colours)
    for place, (speed, ratio) in enumerate(
        zip(table["updates_per_second"], table["ratio"], strict=True)
    ):
        ax.annotate(
            f"{ratio:.1f} x", (speed, place), (4, 0), textcoords="offset points", va="center"
        )
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set(xlabel="updates a second, over all runs", title="Training speed (orange: all cores)")
    return ax
