"""The speed of training: the benchmark's table as bars."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from pandas import DataFrame

from ih_interp._columns import shown
from ih_interp.plots._style import HEAD_COLOURS, axes_optional, looking, note
from ih_interp.plots._tables import plotted_rows


@axes_optional
def plot_speeds(table: DataFrame, ax: Axes, **look: Any) -> Axes:
    """Plot the updates per second of every contender, and beside each bar the ratio to the first.

    Columns `name`, `processes`, `updates_per_second`, `ratio`.
    """
    table = plotted_rows(table, "name", finite=["processes", "updates_per_second", "ratio"])
    colours = [HEAD_COLOURS[1] if n > 1 else HEAD_COLOURS[5] for n in table["processes"]]
    speeds = table["updates_per_second"]
    places = range(len(table))  # by place: two of one name are two bars
    ax.barh(places, speeds, **looking(look, Patch, color=colours))
    ax.set_yticks(places, list(map(shown, table["name"])))
    for place, speed, ratio in zip(places, speeds, table["ratio"], strict=True):
        note(ax, f"{ratio:.1f} x", (speed, place), (4, 0), fontsize=None)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set(xlabel="updates per second, over all runs", title="Training speed (orange: all cores)")
    return ax
