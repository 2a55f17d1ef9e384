"""One entry a figure: the runs it needs, its numbers, its drawing, and the paper's claims."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes

from ih_interp.analysis.attention import induction_strength
from ih_interp.analysis.emergence import LEARNED, first_below, time_on_plateau
from ih_interp.analysis.trace import trace
from ih_interp.plots import plot_clamped_losses, plot_losses, plot_strengths, plot_toy
from ih_interp.plots.style import CLAMP_LINES, CLAMPED_VECTORS, short_count
from ih_interp.runs import Run
from ih_interp.toy import NAMES, ToyConfig, train_toy
from ih_interp.types import Batch

Needs: TypeAlias = Literal["nothing", "main", "clamped"]
NEW_SPLITS: Mapping[str, tuple[str, str]] = {
    "test_exemplars": ("new exemplars", "0.125"),
    "test_relabel": ("new label pairs", "0.031"),
}
"""Splits that training never shows, in words, and the paper's loss on them at the end."""
MAX_CHECKPOINTS = 101  # of a run in one curve, as in the paper's Figure 3b


class Study(NamedTuple):
    """The finished runs that figures are drawn from."""

    main: Mapping[int, Run]
    """By seed."""
    clamped: Mapping[int, Mapping[str, Run]]
    """By seed and condition."""
    sequences: int | None
    """How many training sequences measures are averaged over; None is every one."""


class Claim(NamedTuple):
    """What the paper found, what these runs found, and whether it is the same."""

    figure: str
    claim: str
    paper: str
    ours: str
    holds: bool


@dataclass(frozen=True)
class Figure:
    """A figure of the paper."""

    name: str
    needs: Needs
    table: Callable[[Study], pd.DataFrame]
    draw: Callable[[pd.DataFrame, Axes], Axes]
    claims: Callable[[pd.DataFrame], list[Claim]]


def loss_table(study: Study) -> pd.DataFrame:
    """Losses of every main run: `seed`, `sequences`, `split`, `loss`, `accuracy`."""
    columns = ["seed", "sequences", "split", "loss", "accuracy"]
    return _by_seed({seed: run.metrics for seed, run in study.main.items()})[columns]


def strength_table(study: Study) -> pd.DataFrame:
    """Induction strengths over training: `seed`, `step`, `sequences`, `name`, `value`."""
    return _by_seed(
        {
            seed: trace(run, induction_strength, batch=_sequences(run, study), steps=_some(run))
            for seed, run in study.main.items()
        }
    )


def clamped_table(study: Study) -> pd.DataFrame:
    """Training losses under each clamp: `seed`, `clamp`, `sequences`, `loss`, `run`."""
    tables: dict[int, pd.DataFrame] = {}
    for seed, runs in study.clamped.items():
        parts = [
            run.metrics.query("split == 'train'").assign(clamp=condition, run=run.config.name)
            for condition, run in runs.items()
        ]
        tables[seed] = pd.concat(parts)[["clamp", "sequences", "loss", "run"]]
    return _by_seed(tables)


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


def loss_claims(table: pd.DataFrame) -> list[Claim]:
    """A plateau near ln 2, then a fall; the solution holds for new exemplars and labels."""
    curves = {split: _median_curve(rows) for split, rows in table.groupby("split")}
    train = curves["train"]
    ends = {split: float(curves[split][1][-1]) for split in NEW_SPLITS if split in curves}
    plateau = time_on_plateau(*train)
    learned = first_below(*train, 0.1)
    fall = learned - first_below(*train, 0.6) if np.isfinite(learned) else np.inf
    # Sequences a factor of e: an exponential slide needs as many on the plateau as in the fall.
    pauses = plateau / np.log(0.8 / 0.6) > 2 * fall / np.log(0.6 / 0.1)
    pause = [
        Claim(
            "3a",
            "training pauses near ln 2 and then falls: sequences from loss 0.8 to 0.6, 0.6 to 0.1",
            "150k, 170k",
            f"{short_count(plateau)}, {short_count(fall)}",
            bool(fall < np.inf and pauses),
        )
    ]
    if not ends:  # features of no unseen class, and no label set held out
        return pause
    return [
        *pause,
        Claim(
            "3a",
            "the end generalises: loss on " + ", on ".join(NEW_SPLITS[split][0] for split in ends),
            ", ".join(NEW_SPLITS[split][1] for split in ends),
            ", ".join(f"{loss:.3f}" for loss in ends.values()),
            max(ends.values()) < np.log(2) / 2,
        ),
    ]


