"""How fast training is: the benchmark's table as bars."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from ih_interp._columns import shown
from ih_interp.plots._palettes import looking
from ih_interp.plots._style import HEAD_COLOURS, drawing
from ih_interp.plots._tables import expect_numbers, expect_table


@drawing
def plot_speeds(table: pd.DataFrame, ax: Axes, **look: Any) -> Axes:
    """Updates per second of every contender, and beside each bar the ratio to the first.

    Columns `name`, `processes`, `updates_per_second`, `ratio`. `look` is that of the bars.
    """
    expect_table(table, "name", "processes", "updates_per_second", "ratio")
    expect_numbers(table, "processes", "updates_per_second", "ratio")
    several = table["processes"] > 1
    colours = [HEAD_COLOURS[1] if many else HEAD_COLOURS[5] for many in several]
    places = range(len(table))  # by place: two of one name are two bars
    ax.barh(places, table["updates_per_second"], **looking(look, Patch, color=colours))
    ax.set_yticks(places, list(map(shown, table["name"])))
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
