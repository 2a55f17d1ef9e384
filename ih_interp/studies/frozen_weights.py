"""Weights of attention are frozen, alone and in pairs, and thawed later: which have to learn?

All times are divided by the time in which the same network learns with nothing frozen. What is
frozen and clamped stands in `_frozen_runs`.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ih_interp.analysis.dynamics.survival import emergence_summary
from ih_interp.analysis.statistics import bootstrap
from ih_interp.paper.claims import spearman
from ih_interp.studies._frozen_figure import draw_frozen
from ih_interp.studies._frozen_runs import (
    ALWAYS,
    BY,
    GROUPS,
    NOTHING,
    STAGES,
    THAWED,
    WEIGHTS,
    free_runs,
    held_runs,
    joined,
    of,
    relative,
    scored_rows,
)
from ih_interp.studies.findings import Finding, Tested, above_zero, judge, unlearned
from ih_interp.studies.study import SMOKE, Scale, Study, trace_runs

HEADS_FORM = "arXiv:2506.01115: language models with Q and K frozen form induction heads"


def summarise_frozen(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per condition: times in free times, and scores of heads, with intervals.

    Columns: `kind`, `what`, `until`, those of `emergence_summary`; means over networks of
    `induction` and `previous_token` with ends `_low`, `_high`; `run` and `config`, by spaces.
    """
    summary, times = table[BY].drop_duplicates(), relative(table)
    if len(times):
        summary = summary.merge(emergence_summary(times, by=BY), how="left", on=BY)
    scores: list[dict[str, object]] = []
    for key, rows in (times if len(times) else table).groupby(BY, sort=False):
        row: dict[str, object] = dict(zip(BY, key, strict=True))
        for name in ("induction", "previous_token"):
            ends = bootstrap(rows[name]) if len(rows) > 1 else (rows[name].iloc[0], *[np.nan] * 2)
            row |= {
                f"{name}{end}": float(x) for end, x in zip(("", "_low", "_high"), ends, strict=True)
            }
        scores.append(row)
    return trace_runs(summary.merge(pd.DataFrame(scores), on=BY), table, BY)


def judge_frozen(table: pd.DataFrame) -> list[Finding]:
    """Judge what was expected of freezing weights; a test per claim, over networks.

    A run that has not learned counts with its length, `LIMIT` free times, as "at least"; where both
    sides of a comparison have not, the network cannot tell and is left out.
    """
    times = relative(table)
    match, copying = (STAGES[name].weights for name in ("match", "copy"))
    attend, carry = (STAGES[name].weights for name in ("previous token", "layer 1"))
    comparisons = (
        (
            "Freezing Q and K of layer 1, to match, delays more than V and O, to copy",
            match,
            copying,
        ),
        ("Freezing Q and K of layer 0 delays more than V and O of layer 0", attend, carry),
        ("Freezing all of layer 1 delays more than all of layer 0", WEIGHTS[4:], WEIGHTS[:4]),
    )
    return judge(
        [
            *(_delay(times, weight) for weight in WEIGHTS),
            *(_comparison(times, *comparison) for comparison in comparisons),
            *(_thaw(times, joined(stage.weights)) for stage in STAGES.values()),
            _order(times),
            *(_head(times, joined(weights)) for weights in (match, GROUPS["all Q and K"])),
        ]
    )


def log_ratio(times: pd.DataFrame, what: str, other: str = NOTHING) -> pd.Series:
    """Return ln(time / another condition's time) by seed, NaN where neither of them learned."""
    first, second = of(times, what), of(times, other, 0.0 if other == NOTHING else ALWAYS)
    ratio = first["time"].astype(float) / second["time"].astype(float)
    return ratio.map(np.log).where(first["observed"].astype(bool) | second["observed"].astype(bool))


def _delay(times: pd.DataFrame, weight: str) -> Tested:
    words = f"ln(time / free time) is {{}}{unlearned(of(times, weight))}"
    claim = f"Freezing {weight[-1]} of layer {weight[1]} delays learning"
    return above_zero(claim, log_ratio(times, weight), words=words, spec=".3f")


def _comparison(
    times: pd.DataFrame, claim: str, slow: Sequence[str], fast: Sequence[str]
) -> Tested:
    names = joined(tuple(slow)), joined(tuple(fast))
    words = f"ln(time with {names[0]} frozen / time with {names[1]} frozen) is {{}}"
    words += unlearned(*(of(times, name) for name in names))
    return above_zero(claim, log_ratio(times, *names), words=words)


def lost_share(times: pd.DataFrame, weights: str, until: float) -> pd.Series:
    """Return (time - free time) / frozen time by seed: 0 if freezing cost nothing, 1 if all."""
    return (of(times, weights, until)["time"].astype(float) - 1) / until


def _thaw(times: pd.DataFrame, weights: str) -> Tested:
    until = THAWED[0]
    rows, lost = of(times, weights, until), lost_share(times, weights, until)
    words = f"share of that time lost: {lost.mean():.2f}; less than a half by {{}}{unlearned(rows)}"
    claim = f"Freezing {weights} for half the free time delays learning by less than half of that"
    return above_zero(claim, 0.5 - lost, words=words)


def _order(times: pd.DataFrame) -> Tested:
    """Test that stages whose weights cost most to freeze are those whose clamps save most."""
    costs = pd.DataFrame({name: log_ratio(times, joined(s.weights)) for name, s in STAGES.items()})
    savings = pd.DataFrame({name: -log_ratio(times, name) for name in STAGES})
    effects = [spearman(costs.loc[seed], savings.loc[seed]) for seed in costs.index]
    both = [of(times, joined(stage.weights)) for stage in STAGES.values()]
    both += [of(times, name) for name in STAGES]
    words = f"rank correlation over four stages, whose clamps are nested, is {{}}{unlearned(*both)}"
    claim = "The more a stage's perfect clamp saves, the more its frozen weights cost"
    return above_zero(claim, effects, words=words)


def _head(times: pd.DataFrame, weights: str) -> Tested:
    rows = of(times, weights)
    effects = rows["induction"] - rows["free_induction"] / 2
    words = f"strength {rows['induction'].mean():.2f}; above half of the free network's by {{}}"
    claim = f"With {weights} frozen, an induction head of at least half the free strength forms"
    return above_zero(claim, effects, known=HEADS_FORM, words=words)


STUDY = Study(
    name="frozen weights",
    question="Which weights of attention have to learn, for how long, and which can stay as drawn?",
    scales={
        "smoke": SMOKE,
        "quick": Scale(),
        "paper": Scale(learning_rate=1e-5, sequences=1_500_000, every=5_000),
    },
    stages=(free_runs, held_runs),
    summarise=summarise_frozen,
    judge=judge_frozen,
    draw=draw_frozen,
    size=(11.0, 9.0),
    rows=scored_rows,
)
