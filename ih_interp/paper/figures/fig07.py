"""Figure 7: the rest of a network learns under a trained first layer, its own or another's."""

from functools import partial

import pandas as pd
from matplotlib.axes import Axes

from ih_interp.paper.claims import Claim
from ih_interp.paper.judging import (
    UNTIL_LEARNED,
    Measured,
    Rule,
    judge,
    surely_longer,
    times_of,
    when,
)
from ih_interp.paper.study import Figure, Study
from ih_interp.plots._style import DONOR_LINES, count_sequences, legend_off_curves
from ih_interp.plots._tables import expect_known
from ih_interp.plots.curves import guess_line
from ih_interp.plots.seeds import plot_curve, plot_each_network


def graft_table(study: Study) -> pd.DataFrame:
    """Return training losses with trained first layers grafted in, and without.

    Columns: `seed`, `run`, `donor` (the seed of the network that gives embedding and layer 0, or
    "none"), `whose` (a key of `DONOR_LINES`), `sequences`, `loss` as in `Study.losses`.
    """
    grafted = study.losses("grafts").rename(columns={"condition": "donor"})
    free = study.losses("main").assign(donor="none")
    table = pd.concat([free, grafted], ignore_index=True)
    table["whose"] = _whose(table)
    return table[["seed", "run", "donor", "whose", "sequences", "loss"]]


def _whose(table: pd.DataFrame) -> pd.Series:
    """Name each row's donor: "none", "own", or another in order of seeds (`DONOR_LINES`)."""
    others = [name for name in DONOR_LINES if name not in ("none", "own")]
    pairs = table[["seed", "donor"]].drop_duplicates()
    names: dict[tuple[int, str], str] = {}
    for seed, donors in pairs.groupby("seed")["donor"]:
        own = str(seed)
        strangers = sorted((d for d in donors if d not in ("none", own)), key=int)
        named = {"none": "none", own: "own", **dict(zip(strangers, others, strict=False))}
        names |= {(int(own), donor): name for donor, name in named.items()}
    keys = zip(table["seed"], table["donor"], strict=True)
    return pd.Series([names[key] for key in keys], index=table.index)


def graft_claims(table: pd.DataFrame) -> list[Claim]:
    """Judge how fast the rest is learned with which trained layer grafted in."""
    networks: list[Measured] = []
    for times in times_of(table, "whose"):
        others = [time for whose, time in times.items() if whose not in ("none", "own")]
        networks.append({**times, "others": others, "slowest": max(others, key=when)})
    return judge(
        "7",
        networks,
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
    expect_known(table, "whose", DONOR_LINES)
    for whose, (words, line) in DONOR_LINES.items():
        curve = table[table["whose"] == whose]
        if len(curve):
            donor = curve["donor"].iloc[0]
            label = words if whose == "none" else f"{words} (seed {donor})"
            own = {"color": line.colour, "linestyle": line.dash, "label": label}
            plot_curve(curve, ax, x="sequences", y="loss", **own)
    guess_line(ax)
    count_sequences(ax)
    end = table.loc[table["whose"] != "none", "sequences"].max() * 3 / 4
    ax.set(
        xlim=(0, end),
        ylim=(0, None),
        ylabel="training loss (nats)",
        title=f"Trained first layer grafted in, seed {table['seed'].iloc[0]}",
    )
    legend_off_curves(ax, title="source of embedding and layer 0", fontsize=8)
    return ax


FIGURES = (
    Figure(
        "7",
        ("main", "grafts"),
        graft_table,
        partial(plot_each_network, plot=plot_grafts),
        graft_claims,
        size=(8.4, 3.6),
    ),
)
