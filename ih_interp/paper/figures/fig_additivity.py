"""Beyond the paper's figures: whether the heads that it calls additive add up, on four scales.

It uses at most `MOST_SEQUENCES` of the study's sequences, fewer than other measures do.
"""

import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure as Canvas
from torch import Tensor

from ih_interp.analysis.ablation.additivity import additivity_test
from ih_interp.paper.judging import Measured, Rule, by_rules
from ih_interp.paper.recipes import last_layer_heads
from ih_interp.paper.study import Figure, Study
from ih_interp.plots import plot_additive_fits
from ih_interp.plots.additivity import METRIC_NAMES
from ih_interp.runs import Run
from ih_interp.types import Batch

MOST_SEQUENCES = 2_000  # each has 256 subsets to compute; intervals stay narrow
RESAMPLES = 200  # of sequences, for intervals
ADDITIVE = 0.9  # R squared from which heads are said to add up


def additive_table(study: Study) -> pd.DataFrame:
    """Return how well heads add up.

    Columns: those of `Study.each_run`, `metric`, `part`, `value`, `low`, `high`.

    `value` is R squared of the best additive fit to the mean metric of every subset of the last
    layer's heads, of `additivity_test`: 1 if they add up, 8/255 for a random game. Log-odds are
    those of the target against all other labels, log p / (1 - p). Means are over the study's
    sequences or, where they are more than `MOST_SEQUENCES`, a sample of so many; `low` and `high`
    resample sequences.
    """

    def measure(run: Run, batch: Batch) -> pd.DataFrame:
        if len(batch) > MOST_SEQUENCES:
            generator = torch.Generator().manual_seed(0)
            batch = run.task.sample("train", MOST_SEQUENCES, generator=generator)
        report = additivity_test(
            run.model(),
            batch,
            last_layer_heads(),
            metrics=("logit_difference", log_odds, "probability", "loss"),
            n_resamples=RESAMPLES,
            n_permutations=1,  # no p-value is shown
        )
        table = report.table("r_squared")[["metric", "part", "value", "low", "high"]]
        return table.assign(n_sequences=len(batch))

    return study.each_run(measure)


def log_odds(logits: Float[Tensor, "sequence label"], batch: Batch) -> Float[Tensor, " sequence"]:
    """Return the target's log p / (1 - p), any real number; chance -log(L - 1)."""
    target = batch.target[:, None]
    others = logits.scatter(1, target, -torch.inf)
    return logits.gather(1, target)[:, 0] - others.logsumexp(dim=1)


def draw_additive(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw every network in one picture."""
    names = [METRIC_NAMES[metric] for metric in dict.fromkeys(table["metric"])]
    plot_additive_fits(table, canvas.subplots(), names=names)


def _told(*metrics: str) -> str:
    return ", ".join(f"{METRIC_NAMES[metric]} {{{metric}:.2f}}" for metric in metrics)


def _totals(rows: pd.DataFrame) -> Measured:
    total = rows[rows["part"] == "total"]
    return dict(zip(total["metric"], total["value"], strict=True))


additive_claims = by_rules(
    "additivity",
    _totals,
    Rule(
        "heads are additive before the softmax, but for the final norm's one scale: R squared "
        f"of the best additive fit to all 256 subsets is above {ADDITIVE}",
        "additive, in words",
        _told("logit_difference", "log_odds"),
        lambda n: min(n["logit_difference"], n["log_odds"]) > ADDITIVE,
    ),
    Rule(
        "after it they saturate: R squared is lower",
        "not measured",
        _told("probability", "loss"),
        lambda n: max(n["probability"], n["loss"]) < n["log_odds"],
    ),
)

FIGURES = (Figure("additivity", ("main",), additive_table, draw_additive, additive_claims),)
