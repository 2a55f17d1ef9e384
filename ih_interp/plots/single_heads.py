"""Single heads of the last layer: alone, missing, added back one by one, and label by label."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PathCollection
from matplotlib.colors import Colormap, Normalize
from matplotlib.ticker import MaxNLocator

from ih_interp._columns import finite
from ih_interp.plots._palettes import Palette, looking, palette_colours
from ih_interp.plots._style import (
    HEAD_COLOURS,
    HEAD_MARKERS,
    drawing,
    head_colours,
    name_points,
    short_head,
)
from ih_interp.plots._tables import (
    ONE_NETWORK,
    distinct,
    expect_numbers,
    expect_once,
    expect_table,
    rows_where,
)
from ih_interp.plots.additivity import metric_name
from ih_interp.plots.maps import draw_map

ORDER_COLOURS = (HEAD_COLOURS[0], HEAD_COLOURS[6], HEAD_COLOURS[5], HEAD_COLOURS[3])
"""Of orders in which heads are added back; markers tell them apart in grey."""


@drawing
def plot_ablate_each_head(
    table: pd.DataFrame,
    ax: Axes,
    *,
    metric: str = "accuracy",
    palette: Palette | None = None,
    **look: Any,
) -> Axes:
    """Figures 4a and 13: a metric against induction strength, with only a head and all but it.

    Columns of `ablate_each_head`: `head`, `strength`, `kept`, `metric`, `value`, `low`, `high`.
    `palette` gives colours of heads, `look` what else their marks have. Raises ValueError for a
    strength or value that is NaN.
    """
    expect_table(table, "head", "strength", "kept", "metric", "value", "low", "high")
    table = rows_where(table, metric=metric)
    expect_once(table, "kept", "head", remedy=ONE_NETWORK)
    expect_numbers(table, "value")
    for kept, marker, label in (("only", "o", "only that head"), ("without", "^", "all but it")):
        rows = rows_where(table, kept=kept).sort_values("strength")
        expect_numbers(rows, "strength")
        colours = [head_colours(rows["head"], palette)[name] for name in rows["head"]]
        own: dict[str, Any] = {"color": colours, "marker": marker, "sizes": [36], "zorder": 3}
        own = looking(look, PathCollection, **own)
        lines = own.get("facecolor", own["color"])
        ax.vlines(rows["strength"], rows["low"], rows["high"], colors=lines, linewidth=1)
        ax.scatter(rows["strength"], rows["value"], **own)
        ax.scatter([], [], c="0.3", marker=marker, s=36, label=label)
        if kept == "only":
            names = [short_head(name) for name in rows["head"]]
            name_points(ax, names, rows["strength"].tolist(), rows["value"].tolist())
    for kept, dash, label in (("all", "--", "none ablated"), ("none", ":", "all ablated")):
        level = table.loc[table["kept"] == kept, "value"]
        if len(level):
            ax.axhline(level.iloc[0], color="0.4", linewidth=1, linestyle=dash, label=label)
    ax.margins(y=0.08)
    ax.set(
        xlabel="induction strength",
        ylabel=metric_name(metric),
        title="One head of the last layer alone, or missing",
    )
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


@drawing
def plot_add_back(
    tables: dict[str, pd.DataFrame],
    ax: Axes,
    *,
    metric: str = "loss",
    none_ablated: float | None = None,
    palette: Palette | None = None,
    **look: Any,
) -> Axes:
    """Figure 14: a metric as heads are added back one by one; several orders by name.

    Columns of `add_back`: `n_heads`, `head`, `metric`, `value`, `low`, `high`. Loss has a
    logarithmic axis, where none is 0 or below. `none_ablated` is the whole model's metric, a dashed
    line. `palette` gives colours of orders, `look` what else their lines have.
    """
    _expect_orders(tables)
    if none_ablated is not None:
        ax.axhline(none_ablated, color="0.4", linewidth=1, linestyle="--", label="none ablated")
    places = ((-11, -9), (3, 5), (3, 5), (3, 5))  # of names: the first order is the lowest line
    chosen = palette_colours(palette, tables)
    positive = none_ablated is None or none_ablated > 0
    for (name, table), colour, marker, place in zip(
        tables.items(), ORDER_COLOURS, HEAD_MARKERS, places, strict=False
    ):
        expect_table(table, "n_heads", "head", "metric", "value", "low", "high")
        rows = rows_where(table, metric=metric).sort_values("n_heads")
        expect_numbers(rows, "n_heads", "value")
        expect_once(rows, "n_heads", remedy=ONE_NETWORK)
        positive = positive and bool((rows["value"] > 0).all())
        own = looking(look, color=chosen.get(name, colour), marker=marker, label=name)
        ax.fill_between(rows["n_heads"], rows["low"], rows["high"], color=own["color"], alpha=0.2)
        ax.plot(rows["n_heads"], rows["value"], **own)
        for row in rows[rows["n_heads"] > 0].itertuples():
            ax.annotate(
                short_head(str(row.head)),
                (float(row.n_heads), float(row.value)),  # pyright: ignore[reportArgumentType]
                place,
                textcoords="offset points",
                fontsize=7,
                color=own["color"],
            )
    if metric.endswith("loss") and positive:
        ax.set_yscale("log")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.margins(x=0.07, y=0.12)  # room for names
    ax.set(xlabel="heads of the last layer that are on", ylabel=metric_name(metric))
    ax.set_title("Heads added back (H: the one just added)")
    if len(tables) > 1:
        ax.legend()
    return ax


@drawing
def plot_label_accuracy(
    table: pd.DataFrame,
    ax: Axes,
    *,
    quantity: str = "accuracy",
    bar: bool = True,
    cmap: str | Colormap = "Blues",
    **look: Any,
) -> Axes:
    """Figure 16, c or b: heads by true label, their accuracy alone or share of their mistakes.

    Columns of `label_specific_accuracy`: `head`, `label`, `quantity`, `value`, and for shares
    `mistakes`, whose sum stands beside the head. `bar` says whether colours have a scale. A cell is
    empty where the value is NaN, as the share of a head without mistakes. `cmap` is another map of
    colours, and `look` goes to `imshow`.
    """
    shares = quantity == "mistake_share"
    expect_table(table, "head", "label", "quantity", "value", *(["mistakes"] if shares else []))
    rows = rows_where(table, quantity=quantity)
    rows = rows.assign(label=finite(rows["label"], "The column 'label'").astype(int))
    expect_numbers(rows, "value", gaps=True)
    expect_once(rows, "head", "label", remedy=ONE_NETWORK)
    heads = distinct(rows["head"])
    matrix = rows.set_index(["head", "label"])["value"].unstack("label").reindex(heads)
    shades = Normalize(0, 1)
    draw_map(matrix, ax, shades=shades, colours=cmap, reach=1.0, **look)
    ax.tick_params(axis="x", rotation=0)  # labels are digits
    what = "share of the head's mistakes" if shares else quantity
    if shares:
        total = rows.groupby("head", observed=True)["mistakes"].sum().astype(int)
        ax.set_yticks(range(len(heads)), [f"{head} ({total[head]:,})" for head in heads])
    figure = ax.get_figure()
    if bar and figure is not None:
        figure.colorbar(ScalarMappable(shades, cmap), ax=ax, label=what)
    ax.set(xlabel="true label", title=f"Only one head on: {what} by label")
    return ax


def _expect_orders(tables: object) -> None:
    if not isinstance(tables, dict):
        raise TypeError(
            f'Tables by name are drawn, as in {{"by strength": table}}, and a '
            f"{type(tables).__name__} came."
        )
    n_orders = len(tables)  # pyright: ignore[reportUnknownArgumentType]
    if not 0 < n_orders <= len(ORDER_COLOURS):
        raise ValueError(f"{n_orders} orders in one drawing; give 1 to {len(ORDER_COLOURS)}.")
