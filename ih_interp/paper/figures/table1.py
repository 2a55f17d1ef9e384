"""Table 1: groups of layer 0's heads are ablated while layer 1 keeps patterns or values."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from transformer_lens import HookedTransformer

from ih_interp.analysis.patching.preserving import Kept, preserving_ablation
from ih_interp.paper.drawing import panels
from ih_interp.paper.judging import Measured, Rule, by_rules
from ih_interp.paper.study import Figure, Study
from ih_interp.runs import Run
from ih_interp.types import Batch, Head


def preserving_table(study: Study) -> pd.DataFrame:
    """Return accuracy without groups of layer 0's heads, while layer 1 keeps one of its inputs.

    Columns: those of `Study.each_run`, `group` ("previous-token" or "others"), `ablated` (its
    heads, as "L0H1 L0H2"), `preserved` ("patterns" or "values"), `accuracy`: chance 1/L for L
    labels, 1/2 for a guess between the context's two; NaN for a group without heads.
    """

    def measure(run: Run, batch: Batch) -> pd.DataFrame:
        model = run.model()
        previous = sorted(study.circuits[run.config.seeds.init].previous_token)
        others = [head for n in range(model.cfg.n_heads) if (head := Head(0, n)) not in previous]
        rows = [
            (group, " ".join(map(str, heads)), kept, _accuracy(model, batch, heads, kept))
            for group, heads in (("previous-token", previous), ("others", others))
            for kept in ("patterns", "values")
        ]
        return pd.DataFrame(rows, columns=["group", "ablated", "preserved", "accuracy"])

    return study.each_run(measure)


def _accuracy(model: HookedTransformer, batch: Batch, heads: Sequence[Head], kept: Kept) -> float:
    if not heads:
        return math.nan
    found = preserving_ablation(model, batch, heads, preserve=kept)
    return float(found.accuracy.double().mean())


def _accuracies(rows: pd.DataFrame) -> Measured:
    return dict(zip(rows["group"] + ", " + rows["preserved"], rows["accuracy"], strict=True))


preserving_claims = by_rules(
    "table 1",
    _accuracies,
    Rule(
        "previous-token heads act through patterns: accuracy without them, patterns preserved, "
        "values preserved (over twice the errors where they are missed, with values preserved)",
        "0.9985, 0.6987",
        "{previous-token, patterns:.4f}, {previous-token, values:.4f}",
        lambda n: 1 - n["previous-token, values"] > 2 * (1 - n["previous-token, patterns"]),
    ),
    Rule(
        "the other heads act through values: accuracy without them, patterns preserved, values "
        "preserved (over twice the errors where they are missed, with patterns preserved)",
        "0.3427, 0.9932",
        "{others, patterns:.4f}, {others, values:.4f}",
        lambda n: 1 - n["others, patterns"] > 2 * (1 - n["others, values"]),
    ),
)


def plot_preserving_groups(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw Table 1: accuracy without two groups of layer 0's heads.

    Columns `seed`, `group` ("previous-token" or "others"), `ablated`, `preserved` ("patterns" or
    "values"), `accuracy`. One row per network and group, and of several networks their median and
    range; the grey of a cell is what is missing of accuracy 1.
    """
    keys = ["group", "seed", "ablated"]
    wide = table.set_index([*keys, "preserved"])["accuracy"].unstack("preserved").reset_index()
    seeds = sorted(wide["seed"].unique())
    rows: list[tuple[str, str, list[str], list[float]]] = []
    for group in ("previous-token", "others"):
        of_group = wide[wide["group"] == group].sort_values("seed")
        values = of_group[["patterns", "values"]].to_numpy(dtype=float)
        for n, seed in enumerate(seeds):
            words = f"seed {seed}: {of_group['ablated'].iloc[n] or 'none'}"
            cells = ["" if np.isnan(value) else f"{value:.4f}" for value in values[n]]
            rows.append((group if n == 0 else "", words, cells, list(values[n])))
        there = values[~np.isnan(values).any(axis=1)]
        if len(there) > 1:
            middle, low, high = np.median(there, axis=0), there.min(axis=0), there.max(axis=0)
            numbers = zip(middle, low, high, strict=True)
            cells = [f"{m:.4f} ({a:.3f} to {b:.3f})" for m, a, b in numbers]
            rows.append(("", "median (range)", cells, list(middle)))
    _draw_rows(rows, ax)
    ax.set_title("Accuracy with heads of layer 0 ablated, and patterns or values preserved")
    return ax


def _draw_rows(rows: list[tuple[str, str, list[str], list[float]]], ax: Axes) -> None:
    """Draw a table with rules above, below and under its head; cells darker the less accurate."""
    n_rows = len(rows)
    columns = (0.0, 0.19, 0.72, 0.91)
    ax.set(xlim=(0, 1), ylim=(n_rows - 0.5, -2.1))
    ax.axis("off")
    heading = ("heads of layer 0 ablated", "patterns\npreserved", "values\npreserved")
    for x, words in zip(columns[1:], heading, strict=True):
        ax.text(x, -1.3, words, ha="left" if x < 0.5 else "center", va="center", fontweight="bold")
    for y in (-2.1, -0.5, n_rows - 0.5):
        ax.axhline(y, color="black", linewidth=0.8)
    for y, (group, words, cells, values) in enumerate(rows):
        ax.text(0, y, group, va="center", fontweight="bold")
        ax.text(columns[1], y, words, va="center", fontsize=9)
        for x, cell, value in zip(columns[2:], cells, values, strict=True):
            if not np.isnan(value):
                shade = str(1 - 0.5 * (1 - value))
                ax.axhspan(y - 0.5, y + 0.5, x - 0.09, x + 0.09, color=shade, linewidth=0)
            ax.text(x, y, cell, ha="center", va="center", fontsize=9 if len(cell) < 9 else 6.5)


FIGURES = (
    Figure(
        "table 1",
        ("main",),
        preserving_table,
        panels(plot_preserving_groups),
        preserving_claims,
        (8.4, 3.4),
    ),
)
