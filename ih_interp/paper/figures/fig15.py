"""Figure 15: the induction head attends to the correct label with a strength that is set."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize

from ih_interp._columns import ordered
from ih_interp.paper.claims import Claim
from ih_interp.paper.drawing import panels
from ih_interp.paper.judging import Rule, curves, judge, surely_longer, times_of
from ih_interp.paper.study import Figure, Study
from ih_interp.plots._style import FAINT, count_sequences
from ih_interp.plots._tables import expect_known
from ih_interp.plots.curves import SPLIT_NAMES, guess_line
from ih_interp.plots.seeds import common_values

HALF_GUESS = math.log(2) / 2  # the loss that Figure 15 is read at, as the paper's numbers are
EVEN = 0.5  # strength of attention that is on the correct label no more than on the other

SIDES = LinearSegmentedColormap.from_list(
    "sides", ["#7A3200", "#D98032", "#A8A8A8", "#4F8FCB", "#08306B"]
)
"""Darker the further from even attention; the wrong side is dashed, so that grey print tells."""

STRENGTH_SPLITS = {"train": "train", **dict(sorted(SPLIT_NAMES.items(), reverse=True))}
"""Panels of Figure 15, by their names in the paper."""


def strength_table(study: Study) -> pd.DataFrame:
    """Return losses with the induction head's attention clamped, other heads active.

    Columns: `seed`, `run`, `strength` (attention on the correct label, from 0 to 1; the rest is on
    the other), `split`, `sequences`, `loss` as in `Study.losses`.
    """
    table = study.losses("strengths", STRENGTH_SPLITS)
    table = table.assign(strength=table["condition"].astype(float))
    return table[["seed", "run", "strength", "split", "sequences", "loss"]]


def strength_claims(table: pd.DataFrame) -> list[Claim]:
    """Judge that stronger is faster, and that attention to the wrong label does not transfer.

    The latter is left out where no label set is held out.
    """
    splits = {str(split): rows for split, rows in table.groupby("split")}
    times = times_of(splits["train"], "strength", level=HALF_GUESS)
    right = sorted((s for s in times[0] if float(s) >= EVEN), key=float)
    wrong = [s for s in times[0] if float(s) < EVEN]
    networks = [{f"at {float(s):.0%}": time[s] for s in right} for time in times]
    claims = judge("15", networks, STRONGER)
    if "test_relabel" in splits:
        last = [
            {s: float(loss[-1]) for s, (_, loss) in network.items()}
            for network in curves(splits["test_relabel"], "strength").values()
        ]
        ends = [
            {
                "learned": all(time[s].observed for s in wrong),
                "wrong": min(end[s] for s in wrong),
                "right": max(end[s] for s in right),
            }
            for time, end in zip(times, last, strict=True)
        ]
        claims += judge("15", ends, WRONG_WAY)
    return claims


STRONGER = Rule(
    "from even attention up, stronger is faster at every step of strength: sequences until "
    f"the training loss is below {HALF_GUESS:.3f}",
    "strength 1 25k, 0.9 36k, 0.75 48k, 0.6 124k, 0.5 292k",
    "strength 1 {at 100%}, 0.9 {at 90%}, 0.75 {at 75%}, 0.6 {at 60%}, 0.5 {at 50%}",
    lambda n: all(surely_longer(weak, strong) for weak, strong in pairwise(n.values())),
)

WRONG_WAY = Rule(
    "attention to the wrong label learns the training pairs of labels and fails on held-out "
    "ones: loss on these ends above ln 2, from even attention up below (best of the wrong, "
    "worst of the right)",
    "0.98, 0.42",
    "{wrong:.2f}, {right:.2f}",
    lambda n: n["learned"] and n["wrong"] > math.log(2) > n["right"],
)


def plot_match_strengths(table: pd.DataFrame, axes: Sequence[Axes] | np.ndarray) -> None:
    """Draw Figure 15: losses by split, with the induction head's attention clamped.

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
            found = curves(panel[panel["strength"] == strength], "strength").values()
            x, y = common_values([curve for network in found for curve in network.values()])
            lead = 2 * float(strength) - 1
            dash = (0, (4, 1.2)) if lead < 0 else "-"
            colour = SIDES(shades(lead))
            ax.plot(x, np.median(y, axis=0), color=colour, linestyle=dash, linewidth=1.4)
        count_sequences(ax)
        ax.set(xlim=(0, table["sequences"].max()), ylim=(0, 2), title=title)
    for ax in axes[:-1]:
        ax.axhline(np.log(2), **FAINT)
    guess_line(axes[-1])
    axes[0].set_ylabel("loss (nats)")
    image, ticks = ScalarMappable(shades, SIDES), [-1, -0.5, 0, 0.5, 1]
    bar = axes[-1].figure.colorbar(image, ax=list(axes), aspect=22, pad=0.005, ticks=ticks)
    bar.set_label("attention, correct label\nminus other (dashed: below 0)")


FIGURES = (
    Figure(
        "15",
        ("strengths",),
        strength_table,
        panels(plot_match_strengths, 1, 3, sharey=True),
        strength_claims,
        (9.6, 3.2),
    ),
)
