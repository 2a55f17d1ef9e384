"""Figure "11 init": does composition before training tell which pairs of heads will work?"""

import math

import pandas as pd
from matplotlib.figure import Figure as Canvas

from ih_interp.paper.figures.fig11 import GUESS, PATHS, causal_maps, composition_maps
from ih_interp.paper.judging import Measured, Rule, by_rules, rank_correlation
from ih_interp.paper.study import Figure, Study
from ih_interp.plots._style import HEAD_COLOURS, HEAD_MARKERS
from ih_interp.runs import Run
from ih_interp.types import Batch

AGREES = 0.5
"""Rank correlation from which one quantity would be called a good prediction of another."""


def composition_table(study: Study) -> pd.DataFrame:
    """Return composition before training beside that at the end, and beside what pairs then do.

    Columns: those of `Study.each_run`, `through` ("patterns": K-composition, "values": V),
    `sender`, `receiver`, `start` and `end` (`output_composition`, chance about 0.125), and
    `accuracy` with that pair of heads alone left, as "one left" of Figure 11 (chance 1/L for L
    labels).
    """

    def measure(run: Run, batch: Batch) -> pd.DataFrame:
        pairs = ["through", "sender", "receiver"]
        tables = {
            "start": composition_maps(run.model(0)),
            "end": composition_maps(run.model()),
            "accuracy": causal_maps(run.model(), batch, ["one left"]),
        }
        columns = {name: table.set_index(pairs)["value"] for name, table in tables.items()}
        return pd.DataFrame(columns).reset_index()

    return study.each_run(measure)


def _measure(network: pd.DataFrame) -> Measured:
    """Return one network's best pair and rank correlations, through patterns and values."""
    found: dict[str, float] = {}
    for through in PATHS:
        rows = network[network["through"] == through]
        start, accuracy = rows["start"], rows["accuracy"]
        best = start.iloc[int(accuracy.argmax())]
        found |= {
            f"{through} best": float(accuracy.max()),
            f"{through} function": rank_correlation(start, accuracy),
            f"{through} stays": rank_correlation(start, rows["end"]),
            f"{through} rank": float(1 + (start > best).sum()),
            f"{through} excess": float(best - start.mean()),
        }
    return found


def _holds(n: Measured, name: str, low: float, high: float) -> bool:
    """Return whether a number is in bounds for K and for V, and the best pairs above a guess."""
    return all(n[f"{p} best"] > GUESS and low < n[f"{p} {name}"] < high for p in PATHS)


composition_claims = by_rules(
    "11 init",
    _measure,
    Rule(
        "composition before training does not tell which pairs work, the best above a guess: "
        f"rank correlation with a pair's accuracy alone, K and V (both within {AGREES} of 0)",
        "no (no number)",
        "{patterns function:.2f}, {values function:.2f}; with composition at the end "
        "{patterns stays:.2f}, {values stays:.2f}",
        lambda n: _holds(n, "function", -AGREES, AGREES),
    ),
    Rule(
        "the pair that works best, above a guess, was not the one that composed most before "
        "training: its rank then of 64, K and V (neither is 1)",
        "neither is",
        "{patterns rank:.0f}, {values rank:.0f}",
        lambda n: _holds(n, "rank", 1, math.inf),
    ),
    Rule(
        "the pair that works best, above a guess, even composed less than the average pair "
        "before training: its composition then less the mean, K and V (both below 0)",
        "both below 0 (no number)",
        "{patterns excess:+.3f}, {values excess:+.3f}",
        lambda n: _holds(n, "excess", -math.inf, 0),
    ),
)


def plot_composition_before(table: pd.DataFrame, figure: Canvas) -> None:
    """Draw how strongly pairs of heads compose before training, against what they do at its end.

    Columns `seed`, `through` (a key of `PATHS`), `start`, `accuracy`. One panel each for K and V,
    one marker per network; its best pair is ringed. The dashed line is the mean at the start.
    """
    for ax, (through, (_, letter)) in zip(
        figure.subplots(1, len(PATHS), sharey=True), PATHS.items(), strict=True
    ):
        panel = table[table["through"] == through]
        for n, (seed, rows) in enumerate(panel.groupby("seed")):
            colour = HEAD_COLOURS[(0, 5, 6, 3, 7)[n % 5]]
            marker = HEAD_MARKERS[n % len(HEAD_MARKERS)]
            own = {"color": colour, "markersize": 4, "alpha": 0.7, "label": f"seed {seed}"}
            ax.plot(rows["start"], rows["accuracy"], marker, linestyle="", **own)
            best = rows.iloc[int(rows["accuracy"].argmax())]
            ax.plot(best["start"], best["accuracy"], "o", mfc="none", mec=colour, markersize=11)
        ax.axvline(float(panel["start"].mean()), color="0.5", linewidth=0.9, linestyle="--")
        ax.set_xlabel(f"{letter}-composition before training")
        ax.set_title(f"Pairs acting through {through}")
    left, right = figure.axes
    left.set_ylabel("accuracy at the end, that pair alone")
    right.legend(title="ringed: best pair", loc="center left", bbox_to_anchor=(1, 0.5))


FIGURES = (
    Figure(
        "11 init",
        ("main",),
        composition_table,
        plot_composition_before,
        composition_claims,
        (8.4, 3.9),
    ),
)
