"""Networks and their medians in a study's figure."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

BEYOND = 1e3  # longer than any axis of a study


def draw_networks(ax: Axes, x: pd.Series, y: pd.Series, table: pd.DataFrame, *, color: Any) -> None:
    """Draw a thin line for each network, in the order of `x`; open triangles never learned.

    `x` and `y` belong to the rows of the table, which has columns `seed` and `observed`.
    """
    rows = table.assign(x=x, y=y).sort_values("x")
    for _, network in rows.groupby("seed"):
        ax.plot(network["x"], network["y"], color=color, linewidth=0.7, alpha=0.5)
    never = rows[~rows["observed"].astype(bool)]
    look: dict[str, Any] = {"color": color, "markerfacecolor": "white", "linestyle": ""}
    label = "never learned" if len(never) else None
    ax.plot(never["x"], never["y"], marker="v", markersize=4, label=label, **look)


def draw_medians(ax: Axes, x: pd.Series, summary: pd.DataFrame, name: str) -> None:
    """Draw the column `name` with the interval between `name_low` and `name_high`.

    A median that is not reached is left out. An end of an interval that is not reached lies beyond
    the axes: set their limits afterwards.
    """
    at, value = np.asarray(x, dtype=float), summary[name].to_numpy(dtype=float)
    ends = [summary[f"{name}{end}"].to_numpy(dtype=float) for end in ("_low", "_high")]
    there = np.isfinite(value)
    lengths = [
        np.where(np.isfinite(end[there]), np.abs(end[there] - value[there]), BEYOND) for end in ends
    ]
    look: dict[str, Any] = {"fmt": "o", "color": "black", "capsize": 2, "markersize": 4}
    label = "median, 95% interval"
    ax.errorbar(at[there], value[there], lengths, linewidth=1.2, zorder=3, label=label, **look)
