"""Figures 5b and 10: clamps on the three subcircuits, in training and at inference."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure as Canvas

from ih_interp.analysis.dynamics.emergence import plateau_length
from ih_interp.analysis.dynamics.progress import progress_beside_training
from ih_interp.paper.claims import Claim
from ih_interp.paper.drawing import panels
from ih_interp.paper.judging import (
    UNTIL_LEARNED,
    Measured,
    Rule,
    by_rules,
    curves,
    judge,
    surely_longer,
    times_of,
    when,
)
from ih_interp.paper.study import Figure, Study, some_steps
from ih_interp.plots import plot_clamped_losses, plot_progress
from ih_interp.plots._style import CLAMP_LINES

PERFECTED = ("previous token", "match")  # clamps of Figure 10

ORDER = (
    ("layer 1 + copy", "copy"),
    ("match", "copy"),
    ("copy", "layer 1"),
    ("layer 1", "previous token"),
    ("layer 1", "none"),
)
"""Clamps of Figure 5b of which the first learns earlier in every network of the paper."""


def clamped_table(study: Study) -> pd.DataFrame:
    """Return training losses under each clamp: `seed`, `clamp`, `run`, `sequences`, `loss`.

    Loss as in `Study.losses`.
    """
    return study.losses("clamped", by="clamp")[["seed", "clamp", "run", "sequences", "loss"]]


def clamped_claims(table: pd.DataFrame) -> list[Claim]:
    """Judge how clamps on subcircuits move the phase change, and which remove it."""
    networks = [
        {**times, **{f"{clamp} plateau": plateau_length(*curve) for clamp, curve in of.items()}}
        for times, of in zip(times_of(table, "clamp"), curves(table, "clamp").values(), strict=True)
    ]
    by_time = sorted(CLAMP_LINES, key=lambda c: float(np.median([when(n[c]) for n in networks])))
    in_order = Rule(
        f"{UNTIL_LEARNED}, in order",
        "layer 1 + copy 28k, match 33k, copy 41k, layer 1 79k, previous token 216k, none 310k",
        ", ".join(f"{clamp} {{{clamp}}}" for clamp in by_time),
        lambda n: all(surely_longer(n[late], n[early]) for early, late in ORDER),
    )
    return judge("5b", networks, in_order, *CLAMPED_RULES)


CLAMPED_RULES = (
    Rule(
        "no plateau under match and layer 1 + copy, less than an eighth of that of none: "
        "sequences from loss 0.8 to 0.6",
        "match 9k, layer 1 + copy 11k, none 166k",
        "match {match plateau}, layer 1 + copy {layer 1 + copy plateau}, none {none plateau}",
        lambda n: all(
            surely_longer(n["none plateau"], n[f"{clamp} plateau"], factor=8)
            for clamp in ("match", "layer 1 + copy")
        ),
    ),
    Rule(
        f"a perfect previous-token pattern alone brings the phase change forward: {UNTIL_LEARNED}",
        "previous token 216k, none 310k; not in one of its eight series",
        "previous token {previous token}, none {none}",
        lambda n: surely_longer(n["none"], n["previous token"]),
        varies=True,
    ),
)


def progress_table(study: Study) -> pd.DataFrame:
    """Return clamps in training beside progress measures of the run without them.

    Columns: `seed`, `run`, `clamp`, `when` ("training", or "inference": perfected in checkpoints of
    the free run), `sequences`, `loss` as in `Study.losses`: over the runs' evaluations, but at
    inference over `curve_batch`. "none" is the free run as it was evaluated, in both.
    """
    parts: list[pd.DataFrame] = []
    for seed in study.seeds:
        runs = study.runs["clamped"][seed]
        free, clamped = runs["none"], {name: runs[name] for name in PERFECTED}
        table = progress_beside_training(
            free, clamped, batch=study.curve_batch(free), steps=some_steps(free)
        )
        trained = table["when"] == "training"
        names = table["clamp"].map({name: run.config.name for name, run in clamped.items()})
        parts.append(table.assign(run=names.where(trained, free.config.name)))
    none = study.losses("clamped", by="clamp").query("clamp == 'none'")
    parts = [*(none.assign(when=when) for when in ("training", "inference")), *parts]
    columns = ["seed", "run", "clamp", "when", "sequences", "loss"]
    return pd.concat(parts, ignore_index=True)[columns].reset_index(drop=True)


def _measure(rows: pd.DataFrame) -> Measured:
    """Return when one network's loss falls: perfected at inference, free, with a clamped match."""
    late, free = (
        times_of(rows[rows["when"] == where], "clamp")[0] for where in ("inference", "training")
    )
    return {**late, "none": free["none"], "match trained": free["match"]}


progress_claims = by_rules(
    "10",
    _measure,
    Rule(
        "the match perfected in checkpoints of the free run is no clamp: it takes over half as "
        f"long as the free run, and the clamp in training under half: {UNTIL_LEARNED}",
        "at inference 247k, in training 33k, none 310k",
        "at inference {match}, in training {match trained}, none {none}",
        lambda n: (
            surely_longer(n["match"], n["none"], factor=1 / 2)
            and surely_longer(n["none"], n["match trained"], factor=2)
        ),
    ),
    Rule(
        "the previous-token pattern perfected there leaves the free run's drop where it is, "
        f"within a quarter of its time: {UNTIL_LEARNED}",
        "at inference between 300k and 400k, none 310k",
        "at inference {previous token}, none {none}",
        lambda n: (
            surely_longer(n["previous token"], n["none"], factor=3 / 4)
            and surely_longer(n["none"], n["previous token"], factor=4 / 5)
        ),
        varies=True,
    ),
)


def draw_clamped(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw Figure 5b: the first two thirds of the runs, when all but the slowest have learned."""
    plot_clamped_losses(table, canvas.subplots(), end=float(table["sequences"].max()) * 2 / 3)


FIGURES = (
    Figure("5b", ("clamped",), clamped_table, draw_clamped, clamped_claims, (5.8, 3.9)),
    Figure(
        "10",
        ("clamped",),
        progress_table,
        panels(plot_progress, 1, 2, sharey=True),
        progress_claims,
        (8.4, 3.4),
    ),
)
