"""Maps of heads by heads: colours, and every value written in, so that grey print loses nothing."""

import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.image import AxesImage
from pandas import DataFrame

from ih_interp._columns import distinct, finite, numbers
from ih_interp._expect import expect
from ih_interp.plots._style import axes_optional, head_place
from ih_interp.plots._tables import expect_once, expect_table, plotted_rows
from ih_interp.plots.additivity import metric_name
from ih_interp.plots.curves import input_name

DIVERGING = "PuOr_r"
"""Safe for colour-blind readers; white in the middle, and the number in a cell tells its sign."""


def draw_map(
    values: DataFrame,
    ax: Axes,
    *,
    shades: Normalize,
    colours: str | Colormap,
    reach: float,
    written: bool = True,
    **look: Any,
) -> AxesImage:
    """Draw rows by columns as cells, empty where NaN; `reach` is the largest value, for its digits.

    Maps too small for their numbers are drawn with `written=False`. `look` goes to `imshow`.
    """
    cells = values.to_numpy(dtype=float)
    own: dict[str, Any] = {"cmap": colours, "norm": shades, "aspect": "auto"}
    own |= {name: setting for name, setting in look.items() if setting is not None}
    image = ax.imshow(cells, **own)
    of_value = colormaps.get_cmap(own["cmap"])
    for row, column in zip(*np.nonzero(~np.isnan(cells) & written), strict=True):
        red, green, blue, _ = of_value(own["norm"](cells[row, column]))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        words, colour = short_value(float(cells[row, column]), reach), "white" if dark else "black"
        ax.text(column, row, words, ha="center", va="center", fontsize=7, color=colour)
    ax.set_xticks(range(cells.shape[1]), list(values.columns), rotation=90)
    ax.set_yticks(range(cells.shape[0]), list(values.index))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return image


def draw_centred(
    values: DataFrame, ax: Axes, *, centre: float = 0.0, reach: float | None = None, **look: Any
) -> AxesImage:
    """Draw a map whose colours reach as far above `centre` as below, by default to every value."""
    cells = values.to_numpy(dtype=float)
    reach = reach or float(np.nanmax(np.abs(cells - centre))) or 1.0
    shades = Normalize(centre - reach, centre + reach)
    return draw_map(values, ax, shades=shades, colours=DIVERGING, reach=reach, **look)


def heads_by_heads(table: Any, index: str, columns: str, value: str, **where: object) -> DataFrame:
    """Return a cell for each pair of heads that has a value, in the order of heads.

    Raises ValueError as `plotted_rows` does, for a name that is not a head's, and without values.
    """
    table = plotted_rows(table, where=where, once=[columns, index], gaps=[value])
    for name in [*table[index], *table[columns]]:
        head_place(name)
    there = table.dropna(subset=[value])
    expect_table(there)
    cells = there.pivot_table(index=index, columns=columns, values=value, observed=True)
    rows, others = sorted(cells.index, key=head_place), sorted(cells.columns, key=head_place)
    return cells.loc[rows, others]


def short_value(value: float, reach: float) -> str:
    """Return two or three digits of the largest value, without the zero before the point.

    >>> short_value(-0.104, 0.5), short_value(31.4, 50.0), short_value(0.0301, 0.05)
    ('-.10', '31.4', '.030')
    """
    digits = 1 if reach >= 10 else 2 if reach >= 0.1 else 3
    text = f"{value:z.{digits}f}"  # z: what rounds to nothing has no sign
    return re.sub(r"^(-?)0\.", r"\1.", text)


@axes_optional
def plot_composition(
    table: DataFrame, ax: Axes, *, chance: float, title: str = "", **look: Any
) -> Axes:
    """Plot a map of heads by the earlier heads that they read from (Figure 11, last column).

    Columns `source` (the map's columns), `name` (its rows), both as "L1H3", and `value`, which is
    written in; pairs without a value are left out. White is chance, orange above it and purple
    below, both as far as the furthest value.
    """
    draw_centred(heads_by_heads(table, "name", "source", "value"), ax, centre=chance, **look)
    name = title or "Composition of heads"
    ax.set(xlabel="writes", ylabel="reads", title=f"{name} (white: chance, {chance:.3f})")
    return ax


@axes_optional
def plot_wiring(
    table: DataFrame,
    ax: Axes,
    *,
    via: str = "k",
    column: str = "use",
    reach: float | None = None,
    **look: Any,
) -> Axes:
    """Plot a map of receivers (rows) by senders (columns) for one input, every value written in.

    Columns `via`, `sender`, `receiver` ("L0H2") and the one shown, as in `Wiring.table`. White is
    0, orange above it (with `use`: serves the behaviour) and purple below, both as far as `reach`,
    by default the furthest value. Raises ValueError for an input that the table lacks.
    """
    values = heads_by_heads(table, "receiver", "sender", column, via=via)
    draw_centred(values, ax, reach=reach, **look)
    ax.set(xlabel="sender", ylabel="receiver")
    ax.set_title(f"Path patching through {input_name(via)}: {column}")
    return ax


