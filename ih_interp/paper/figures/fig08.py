"""Figure 8: previous-token attention is perfect in one head of layer 0, in several, in all."""

import pandas as pd
from matplotlib.axes import Axes

from ih_interp.clamps import PreviousTokenAttention
from ih_interp.paper.drawing import draw_conditions, finish_losses, panels
from ih_interp.paper.judging import UNTIL_LEARNED, Rule, by_rules, surely_longer, times_of
from ih_interp.paper.study import Figure, Study
from ih_interp.plots._style import Line

PREVIOUS_TOKEN_LINES: dict[str, tuple[str, Line]] = {
    "none": ("none", Line("#000000")),
    "best": ("the best previous-token head", Line("#0072B2", (0, (5, 1)))),
    "unlike": ("the head least like one", Line("#E69F00", (0, (1, 1)))),
    "like": ("every previous-token head", Line("#009E73", (0, (3, 1, 1, 1)))),
    "all": ("all heads of layer 0", Line("#D55E00")),
}
"""The conditions, in words, and their lines."""

SOME = ("best", "unlike", "like")  # conditions in which one head or several are clamped, not all


def previous_token_table(study: Study) -> pd.DataFrame:
    """Return training losses with heads of layer 0 attending perfectly, one induction head active.

    Columns: `seed`, `run`, `condition` (a key of `PREVIOUS_TOKEN_LINES`), `heads`, as "L0H2, L0H5",
    `sequences`, `loss` as in `Study.losses`. "none" is the network with that one head.
    """
    clamped = study.losses("previous_token")
    single = study.losses("single")
    heads = {seed: str(circuit.induction) for seed, circuit in study.circuits.items()}
    free = single[single["condition"] == single["seed"].map(heads)].assign(condition="none")
    table = pd.concat([free, clamped], ignore_index=True)
    table["heads"] = [
        _heads(study, seed, condition)
        for seed, condition in zip(table["seed"], table["condition"], strict=True)
    ]
    return table[["seed", "run", "condition", "heads", "sequences", "loss"]]


def _heads(study: Study, seed: int, condition: str) -> str:
    """Return the heads of layer 0 that a condition of Figure 8 clamps, read from the run."""
    if condition == "none":
        return ""
    clamps = study.runs["previous_token"][seed][condition].clamps
    (clamp,) = [clamp for clamp in clamps if isinstance(clamp, PreviousTokenAttention)]
    return ", ".join(map(str, sorted(clamp.heads)))


previous_token_claims = by_rules(
    "8",
    lambda rows: times_of(rows, "condition")[0],
    Rule(
        "one head or several, whichever, the slowest takes less than twice as long as the "
        f"fastest: {UNTIL_LEARNED}",
        "best 216k, unlike 280k, like 187k; one network",
        "best {best}, unlike {unlike}, like {like}",
        lambda n: all(
            surely_longer(n[one], n[other], factor=1 / 2) for one in SOME for other in SOME
        ),
        varies=True,
    ),
    Rule(
        f"all eight heads at once take longer than any of these: {UNTIL_LEARNED}",
        "all 564k; one network",
        "all {all}",
        lambda n: all(surely_longer(n["all"], n[name]) for name in SOME),
        varies=True,
    ),
    Rule(
        f"all eight heads at once take longer even than none clamped: {UNTIL_LEARNED}",
        "all 564k, none 310k; one network",
        "all {all}, none {none}",
        lambda n: surely_longer(n["all"], n["none"]),
        varies=True,
    ),
)


def plot_previous_token(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw Figure 8: training loss with perfect previous-token attention in heads of layer 0.

    Columns `sequences`, `condition` (a key of `PREVIOUS_TOKEN_LINES`), `loss`, `seed`, and `heads`,
    which the legend names where there is one network.
    """

    def label(words: str, rows: pd.DataFrame) -> str:
        one = rows["seed"].nunique() == 1 and rows["condition"].iloc[0] not in ("none", "all")
        return f"{words}: {rows['heads'].iloc[0]}" if one else words

    draw_conditions(table, ax, "condition", PREVIOUS_TOKEN_LINES, label=label)
    end = float(table.loc[table["condition"] != "none", "sequences"].max())
    title = "Perfect previous-token attention, one induction head"
    finish_losses(ax, end, title=title, legend="which heads of layer 0 (the paper's 1)")
    return ax


FIGURES = (
    Figure(
        "8",
        ("single", "previous_token"),
        previous_token_table,
        panels(plot_previous_token),
        previous_token_claims,
    ),
)
