"""Figures 5a and 9: the toy model of three vectors, and its progress measures."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ih_interp.paper.claims import Claim
from ih_interp.paper.drawing import panels
from ih_interp.paper.judging import Measured, Rule, judge
from ih_interp.paper.study import Figure, Study
from ih_interp.plots import plot_toy
from ih_interp.plots._style import CLAMPED_VECTORS, conditions_of
from ih_interp.plots._tables import expect_known
from ih_interp.plots.seeds import plot_curve
from ih_interp.toy import NAMES, ToyConfig, plateau_loss, train_toy

MEASURES = {
    "loss": "training loss",
    "progress_1": "progress measure 1: direction of a",
    "progress_2": "progress measure 2: loss with b, c perfect",
}
"""Panels of Figure 9."""


def toy_table(study: Study) -> pd.DataFrame:
    """Return the toy model's descents with none, c, and b and c clamped.

    Columns: `clamped`, those of `train_toy`, and `plateau`, the loss of a product that is zero.
    """
    del study
    return _descents(CLAMPED_VECTORS)


def toy_claims(table: pd.DataFrame) -> list[Claim]:
    """Judge the plateau that three interacting vectors make, and that clamping two removes."""
    crossed = {name: _tenth(_descent(table, name)["loss"]) for name in CLAMPED_VECTORS}
    rule = Rule(
        "iterations until a tenth of the first loss: none; c; b, c clamped",
        "761; 139; 53",
        "{none}; {c}; {b, c}",
        lambda n: np.inf > n["none"] > 2 * n["c"] > 4 * n["b, c"],
    )
    return judge("5a", [crossed], rule)


def toy_progress_table(study: Study) -> pd.DataFrame:
    """Return `toy_table` without c clamped alone, as in the paper's Figure 9."""
    del study
    return _descents(("none", "b, c"))


def toy_progress_claims(table: pd.DataFrame) -> list[Claim]:
    """Judge how the progress measures fall: with the loss, or at once where b and c are clamped."""
    free, clamped = _descent(table, "none"), _descent(table, "b, c")
    measures = ("progress_1", "progress_2")
    same = float((clamped["progress_2"] - clamped["loss"])[1:].abs().max()) < 1e-9

    def told(rows: pd.DataFrame, measure: str, *iterations: int) -> str:
        return ", ".join(f"{rows.loc[iteration, measure]:.3f}" for iteration in iterations)

    toy: Measured = {
        "waits": all(_waits(free[m], 200) for m in MEASURES),
        "at once": all(4 * _tenth(clamped[m]) < _tenth(free[m]) for m in measures),
    }
    return judge(
        "9",
        [toy],
        Rule(
            "without clamps both progress measures wait and then fall, as the loss: half of their "
            "value at iteration 200 takes longer to lose than the next two fifths. Measure 1 at "
            "200, 500, 600, 800; 2 at 100, 500, 800",
            "0.989, 0.925, 0.825, 0.025; 0.298, 0.238, 0.007",
            f"{told(free, measures[0], 200, 500, 600, 800)}; "
            f"{told(free, measures[1], 100, 500, 800)}",
            lambda n: n["waits"],
        ),
        Rule(
            "with b and c clamped in training both fall at once, to a tenth in less than a quarter "
            "of the iterations, and measure 2 is the loss. Measure 1 at 50, 100; 2 at 50, 100",
            "0.217, 0.017; the loss, 0.051, 0.006",
            f"{told(clamped, measures[0], 50, 100)}; {'' if same else 'not '}the loss, "
            f"{told(clamped, measures[1], 50, 100)}",
            lambda n: same and n["at once"],
        ),
    )


def plot_toy_progress(table: pd.DataFrame, axes: Sequence[Axes] | np.ndarray) -> None:
    """Draw Figure 9: the toy model's loss and its two progress measures, one panel per measure.

    Columns `iteration`, `clamped` ("none" and "b, c"), `loss`, `progress_1`, `progress_2`.
    """
    expect_known(table, "clamped", CLAMPED_VECTORS)
    for ax, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        for clamped, line, curve in conditions_of(table, "clamped", CLAMPED_VECTORS, None):
            own = {"color": line.colour, "linestyle": line.dash, "label": clamped}
            plot_curve(curve, ax, x="iteration", y=measure, **own)
        ax.set(xlabel="iteration", xlim=(0, table["iteration"].max()), ylim=(0, None), title=title)
    axes[0].set_ylabel("loss, or progress measure")
    axes[0].legend(title="clamped in training", loc="upper right")


def _descents(names: Iterable[str]) -> pd.DataFrame:
    parts: list[pd.DataFrame] = []
    for name in names:
        config = ToyConfig(clamp={vector: None for vector in NAMES if vector in name.split(", ")})
        parts.append(train_toy(config).assign(clamped=name, plateau=plateau_loss(config)))
    return pd.concat(parts, ignore_index=True)


def _descent(table: pd.DataFrame, clamped: str) -> pd.DataFrame:
    return table[table["clamped"] == clamped].set_index("iteration")


def _tenth(measure: pd.Series) -> float:
    """Return the first iteration below a tenth of a measure's first value, or infinity."""
    below = measure < 0.1 * measure.iloc[0]
    return float(below.idxmax()) if below.any() else np.inf


def _waits(measure: pd.Series, start: int) -> bool:
    """Return whether half of the value at `start` takes longer to lose than the next 40%."""
    later = measure.loc[start:]
    half, tenth = ((later < share * later.iloc[0]).idxmax() for share in (0.5, 0.1))
    return bool(later.iloc[-1] < 0.1 * later.iloc[0] and half - start > tenth - half)


FIGURES = (
    Figure("5a", (), toy_table, panels(plot_toy), toy_claims),
    Figure(
        "9",
        (),
        toy_progress_table,
        panels(plot_toy_progress, 1, 3),
        toy_progress_claims,
        (9.6, 3.0),
    ),
)
