"""Whether heads add up: interaction orders, heads alone and missed, interactions of pairs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.ticker import PercentFormatter

from ih_interp._columns import shown
from ih_interp.plots._palettes import Palette, looking, palette_colours
from ih_interp.plots._style import HEAD_COLOURS, drawing
from ih_interp.plots._tables import (
    ONE_NETWORK,
    distinct,
    expect_numbers,
    expect_once,
    expect_table,
    of_quantity,
    rows_where,
)
from ih_interp.plots.maps import DIVERGING, draw_map

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

ORDER_HATCHES = ("", "//", "xx", "..")
"""Of bars by order, from 1; the last is for that order and all above."""


@drawing
def plot_spectrum(
    table: pd.DataFrame, ax: Axes, *, palette: Palette | None = None, **look: Any
) -> Axes:
    """Share of the variance over subsets by interaction order, one group of bars per metric.

    Rows of `additivity_test` with quantity "share": `metric`, `part`, `order`, `value`. Each metric
    has two bars, as the model is and with the final norm's scale frozen; order 1 is additive.
    `palette` gives colours of orders ("2 (pairs)"), `look` what else the bars have. Raises
    ValueError for a metric whose orders are not 1, 2, ..., or whose shares are NaN, as of a metric
    that is the same for every subset.
    """
    table = of_quantity(table, "share")
    expect_table(table, "metric", "part", "order", "value")
    expect_once(table, "metric", "part", "order", remedy=ONE_NETWORK)
    expect_numbers(table, "value")
    metrics = distinct(table["metric"])
    colours = dict(zip(ORDERS, _BLUES, strict=True)) | palette_colours(palette, ORDERS)
    for place, metric in enumerate(metrics):
        for part, offset in (("total", -0.2), ("frozen", 0.2)):
            rows = rows_where(table, metric=metric, part=part)
            bottom = 0.0
            for step, share in enumerate(_few_orders(rows)):
                own: dict[str, Any] = {
                    "color": colours[ORDERS[step]],
                    "hatch": ORDER_HATCHES[step],
                    "edgecolor": "white",
                    "linewidth": 0.5,
                    "label": ORDERS[step] if (place, part) == (0, "total") else None,
                }
                x = place + offset
                ax.bar(x, share, 0.36, bottom=bottom, **looking(look, Patch, **own))
                bottom += share
            ax.text(
                place + offset,
                0.02,
                part,
                rotation=90,
                ha="center",
                va="bottom",
                color="white",
                fontsize=8,
                path_effects=[withStroke(linewidth=2, foreground=_BLUES[0])],
            )
    ax.set_xticks(range(len(metrics)), [_in_lines(shown(name)) for name in metrics])
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set(ylim=(0, 1), ylabel="variance over subsets", title="How additive the heads are")
    ax.legend(title="order", loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


@drawing
def plot_first_last(
    table: pd.DataFrame,
    ax: Axes,
    *,
    metric: str,
    part: str = "total",
    palette: Palette | None = None,
    **look: Any,
) -> Axes:
    """What each head does alone, and what is lost without it; the two meet if heads add up.

    Rows of `additivity_test` with quantities "first_in" and "last_in": `metric`, `part`, `head`,
    `value`, `low`, `high`. `palette` gives colours of the two quantities, `look` what else their
    marks have. Raises ValueError where a head lacks one of them, or its value is NaN.
    """
    expect_table(table, "metric", "part", "quantity", "head", "value", "low", "high")
    of_metric = rows_where(table, metric=metric, part=part)
    effects = {name: rows_where(of_metric, quantity=name) for name in ("first_in", "last_in")}
    for rows in effects.values():
        expect_once(rows, "head", remedy=ONE_NETWORK)
        expect_numbers(rows, "value")
    heads = distinct(of_metric.loc[of_metric["quantity"].isin(list(effects)), "head"])
    for name, rows in effects.items():
        for head in heads:
            rows_where(rows, quantity=name, head=head)
    effects = {name: rows.set_index("head") for name, rows in effects.items()}
    ends = [rows["value"].reindex(heads) for rows in effects.values()]
    ax.hlines(range(len(heads)), *ends, colors="0.75", linewidth=2)
    chosen = palette_colours(palette, effects)
    for quantity, marker, colour, label in (
        ("first_in", "o", HEAD_COLOURS[5], "first in: alone"),
        ("last_in", "^", HEAD_COLOURS[6], "last in: beside all others"),
    ):
        rows = effects[quantity].reindex(heads)
        colour = chosen.get(quantity, colour)
        own = looking(look, color=colour, marker=marker, linestyle="none", label=label)
        reach = np.abs(rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy())
        ax.errorbar(rows["value"], range(len(heads)), xerr=reach, **own)
    ax.axvline(0, color="0.6", linewidth=0.8, linestyle=":")
    ax.set_yticks(range(len(heads)), heads)
    ax.invert_yaxis()
    ax.set(xlabel=f"effect on the {metric_name(metric)}", title=f"Heads alone and missed ({part})")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


@drawing
def plot_interactions(
    table: pd.DataFrame,
    ax: Axes,
    *,
    metric: str,
    part: str = "total",
    level: float = 0.05,
    cmap: str | Colormap = DIVERGING,
    **look: Any,
) -> Axes:
    """Shapley interaction index of every pair; a dot in the corner where it may be none.

    Rows of `additivity_test` with quantity "interaction": `metric`, `part`, `head`, `other`,
    `value`, and `q`, the p-value adjusted for false discoveries: "may be none" is q above `level`,
    or NaN. `cmap` is another map of colours, and `look` goes to `imshow`.
    """
    expect_table(table, "metric", "part", "quantity", "head", "other", "value", "q")
    rows = rows_where(table, metric=metric, part=part, quantity="interaction")
    expect_once(rows, "head", "other", remedy=ONE_NETWORK)
    expect_numbers(rows, "value")
    names = list(dict.fromkeys([*rows["head"], *rows["other"]]))
    matrix = np.full((len(names), len(names)), np.nan)
    for row in rows.itertuples():
        i, j = names.index(str(row.head)), names.index(str(row.other))
        matrix[i, j] = matrix[j, i] = row.value
        if not float(row.q) <= level:  # pyright: ignore[reportArgumentType]
            corner = 0.36  # beside the number
            x, y = np.array([i, j]) + corner, np.array([j, i]) - corner
            ax.plot(x, y, ".", color="0.2", markersize=4)
    largest = float(np.nanmax(np.abs(matrix), initial=0)) or 1.0
    shades = Normalize(-largest, largest)
    table = pd.DataFrame(matrix, index=names, columns=names)
    draw_map(table, ax, shades=shades, colours=cmap, reach=largest, **look)
    figure = ax.get_figure()
    if figure is not None:
        figure.colorbar(ScalarMappable(shades, cmap), ax=ax, shrink=0.8, label=metric_name(metric))
    ax.set(
        xlabel=f"dot: not told from none (q > {level:g})", title=f"Interaction of pairs ({part})"
    )
    return ax


def metric_name(metric: str) -> str:
    """A metric in the words of an axis; itself where it has none."""
    return METRIC_NAMES.get(metric, metric)


ORDERS = ("1 (additive)", "2 (pairs)", "3", "4 and more")
"""What a legend calls orders."""

_BLUES = ("#08306B", "#4292C6", "#9ECAE1", "#DEEBF7")


def _few_orders(rows: pd.DataFrame) -> Sequence[float]:
    """Shares of orders 1, 2, 3, and of all above together."""
    rows = rows.sort_values("order")
    if rows["order"].tolist() != list(range(1, len(rows) + 1)):
        raise ValueError(f"Orders are {rows['order'].tolist()}; all from 1 on were expected.")
    shares = rows["value"].to_numpy(dtype=float)
    return [*shares[:3], float(shares[3:].sum())]


def _in_lines(name: str) -> str:
    """A metric's name without its unit, a word a line."""
    return metric_name(name).split(" (")[0].replace("_", " ").replace(" ", "\n")