@axes_optional
def plot_preserving(
    table: DataFrame, ax: Axes, *, column: str = "accuracy_change", title: str = "", **look: Any
) -> Axes:
    """Plot accuracy, loss or a change of it, receivers by senders (Figure 11, columns 1 and 2).

    Columns `sender`, `receiver` and the one shown, as in `Preserving.table`. Changes are coloured
    about 0, white; accuracies and losses from light to dark. Layers count from 0 here.
    """
    values = heads_by_heads(table, "receiver", "sender", column)
    if column.endswith("change"):
        draw_centred(values, ax, **look)
        title = title or column.replace("_", " ")
    else:
        low, high = float(values.min().min()), float(values.max().max())
        reach = max(abs(low), abs(high))
        draw_map(values, ax, shades=Normalize(low, high), colours="Greys", reach=reach, **look)
    ax.set(xlabel="sender", ylabel="receiver", title=title or column)
    return ax


@axes_optional
def plot_interactions(
    table: DataFrame,
    ax: Axes,
    *,
    metric: str,
    part: str = "total",
    level: float = 0.05,
    **look: Any,
) -> Axes:
    """Plot a map of every pair's Shapley interaction; a dot in the corner where it may be none.

    Rows of `additivity_test` with quantity "interaction": `metric`, `part`, `head`, `other`,
    `value`, and `q`, the p-value adjusted for false discoveries: "may be none" is q above `level`,
    or NaN.
    """
    where = {"metric": metric, "part": part, "quantity": "interaction"}
    table = plotted_rows(table, "q", where=where, once=["head", "other"], finite=["value"])
    expect(level, (int, float, np.number), "level", "write 0.05")
    names = distinct(pd.concat([table["head"], table["other"]]))
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"The columns 'head' and 'other' hold {names}: expected names of heads.")
    matrix = DataFrame(np.nan, index=names, columns=names)
    for head, other, value in zip(table["head"], table["other"], table["value"], strict=True):
        matrix.loc[head, other] = matrix.loc[other, head] = float(value)
    unclear = table[~(numbers(table["q"], "The column 'q'") <= level)]
    i, j = (np.array([names.index(name) for name in unclear[c]]) for c in ("head", "other"))
    corner = 0.36  # beside the number
    x, y = np.append(i, j) + corner, np.append(j, i) - corner
    ax.plot(x, y, ".", color="0.2", markersize=4)
    image = draw_centred(matrix, ax, **look)
    ax.figure.colorbar(image, ax=ax, shrink=0.8, label=metric_name(metric))
    ax.set_xlabel(f"dot: not told from none (q > {level:g})")
    ax.set_title(f"Interaction of pairs ({part})")
    return ax


@axes_optional
def plot_label_accuracy(
    table: DataFrame, ax: Axes, *, quantity: str = "accuracy", bar: bool = True, **look: Any
) -> Axes:
    """Plot a map of heads by true label: accuracy alone, or share of mistakes (Figure 16b, c).

    Columns of `label_specific_accuracy`: `head`, `label`, `quantity`, `value`, and for shares
    `mistakes`, whose sum stands beside the head. `bar` says whether colours have a scale. A cell is
    empty where the value is NaN, as the share of a head without mistakes.
    """
    shares = quantity == "mistake_share"
    columns = ("head", "label", *(["mistakes"] if shares else []))
    rows = plotted_rows(table, *columns, where={"quantity": quantity}, gaps=["value"])
    rows["label"] = finite(rows["label"], "The column 'label'").astype(int)
    expect_once(rows, "head", "label")
    heads = distinct(rows["head"])
    matrix = rows.set_index(["head", "label"])["value"].unstack("label").reindex(heads)
    image = draw_map(matrix, ax, shades=Normalize(0, 1), colours="Blues", reach=1.0, **look)
    ax.tick_params(axis="x", rotation=0)  # labels are digits
    what = "share of the head's mistakes" if shares else quantity
    if shares:
        total = rows.groupby("head", observed=True)["mistakes"].sum().astype(int)
        ax.set_yticks(range(len(heads)), [f"{head} ({total[head]:,})" for head in heads])
    if bar:
        ax.figure.colorbar(image, ax=ax, label=what)
    ax.set(xlabel="true label", title=f"Only one head on: {what} by label")
    return ax
