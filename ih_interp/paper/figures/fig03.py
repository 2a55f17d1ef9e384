"""Figure 3: induction heads emerge together, as the loss falls."""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from ih_interp.analysis.dynamics.emergence import first_below, plateau_length
from ih_interp.analysis.dynamics.trace import trace
from ih_interp.analysis.heads.attention import induction_strength
from ih_interp.paper.claims import Claim, Measured, Rule, by_rules, curves, judge, spearman, when
from ih_interp.paper.drawing import BESIDE, panels, plot_each_network
from ih_interp.paper.study import Figure, Study, each_run, some_steps
from ih_interp.plots import plot_losses, plot_strengths
from ih_interp.runs import Run
from ih_interp.types import Batch

NEW_SPLITS = ("test_exemplars", "test_relabel")  # which training never shows
STRONG = 0.25  # induction strength above which a head is an induction head


def loss_table(study: Study) -> pd.DataFrame:
    """Return losses of every main run: columns of `Study.losses` but `condition`."""
    return study.losses("main", ("train", *NEW_SPLITS)).drop(columns="condition")


def loss_claims(table: pd.DataFrame) -> list[Claim]:
    """Judge the plateau near ln 2, the fall, and losses on unseen classes and label pairs.

    Splits that the task does not have (no unseen class, no held-out label set) are left out.
    """
    splits = [split for split in NEW_SPLITS if (table["split"] == split).any()]
    networks = [
        {**_pause(*curve_of["train"]), **{split: curve_of[split][1][-1] for split in splits}}
        for curve_of in curves(table, "split").values()
    ]
    rules: dict[str, Rule] = {
        # Sequences per factor of e: an exponential slide needs as many on both stretches.
        "pauses": lambda n: (
            n["fall"] < math.inf
            and n["plateau"] / math.log(0.8 / 0.6) > 2 * n["fall"] / math.log(0.6 / 0.1)
        )
    }
    for split in splits:
        rules[split] = lambda n, split=split: n[split] < math.log(2) / 2
    return judge("3a", networks, rules)


def _pause(sequences: np.ndarray, loss: np.ndarray) -> Measured:
    """Return the sequences from loss 0.8 to 0.6, and from 0.6 to 0.1."""
    end = first_below(sequences, loss, 0.1)
    fall = end - first_below(sequences, loss, 0.6) if math.isfinite(end) else math.inf
    return {"plateau": when(plateau_length(sequences, loss)), "fall": fall}


@each_run
def strength_table(_: Study, run: Run, batch: Batch) -> pd.DataFrame:
    """Return induction strengths over training.

    Columns: `seed`, `run`, `n_sequences`, `step`, `sequences`, `name` (a head), `value`, its
    `induction_strength`, in [-1, 1]; 0 where it does not tell the labels apart.
    """
    return trace(run, induction_strength, batch=batch, steps=some_steps(run))


def _strengths(rows: pd.DataFrame) -> Measured:
    """Return one network's strengths at the end, and how far their order was fixed at half time.

    Half time is when the head that ends strongest first has half of its last strength; `order` is
    NaN where no strength is above 0.
    """
    heads = rows[rows["name"].str.match("L1H")]
    strengths = heads.pivot_table(index="sequences", columns="name", values="value")
    last = strengths.iloc[-1]
    order = math.nan
    if last.max() > 0:
        half = strengths[strengths[str(last.idxmax())] >= last.max() / 2].iloc[0]
        order = spearman(half, last)
    return {
        "several": float((last > STRONG).sum()),
        "strongest": float(last.max()),
        "weakest": float(last.min()),
        "order": order,
    }


strength_claims = by_rules(
    "3b",
    _strengths,
    several=lambda n: n["several"] >= 2,
    graded=lambda n: n["strongest"] > 2 * n["weakest"] and n["strongest"] > STRONG,
    ordered=lambda n: n["order"] > 0.8 and n["strongest"] > STRONG,
)


def draw_strengths(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw Figure 3b: one panel per network, all of one height."""
    axes = plot_each_network(table, canvas, plot_strengths)
    lows, highs = zip(*(ax.get_ylim() for ax in axes), strict=True)
    for ax in axes:
        ax.set_ylim(min(lows), max(highs))


FIGURES = (
    Figure("3a", ("main",), loss_table, panels(plot_losses), loss_claims),
    Figure("3b", ("main",), strength_table, draw_strengths, strength_claims, BESIDE),
)
