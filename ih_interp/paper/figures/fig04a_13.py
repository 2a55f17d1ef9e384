"""Figures 4a and 13: what heads of a trained network do alone, and what it does without them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from ih_interp.analysis.ablation.single_heads import ablate_each_head
from ih_interp.evaluation import Metric
from ih_interp.paper.study import Claim, Figure, Study, decimals, judged, over_seeds
from ih_interp.plots import plot_ablate_each_head
from ih_interp.plots.seeds import plot_each_network

LINEAR = 0.95
"""Correlation of strength and accuracy that every network of the paper exceeds."""

LEARNED = 0.9
"""Accuracy with all heads above which a network has learned."""


def ablation_table(study: Study, metric: Metric) -> pd.DataFrame:
    """One metric with only a head on and with all but it, for every network with all heads.

    Columns: `seed`, `run`, `n_sequences`, and those of `ablate_each_head`; loss and accuracy as in
    `Study.losses`, but over `batch`.
    """
    return study.each_network(lambda model, batch: ablate_each_head(model, batch, metrics=[metric]))


def accuracy_claims(table: pd.DataFrame) -> list[Claim]:
    """The stronger a head the better alone; the strongest is nearly enough, and not needed.

    Nothing is needed in a network that has not learned (accuracy below 0.9 with all heads): the
    latter says nothing of it, and does not hold.
    """
    networks = [rows for _, rows in table.groupby("seed")]
    return [*_alone_claims(networks), *_missed_claims(networks)]


def _alone_claims(networks: Sequence[pd.DataFrame]) -> list[Claim]:
    alone = [_of(rows, "only") for rows in networks]
    linear = [correlation(rows["strength"], rows["value"]) for rows in alone]
    best = [_value(of, _strongest(rows)) for of, rows in zip(alone, networks, strict=True)]
    return [
        judged(
            "4a",
            f"accuracy with only a head on grows linearly with its strength: r above {LINEAR}",
            paper="0.959; 0.977, 0.994, 0.965, 0.960 in its other networks",
            ours=over_seeds(linear, decimals(3)),
            holds=[r > LINEAR for r in linear],
        ),
        judged(
            "4a",
            "the strongest head alone is nearly enough: accuracy above 0.9 with only it",
            paper="0.980; 0.992, 0.999, 0.933, 0.916 in its other networks",
            ours=over_seeds(best, decimals(3)),
            holds=[accuracy > 0.9 for accuracy in best],
        ),
    ]


def _missed_claims(networks: Sequence[pd.DataFrame]) -> list[Claim]:
    strongest = [_strongest(rows) for rows in networks]
    missed = [_of(rows, "without") for rows in networks]
    whole = [float(_of(rows, "all")["value"].iloc[0]) for rows in networks]
    without = [_value(rows, head) for rows, head in zip(missed, strongest, strict=True)]
    others = [
        float(rows.loc[rows["head"] != head, "value"].min())
        for rows, head in zip(missed, strongest, strict=True)
    ]
    return [
        judged(
            "4a",
            "it is not needed: accuracy without it less than 0.02 below that of all heads",
            paper="0.987; 0.944, 0.886, 0.99, 0.927 in its other networks",
            ours=over_seeds(without, decimals(3)),
            holds=[
                end > all_on - 0.02 and all_on > LEARNED
                for end, all_on in zip(without, whole, strict=True)
            ],
            varies=True,
        ),
        judged(
            "4a",
            "nor is any other: least accuracy without one, less than 0.02 below that of all heads",
            paper="about 1.0",
            ours=over_seeds(others, decimals(3)),
            holds=[
                end > all_on - 0.02 and all_on > LEARNED
                for end, all_on in zip(others, whole, strict=True)
            ],
        ),
    ]


def loss_claims(table: pd.DataFrame) -> list[Claim]:
    """The stronger a head the less is lost with it alone; without it, less than alone."""
    networks = [rows for _, rows in table.groupby("seed")]
    alone = [_of(rows, "only") for rows in networks]
    linear = [correlation(rows["strength"], rows["value"]) for rows in alone]
    strongest = [_strongest(rows) for rows in networks]
    ends = [
        (_value(_of(rows, "only"), head), _value(_of(rows, "without"), head))
        for rows, head in zip(networks, strongest, strict=True)
    ]
    return [
        judged(
            "13",
            f"loss with only a head on falls with its strength: r below {-LINEAR}",
            paper="-0.97",
            ours=over_seeds(linear, decimals(3)),
            holds=[r < -LINEAR for r in linear],
        ),
        judged(
            "13",
            "the others replace the strongest head better than it does them: "
            "loss with only it, without it",
            paper="0.12, 0.035",
            ours=", ".join(
                over_seeds([end[place] for end in ends], decimals(3)) for place in (0, 1)
            ),
            holds=[without < only for only, without in ends],
            varies=True,
        ),
    ]


def correlation(x: Sequence[float] | pd.Series, y: Sequence[float] | pd.Series) -> float:
    """Pearson's r, in [-1, 1]; 0 where neither tells the other. NaN where one is constant."""
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(xs) < 2 or np.ptp(xs) == 0 or np.ptp(ys) == 0:
        return float("nan")
    return float(np.corrcoef(xs, ys)[0, 1])


def draw_ablations(table: pd.DataFrame, canvas: Canvas) -> None:
    """Figures 4a and 13: one panel a network."""
    (metric,) = table["metric"].unique()
    axes = plot_each_network(
        table, canvas, lambda rows, ax: plot_ablate_each_head(rows, ax, metric=metric)
    )
    for ax in axes:
        if metric == "accuracy":
            ax.set_ylim(0, 1.05)
        else:
            ax.set_ylim(bottom=0)
    for ax in axes[1:]:
        for text in [*ax.texts]:  # names of heads, too many for little room
            text.remove()
    axes[0].set_title("One head of layer 1 (the paper's 2) alone, or ablated")


def _of(rows: pd.DataFrame, kept: str) -> pd.DataFrame:
    """One network's rows with only a head on, without it, or with all."""
    return rows[rows["kept"] == kept]


def _strongest(rows: pd.DataFrame) -> str:
    """The head of one network with the greatest strength."""
    return str(rows.dropna(subset=["strength"]).sort_values("strength")["head"].iloc[-1])


def _value(rows: pd.DataFrame, head: str) -> float:
    return float(rows.loc[rows["head"] == head, "value"].iloc[0])


FIGURES = (
    Figure(
        "4a",
        ("main",),
        lambda study: ablation_table(study, "accuracy"),
        draw_ablations,
        accuracy_claims,
        size=(8.4, 3.6),
        main_text=True,
    ),
    Figure(
        "13",
        ("main",),
        lambda study: ablation_table(study, "loss"),
        draw_ablations,
        loss_claims,
        size=(8.4, 3.6),
    ),
)
