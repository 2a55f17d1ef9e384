"""Figures 14 and 16, Tables 2 and 3, additivity: heads of a trained network, alone and together."""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from torch import Tensor

from ih_interp import plots
from ih_interp.analysis.ablation import single_heads
from ih_interp.analysis.ablation.additivity import additivity_test
from ih_interp.analysis.dynamics.emergence import LEARNED
from ih_interp.batch import Batch
from ih_interp.paper.claims import Claim, Judging, Measured, Rule, by_rules, by_seed, judge
from ih_interp.paper.drawing import networks_beside
from ih_interp.paper.recipes import last_layer_heads
from ih_interp.paper.study import Figure, Study, each_run
from ih_interp.plots.additivity import METRIC_NAMES
from ih_interp.runs import Run

ORDERS = ("the strongest first", "without the strongest")
"""Orders in which heads are added back, by falling induction strength."""

SECOND_ROW = 2.2  # inches, of other networks
BY_CHANCE = 3.0  # times the spread that sampling alone gives: above it, accuracies differ
MOST_SEQUENCES = 2_000  # each has 256 subsets to compute; intervals stay narrow
RESAMPLES = 200  # of sequences, for intervals
ADDITIVE = 0.9  # R squared from which heads are said to add up


# Figure 14: heads of the last layer are added back one by one


@each_run
def added_table(_: Study, run: Run, batch: Batch) -> pd.DataFrame:
    """Return the loss as heads are added back: `seed`, `run`, `order`, `n_heads`, `value` ...

    `order` is one of `ORDERS`; `value` has the unit and chance of `Study.losses`, `low` and `high`
    are `add_back`'s intervals over sequences. The first order's last row is the whole network.
    """
    model = run.model()
    first = single_heads.add_back(model, batch, metrics="loss").assign(order=ORDERS[0])
    others = first["head"].dropna().tolist()[1:]
    second = single_heads.add_back(model, batch, others, metrics="loss").assign(order=ORDERS[1])
    return pd.concat([first, second], ignore_index=True)


def plot_added(rows: pd.DataFrame, ax: Axes) -> None:
    """Draw Figure 14 for one network."""
    tables = {name: rows[rows["order"] == name] for name in ORDERS}
    plots.plot_add_back(tables, ax, none_ablated=float(tables[ORDERS[0]]["value"].iloc[-1]))


def _added(rows: pd.DataFrame) -> Measured:
    """Return one network's losses with 0, 1, 2 ... heads on, and how they fall."""
    with_it, without = (
        rows[rows["order"] == order].sort_values("n_heads")["value"].to_numpy(dtype=float)
        for order in ORDERS
    )
    falls = -np.diff(with_it)
    return {
        **{f"with {n}": with_it[n] for n in (1, 2, 4)},
        "with all": with_it[-1],
        "falls": falls,
        "first": falls[0],
        "second": falls[1],
        "others": falls[2:].sum(),
        "without": without[-1],
    }


added_claims = by_rules(
    "14",
    _added,
    each_helps=lambda n: (n["falls"] > 0).all(),
    diminishing=lambda n: n["first"] > n["falls"][1:].sum() and n["second"] > n["others"] > 0,
    none_essential=lambda n: n["without"] < LEARNED,
)


# Figure 16: what heads do alone with a perfect match, and label by label


@each_run
def label_table(_: Study, run: Run, batch: Batch) -> pd.DataFrame:
    """Return accuracies of heads alone, by match and by label.

    Columns: those of `each_run`, `quantity`, `match`, `head`, `value` and others. `quantity` is
    "accuracy of all" (panel a; `match` is "computed" or "perfect", `strength` that of the network
    as it is), or those of `label_specific_accuracy` with a perfect match: "accuracy" (c) and
    "mistake_share" (b) by `label`, with `sequences` and `mistakes` of that label. Chance of both
    accuracies is 1/L for L labels (a guess between the context's two: 1/2); even shares of mistakes
    are 1/L, too.
    """
    model = run.model()
    parts = [single_heads.label_specific_accuracy(model, batch).assign(match="perfect")]
    for match, perfect in (("computed", False), ("perfect", True)):
        alone = single_heads.ablate_each_head(
            model, batch, metrics="accuracy", perfect_match=perfect
        )
        alone = alone[alone["kept"] == "only"].drop(columns=["kept", "metric"])
        parts.append(alone.assign(quantity="accuracy of all", match=match))
    return pd.concat(parts, ignore_index=True)


