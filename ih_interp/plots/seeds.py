"""How several networks share one picture: thin curves and a band, or the first large."""

from collections.abc import Callable

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ih_interp.plots.style import Line
from ih_interp.plots.tables import A_SEED_EACH, expect_once


def plot_over_seeds(
    table: pd.DataFrame,
    ax: Axes,
    label: str,
    line: Line,
    *,
    x: str = "sequences",
    y: str = "loss",
) -> None:
    """One curve for several networks: each thin, their median thick, a band from least to most.

    Columns: `seed`, `x` and `y`. One network alone is thick, without a band.
    """
    expect_once(table, x, "seed", remedy=A_SEED_EACH)
    by_seed = table.pivot_table(index=x, columns="seed", values=y)
    if by_seed.shape[1] > 1:
        low, high = by_seed.min(axis=1), by_seed.max(axis=1)
        ax.fill_between(by_seed.index, low, high, color=line.colour, alpha=0.12, linewidth=0)
        ax.plot(by_seed.index, by_seed, color=line.colour, linewidth=0.5, alpha=0.6)
    median = by_seed.median(axis=1)
    ax.plot(median.index, median, color=line.colour, linestyle=line.dash, label=label)


def plot_each_network(
    table: pd.DataFrame, figure: Figure, plot: Callable[[pd.DataFrame, Axes], object]
) -> list[Axes]:
    """The first network's table drawn large, and those of the other seeds small beside it.

    Heads of different networks have nothing to do with each other, so they cannot share a curve.
    Small axes keep no title, labels or legend of their own but their seed.
    """
    seeds = sorted(table["seed"].unique())
    others = len(seeds) - 1
    if not others:
        axes = [figure.subplots()]
    else:
        rows = min(others, 2)
        columns = -(-others // rows)
        grid = figure.add_gridspec(rows, 2 * columns + 3)
        axes = [figure.add_subplot(grid[:, :3])]
        axes += [
            figure.add_subplot(grid[n % rows, 3 + 2 * (n // rows) : 5 + 2 * (n // rows)])
            for n in range(others)
        ]
    for seed, ax in zip(seeds, axes, strict=True):
        plot(table[table["seed"] == seed], ax)
    for seed, ax in zip(seeds[1:], axes[1:], strict=True):
        ax.set(title=f"seed {seed}", xlabel="", ylabel="")
        ax.tick_params(labelsize=7)
        if (legend := ax.get_legend()) is not None:
            legend.remove()
    return axes
