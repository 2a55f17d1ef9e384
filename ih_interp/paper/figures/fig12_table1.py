"""Figure 12 and Table 1: parts are removed while others keep what they would have been."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ih_interp.analysis.dynamics.trace import trace
from ih_interp.analysis.patching.preserving import (
    Kept,
    PerSequence,
    direct_path_removed,
    preserving_ablation,
)
from ih_interp.batch import Batch
from ih_interp.clamps import AblateHeads
from ih_interp.evaluation import evaluate
from ih_interp.hooked_model import HookedModel
from ih_interp.paper.claims import Measured, by_rules
from ih_interp.paper.drawing import draw_conditions, panels
from ih_interp.paper.study import Figure, Study, each_run, some_steps
from ih_interp.plots._style import FAINT, Line
from ih_interp.runs import Run
from ih_interp.types import Head

REMOVED_LINES: Mapping[str, tuple[str, Line]] = {
    "last layer": ("without the heads of layer 1", Line("#D55E00", (0, (5, 1)))),
    "direct path": ("without layer 0's direct path", Line("#000000")),
}
"""The parts that Figure 12 removes, in words, and their lines."""


# Figure 12: the loss over training without layer 0's direct path, and without layer 1's heads


def last_layer_removed(model: HookedModel, batch: Batch) -> PerSequence:
    """Return what is lost without the heads of layer 1, in the form of `direct_path_removed`."""
    heads = tuple(Head(1, head) for head in range(model.cfg.n_heads))
    found, whole = evaluate(model, batch, [AblateHeads(heads=heads)]), evaluate(model, batch)
    changes = {"accuracy_change": found.accuracy - whole.accuracy}
    changes["loss_change"] = found.loss - whole.loss
    return PerSequence(accuracy=found.accuracy, loss=found.loss, **changes)


PARTS = {"direct path": direct_path_removed, "last layer": last_layer_removed}


@each_run
def removed_table(study: Study, run: Run, batch: Batch) -> pd.DataFrame:
    """Return the losses without layer 0's direct path, and without the heads of layer 1.

    Columns: those of `each_run`, `sequences`, `removed` ("direct path" or "last layer"),
    `loss`, `accuracy`, and `loss_change`, `accuracy_change` against the same checkpoint, whole, on
    the same sequences (the paper interpolates a loss on others). These are those of `curve_batch`
    and, at the last step, of `batch`, as a sample is too small for what is lost there. Units and
    chance are those of `Study.losses`. A part that does nothing changes them by 0.
    """
    *learning, last = some_steps(run)
    parts = [
        trace(run, remove, batch=shown, steps=steps).assign(removed=part, n_sequences=len(shown))
        for shown, steps in ((study.curve_batch(run), learning), (batch, [last]))
        for part, remove in PARTS.items()
    ]
    wide = pd.concat(parts).pivot(
        index=["n_sequences", "sequences", "removed"], columns="name", values="value"
    )
    columns = ["loss", "accuracy", "loss_change", "accuracy_change"]
    return wide[columns].rename_axis(columns=None).reset_index()


def _costs(rows: pd.DataFrame) -> Measured:
    """Return what one network loses without each part."""
    direct, last = (rows[rows["removed"] == part].sort_values("sequences") for part in PARTS)
    end = direct.iloc[-1]
    return {
        "points": -100 * float(end["accuracy_change"]),
        "most": float(direct.loc[direct["sequences"] > 0, "loss_change"].max()),
        "end": float(end["loss_change"]),
        "last layer": float(last["loss_change"].iloc[-1]),
    }


direct_claims = by_rules(
    "12",
    _costs,
    unneeded=lambda n: n["points"] < 0.3,
    needed_for_a_time=lambda n: n["most"] > 0 and n["end"] <= n["most"] / 5,
    last_layer_answers=lambda n: n["last layer"] > 1,
)


def plot_removed(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw Figure 12: loss over training without a part, less the loss with it."""
    draw_conditions(table, ax, "removed", REMOVED_LINES, y="loss_change")
    ax.axhline(0, **FAINT)
    ax.set(
        ylabel="increase of the loss (nats)",
        title="Loss without a part of the network (layers count from 0)",
        xlim=(0, float(table["sequences"].max())),
    )
    ax.legend(loc="center right")
    return ax


# Table 1: groups of layer 0's heads are ablated while layer 1 keeps patterns or values


@each_run
def preserving_table(study: Study, run: Run, batch: Batch) -> pd.DataFrame:
    """Return accuracy without groups of layer 0's heads, while layer 1 keeps one of its inputs.

    Columns: those of `each_run`, `group` ("previous-token" or "others"), `ablated` (its
    heads, as "L0H1 L0H2"), `preserved` ("patterns" or "values"), `accuracy` with the chance of
    `Study.losses`; NaN for a group without heads.
    """
    model = run.model()
    previous = sorted(study.circuits[run.config.seeds.init].previous_token)
    others = [head for n in range(model.cfg.n_heads) if (head := Head(0, n)) not in previous]
    rows = [
        (group, " ".join(map(str, heads)), kept, _accuracy(model, batch, heads, kept))
        for group, heads in (("previous-token", previous), ("others", others))
        for kept in ("patterns", "values")
    ]
    return pd.DataFrame(rows, columns=["group", "ablated", "preserved", "accuracy"])


def _accuracy(model: HookedModel, batch: Batch, heads: Sequence[Head], kept: Kept) -> float:
    if not heads:
        return math.nan
    found = preserving_ablation(model, batch, heads, preserve=kept)
    return float(found.accuracy.double().mean())


preserving_claims = by_rules(
    "table 1",
    lambda rows: dict(zip(rows["group"] + ", " + rows["preserved"], rows["accuracy"], strict=True)),
    previous_token=lambda n: (
        1 - n["previous-token, values"] > 2 * (1 - n["previous-token, patterns"])
    ),
    others=lambda n: 1 - n["others, patterns"] > 2 * (1 - n["others, values"]),
)


def plot_preserving_groups(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw Table 1: accuracy without two groups of layer 0's heads.

    One row per network and group, and of several networks their median and range; the grey of a
    cell is what is missing of accuracy 1.
    """
    kept, rows = ["patterns", "values"], []
    keys = ["group", "seed", "ablated"]
    wide = table.pivot(index=keys, columns="preserved", values="accuracy").reset_index()
    for group in ("previous-token", "others"):
        of_group = wide[wide["group"] == group].sort_values("seed")
        for n, row in enumerate(of_group.to_dict("records")):
            cells = ["" if np.isnan(row[name]) else f"{row[name]:.4f}" for name in kept]
            words = f"seed {row['seed']}: {row['ablated'] or 'none'}"
            rows.append(("" if n else group, words, cells, [row[name] for name in kept]))
        there = of_group[kept].dropna()
        if len(there) > 1:
            ends = zip(there.median(), there.min(), there.max(), strict=True)
            cells = [f"{middle:.4f} ({low:.3f} to {high:.3f})" for middle, low, high in ends]
            rows.append(("", "median (range)", cells, list(there.median())))
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


draw_groups = panels(plot_preserving_groups)

FIGURES = (
    Figure("12", ("main",), removed_table, panels(plot_removed), direct_claims),
    Figure("table 1", ("main",), preserving_table, draw_groups, preserving_claims, (8.4, 3.4)),
)
