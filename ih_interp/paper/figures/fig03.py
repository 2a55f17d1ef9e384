"""Figure 3: induction heads emerge together, as the loss falls."""

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from ih_interp.analysis.dynamics.emergence import first_below, plateau_length
from ih_interp.analysis.dynamics.trace import trace
from ih_interp.analysis.heads.attention import induction_strength
from ih_interp.paper.claims import Claim
from ih_interp.paper.drawing import BESIDE, panels, plot_each_network
from ih_interp.paper.judging import Measured, Rule, by_rules, curves, judge, rank_correlation, when
from ih_interp.paper.study import Figure, Study, some_steps
from ih_interp.plots import plot_losses, plot_strengths

NEW_SPLITS: Mapping[str, tuple[str, str]] = {
    "test_exemplars": ("unseen classes (the paper's test exemplars)", "0.125"),
    "test_relabel": ("unseen pairs of labels (the paper's test relabel)", "0.031"),
}
"""Splits that training never shows, in words, and the paper's loss on them at the end."""

STRONG = 0.25  # induction strength above which a head is an induction head


def loss_table(study: Study) -> pd.DataFrame:
    """Return losses of every main run: columns of `Study.losses` but `condition`."""
    return study.losses("main", ("train", *NEW_SPLITS)).drop(columns="condition")


def loss_claims(table: pd.DataFrame) -> list[Claim]:
    """Judge the plateau near ln 2, the fall, and losses on unseen classes and label pairs.

    Splits that the task does not have (no unseen class, no held-out label set) are left out.
    """
    networks = [*curves(table, "split").values()]
    claims = judge("3a", [_pause(*network["train"]) for network in networks], PAUSE)
    for split, (words, paper) in NEW_SPLITS.items():
        last = [{"loss": n[split][1][-1]} for n in networks if split in n]
        if last:
            claim = f"the end generalises: loss on {words}"
            rule = Rule(claim, paper, "{loss:.3f}", lambda n: n["loss"] < math.log(2) / 2)
            claims += judge("3a", last, rule)
    return claims


PAUSE = Rule(
    "training pauses near ln 2 and then falls: sequences from loss 0.8 to 0.6, 0.6 to 0.1",
    "150k, 170k",
    "{plateau}, {fall}",
    # Sequences per factor of e: an exponential slide needs as many on both stretches.
    lambda n: (
        n["fall"] < math.inf
        and n["plateau"] / math.log(0.8 / 0.6) > 2 * n["fall"] / math.log(0.6 / 0.1)
    ),
)


def _pause(sequences: np.ndarray, loss: np.ndarray) -> Measured:
    """Return the sequences from loss 0.8 to 0.6, and from 0.6 to 0.1."""
    end = first_below(sequences, loss, 0.1)
    fall = end - first_below(sequences, loss, 0.6) if math.isfinite(end) else math.inf
    return {"plateau": when(plateau_length(sequences, loss)), "fall": fall}


def strength_table(study: Study) -> pd.DataFrame:
    """Return induction strengths over training.

    Columns: `seed`, `run`, `n_sequences`, `step`, `sequences`, `name` (a head), `value`, its
    `induction_strength`, in [-1, 1]; 0 where it does not tell the labels apart.
    """
    return study.each_run(
        lambda run, batch: trace(run, induction_strength, batch=batch, steps=some_steps(run))
    )


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
        order = rank_correlation(half, last)
    return {
        "several": float((last > STRONG).sum()),
        "strongest": float(last.max()),
        "weakest": float(last.min()),
        "order": order,
    }


strength_claims = by_rules(
    "3b",
    _strengths,
    Rule(
        f"several heads become induction heads: how many of 8 end above {STRONG}",
        "7",
        "{several}",
        lambda n: n["several"] >= 2,
    ),
    Rule(
        "of graded strength: the strongest, the weakest",
        "0.85, 0.10",
        "{strongest:.2f}, {weakest:.2f}",
        lambda n: n["strongest"] > 2 * n["weakest"] and n["strongest"] > STRONG,
    ),
    Rule(
        "their order hardly changes any more: rank correlation with the end, above 0.8, when "
        "the strongest has half of its last strength",
        "but for two heads the order of the end",
        "{order:.2f}",
        lambda n: n["order"] > 0.8 and n["strongest"] > STRONG,
    ),
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
