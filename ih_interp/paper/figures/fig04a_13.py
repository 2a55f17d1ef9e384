"""Figures 4a and 13: what heads of a trained network do alone, and what it does without them."""

from functools import partial

import pandas as pd
from matplotlib.figure import Figure as Canvas

from ih_interp.analysis.ablation.single_heads import ablate_each_head
from ih_interp.evaluation import Metric
from ih_interp.paper.claims import Judging
from ih_interp.paper.drawing import BESIDE, plot_each_network
from ih_interp.paper.judging import Measured, Rule, by_rules, correlation
from ih_interp.paper.study import Figure, Study
from ih_interp.plots import plot_ablate_each_head

LINEAR = 0.95  # correlation of strength and accuracy that every network of the paper exceeds
ACCURATE = 0.9  # accuracy with all heads above which a network has learned


def ablation_table(study: Study, metric: Metric) -> pd.DataFrame:
    """Return one metric with only a head on and with all but it, for every network with all heads.

    Columns: `seed`, `run`, `n_sequences`, and those of `ablate_each_head`; loss and accuracy as in
    `Study.losses`, but over `batch`.
    """
    return study.each_network(lambda model, batch: ablate_each_head(model, batch, metrics=[metric]))


def _measure(rows: pd.DataFrame) -> Measured:
    """Return one network's metric with all heads, only the strongest, without it, or another."""
    heads = rows.dropna(subset=["strength"]).sort_values("strength")
    strongest = str(heads["head"].iloc[-1])
    alone = rows[rows["kept"] == "only"]
    only, without = (
        rows[rows["kept"] == kept].set_index("head")["value"] for kept in ("only", "without")
    )
    return {
        "r": correlation(alone["strength"], alone["value"]),
        "all": float(rows.loc[rows["kept"] == "all", "value"].iloc[0]),
        "only": float(only[strongest]),
        "without": float(without[strongest]),
        "others": float(without.drop(strongest).min()),
    }


def _unneeded(n: Measured, without: str) -> bool:
    """Return whether a network that has learned loses little accuracy without a head."""
    return n[without] > n["all"] - 0.02 and n["all"] > ACCURATE


accuracy_claims = by_rules(
    "4a",
    _measure,
    Rule(
        f"accuracy with only a head on grows linearly with its strength: r above {LINEAR}",
        "0.959; 0.977, 0.994, 0.965, 0.960 in its other networks",
        "{r:.3f}",
        lambda n: n["r"] > LINEAR,
    ),
    Rule(
        "the strongest head alone is nearly enough: accuracy above 0.9 with only it",
        "0.980; 0.992, 0.999, 0.933, 0.916 in its other networks",
        "{only:.3f}",
        lambda n: n["only"] > 0.9,
    ),
    Rule(
        "it is not needed: accuracy without it less than 0.02 below that of all heads",
        "0.987; 0.944, 0.886, 0.99, 0.927 in its other networks",
        "{without:.3f}",
        lambda n: _unneeded(n, "without"),
        varies=True,
    ),
    Rule(
        "nor is any other: least accuracy without one, less than 0.02 below that of all heads",
        "about 1.0",
        "{others:.3f}",
        lambda n: _unneeded(n, "others"),
    ),
)

loss_claims = by_rules(
    "13",
    _measure,
    Rule(
        f"loss with only a head on falls with its strength: r below {-LINEAR}",
        "-0.97",
        "{r:.3f}",
        lambda n: n["r"] < -LINEAR,
    ),
    Rule(
        "the others replace the strongest head better than it does them: "
        "loss with only it, without it",
        "0.12, 0.035",
        "{only:.3f}, {without:.3f}",
        lambda n: n["without"] < n["only"],
        varies=True,
    ),
)


def draw_ablations(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw Figure 4a or 13: one panel per network."""
    (metric,) = table["metric"].unique()
    axes = plot_each_network(table, canvas, partial(plot_ablate_each_head, metric=metric))
    for ax in axes:
        ax.set_ylim(0, 1.05 if metric == "accuracy" else None)
    for ax in axes[1:]:
        for text in [*ax.texts]:  # names of heads, too many for small axes
            text.remove()
    axes[0].set_title("One head of layer 1 (the paper's 2) alone, or ablated")


def _figure(name: str, metric: Metric, claims: Judging) -> Figure:
    table = partial(ablation_table, metric=metric)
    return Figure(name, ("main",), table, draw_ablations, claims, BESIDE)


FIGURES = (_figure("4a", "accuracy", accuracy_claims), _figure("13", "loss", loss_claims))