def draw_labels(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw panel a of every network, b and c of the first, and c of the others in a second row."""
    first, *others = by_seed(table)
    width, height = canvas.get_size_inches()
    heights = [height, SECOND_ROW] if others else [height]
    canvas.set_size_inches(width, sum(heights))
    rows = canvas.add_gridspec(len(heights), 1, height_ratios=heights)
    match, mistakes, accuracy = canvas.add_subfigure(rows[0]).subplots(1, 3)
    plots.plot_matches(table[table["quantity"] == "accuracy of all"], match)
    plots.plot_label_accuracy(first, mistakes, quantity="mistake_share", bar=False)
    mistakes.set_title("Perfect match: label of its mistakes")
    plots.plot_label_accuracy(first, accuracy, bar=False)
    accuracy.set_title("Perfect match: accuracy by label")
    if others:
        axes = canvas.add_subfigure(rows[1]).subplots(1, len(others), squeeze=False)[0]
        for network, ax in zip(others, axes, strict=True):
            plots.plot_label_accuracy(network, ax, bar=False)
            ax.set_title(f"accuracy by label, seed {network['seed'].iloc[0]}")


def _labels(network: pd.DataFrame) -> Measured:
    """Return how many heads gain by a perfect match, and how accuracies spread over labels."""
    whole = network[network["quantity"] == "accuracy of all"]
    alone = whole.pivot_table(index="head", columns="match", values="value")
    gain = alone["perfect"] - alone["computed"]
    rows = network[network["quantity"] == "accuracy"]
    values, sizes = (
        rows.pivot_table(index="head", columns="label", values=of) for of in ("value", "sequences")
    )
    pooled = (values * sizes).sum(axis=1) / sizes.sum(axis=1)
    by_chance = (pooled * (1 - pooled) * (1 / sizes).mean(axis=1)) ** 0.5
    excess = values.std(axis=1) / by_chance.where(by_chance > 0)
    return {
        "gained": float((gain > 0).sum()),
        "share gained": float((gain > 0).mean()),
        "gain": float(gain.mean()),
        "range": float((values.max(axis=1) - values.min(axis=1)).median()),
        "share specific": float((excess.fillna(0) > BY_CHANCE).mean()),
    }


label_claims = by_rules(
    "16",
    _labels,
    perfect_match_helps=lambda n: n["share gained"] > 0.5 and n["gain"] > 0,
    label_specific=lambda n: n["share specific"] > 0.5,
)


# Tables 2 and 3: mistakes of the strongest head alone that another head corrects


def _claims(figure: str, **rules: Rule) -> Judging:
    """Return the function that judges networks whose strongest head alone makes mistakes.

    The claims count the other networks in words.
    """

    def claims(table: pd.DataFrame) -> list[Claim]:
        networks = [_corrected(rows) for rows in by_seed(table[table["mistakes"] > 0])]
        others = table["seed"].nunique() - len(networks)
        words = {0: "", 1: "; 1 network makes no mistake"}
        told = words.get(others, f"; {others} networks make no mistake")
        found = judge(figure, networks, rules) if networks else []
        return [claim._replace(ours=claim.ours + told) for claim in found]

    return claims


corrected_claims = _claims(
    "table 2",
    complement=lambda n: n["best"] > 0.5,
    fail_together=lambda n: n["fewer"] > n["heads"] / 2,
)

perfect_claims = _claims("table 3", differ=lambda n: n["differ"] > n["heads"] / 2)


def _corrected(rows: pd.DataFrame) -> Measured:
    share, accuracy = rows["value"], rows["accuracy"]
    return {
        "heads": len(rows),
        "best": float(share.max()),
        "fewer": float((share < accuracy).sum()),
        "least": float((share / accuracy).min()),
        "largest": float((share / accuracy).max()),
        "differ": float(((rows["low"] > accuracy) | (rows["high"] < accuracy)).sum()),
    }


# Beyond the paper's figures: whether the heads that it calls additive add up, on four scales


@each_run
def additive_table(_: Study, run: Run, batch: Batch) -> pd.DataFrame:
    """Return how well heads add up.

    Columns: those of `each_run`, `metric`, `part`, `value`, `low`, `high`. `value` is R squared of
    the best additive fit to the mean metric of every subset of the last layer's heads, of
    `additivity_test`: 1 if they add up, 8/255 for a random game. Log-odds are those of the target
    against all other labels, log p / (1 - p). Means are over the study's sequences or, where they
    are more than `MOST_SEQUENCES`, a sample of so many; `low` and `high` resample sequences.
    """
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


def log_odds(logits: Float[Tensor, "sequence label"], batch: Batch) -> Float[Tensor, " sequence"]:
    """Return the target's log p / (1 - p), any real number; chance -log(L - 1)."""
    target = batch.target[:, None]
    others = logits.scatter(1, target, -torch.inf)
    return logits.gather(1, target)[:, 0] - others.logsumexp(dim=1)


def draw_additive(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw every network in one picture."""
    names = [METRIC_NAMES[metric] for metric in dict.fromkeys(table["metric"])]
    plots.plot_additive_fits(table, canvas.subplots(), names=names)


def _totals(rows: pd.DataFrame) -> Measured:
    total = rows[rows["part"] == "total"]
    return dict(zip(total["metric"], total["value"], strict=True))


additive_claims = by_rules(
    "additivity",
    _totals,
    before_softmax=lambda n: min(n["logit_difference"], n["log_odds"]) > ADDITIVE,
    after_softmax=lambda n: max(n["probability"], n["loss"]) < n["log_odds"],
)


def _corrected_figure(name: str, claims: Judging, *, perfect_match: bool) -> Figure:
    """Return the figure of the strongest head's mistakes that another corrects.

    Its columns are those of `each_run` and `mistakes_corrected`; `value` is a share, in [0, 1]: the
    head's `accuracy` if mistakes were independent.
    """

    @each_run
    def table(_: Study, run: Run, batch: Batch) -> pd.DataFrame:
        return single_heads.mistakes_corrected(run.model(), batch, perfect_match=perfect_match)

    return Figure(name, ("main",), table, networks_beside(plots.plot_corrected), claims, (9.0, 3.8))


FIGURES = (
    Figure("14", ("main",), added_table, networks_beside(plot_added), added_claims, (9.0, 3.8)),
    Figure("16", ("main",), label_table, draw_labels, label_claims, (11.0, 3.6)),
    _corrected_figure("table 2", corrected_claims, perfect_match=False),
    _corrected_figure("table 3", perfect_claims, perfect_match=True),
    Figure("additivity", ("main",), additive_table, draw_additive, additive_claims),
)
