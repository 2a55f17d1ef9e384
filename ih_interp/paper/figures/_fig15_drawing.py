"""Figures 7, 8, 9 and 15: other ways to perfect a part, and progress measures of the toy model."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize

from ih_interp._columns import groups, ordered
from ih_interp.plots._style import (
    CLAMPED_VECTORS,
    DONOR_LINES,
    PREVIOUS_TOKEN_LINES,
    count_sequences,
    legend_off_curves,
)
from ih_interp.plots._tables import expect_known
from ih_interp.plots.curves import guess_line
from ih_interp.plots.seeds import common_values, plot_curve, plot_over_seeds

SIDES = LinearSegmentedColormap.from_list(
    "sides", ["#7A3200", "#D98032", "#A8A8A8", "#4F8FCB", "#08306B"]
)
"""Darker the further from even attention; the wrong side is dashed, so that grey print tells."""

MEASURES = {
    "loss": "training loss",
    "progress_1": "progress measure 1: direction of a",
    "progress_2": "progress measure 2: loss with b, c perfect",
}
"""Panels of Figure 9."""

STRENGTH_SPLITS = {
    "train": "train",
    "test_relabel": "test (relabel)",
    "test_exemplars": "test (exemplars)",
}
"""Panels of Figure 15, by their names in the paper."""


def plot_grafts(table: pd.DataFrame, ax: Axes) -> Axes:
    """Figure 7: training loss with the embedding and layer 0 of a trained network, for one network.

    Columns `sequences`, `loss`, `seed` of the network, `donor` (its seed, or "none") and `whose` (a
    key of `style.DONOR_LINES`). As in the paper, three quarters of the grafted runs.
    """
    expect_known(table, "whose", DONOR_LINES)
    for whose, (words, line) in DONOR_LINES.items():
        curve = table[table["whose"] == whose]
        if len(curve):
            donor = curve["donor"].iloc[0]
            label = words if whose == "none" else f"{words} (seed {donor})"
            own = {"color": line.colour, "linestyle": line.dash, "label": label}
            plot_curve(curve, ax, x="sequences", y="loss", **own)
    guess_line(ax)
    count_sequences(ax)
    end = table.loc[table["whose"] != "none", "sequences"].max() * 3 / 4
    ax.set(
        xlim=(0, end),
        ylim=(0, None),
        ylabel="training loss (nats)",
        title=f"Trained first layer grafted in, seed {table['seed'].iloc[0]}",
    )
    legend_off_curves(ax, title="whose embedding and layer 0", fontsize=8)
    return ax


def plot_previous_token(table: pd.DataFrame, ax: Axes) -> Axes:
    """Figure 8: training loss with heads of layer 0 attending to the previous token, perfectly.

    Columns `sequences`, `condition` (a key of `style.PREVIOUS_TOKEN_LINES`), `loss`, `seed`, and
    `heads`, which the legend names where there is one network.
    """
    expect_known(table, "condition", PREVIOUS_TOKEN_LINES)
    for condition, (words, line) in PREVIOUS_TOKEN_LINES.items():
        rows = table[table["condition"] == condition]
        if not len(rows):
            continue
        one = rows["seed"].nunique() == 1 and condition not in ("none", "all")
        heads = rows["heads"].iloc[0]
        plot_over_seeds(rows, ax, f"{words}: {heads}" if one else words, line)
    guess_line(ax)
    count_sequences(ax)
    end = table.loc[table["condition"] != "none", "sequences"].max()
    ax.set(
        xlim=(0, end),
        ylim=(0, None),
        ylabel="training loss (nats)",
        title="Perfect previous-token attention, one induction head",
    )
    legend_off_curves(ax, title="which heads of layer 0 (the paper's 1)")
    return ax


def plot_toy_progress(table: pd.DataFrame, axes: Sequence[Axes] | np.ndarray) -> None:
    """Figure 9: the toy model's loss and its two progress measures, a panel each.

    Columns `iteration`, `clamped` ("none" and "b, c"), `loss`, `progress_1`, `progress_2`.
    """
    expect_known(table, "clamped", CLAMPED_VECTORS)
    for ax, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        for clamped, (colour, dash) in CLAMPED_VECTORS.items():
            curve = table[table["clamped"] == clamped]
            if len(curve):
                own = {"color": colour, "linestyle": dash, "label": clamped}
                plot_curve(curve, ax, x="iteration", y=measure, **own)
        ax.set(xlabel="iteration", xlim=(0, table["iteration"].max()), ylim=(0, None), title=title)
    axes[0].set_ylabel("loss, or progress measure")
    axes[0].legend(title="clamped in training", loc="upper right")


def plot_match_strengths(table: pd.DataFrame, axes: Sequence[Axes] | np.ndarray) -> None:
    """Figure 15: loss with the induction head's attention clamped at many strengths, by split.

    Columns `sequences`, `strength` (attention on the correct label, the rest on the other),
    `split`, `loss`, `seed`; curves are medians over seeds, where all have values. Colour is
    attention to the correct label minus to the other, from -1 to 1; below 0, on the wrong side,
    curves are dashed. A split that has no rows leaves its panel empty.
    """
    shades = Normalize(-1, 1)
    expect_known(table, "split", STRENGTH_SPLITS)
    for ax, (split, title) in zip(axes, STRENGTH_SPLITS.items(), strict=True):
        panel = table[table["split"] == split]
        for strength in ordered(panel["strength"]):
            rows = panel[panel["strength"] == strength].sort_values("sequences")
            x, y = common_values(
                [
                    (one["sequences"].to_numpy(dtype=float), one["loss"].to_numpy(dtype=float))
                    for _, one in groups(rows, ["seed"])
                ]
            )
            lead = 2 * float(strength) - 1
            ax.plot(
                x,
                np.median(y, axis=0),
                color=SIDES(shades(lead)),
                linestyle=(0, (4, 1.2)) if lead < 0 else "-",
                linewidth=1.4,
            )
        count_sequences(ax)
        ax.set(xlim=(0, table["sequences"].max()), ylim=(0, 2), title=title)
    for ax in axes[:-1]:
        ax.axhline(np.log(2), color="0.6", linewidth=0.8, linestyle=":")
    guess_line(axes[-1])
    axes[0].set_ylabel("loss (nats)")
    bar = axes[-1].figure.colorbar(
        ScalarMappable(shades, SIDES),
        ax=list(axes),
        aspect=22,
        pad=0.005,
        ticks=[-1, -0.5, 0, 0.5, 1],
    )
    bar.set_label("attention, correct label\nminus other (dashed: below 0)")
