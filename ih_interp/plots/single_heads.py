"""Single heads: their scores, and what each does alone, ablated, or added back to others."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter
from pandas import DataFrame

import ih_interp.plots._style as style
from ih_interp._columns import distinct, equal, groups, ordered, shown
from ih_interp._expect import expect
from ih_interp.plots._style import Palette, looking, palette_colours
from ih_interp.plots._tables import expect_numbers, plotted_rows, rows_where
from ih_interp.plots.additivity import metric_name

ORDER_COLOURS = [style.HEAD_COLOURS[place] for place in (0, 6, 5, 3)]  # of orders of adding back
HATCHES = ("", "////", "....", "xxxx")  # of scores in one plot: they tell them apart in grey


@style.axes_optional
def plot_head_scores(table: DataFrame, ax: Axes, *, palette: Palette = None, **look: Any) -> Axes:
    """Plot bars of every head, one per score, and a dashed line in its colour at its chance level.

    Columns `score`, `name` ("L1H3"), `value`, and `chance` where that is known. Layers count from 0
    here. Raises ValueError for more scores than can be told apart, four.
    """
    table = plotted_rows(table, finite=["value"], once=["score", "name"])
    scores = distinct(table["score"])
    if len(scores) > len(HATCHES):
        raise ValueError(f"{len(scores)} scores in one plot: expected at most {len(HATCHES)}.")
    heads = sorted(distinct(table["name"]), key=style.head_place)
    layers = [style.head_place(head).layer for head in heads]
    gaps = np.diff(layers, prepend=layers[0]) > 0  # between layers
    places = np.arange(len(heads)) + 0.6 * np.cumsum(gaps)
    width = 0.8 / len(scores)
    chosen = palette_colours(palette, scores)
    for number, score in enumerate(scores):
        of_score = table[equal(table["score"], score)].set_index("name").reindex(heads)
        colour = chosen.get(score, style.HEAD_COLOURS[(5, 1, 3, 7)[number]])
        own = {"color": colour, "hatch": HATCHES[number], "label": shown(score)}
        own = looking(look, Patch, edgecolor="white", linewidth=0, **own)
        left = places + (number - (len(scores) - 1) / 2) * width
        ax.bar(left, of_score["value"], width, **own)
        for chance in of_score["chance"].dropna().unique() if "chance" in of_score else []:
            ax.axhline(chance, color=own["color"], linewidth=1.2, linestyle=(0, (4, 2)))
    ax.axhline(0, color="0.2", linewidth=0.8)
    ax.set_xticks(places, heads, rotation=90)
    ax.set(ylabel="score", title="Scores of heads (dashed: chance)")
    ax.margins(x=0.01)
    return style.legend_beside(ax)


@style.axes_optional
def plot_ablate_each_head(
    table: DataFrame, ax: Axes, *, metric: str = "accuracy", palette: Palette = None, **look: Any
) -> Axes:
    """Plot a metric against induction strength, with only a head and all but it (Figures 4a, 13).

    Columns of `ablate_each_head`: `head`, `strength`, `kept`, `metric`, `value`, `low`, `high`.
    Raises ValueError for a strength or value that is NaN.
    """
    where, columns = {"metric": metric}, ("strength", "low", "high")
    table = plotted_rows(table, *columns, where=where, once=["kept", "head"], finite=["value"])
    for kept, marker, label in (("only", "o", "only that head"), ("without", "^", "all but it")):
        rows = rows_where(table, kept=kept).sort_values("strength")
        expect_numbers(rows, "strength")
        colours = [style.head_colours(rows["head"], palette)[name] for name in rows["head"]]
        own = looking(look, PathCollection, color=colours, marker=marker, sizes=[36], zorder=3)
        lines = own.get("facecolor", own["color"])
        ax.vlines(rows["strength"], rows["low"], rows["high"], colors=lines, linewidth=1)
        ax.scatter(rows["strength"], rows["value"], **own)
        ax.scatter([], [], c="0.3", marker=marker, s=36, label=label)
        if kept == "only":
            style.name_heads(ax, rows["head"], rows["strength"], rows["value"])
    for kept, dash, label in (("all", "--", "none ablated"), ("none", ":", "all ablated")):
        level = table.loc[table["kept"] == kept, "value"]
        if len(level):
            ax.axhline(level.iloc[0], color="0.4", linewidth=1, linestyle=dash, label=label)
    ax.margins(y=0.08)
    ax.set(xlabel="induction strength", ylabel=metric_name(metric))
    ax.set_title("One head of the last layer alone, or ablated")
    return style.legend_beside(ax)


@style.axes_optional
def plot_add_back(
    tables: dict[str, DataFrame],
    ax: Axes,
    *,
    metric: str = "loss",
    none_ablated: float | None = None,
    palette: Palette = None,
    **look: Any,
) -> Axes:
    """Plot a metric as heads are added back one by one; several orders by name (Figure 14).

    Columns of `add_back`: `n_heads`, `head`, `metric`, `value`, `low`, `high`. Loss above 0 has a
    logarithmic axis. `none_ablated` is the whole model's metric, a dashed line.
    """
    expect(tables, dict, "tables", 'write {"by strength": table}')
    if not 0 < len(tables) <= len(ORDER_COLOURS):
        raise ValueError(f"{len(tables)} orders in one plot: expected 1 to {len(ORDER_COLOURS)}.")
    if none_ablated is not None:
        ax.axhline(none_ablated, color="0.4", linewidth=1, linestyle="--", label="none ablated")
    places = ((-11, -9), (3, 5), (3, 5), (3, 5))  # of names: the first order is the lowest line
    chosen = palette_colours(palette, tables)
    positive = none_ablated is None or none_ablated > 0
    for (name, table), colour, marker, place in zip(
        tables.items(), ORDER_COLOURS, style.HEAD_MARKERS, places, strict=False
    ):
        where, numbers = {"metric": metric}, ["n_heads", "value"]
        rows = plotted_rows(
            table, "head", "low", "high", where=where, finite=numbers, once=["n_heads"]
        ).sort_values("n_heads")
        positive = positive and bool((rows["value"] > 0).all())
        own = looking(look, color=chosen.get(name, colour), marker=marker, label=name)
        ax.fill_between(rows["n_heads"], rows["low"], rows["high"], color=own["color"], alpha=0.2)
        ax.plot(rows["n_heads"], rows["value"], **own)
        for row in rows[rows["n_heads"] > 0].itertuples():
            words = {"color": own["color"], "fontsize": 7, "va": "baseline"}
            style.note(
                ax, style.short_head(str(row.head)), (row.n_heads, row.value), place, **words
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


@style.axes_optional
def plot_matches(table: DataFrame, ax: Axes, *, palette: Palette = None, **look: Any) -> Axes:
    """Plot the accuracy of each head alone, its match computed and perfect (Figure 16a).

    Columns `seed`, `head`, `strength` (the x axis), `match` ("computed" or "perfect"), `value`. A
    line joins the two of a head. Heads of the first network are named, others small and grey.
    """
    once = ["seed", "head", "match"]
    table = plotted_rows(table, seed=True, finite=["strength", "value"], once=once)
    first = ordered(table["seed"])[0]
    colours = style.head_colours(sorted(distinct(table["head"]), key=style.head_place), palette)
    for key, rows in groups(table.sort_values(["seed", "head"], kind="stable"), ["seed", "head"]):
        strength, computed = rows_where(rows, match="computed").iloc[0][["strength", "value"]]
        perfect = rows_where(rows, match="perfect")["value"].iloc[0]
        is_first = shown(key["seed"]) == shown(first)
        colour = colours[key["head"]] if is_first else "0.7"
        size, zorder = (6.0, 3.0) if is_first else (3.0, 1.0)
        own = looking(look, color=colour, markersize=size, zorder=zorder)
        ends = [computed, perfect]
        ax.plot([strength] * 2, ends, color=own["color"], linewidth=size / 5, zorder=zorder)
        ax.plot(strength, computed, "o", **own)
        own.setdefault("markerfacecolor", "white")
        ax.plot(strength, perfect, "^", **own)
    named = rows_where(table, seed=first, match="computed")
    style.name_heads(ax, named["head"], named["strength"], named["value"])
    ax.plot([], [], "o", color="0.2", label="as computed")
    ax.plot([], [], "^", color="0.2", mfc="white", label="perfect")
    if table["seed"].nunique(dropna=False) > 1:
        ax.plot([], [], "o", color="0.7", markersize=3, label="other networks")
    ax.margins(y=0.1)
    ax.set(xlabel="induction strength", ylabel="accuracy", title="Only one head on: its match")
    ax.legend(loc="lower right")
    return ax


@style.axes_optional
def plot_corrected(table: DataFrame, ax: Axes, **look: Any) -> Axes:
    """Plot what share of one head's mistakes each other head alone gets right (Tables 2 and 3).

    Columns of `mistakes_corrected`: `base`, `mistakes`, `head`, `accuracy`, `value`, `low`, `high`.
    Open marks are the heads' accuracies: the share if mistakes were independent. In the base's own
    line stands how many mistakes it makes; without mistakes there is no share to mark.
    """
    finite, gaps = ["mistakes", "accuracy"], ["value", "low", "high"]
    table = plotted_rows(table, "base", finite=finite, gaps=gaps, once=["head"])
    if len(distinct(table["base"])) > 1:
        raise ValueError(f"The column 'base' holds {distinct(table['base'])}: expected one head.")
    base, mistakes = str(table["base"].iloc[0]), int(table["mistakes"].iloc[0])
    heads = sorted([*table["head"], base], key=style.head_place)
    places = [heads.index(head) for head in table["head"]]
    ax.hlines(places, table["accuracy"], table["value"], color="0.8", linewidth=1.5, zorder=1)
    own = looking(look, color=style.HEAD_COLOURS[5], label="corrected (95% interval)")
    ax.hlines(places, table["low"], table["high"], color=own["color"], linewidth=3, zorder=2)
    ax.plot(table["value"], places, "o", **own)
    ax.plot(table["accuracy"], places, "D", color="0.3", mfc="white", label="accuracy on all")
    for place, value in zip(places, table["value"], strict=True):
        if np.isfinite(value):
            style.note(ax, f"{value:.0%}", (1.02, place))
    style.note(ax, f"{base} alone: {mistakes:,} mistakes", (0, heads.index(base)), fontsize=7)
    ax.set_yticks(range(len(heads)), heads)
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.set(xlim=(-0.02, 1.16), ylim=(len(heads) - 0.5, -0.5), xlabel=f"of {base}'s mistakes")
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    ax.grid(axis="x", color="0.92")
    ax.set(axisbelow=True, title=f"Mistakes of only {base}, corrected by only another")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return ax
