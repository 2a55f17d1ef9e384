"""Figure 16: what heads of the last layer do alone with a perfect match, and label by label."""

import pandas as pd
from matplotlib.figure import Figure as Canvas

from ih_interp.analysis.ablation.single_heads import ablate_each_head, label_specific_accuracy
from ih_interp.paper.judging import Measured, Rule, by_rules, by_seed
from ih_interp.paper.study import Figure, Study
from ih_interp.plots import plot_label_accuracy, plot_matches
from ih_interp.runs import Run
from ih_interp.types import Batch

SECOND_ROW = 2.2  # inches, of other networks
BY_CHANCE = 3.0  # times the spread that sampling alone gives: above it, accuracies differ


def label_table(study: Study) -> pd.DataFrame:
    """Return accuracies of heads alone, by match and by label.

    Columns: those of `Study.each_run`, `quantity`, `match`, `head`, `value` and others.

    `quantity` is "accuracy of all" (panel a; `match` is "computed" or "perfect", `strength` that of
    the network as it is), or those of `label_specific_accuracy` with a perfect match: "accuracy"
    (c) and "mistake_share" (b) by `label`, with `sequences` and `mistakes` of that label. Chance of
    both accuracies is 1/L for L labels (a guess between the context's two: 1/2); even shares of
    mistakes are 1/L, too.
    """

    def measure(run: Run, batch: Batch) -> pd.DataFrame:
        model = run.model()
        parts = [label_specific_accuracy(model, batch).assign(match="perfect")]
        for match, perfect in (("computed", False), ("perfect", True)):
            alone = ablate_each_head(model, batch, metrics="accuracy", perfect_match=perfect)
            alone = alone[alone["kept"] == "only"].drop(columns=["kept", "metric"])
            parts.append(alone.assign(quantity="accuracy of all", match=match))
        return pd.concat(parts, ignore_index=True)

    return study.each_run(measure)


def draw_labels(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw panel a of every network, b and c of the first, and c of the others in a second row."""
    first, *others = by_seed(table)
    width, height = canvas.get_size_inches()
    heights = [height, SECOND_ROW] if others else [height]
    canvas.set_size_inches(width, sum(heights))
    rows = canvas.add_gridspec(len(heights), 1, height_ratios=heights)
    match, mistakes, accuracy = canvas.add_subfigure(rows[0]).subplots(1, 3)
    plot_matches(table[table["quantity"] == "accuracy of all"], match)
    plot_label_accuracy(first, mistakes, quantity="mistake_share", bar=False)
    mistakes.set_title("Perfect match: label of its mistakes")
    plot_label_accuracy(first, accuracy, bar=False)
    accuracy.set_title("Perfect match: accuracy by label")
    if others:
        axes = canvas.add_subfigure(rows[1]).subplots(1, len(others), squeeze=False)[0]
        for network, ax in zip(others, axes, strict=True):
            plot_label_accuracy(network, ax, bar=False)
            ax.set_title(f"accuracy by label, seed {network['seed'].iloc[0]}")


def _measure(network: pd.DataFrame) -> Measured:
    """Return how many heads gain by a perfect match, and how accuracies spread over labels."""
    whole = network[network["quantity"] == "accuracy of all"]
    alone = whole.pivot_table(index="head", columns="match", values="value")
    gain = alone["perfect"] - alone["computed"]
    rows = network[network["quantity"] == "accuracy"]
    values, sizes = (
        rows.pivot_table(index="head", columns="label", values=column)
        for column in ("value", "sequences")
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
    _measure,
    Rule(
        "a perfect match raises the accuracy of most heads alone: of 8, in the mean by",
        "7, 0.08",
        "{gained}, {gain:.2f}",
        lambda n: n["share gained"] > 0.5 and n["gain"] > 0,
    ),
    Rule(
        "copying is label-specific: from its worst to its best label a head's accuracy differs "
        f"(median of heads), and in most heads it spreads over labels {BY_CHANCE:.0f} times as "
        "much as sequences drawn from one accuracy",
        "by 0.54",
        "by {range:.2f}",
        lambda n: n["share specific"] > 0.5,
    ),
)


FIGURES = (Figure("16", ("main",), label_table, draw_labels, label_claims, (11.0, 3.6)),)
