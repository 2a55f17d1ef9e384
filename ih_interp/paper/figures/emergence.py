"""Figures 3, 4b, 17 and 18: when induction heads emerge, together and alone."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ih_interp.analysis.attention import induction_strength
from ih_interp.analysis.emergence import first_below, time_on_plateau
from ih_interp.analysis.trace import trace
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
    "test_exemplars": ("new exemplars", "0.125"),
    "test_relabel": ("new label pairs", "0.031"),
}
"""Splits that training never shows, in words, and the paper's loss on them at the end."""


def loss_table(study: Study) -> pd.DataFrame:
    """Losses of every main run: `seed`, `run`, `sequences`, `split`, `loss`, `accuracy`."""
    return study.losses("main", ("train", *NEW_SPLITS)).drop(columns="condition")


def loss_claims(table: pd.DataFrame) -> list[Claim]:
    """A plateau near ln 2, then a fall; the solution holds for new exemplars and labels."""
    networks = curves(table, "split").values()
    trains = [network["train"] for network in networks]
    plateau = [time_on_plateau(*train) for train in trains]
    learned = [first_below(*train, 0.1) for train in trains]
    fall = [
        end - first_below(*train, 0.6) if np.isfinite(end) else np.inf
        for train, end in zip(trains, learned, strict=True)
    ]
    # Sequences a factor of e: an exponential slide needs as many on the plateau as in the fall.
    pauses = [
        down < np.inf and flat / np.log(0.8 / 0.6) > 2 * down / np.log(0.6 / 0.1)
        for flat, down in zip(plateau, fall, strict=True)
    ]
    claims = [
        judged(
            "3a",
            "training pauses near ln 2 and then falls: sequences from loss 0.8 to 0.6, 0.6 to 0.1",
            paper="150k, 170k",
            ours=f"{over_seeds(plateau)}, {over_seeds(fall)}",
            holds=pauses,
        )
    ]
    for split, (words, paper) in NEW_SPLITS.items():
        ends = [float(network[split][1][-1]) for network in networks if split in network]
        if ends:  # features of no unseen class, or no label set held out, have none
            claims.append(
                judged(
                    "3a",
                    f"the end generalises: loss on {words}",
                    paper=paper,
                    ours=over_seeds(ends, decimals(3)),
                    holds=[end < np.log(2) / 2 for end in ends],
                )
            )
    return claims


def strength_table(study: Study) -> pd.DataFrame:
    """Induction strengths over training: `seed`, `run`, `step`, `sequences`, `name`, `value`."""
    return study.each_run(
        lambda run, batch: trace(run, induction_strength, batch=batch, steps=some_steps(run))
    )


def strength_claims(table: pd.DataFrame) -> list[Claim]:
    """Several induction heads, of graded strength."""
    last = table[(table["sequences"] == table["sequences"].max()) & table["name"].str.match("L1H")]
    ends = [np.sort(values)[::-1] for _, values in last.groupby("seed")["value"]]
    several = [int((values > 0.25).sum()) for values in ends]
    return [
        judged(
            "3b",
            "several heads become induction heads: how many of 8 end above 0.25",
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
            holds=[values[0] > 2 * values[-1] and values[0] > 0.25 for values in ends],
        ),
    ]


FIGURES = (
    Figure(
        "3a",
        ("main",),
        loss_table,
        lambda table, canvas: plot_losses(table, canvas.subplots()),
        loss_claims,
        main_text=True,
    ),
    Figure(
        "3b",
        ("main",),
        strength_table,
        lambda table, canvas: plot_each_network(table, canvas, plot_strengths),
        strength_claims,
        size=(8.4, 3.6),
        main_text=True,
    ),
)
