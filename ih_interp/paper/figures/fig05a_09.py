"""Figures 5a and 9: the toy model of three vectors, and its progress measures."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from ih_interp.paper.figures._fig15_drawing import plot_toy_progress
from ih_interp.paper.study import Claim, Figure, Study, judged, over_seeds
from ih_interp.plots import plot_toy
from ih_interp.plots._style import CLAMPED_VECTORS
from ih_interp.toy import NAMES, ToyConfig, plateau_loss, train_toy


def toy_table(study: Study) -> pd.DataFrame:
    """The toy model with none, c, and b and c clamped.

    Columns: `clamped`, those of `train_toy`, and `plateau`, the loss of a product that is zero.
    """
    del study
    return _descents(CLAMPED_VECTORS)


def toy_claims(table: pd.DataFrame) -> list[Claim]:
    """Three interacting vectors make a plateau; clamping two of them removes it."""
    crossed = {
        name: _tenth(table[table["clamped"] == name].set_index("iteration")["loss"])
        for name in CLAMPED_VECTORS
    }
    return [
        judged(
            "5a",
            "iterations until a tenth of the first loss: none; c; b, c clamped",
            paper="761; 139; 53",
            ours="; ".join(over_seeds([iterations]) for iterations in crossed.values()),
            holds=[np.inf > crossed["none"] > 2 * crossed["c"] > 4 * crossed["b, c"]],
        )
    ]


def toy_progress_table(study: Study) -> pd.DataFrame:
    """`toy_table` without c clamped alone, as the paper's Figure 9."""
    del study
    return _descents(("none", "b, c"))


def toy_progress_claims(table: pd.DataFrame) -> list[Claim]:
    """Progress measures of the free descent wait and fall as its loss does."""
    by_clamp = {name: rows.set_index("iteration") for name, rows in table.groupby("clamped")}
    free, clamped = by_clamp["none"], by_clamp["b, c"]
    measures = ("progress_1", "progress_2")
    same = float((clamped["progress_2"] - clamped["loss"])[1:].abs().max()) < 1e-9

    def told(rows: pd.DataFrame, measure: str, *iterations: int) -> str:
        return ", ".join(f"{rows.loc[iteration, measure]:.3f}" for iteration in iterations)

    return [
        judged(
            "9",
            "without clamps both progress measures wait and then fall, as the loss: half of their "
            "value at iteration 200 takes longer to lose than the next two fifths. Measure 1 at "
            "200, 500, 600, 800; 2 at 100, 500, 800",
            paper="0.989, 0.925, 0.825, 0.025; 0.298, 0.238, 0.007",
            ours=f"{told(free, measures[0], 200, 500, 600, 800)}; "
            f"{told(free, measures[1], 100, 500, 800)}",
            holds=[all(_waits(free[m], 200) for m in (*measures, "loss"))],
        ),
        judged(
            "9",
            "with b and c clamped in training both fall at once, to a tenth in less than a quarter "
            "of the iterations, and measure 2 is the loss. Measure 1 at 50, 100; 2 at 50, 100",
            paper="0.217, 0.017; the loss, 0.051, 0.006",
            ours=f"{told(clamped, measures[0], 50, 100)}; {'' if same else 'not '}the loss, "
            f"{told(clamped, measures[1], 50, 100)}",
            holds=[same and all(4 * _tenth(clamped[m]) < _tenth(free[m]) for m in measures)],
        ),
    ]


def _descents(names: Iterable[str]) -> pd.DataFrame:
    conditions = {
        name: ToyConfig(clamp={vector: None for vector in NAMES if vector in name.split(", ")})
        for name in names
    }
    return pd.concat(
        [
            train_toy(config).assign(clamped=name, plateau=plateau_loss(config))
            for name, config in conditions.items()
        ],
        ignore_index=True,
    )


def _tenth(measure: pd.Series) -> float:
    """The first iteration at which a measure is below a tenth of its first value, or infinity."""
    below = measure < 0.1 * measure.iloc[0]
    return float(below.idxmax()) if below.any() else np.inf


def _waits(measure: pd.Series, start: int) -> bool:
    """Whether half of a measure's value at `start` takes longer to lose than the next 40%."""
    later = measure.loc[start:]
    half, tenth = ((later < share * later.iloc[0]).idxmax() for share in (0.5, 0.1))
    return bool(later.iloc[-1] < 0.1 * later.iloc[0] and half - start > tenth - half)


FIGURES = (
    Figure(
        "5a",
        (),
        toy_table,
        lambda table, canvas: plot_toy(table, canvas.subplots()),
        toy_claims,
        main_text=True,
    ),
    Figure(
        "9",
        (),
        toy_progress_table,
        lambda table, canvas: plot_toy_progress(table, canvas.subplots(1, 3)),
        toy_progress_claims,
        size=(9.6, 3.0),
    ),
)