def strength_claims(table: pd.DataFrame) -> list[Claim]:
    """Several induction heads, of graded strength."""
    last = table[(table["sequences"] == table["sequences"].max()) & table["name"].str.match("L1H")]
    ends = last.groupby("seed")["value"].apply(lambda values: np.sort(values)[::-1])
    several = [int((values > 0.25).sum()) for values in ends]
    return [
        Claim(
            "3b",
            "several heads become induction heads: how many end above 0.25",
            "7 of 8",
            ", ".join(map(str, several)) + " of 8",
            min(several) >= 2,
        ),
        Claim(
            "3b",
            "of graded strength: the strongest, the weakest",
            "0.85, 0.10",
            "; ".join(f"{values[0]:.2f}, {values[-1]:.2f}" for values in ends),
            all(values[0] > 2 * values[-1] and values[0] > 0.25 for values in ends),
        ),
    ]


def clamped_claims(table: pd.DataFrame) -> list[Claim]:
    """Clamping subcircuits moves the phase change; two of them at once remove it."""
    curves = {clamp: _median_curve(table[table["clamp"] == clamp]) for clamp in CLAMP_LINES}
    learned = {clamp: first_below(*curve, LEARNED) for clamp, curve in curves.items()}
    plateau = {clamp: time_on_plateau(*curve) for clamp, curve in curves.items()}
    fast = max(learned["layer 1 + copy"], learned["match"])
    slow = min(learned["previous token"], learned["none"])
    order = sorted(learned, key=lambda clamp: learned[clamp])
    return [
        Claim(
            "5b",
            f"sequences until the loss is below {LEARNED:.3f}, in order",
            "layer 1 + copy 28k, match 33k, copy 41k, layer 1 79k, previous token 216k, none 310k",
            ", ".join(f"{clamp} {short_count(learned[clamp])}" for clamp in order),
            bool(fast < learned["copy"] < learned["layer 1"] < slow),
        ),
        Claim(
            "5b",
            "no plateau under match and layer 1 + copy: sequences from loss 0.8 to 0.6",
            "match 9k, layer 1 + copy 11k, none 166k",
            ", ".join(
                f"{clamp} {short_count(plateau[clamp])}"
                for clamp in ("match", "layer 1 + copy", "none")
            ),
            bool(max(plateau["match"], plateau["layer 1 + copy"]) < plateau["none"] / 8),
        ),
    ]


def toy_claims(table: pd.DataFrame) -> list[Claim]:
    """Three interacting vectors make a plateau; clamping two of them removes it."""
    crossed = {name: _tenth(table[table["clamped"] == name]) for name in CLAMPED_VECTORS}
    in_words = (short_count(iterations) for iterations in crossed.values())
    return [
        Claim(
            "5a",
            "iterations until a tenth of the first loss: none; c; b, c clamped",
            "761; 139; 53",
            "; ".join(in_words),
            bool(np.inf > crossed["none"] > 2 * crossed["c"] > 4 * crossed["b, c"]),
        )
    ]


def _tenth(curve: pd.DataFrame) -> float:
    """The first iteration at which the loss is below a tenth of its first value, or infinity."""
    loss = curve.sort_values("iteration")["loss"].to_numpy()
    below = loss < 0.1 * loss[0]
    return float(below.argmax()) if below.any() else np.inf


def _draw_one_network(table: pd.DataFrame, ax: Axes) -> Axes:
    """The first seed's network; heads of different networks have nothing to do with each other."""
    return plot_strengths(table[table["seed"] == table["seed"].min()], ax)


FIGURES: Mapping[str, Figure] = {
    figure.name: figure
    for figure in (
        Figure("3a", "main", loss_table, plot_losses, loss_claims),
        Figure("3b", "main", strength_table, _draw_one_network, strength_claims),
        Figure("5a", "nothing", toy_table, plot_toy, toy_claims),
        Figure("5b", "clamped", clamped_table, plot_clamped_losses, clamped_claims),
    )
}


def _by_seed(tables: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([table.assign(seed=seed) for seed, table in tables.items()], ignore_index=True)


def _median_curve(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Sequences, and the median over seeds of the loss there."""
    median = table.groupby("sequences")["loss"].median().sort_index()
    return median.index.to_numpy(dtype=float), median.to_numpy(dtype=float)


def _sequences(run: Run, study: Study) -> Batch:
    """Every training sequence, or as many as the study asks for, drawn from a fixed seed."""
    if study.sequences is None:
        return run.task.enumerate("train")
    generator = torch.Generator().manual_seed(0)
    return run.task.sample("train", study.sequences, generator=generator)


def _some(run: Run) -> list[int]:
    """At most 101 of a run's checkpoints, evenly, the first and the last among them."""
    steps = run.steps
    count = min(MAX_CHECKPOINTS, len(steps))
    places = np.linspace(0, len(steps) - 1, count).round().astype(int)
    return [steps[place] for place in places]
