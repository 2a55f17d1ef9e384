"""Maps of heads by heads: colours, and every value written in, so that grey print loses nothing."""

import re
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize

from ih_interp.plots._style import head_order, head_place
from ih_interp.plots._tables import distinct, expect_numbers, expect_table

DIVERGING = "PuOr_r"
"""Safe for colour-blind readers; white in the middle, and the number in a cell tells its sign."""


def draw_map(
    values: pd.DataFrame,
    ax: Axes,
    *,
    shades: Normalize,
    colours: str | Colormap,
    reach: float,
    written: bool = True,
    **look: Any,
) -> None:
    """Rows by columns as cells, empty where NaN; `reach` is the largest value, for its digits.

    Maps too small for their numbers are drawn with `written=False`. `look` goes to `imshow`.
    """
    cells = values.to_numpy(dtype=float)
    own: dict[str, Any] = {"cmap": colours, "norm": shades, "aspect": "auto"} | look
    ax.imshow(cells, **own)
    of_value = colormaps.get_cmap(own["cmap"])
    for row, column in zip(*np.nonzero(~np.isnan(cells) & written), strict=True):
        red, green, blue, _ = of_value(own["norm"](cells[row, column]))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        ax.text(
            column,
            row,
            short_value(float(cells[row, column]), reach),
            ha="center",
            va="center",
            fontsize=7,
            color="white" if dark else "black",
        )
    ax.set_xticks(range(cells.shape[1]), list(values.columns), rotation=90)
    ax.set_yticks(range(cells.shape[0]), list(values.index))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def heads_by_heads(table: pd.DataFrame, index: str, columns: str, value: str) -> pd.DataFrame:
    """Return a cell for each pair of heads that has a value, in the order of heads.

    Raises ValueError for what is no head, for infinite values, and where no pair has one.
    """
    expect_numbers(table, value, gaps=True)
    for column in (index, columns):
        for name in distinct(table[column]):
            head_place(name)
    there = table.dropna(subset=[value])
    expect_table(there)
    cells = there.pivot_table(index=index, columns=columns, values=value, observed=True)
    return cells.sort_index(key=head_order).sort_index(key=head_order, axis=1)


def short_value(value: float, reach: float) -> str:
    """Two or three digits of the largest value, without the zero before the point.

    >>> short_value(-0.104, 0.5), short_value(31.4, 50.0), short_value(0.0301, 0.05)
    ('-.10', '31.4', '.030')
    """
    digits = 1 if reach >= 10 else 2 if reach >= 0.1 else 3
    text = f"{value:.{digits}f}"
    # What rounds to nothing has no sign.
    text = text.removeprefix("-") if float(text) == 0 else text
    return re.sub(r"^(-?)0\.", r"\1.", text)
