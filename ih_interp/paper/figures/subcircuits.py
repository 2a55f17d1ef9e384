"""Figures 5, 7 to 10 and 15: clamps on the three subcircuits, and the toy model of them."""

import numpy as np
import pandas as pd

from ih_interp.analysis.emergence import LEARNED, first_below, time_on_plateau
from ih_interp.paper.study import Claim, Figure, Study, curves, judged, over_seeds
from ih_interp.plots import plot_clamped_losses, plot_toy
from ih_interp.plots.style import CLAMP_LINES, CLAMPED_VECTORS
from ih_interp.toy import NAMES, ToyConfig, train_toy


def toy_table(study: Study) -> pd.DataFrame:
    """The toy model with none, c, and b and c clamped: `clamped`, `iteration`, `loss` ..."""
    del study
    conditions = {
        name: ToyConfig(clamp={vector: None for vector in NAMES if vector in name.split(", ")})
        for name in CLAMPED_VECTORS
    }
    return pd.concat(
        [train_toy(config).assign(clamped=name) for name, config in conditions.items()],
        ignore_index=True,
    )


def toy_claims(table: pd.DataFrame) -> list[Claim]:
    """Three interacting vectors make a plateau; clamping two of them removes it."""
    crossed = {name: _tenth(table[table["clamped"] == name]) for name in CLAMPED_VECTORS}
    return [
        judged(
            "5a",
            "iterations until a tenth of the first loss: none; c; b, c clamped",
            paper="761; 139; 53",
            ours="; ".join(over_seeds([iterations]) for iterations in crossed.values()),
            holds=[np.inf > crossed["none"] > 2 * crossed["c"] > 4 * crossed["b, c"]],
        )
    ]


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


def _tenth(curve: pd.DataFrame) -> float:
    """The first iteration at which the loss is below a tenth of its first value, or infinity."""
    loss = curve.sort_values("iteration")["loss"].to_numpy()
    below = loss < 0.1 * loss[0]
    return float(below.argmax()) if below.any() else np.inf


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
        "5b",
        ("clamped",),
        clamped_table,
        lambda table, canvas: plot_clamped_losses(table, canvas.subplots()),
        clamped_claims,
        main_text=True,
    ),
)
