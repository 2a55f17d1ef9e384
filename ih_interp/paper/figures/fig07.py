"""Figure 7: the rest of a network learns under a trained first layer, its own or another's."""

import pandas as pd
from matplotlib.axes import Axes

from ih_interp.paper.drawing import BESIDE, draw_conditions, finish_losses, networks_beside
from ih_interp.paper.judging import (
    UNTIL_LEARNED,
    Measured,
    Rule,
    by_rules,
    surely_longer,
    times_of,
    when,
)
from ih_interp.paper.study import Figure, Study
from ih_interp.plots._style import Line

DONOR_LINES: dict[str, tuple[str, Line]] = {
    "none": ("nothing grafted", Line("#000000")),
    "own": ("its own", Line("#D55E00")),
    "another's": ("another's", Line("#0072B2", (0, (5, 1)))),
    "a third's": ("a third's", Line("#009E73", (0, (3, 1, 1, 1)))),
}
"""The networks whose trained embedding and layer 0 are grafted in, in words, and their lines."""


def graft_table(study: Study) -> pd.DataFrame:
    """Return training losses with trained first layers grafted in, and without.

    Columns: `seed`, `run`, `donor` (the seed of the network that gives embedding and layer 0, or
    "none"), `whose` (a key of `DONOR_LINES`), `sequences`, `loss` as in `Study.losses`.
    """
    grafted = study.losses("grafts", by="donor")
    free = study.losses("main").assign(donor="none")
    table = pd.concat([free, grafted], ignore_index=True)
    table["whose"] = _whose(table)
    return table[["seed", "run", "donor", "whose", "sequences", "loss"]]


def _whose(table: pd.DataFrame) -> pd.Series:
    """Name each row's donor: "none", "own", or another in order of seeds."""
    names: dict[tuple[int, str], str] = {}
    for seed, donors in table.groupby("seed")["donor"]:
        others = sorted({*donors} - {"none", str(seed)}, key=int)
        for name, donor in zip(DONOR_LINES, ["none", str(seed), *others], strict=False):
            names[int(str(seed)), donor] = name
    keys = zip(table["seed"], table["donor"], strict=True)
    return pd.Series([names[key] for key in keys], index=table.index)


def _measure(rows: pd.DataFrame) -> Measured:
    """Return when one network learned, by donor, and the times with donors that are not its own."""
    (times,) = times_of(rows, "whose")
    others = [time for whose, time in times.items() if whose not in ("none", "own")]
    return {**times, "others": others, "slowest": max(others, key=when)}


graft_claims = by_rules(
    "7",
    _measure,
    Rule(
        "a network's own trained first layer shortens training to less than a third: "
        f"{UNTIL_LEARNED}",
        "own 27k, none 273k",
        "own {own}, none {none}",
        lambda n: surely_longer(n["none"], n["own"], factor=3),
    ),
    Rule(
        "which trained first layer it is matters greatly, the slowest donor taking over three "
        f"times as long as its own: {UNTIL_LEARNED}",
        "own 27k, others 243k and 214k",
        "own {own}, the slowest {slowest}",
        lambda n: any(surely_longer(donor, n["own"], factor=3) for donor in n["others"]),
    ),
)


def plot_grafts(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw Figure 7: training losses of one network with another's embedding and layer 0.

    Columns `sequences`, `loss`, `seed` of the network, `donor` (its seed, or "none") and `whose` (a
    key of `DONOR_LINES`). As in the paper, three quarters of the grafted runs.
    """

    def label(words: str, rows: pd.DataFrame) -> str:
        donor = rows["donor"].iloc[0]
        return words if donor == "none" else f"{words} (seed {donor})"

    draw_conditions(table, ax, "whose", DONOR_LINES, label=label)
    end = float(table.loc[table["whose"] != "none", "sequences"].max()) * 3 / 4
    title = f"Trained first layer grafted in, seed {table['seed'].iloc[0]}"
    finish_losses(ax, end, title=title, legend="source of embedding and layer 0", fontsize=8)
    return ax


FIGURES = (
    Figure(
        "7", ("main", "grafts"), graft_table, networks_beside(plot_grafts), graft_claims, BESIDE
    ),
)
