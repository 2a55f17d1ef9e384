"""Plots of how far heads add up: orders of interaction, additive fits, heads alone and ablated."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter
from pandas import DataFrame

import ih_interp.plots._style as style
from ih_interp._columns import distinct, ordered, shown
from ih_interp.plots._style import Palette, looking, palette_colours
from ih_interp.plots._tables import plotted_rows, rows_where

METRIC_NAMES = {
    "logit": "logit",
    "logit_difference": "logit difference",
    "loss": "loss (nats)",
    "in_context_loss": "loss in context (nats)",
    "probability": "probability",
    "in_context_probability": "probability in context",
    "log_odds": "log-odds",
    "accuracy": "accuracy",
    "in_context_accuracy": "accuracy in context",
}
"""Metrics in the words of an axis."""

ORDERS = {
    "1 (additive)": ("#08306B", ""),
    "2 (pairs)": ("#4292C6", "//"),
    "3": ("#9ECAE1", "xx"),
    "4 and more": ("#DEEBF7", ".."),
}
"""The interaction orders in the words of a legend, and their bars' colours and hatches."""


@style.axes_optional
def plot_spectrum(table: DataFrame, ax: Axes, *, palette: Palette = None, **look: Any) -> Axes:
    """Plot the share of the variance over subsets by interaction order, bars per metric.

    Rows of `additivity_test` with quantity "share": `metric`, `part`, `order`, `value`. Each metric
    has two bars, as the model is and with the final norm's scale frozen; order 1 is additive.
    `palette` names orders as the legend does, "2 (pairs)". Raises ValueError for a metric whose
    orders are not 1, 2, ..., or whose shares are NaN, as where no subset changes it.
    """
    keys = ["metric", "part", "order"]
    table = plotted_rows(table, once=keys, finite=["order", "value"], quantity="share")
    metrics = distinct(table["metric"])
    chosen = palette_colours(palette, ORDERS)
    bars = [
        (place + offset, _few_orders(rows_where(table, metric=metric, part=part)), part)
        for place, metric in enumerate(metrics)
        for part, offset in (("total", -0.2), ("frozen", 0.2))
    ]
    places, shares, _ = zip(*bars, strict=True)
    shares = np.array(shares)
    bottoms = np.cumsum(shares, axis=1) - shares
    for step, (order, (colour, hatch)) in enumerate(ORDERS.items()):
        own = {"color": chosen.get(order, colour), "hatch": hatch, "label": order}
        own = looking(look, Patch, edgecolor="white", linewidth=0.5, **own)
        ax.bar(places, shares[:, step], 0.36, bottom=bottoms[:, step], **own)
    for place, _, part in bars:
        words = ax.text(place, 0.02, part, ha="center", va="bottom", color="white", fontsize=8)
        edge = withStroke(linewidth=2, foreground=ORDERS["1 (additive)"][0])
        words.set(rotation=90, path_effects=[edge])
    names = [metric_name(shown(metric)).partition(" (")[0] for metric in metrics]  # without units
    ax.set_xticks(range(len(names)), [re.sub("[_ ]", "\n", name) for name in names])
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set(ylim=(0, 1), ylabel="variance over subsets", title="How additive the heads are")
    return style.legend_beside(ax, title="order")


@style.axes_optional
def plot_first_last(
    table: DataFrame,
    ax: Axes,
    *,
    metric: str,
    part: str = "total",
    palette: Palette = None,
    **look: Any,
) -> Axes:
    """Plot what each head does alone, and what is lost without it: the same if heads add up.

    Rows of `additivity_test` with quantities "first_in" and "last_in": `metric`, `part`, `head`,
    `value`, `low`, `high`. Raises ValueError where a head lacks one of them, or its value is NaN.
    """
    columns = ("quantity", "head", "value", "low", "high")
    table = plotted_rows(table, *columns, where={"metric": metric, "part": part})
    table = table[table["quantity"].isin(["first_in", "last_in"])]
    table = plotted_rows(table, once=["quantity", "head"], finite=["value"])
    heads = distinct(table["head"])
    effects = {
        quantity: pd.concat([rows_where(table, quantity=quantity, head=head) for head in heads])
        for quantity in ("first_in", "last_in")
    }
    places = range(len(heads))
    ax.hlines(places, *(rows["value"] for rows in effects.values()), colors="0.75", linewidth=2)
    chosen = palette_colours(palette, effects)
    for quantity, marker, colour, label in (
        ("first_in", "o", style.HEAD_COLOURS[5], "first in: alone"),
        ("last_in", "^", style.HEAD_COLOURS[6], "last in: beside all others"),
    ):
        rows, colour = effects[quantity], chosen.get(quantity, colour)
        own = looking(look, color=colour, marker=marker, linestyle="none", label=label)
        reach = np.abs(rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy())
        ax.errorbar(rows["value"], places, xerr=reach, **own)
    ax.axvline(0, **style.FAINT)
    ax.set_yticks(places, heads)
    ax.invert_yaxis()
    ax.set(xlabel=f"effect on the {metric_name(metric)}", title=f"Heads alone and ablated ({part})")
    return style.legend_beside(ax)


@style.axes_optional
def plot_additive_fits(
    table: DataFrame, ax: Axes, *, names: Sequence[str] = (), **look: Any
) -> Axes:
    """Plot R squared of the best additive fit to all subsets of heads, a mark per network.

    Columns `metric`, `part` ("total", the model as it is, or "frozen", with the final norm's scale
    kept), `value`, and of several networks `seed`. `names` are the metrics in the words of the
    axis, in their order. Raises ValueError where a network has no value, or NaN.
    """
    keys = ["seed", "metric", "part"]
    table = plotted_rows(table, seed=True, finite=["value"], once=keys, quantity="r_squared")
    metrics = distinct(table["metric"])
    for part, offset, fill, label in (
        ("total", -0.13, style.HEAD_COLOURS[5], "the model as it is"),
        ("frozen", 0.13, "white", "final norm's scale frozen"),
    ):
        for number, seed in enumerate(ordered(table["seed"])):
            values = [
                float(rows_where(table, part=part, seed=seed, metric=metric)["value"].iloc[0])
                for metric in metrics
            ]
            marks = {
                "marker": style.HEAD_MARKERS[number % len(style.HEAD_MARKERS)],
                "markersize": 6,
            }
            marks |= {"markerfacecolor": fill, "label": label if number == 0 else None}
            own = looking(look, color=style.HEAD_COLOURS[5], linestyle="", **marks)
            ax.plot(values, np.arange(len(metrics)) + offset, **own)
    ax.set_yticks(range(len(metrics)), list(names) or list(map(shown, metrics)))
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.03), xlabel="R² of the best additive fit to all subsets (1: heads add up)")
    ax.set_title("Do the heads add up? It depends on the scale")
    ax.grid(axis="x", color="0.92")
    ax.legend(loc="lower left")
    return ax


def _few_orders(rows: DataFrame) -> np.ndarray:
    """Return the shares of orders 1, 2, 3, and of all above together."""
    if sorted(rows["order"]) != list(range(1, len(rows) + 1)):
        raise ValueError(f"The column 'order' holds {rows['order'].tolist()}: expected 1, 2, ....")
    few = np.minimum(rows["order"].to_numpy(dtype=int), len(ORDERS)) - 1
    return np.bincount(few, rows["value"], minlength=len(ORDERS))


def metric_name(metric: str) -> str:
    """Return a metric in the words of an axis; itself where it has none."""
    return METRIC_NAMES.get(metric, metric)
