"""Heads by themselves: scores beside chance, composition, perfect matches, mistakes corrected."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.patches import Patch
from matplotlib.ticker import PercentFormatter

from ih_interp._columns import equal, groups, ordered, shown
from ih_interp.plots._palettes import Palette, looking, palette_colours
from ih_interp.plots._style import (
    HEAD_COLOURS,
    HEAD_MARKERS,
    drawing,
    head_colours,
    head_place,
    name_points,
    short_head,
)
from ih_interp.plots._tables import (
    A_SEED_EACH,
    ONE_NETWORK,
    distinct,
    expect_numbers,
    expect_once,
    expect_table,
    of_quantity,
    rows_where,
    with_seed,
)
from ih_interp.plots.maps import DIVERGING, draw_map, heads_by_heads

HATCHES = ("", "////", "....", "xxxx")
"""Scores in one drawing, told apart in grey."""


@drawing
def plot_head_scores(
    table: pd.DataFrame, ax: Axes, *, palette: Palette | None = None, **look: Any
) -> Axes:
    """Bars of every head, one a score, and a dashed line in its colour at its chance level.

    Columns `score`, `name` ("L1H3"), `value`, and `chance` where that is known. Layers count from
    0 here. `palette` gives colours of scores, `look` what else the bars have. Raises ValueError for
    more scores than can be told apart, four.
    """
    expect_table(table, "score", "name", "value")
    expect_numbers(table, "value")
    expect_once(table, "score", "name", remedy=ONE_NETWORK)
    scores = distinct(table["score"])
    if len(scores) > len(HATCHES):
        raise ValueError(f"{len(scores)} scores in one drawing; give at most {len(HATCHES)}.")
    heads = sorted(distinct(table["name"]), key=head_place)
    places = np.arange(len(heads)) + 0.6 * np.cumsum(_starts_layer(heads))  # a gap between layers
    width = 0.8 / len(scores)
    chosen = palette_colours(palette, scores)
    for number, score in enumerate(scores):
        of_score = table[equal(table["score"], score)].set_index("name").reindex(heads)
        own: dict[str, Any] = {
            "color": chosen.get(score, HEAD_COLOURS[(5, 1, 3, 7)[number]]),
            "hatch": HATCHES[number],
            "edgecolor": "white",
            "linewidth": 0,
            "label": shown(score),
        }
        own = looking(look, Patch, **own)
        left = places + (number - (len(scores) - 1) / 2) * width
        ax.bar(left, of_score["value"], width, **own)
        _chance_line(ax, of_score, own["color"])
    ax.axhline(0, color="0.2", linewidth=0.8)
    ax.set_xticks(places, heads, rotation=90)
    ax.set(ylabel="score", title="Scores of heads (dashed: chance)")
    ax.margins(x=0.01)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    return ax


@drawing
def plot_composition(
    table: pd.DataFrame,
    ax: Axes,
    *,
    chance: float,
    title: str = "",
    cmap: str | Colormap = DIVERGING,
    **look: Any,
) -> Axes:
    """Map of heads (rows) by the earlier heads they read (columns), as Figure 11's last column.

    Columns `source`, `name` (both "L1H3") and `value`, which is written in; pairs without a value
    are left out. White is chance, orange above it and purple below, both as far as the furthest
    value. `cmap` is another map of colours, and `look` goes to `imshow`.
    """
    expect_table(table, "source", "name", "value")
    expect_once(table, "source", "name", remedy=ONE_NETWORK)
    values = heads_by_heads(table, "name", "source", "value")
    cells = values.to_numpy(dtype=float)
    reach = float(np.nanmax(np.abs(cells - chance))) or 1.0
    shades = Normalize(chance - reach, chance + reach)
    draw_map(values, ax, shades=shades, colours=cmap, reach=reach, **look)
    name = title or "Composition of heads"
    ax.set(xlabel="writes", ylabel="reads", title=f"{name} (white: chance, {chance:.3f})")
    return ax


@drawing
def plot_matches(
    table: pd.DataFrame, ax: Axes, *, palette: Palette | None = None, **look: Any
) -> Axes:
    """Figure 16a: accuracy of each head alone over its strength, computed and perfected match.

    Columns `seed`, `head`, `strength`, `match` ("computed" or "perfect"), `value`. A line joins
    the two of one head. The first network's heads are named; those of others are small and grey.
    `palette` gives colours of the first's heads, `look` what else the marks have.
    """
    table = with_seed(table)
    expect_table(table, "head", "strength", "match", "value")
    expect_numbers(table, "strength", "value")
    expect_once(table, "seed", "head", "match", remedy=A_SEED_EACH)
    first = ordered(table["seed"])[0]
    colours = head_colours(sorted(distinct(table["head"]), key=head_place), palette)
    for key, rows in groups(table.sort_values(["seed", "head"], kind="stable"), ["seed", "head"]):
        strength, computed = (
            float(rows_where(rows, match="computed")[column].iloc[0])
            for column in ("strength", "value")
        )
        perfect = float(rows_where(rows, match="perfect")["value"].iloc[0])
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
    names = [short_head(head) for head in named["head"]]
    name_points(ax, names, named["strength"].tolist(), named["value"].tolist())
    ax.plot([], [], "o", color="0.2", label="as computed")
    ax.plot([], [], "^", color="0.2", mfc="white", label="perfect")
    if table["seed"].nunique(dropna=False) > 1:
        ax.plot([], [], "o", color="0.7", markersize=3, label="other networks")
    ax.margins(y=0.1)
    ax.set(xlabel="induction strength", ylabel="accuracy", title="Only one head on: its match")
    ax.legend(loc="lower right")
    return ax


@drawing
def plot_corrected(table: pd.DataFrame, ax: Axes, **look: Any) -> Axes:
    """Tables 2 and 3: of one head's mistakes, the share that each other head alone gets right.

    Columns of `mistakes_corrected`: `base`, `mistakes`, `head`, `accuracy`, `value`, `low`, `high`.
    Open marks are the heads' accuracies: the share if mistakes were independent. In the base's own
    line stands how many mistakes it makes; of none there is no share to mark. `look` is that of the
    marks of shares.
    """
    expect_table(table, "base", "mistakes", "head", "accuracy", "value", "low", "high")
    expect_numbers(table, "accuracy", "mistakes")
    expect_numbers(table, "value", "low", "high", gaps=True)
    expect_once(table, "head", remedy="give the rows of one network and one `base`")
    if len(distinct(table["base"])) > 1:
        raise ValueError(f"Heads are compared with {distinct(table['base'])}; give one `base`.")
    base, mistakes = str(table["base"].iloc[0]), int(table["mistakes"].iloc[0])
    heads = sorted([*table["head"], base], key=head_place)
    places = [heads.index(head) for head in table["head"]]
    ax.hlines(places, table["accuracy"], table["value"], color="0.8", linewidth=1.5, zorder=1)
    own = looking(look, color=HEAD_COLOURS[5], label="corrected (95% interval)")
    ax.hlines(places, table["low"], table["high"], color=own["color"], linewidth=3, zorder=2)
    ax.plot(table["value"], places, "o", **own)
    ax.plot(table["accuracy"], places, "D", color="0.3", mfc="white", label="accuracy on all")
    for place, value in zip(places, table["value"], strict=True):
        if np.isfinite(value):
            ax.annotate(f"{value:.0%}", (1.02, place), va="center", fontsize=8)
    ax.annotate(
        f"{base} alone: {mistakes:,} mistakes", (0, heads.index(base)), va="center", fontsize=7
    )
    ax.set_yticks(range(len(heads)), heads)
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.set(xlim=(-0.02, 1.16), ylim=(len(heads) - 0.5, -0.5), xlabel=f"of {base}'s mistakes")
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1])
    ax.grid(axis="x", color="0.92")
    ax.set(axisbelow=True, title=f"Mistakes of only {base}, corrected by only another")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2)
    return ax


@drawing
def plot_additive_fits(
    table: pd.DataFrame, ax: Axes, *, names: Sequence[str] = (), **look: Any
) -> Axes:
    """R squared of the best additive fit to all subsets of heads, by scale; one mark per network.

    Columns `metric`, `part` ("total", the model as it is, or "frozen", with the final norm's scale
    kept), `value`, and of several networks `seed`. `names` are the metrics in the words of the
    axis, in their order. `look` is that of the marks. Raises ValueError where a network has no
    value, or NaN, as of a metric that is the same for every subset.
    """
    table = with_seed(of_quantity(table, "r_squared"))
    expect_table(table, "metric", "part", "value")
    expect_once(table, "seed", "metric", "part", remedy=A_SEED_EACH)
    expect_numbers(table, "value")
    metrics = distinct(table["metric"])
    seeds = ordered(table["seed"])
    for part, offset, fill, label in (
        ("total", -0.13, HEAD_COLOURS[5], "the model as it is"),
        ("frozen", 0.13, "white", "final norm's scale frozen"),
    ):
        for number, seed in enumerate(seeds):
            values = [
                float(rows_where(table, part=part, seed=seed, metric=metric)["value"].iloc[0])
                for metric in metrics
            ]
            own: dict[str, Any] = {
                "color": HEAD_COLOURS[5],
                "markerfacecolor": fill,
                "marker": HEAD_MARKERS[number % len(HEAD_MARKERS)],
                "markersize": 6,
                "linestyle": "",
                "label": label if number == 0 else None,
            }
            ax.plot(values, np.arange(len(metrics)) + offset, **looking(look, **own))
    ax.set_yticks(range(len(metrics)), list(names) or list(map(shown, metrics)))
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.03), xlabel="R² of the best additive fit to all subsets (1: heads add up)")
    ax.set_title("Do the heads add up? It depends on the scale")
    ax.grid(axis="x", color="0.92")
    ax.legend(loc="lower left")
    return ax


def _chance_line(ax: Axes, of_score: pd.DataFrame, colour: Any) -> None:
    if "chance" not in of_score:
        return
    for chance in of_score["chance"].dropna().unique():
        ax.axhline(chance, color=colour, linewidth=1.2, linestyle=(0, (4, 2)))


def _starts_layer(heads: list[str]) -> list[int]:
    layers = [head_place(head)[0] for head in heads]
    return [0] + [int(b != a) for a, b in pairwise(layers)]
