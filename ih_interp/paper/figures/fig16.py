"""Figure 16: what heads of the last layer do alone with a perfect match, and label by label."""

import pandas as pd
from matplotlib.figure import Figure as Canvas

from ih_interp.analysis.ablation.single_heads import ablate_each_head, label_specific_accuracy
from ih_interp.paper.study import Claim, Figure, Study, decimals, judged, over_seeds
from ih_interp.plots import plot_label_accuracy, plot_matches
from ih_interp.runs import Run
from ih_interp.types import Batch

SECOND_ROW = 2.2  # inches, of other networks
BY_CHANCE = 3.0  # times the spread that sampling alone gives: above it, accuracies differ


def label_table(study: Study) -> pd.DataFrame:
    """Heads alone, by match and by label: `seed`, `run`, `quantity`, `match`, `head`, `value` ...

    `quantity` is "accuracy of all" (panel a; `match` is "computed" or "perfect", `strength` that of
    the network as it is), or those of `label_specific_accuracy` with a perfect match: "accuracy"
    (c) and "mistake_share" (b) by `label`, with `sequences` and `mistakes` of that label. Chance of
    both accuracies is 1/L for L labels (a guess between the context's two: 1/2); even shares of
    mistakes are 1/L, too.
    """

    def measure(run: Run, batch: Batch) -> pd.DataFrame:
        model = run.model()
        parts = [label_specific_accuracy(model, batch).assign(match="perfect")]
        for match in ("computed", "perfect"):
            perfect = match == "perfect"
            alone = ablate_each_head(model, batch, metrics="accuracy", perfect_match=perfect)
            alone = alone[alone["kept"] == "only"].drop(columns=["kept", "metric"])
            parts.append(alone.assign(quantity="accuracy of all", match=match))
        return pd.concat(parts, ignore_index=True)

    return study.each_run(measure)


def draw_labels(table: pd.DataFrame, canvas: Canvas) -> None:
    """Panel a of every network, b and c of the first; c of the others small in a second row."""
    seeds = sorted(table["seed"].unique())
    first = table[table["seed"] == seeds[0]]
    width, height = canvas.get_size_inches()
    heights = [height, SECOND_ROW] if seeds[1:] else [height]
    canvas.set_size_inches(width, sum(heights))
    rows = canvas.add_gridspec(len(heights), 1, height_ratios=heights)
    top = canvas.add_subfigure(rows[0])
    match, mistakes, accuracy = top.subplots(1, 3)
    plot_matches(table[table["quantity"] == "accuracy of all"], match)
    plot_label_accuracy(first, mistakes, quantity="mistake_share", bar=False)
    mistakes.set_title("Perfect match: label of its mistakes")
    plot_label_accuracy(first, accuracy, bar=False)
    accuracy.set_title("Perfect match: accuracy by label")
    if seeds[1:]:
        axes = canvas.add_subfigure(rows[1]).subplots(1, len(seeds) - 1, squeeze=False)[0]
        for seed, ax in zip(seeds[1:], axes, strict=True):
            plot_label_accuracy(table[table["seed"] == seed], ax, bar=False)
            ax.set_title(f"accuracy by label, seed {seed}")


def label_claims(table: pd.DataFrame) -> list[Claim]:
    """A perfect match helps most heads; what they copy still depends on the label."""
    whole, by_label = (
        [rows for _, rows in table[table["quantity"] == quantity].groupby("seed")]
        for quantity in ("accuracy of all", "accuracy")
    )
    both = [rows.pivot_table(index="head", columns="match", values="value") for rows in whole]
    gains = [rows["perfect"] - rows["computed"] for rows in both]
    spreads = [_spread(rows) for rows in by_label]
    ranges = [float((s["high"] - s["low"]).median()) for s in spreads]
    excess = [s["spread"] / s["by_chance"].where(s["by_chance"] > 0) for s in spreads]
    return [
        judged(
            "16",
            "a perfect match raises the accuracy of most heads alone: of 8, in the mean by",
            paper="7, 0.08",
            ours=f"{over_seeds([float((gain > 0).sum()) for gain in gains])}, "
            f"{over_seeds([float(gain.mean()) for gain in gains], decimals(2))}",
            holds=[bool((gain > 0).mean() > 0.5 and gain.mean() > 0) for gain in gains],
        ),
        judged(
            "16",
            "copying is label-specific: from its worst to its best label a head's accuracy differs "
            f"(median of heads), and in most heads it spreads over labels {BY_CHANCE:.0f} times as "
            "much as sequences drawn from one accuracy",
            paper="by 0.54",
            ours=f"by {over_seeds(ranges, decimals(2))}",
            holds=[bool((times.fillna(0) > BY_CHANCE).mean() > 0.5) for times in excess],
        ),
    ]


def _spread(rows: pd.DataFrame) -> pd.DataFrame:
    """By head: least and largest accuracy over labels, their standard deviation, that by chance."""
    values = rows.pivot_table(index="head", columns="label", values="value")
    sizes = rows.pivot_table(index="head", columns="label", values="sequences")
    pooled = (values * sizes).sum(axis=1) / sizes.sum(axis=1)
    chance = (pooled * (1 - pooled) * (1 / sizes).mean(axis=1)) ** 0.5
    spread = values.std(axis=1)
    return pd.DataFrame(
        {"low": values.min(axis=1), "high": values.max(axis=1), "spread": spread}
    ).assign(by_chance=chance)


FIGURES = (Figure("16", ("main",), label_table, draw_labels, label_claims, size=(11.0, 3.6)),)
