"""Figures 5b and 10: clamps on the three subcircuits, in training and at inference."""

import numpy as np
import pandas as pd

from ih_interp.analysis.emergence import LEARNED, first_below, time_on_plateau
from ih_interp.analysis.progress import progress_beside_training
from ih_interp.paper.study import Claim, Figure, Study, curves, judged, over_seeds, some_steps
from ih_interp.plots import plot_clamped_losses, plot_progress
from ih_interp.plots.style import CLAMP_LINES

PERFECTED = ("previous token", "match")
"""Clamps of Figure 10."""


def clamped_table(study: Study) -> pd.DataFrame:
    """Training losses under each clamp: `seed`, `clamp`, `run`, `sequences`, `loss`."""
    table = study.losses("clamped").rename(columns={"condition": "clamp"})
    return table[["seed", "clamp", "run", "sequences", "loss"]]


def clamped_claims(table: pd.DataFrame) -> list[Claim]:
    """Clamping subcircuits moves the phase change; two of them at once remove it."""
    networks = curves(table, "clamp").values()
    learned = [{c: first_below(*line, LEARNED) for c, line in n.items()} for n in networks]
    plateau = [{c: time_on_plateau(*line) for c, line in n.items()} for n in networks]

    def told(times: list[dict[str, float]], clamps: list[str]) -> str:
        return ", ".join(f"{clamp} {over_seeds([t[clamp] for t in times])}" for clamp in clamps)

    by_time = sorted(CLAMP_LINES, key=lambda clamp: float(np.median([t[clamp] for t in learned])))
    return [
        judged(
            "5b",
            f"sequences until the loss is below {LEARNED:.3f}, in order",
            paper="layer 1 + copy 28k, match 33k, copy 41k, layer 1 79k, previous token 216k, "
            "none 310k",
            ours=told(learned, by_time),
            holds=[
                max(t["layer 1 + copy"], t["match"]) < t["copy"] < t["layer 1"]
                and t["layer 1"] < min(t["previous token"], t["none"])
                for t in learned
            ],
        ),
        judged(
            "5b",
            "no plateau under match and layer 1 + copy: sequences from loss 0.8 to 0.6",
            paper="match 9k, layer 1 + copy 11k, none 166k",
            ours=told(plateau, ["match", "layer 1 + copy", "none"]),
            holds=[max(t["match"], t["layer 1 + copy"]) < t["none"] / 8 for t in plateau],
        ),
        judged(
            "5b",
            "a perfect previous-token pattern alone brings the phase change forward: "
            f"sequences until the loss is below {LEARNED:.3f}",
            paper="previous token 216k, none 310k; not in one of its eight other series",
            ours=told(learned, ["previous token", "none"]),
            holds=[t["previous token"] < t["none"] for t in learned],
            varies=True,
        ),
    ]


def progress_table(study: Study) -> pd.DataFrame:
    """Clamps in training beside progress measures of the run without them.

    Columns: `seed`, `run`, `clamp`, `when` ("training", or "inference": perfected in checkpoints of
    the free run), `sequences`, `loss`. "none" is the free run as it was evaluated, in both.
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
    none = (
        study.losses("clamped").query("condition == 'none'").rename(columns={"condition": "clamp"})
    )
    parts = [*(none.assign(when=when) for when in ("training", "inference")), *parts]
    columns = ["seed", "run", "clamp", "when", "sequences", "loss"]
    return pd.concat(parts, ignore_index=True)[columns].reset_index(drop=True)


def progress_claims(table: pd.DataFrame) -> list[Claim]:
    """Perfected at inference is not clamped in training: the free run's drop stays."""
    perfected = curves(table[table["when"] == "inference"], "clamp")
    trained = curves(table[table["when"] == "training"], "clamp")
    times = [
        {
            "training": first_below(*trained[seed]["match"], LEARNED),
            "inference": first_below(*perfected[seed]["match"], LEARNED),
            "none": first_below(*trained[seed]["none"], LEARNED),
        }
        for seed in trained
    ]
    previous = [first_below(*perfected[seed]["previous token"], LEARNED) for seed in perfected]
    until = f"sequences until the loss is below {LEARNED:.3f}"
    return [
        judged(
            "10",
            "the match perfected in checkpoints of the free run is no clamp: it takes over half as "
            f"long as the free run, and the clamp in training under half: {until}",
            paper="at inference 247k, in training 33k, none 310k",
            ours=", ".join(
                f"{words} {over_seeds([t[key] for t in times])}"
                for words, key in (
                    ("at inference", "inference"),
                    ("in training", "training"),
                    ("none", "none"),
                )
            ),
            holds=[t["inference"] > t["none"] / 2 > t["training"] for t in times],
        ),
        judged(
            "10",
            "the previous-token pattern perfected there leaves the free run's drop where it is, "
            f"within a quarter of its time: {until}",
            paper="at inference between 300k and 400k, none 310k",
            ours=f"at inference {over_seeds(previous)}, none "
            f"{over_seeds([t['none'] for t in times])}",
            holds=[
                abs(time - t["none"]) < t["none"] / 4
                for time, t in zip(previous, times, strict=True)
            ],
            varies=True,
        ),
    ]


FIGURES = (
    Figure(
        "5b",
        ("clamped",),
        clamped_table,
        lambda table, canvas: plot_clamped_losses(table, canvas.subplots()),
        clamped_claims,
        size=(5.8, 3.9),
        main_text=True,
    ),
    Figure(
        "10",
        ("clamped",),
        progress_table,
        lambda table, canvas: plot_progress(table, canvas.subplots(1, 2, sharey=True)),
        progress_claims,
        size=(8.4, 3.4),
    ),
)
