"""Figure 3: induction heads emerge together, as the loss falls."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from ih_interp.analysis.dynamics.emergence import first_below, plateau_length
from ih_interp.analysis.dynamics.trace import trace
from ih_interp.analysis.heads.attention import induction_strength
from ih_interp.paper.figures.fig04a_13 import correlation
from ih_interp.paper.study import (
    Claim,
    Figure,
    Study,
    curves,
    decimals,
    judged,
    over_seeds,
    some_steps,
)
from ih_interp.plots import plot_losses, plot_strengths
from ih_interp.plots.seeds import plot_each_network

NEW_SPLITS: Mapping[str, tuple[str, str]] = {
    "test_exemplars": ("unseen classes (the paper's test exemplars)", "0.125"),
    "test_relabel": ("unseen pairs of labels (the paper's test relabel)", "0.031"),
}
"""Splits that training never shows, in words, and the paper's loss on them at the end."""


def loss_table(study: Study) -> pd.DataFrame:
    """Losses of every main run: columns of `Study.losses` but `condition`."""
    return study.losses("main", ("train", *NEW_SPLITS)).drop(columns="condition")


def loss_claims(table: pd.DataFrame) -> list[Claim]:
    """A plateau near ln 2, then a fall; the solution holds for unseen classes and label pairs."""
    networks = curves(table, "split").values()
    claims = [_pause_claim([network["train"] for network in networks])]
    for split, (words, paper) in NEW_SPLITS.items():
        last = [float(network[split][1][-1]) for network in networks if split in network]
        if last:  # features of no unseen class, or no label set held out, have none
            claims.append(
                judged(
                    "3a",
                    f"the end generalises: loss on {words}",
                    paper=paper,
                    ours=over_seeds(last, decimals(3)),
                    holds=[loss < math.log(2) / 2 for loss in last],
                )
            )
    return claims


def _pause_claim(trains: Sequence[tuple[np.ndarray, np.ndarray]]) -> Claim:
    plateau = [
        length.time if length.observed else math.inf
        for length in (plateau_length(*train) for train in trains)
    ]
    ends = [first_below(*train, 0.1) for train in trains]
    fall = [
        end - first_below(*train, 0.6) if math.isfinite(end) else math.inf
        for train, end in zip(trains, ends, strict=True)
    ]
    # Sequences a factor of e: an exponential slide needs as many on the plateau as in the fall.
    pauses = [
        down < math.inf and flat / math.log(0.8 / 0.6) > 2 * down / math.log(0.6 / 0.1)
        for flat, down in zip(plateau, fall, strict=True)
    ]
    return judged(
        "3a",
        "training pauses near ln 2 and then falls: sequences from loss 0.8 to 0.6, 0.6 to 0.1",
        paper="150k, 170k",
        ours=f"{over_seeds(plateau)}, {over_seeds(fall)}",
        holds=pauses,
    )


STRONG = 0.25
"""Induction strength above which a head is an induction head."""


def strength_table(study: Study) -> pd.DataFrame:
    """Induction strengths over training.

    Columns: `seed`, `run`, `n_sequences`, `step`, `sequences`, `name` (a head), `value`, its
    `induction_strength`, in [-1, 1]; 0 where it does not tell the labels apart.
    """
    return study.each_run(
        lambda run, batch: trace(run, induction_strength, batch=batch, steps=some_steps(run))
    )


def strength_claims(table: pd.DataFrame) -> list[Claim]:
    """Several induction heads, of graded strength; heads that are none have no order to keep."""
    last = table[(table["sequences"] == table["sequences"].max()) & table["name"].str.match("L1H")]
    ends = [sorted(map(float, values), reverse=True) for _, values in last.groupby("seed")["value"]]
    several = [float(sum(value > STRONG for value in values)) for values in ends]
    kept = [_order_kept(rows) for _, rows in table.groupby("seed")]
    return [
        judged(
            "3b",
            f"several heads become induction heads: how many of 8 end above {STRONG}",
            paper="7",
            ours=over_seeds(several),
            holds=[count >= 2 for count in several],
        ),
        judged(
            "3b",
            "of graded strength: the strongest, the weakest",
            paper="0.85, 0.10",
            ours=", ".join(
                over_seeds([values[place] for values in ends], decimals(2)) for place in (0, -1)
            ),
            holds=[values[0] > 2 * values[-1] and values[0] > STRONG for values in ends],
        ),
        judged(
            "3b",
            "their order hardly changes any more: rank correlation with the end, above 0.8, when "
            "the strongest has half of its last strength",
            paper="but for two heads the order of the end",
            ours=over_seeds(kept, decimals(2)),
            holds=[r > 0.8 and values[0] > STRONG for r, values in zip(kept, ends, strict=True)],
        ),
    ]


def draw_losses(table: pd.DataFrame, canvas: Canvas) -> None:
    """Figure 3a: every network in one panel."""
    plot_losses(table, canvas.subplots())


def draw_strengths(table: pd.DataFrame, canvas: Canvas) -> None:
    """Figure 3b: one panel a network, all of one height."""
    axes = plot_each_network(table, canvas, plot_strengths)
    low, high = (end([ax.get_ylim()[place] for ax in axes]) for place, end in ((0, min), (1, max)))
    for ax in axes:
        ax.set_ylim(low, high)


def _order_kept(rows: pd.DataFrame) -> float:
    """Spearman's correlation of one network's strengths at half time and at the end.

    Half time is when the head that ends strongest first has half of its last strength. NaN where
    no strength is above 0.
    """
    heads = rows[rows["name"].str.match("L1H")]
    strengths = heads.pivot_table(index="sequences", columns="name", values="value")
    last = strengths.iloc[-1]
    strongest = strengths[str(last.idxmax())]
    if last.max() <= 0:
        return float("nan")
    half = strengths[strongest >= last.max() / 2].iloc[0]
    return correlation(half.rank(), last.rank())


FIGURES = (
    Figure("3a", ("main",), loss_table, draw_losses, loss_claims, main_text=True),
    Figure(
        "3b",
        ("main",),
        strength_table,
        draw_strengths,
        strength_claims,
        size=(8.4, 3.6),
        main_text=True,
    ),
)
