"""Figure 18: the strength of heads beside all others, against what they do and learn alone."""

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

from ih_interp.analysis.ablation.single_heads import ablate_each_head
from ih_interp.analysis.dynamics.emergence import learned
from ih_interp.paper.figures._fig04b_17_drawing import plot_strength_against
from ih_interp.paper.figures.fig04a_13 import LINEAR, correlation
from ih_interp.paper.study import Claim, Figure, Study, curves, decimals, judged, over_seeds
from ih_interp.plots._style import short_count

QUANTITIES: Mapping[str, str] = {
    "accuracy": "accuracy, only that head on",
    "loss": "loss (nats), only that head on",
    "learning_time": "sequences to learn, trained alone",
}
"""Panels of Figure 18, and what their y axes say."""


def strength_table(study: Study) -> pd.DataFrame:
    """Strength of every head beside all others, against what it does alone.

    Columns: `seed`, `run`, `head`, `strength`, `quantity`, `value`, `observed`. `quantity` is
    "accuracy" or "loss" (as in `Study.losses`, but over `batch`) of the whole network with only
    that head on, or "learning_time", sequences of the head trained alone; not `observed`, they are
    the length of the run, which did not learn.
    """
    ends = study.each_network(lambda model, batch: ablate_each_head(model, batch))
    ends = ends[ends["kept"] == "only"].rename(columns={"metric": "quantity"})
    strengths = ends.drop_duplicates(["seed", "head"])[["seed", "head", "strength"]]
    losses = study.losses("single")
    names = losses.drop_duplicates(["seed", "condition"]).set_index(["seed", "condition"])["run"]
    times = pd.DataFrame(
        [
            (seed, names[seed, head], head, "learning_time", *learned(*curve))
            for seed, network in curves(losses, "condition").items()
            for head, curve in network.items()
        ],
        columns=["seed", "run", "head", "quantity", "value", "observed"],
    )
    columns = ["seed", "run", "head", "strength", "quantity", "value", "observed"]
    both = [
        ends.assign(observed=True)[columns],
        times.merge(strengths, on=["seed", "head"])[columns],
    ]
    return pd.concat(both, ignore_index=True)


def strength_claims(table: pd.DataFrame) -> list[Claim]:
    """A head's strength says what it does alone, and little of how fast it learns alone."""
    r = {name: _correlations(table, name) for name in QUANTITIES}
    pooled = {name: _pooled(table, name) for name in QUANTITIES}

    def told(name: str) -> str:
        return f"{over_seeds(r[name], decimals(2))}; {_two_digits(pooled[name])}"

    pairs = list(zip(r["accuracy"], r["learning_time"], strict=True))
    return [
        judged(
            "18",
            f"strength and accuracy alone: r above {LINEAR} in each network; all networks together",
            paper="0.96 to 0.99; 0.956",
            ours=told("accuracy"),
            holds=[value > LINEAR for value in r["accuracy"]],
        ),
        judged(
            "18",
            "strength and sequences to learn alone: r below 0, and further from -1 than that of "
            "accuracy from 1; all networks together",
            paper="-0.33; -0.89, -0.58, -0.71, -0.71 in its other networks; -0.62",
            ours=told("learning_time"),
            holds=[-accuracy < time < 0 for accuracy, time in pairs],
            varies=True,
        ),
    ]


def draw_strength(table: pd.DataFrame, canvas: Canvas) -> None:
    """Figure 18: three panels, each with the correlation in every network and in all."""
    seeds = sorted(map(int, table["seed"].unique()))
    for ax, (quantity, ylabel) in zip(canvas.subplots(1, 3), QUANTITIES.items(), strict=True):
        rows = table[table["quantity"] == quantity]
        names = {
            seed: f"seed {seed}: r = {_two_digits(r)}"
            for seed, r in zip(seeds, _correlations(table, quantity), strict=True)
        }
        plot_strength_against(rows, ax, names=names, ylabel=ylabel)
        ax.set_title(f"{quantity.replace('_', ' ')}: r = {_two_digits(_pooled(table, quantity))}")
        if quantity == "learning_time":
            ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))


def _two_digits(r: float) -> str:
    return f"{r:.2f}" if math.isfinite(r) else "none"


def _correlations(table: pd.DataFrame, quantity: str) -> list[float]:
    """Of strength and a quantity, seed after seed."""
    rows = table[table["quantity"] == quantity]
    return [correlation(of["strength"], of["value"]) for _, of in rows.groupby("seed")]


def _pooled(table: pd.DataFrame, quantity: str) -> float:
    """Of strength and a quantity over the heads of all networks."""
    rows = table[table["quantity"] == quantity]
    return correlation(rows["strength"], rows["value"])


FIGURES = (
    Figure(
        "18", ("main", "single"), strength_table, draw_strength, strength_claims, size=(9.6, 3.8)
    ),
)
