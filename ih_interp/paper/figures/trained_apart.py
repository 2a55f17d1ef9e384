"""Figures 4b, 17 and 18: heads trained alone and in pairs, beside networks with all of them."""

import math
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter

from ih_interp.analysis.emergence import learned
from ih_interp.analysis.only_heads import only_and_without
from ih_interp.paper.figures.single_heads import LINEAR, correlation
from ih_interp.paper.study import Claim, Figure, Study, curves, decimals, judged, over_seeds
from ih_interp.plots.seeds import plot_each_network
from ih_interp.plots.single_heads import ALL_HEADS, plot_learning_of_heads, plot_strength_against
from ih_interp.plots.style import short_count

QUANTITIES: Mapping[str, str] = {
    "accuracy": "accuracy, only that head on",
    "loss": "loss (nats), only that head on",
    "learning_time": "sequences to learn, trained alone",
}
"""Panels of Figure 18, and what their y axes say."""


def apart_table(study: Study) -> pd.DataFrame:
    """Training loss of single-head networks and of all heads.

    Columns: `seed`, `run`, `heads` ("L1H3" or `ALL_HEADS`), `sequences`, `loss`.
    """
    singles = study.losses("single").rename(columns={"condition": "heads"})
    return _with_all_heads(study, [singles])


def apart_claims(table: pd.DataFrame) -> list[Claim]:
    """One head is enough if it is trained alone; all together learn faster than any."""
    times = learning_times(table)
    apart = [[t for name, t in n.items() if name != ALL_HEADS] for n in times]
    first, last = ([end(n) for n in apart] for end in (min, max))
    n_learned = [float(sum(map(math.isfinite, n))) for n in apart]
    together = [n[ALL_HEADS] for n in times]
    return [
        judged(
            "4b",
            f"every head learns the task if trained alone: how many of {len(apart[0])} do "
            "by the end; sequences of the first, the last",
            paper="8; 309k, 615k; 6 of 8 in one of its other networks",
            ours=f"{over_seeds(n_learned)}; {over_seeds(first)}, {over_seeds(last)}",
            holds=[found == len(n) for found, n in zip(n_learned, apart, strict=True)],
            varies=True,
        ),
        judged(
            "4b",
            "all heads together learn faster than any alone: sequences together, first alone",
            paper="272k, 309k; not in two of its other networks",
            ours=f"{over_seeds(together)}, {over_seeds(first)}",
            holds=[t < one for t, one in zip(together, first, strict=True)],
            varies=True,
        ),
    ]


def pairs_table(study: Study) -> pd.DataFrame:
    """Training loss of the strongest head beside each other, of it alone, and of all heads.

    Columns: `seed`, `run`, `heads` ("L1H3", "L1H3 + L1H0", `ALL_HEADS`), `sequences`, `loss`.
    """
    strongest = {seed: str(circuit.induction) for seed, circuit in study.circuits.items()}
    singles = study.losses("single")
    alone = singles[singles["condition"] == singles["seed"].map(strongest)]
    pairs = study.losses("pairs")
    names = pairs["seed"].map(strongest) + " + " + pairs["condition"]
    return _with_all_heads(
        study, [alone.rename(columns={"condition": "heads"}), pairs.assign(heads=names)]
    )


def pairs_claims(table: pd.DataFrame) -> list[Claim]:
    """A second head mostly helps the strongest one, and may do as much as all others."""
    times = learning_times(table)
    pairs = [[time for name, time in n.items() if "+" in name] for n in times]
    alone = [next(time for name, time in n.items() if _is_alone(name)) for n in times]
    faster = [float(sum(t < one for t in n)) for n, one in zip(pairs, alone, strict=True)]
    together = [n[ALL_HEADS] for n in times]
    return [
        judged(
            "17",
            f"most second heads speed up learning: how many of {len(pairs[0])} pairs learn before "
            "the strongest head alone",
            paper="6",
            ours=over_seeds(faster),
            holds=[count > len(n) / 2 for count, n in zip(faster, pairs, strict=True)],
        ),
        judged(
            "17",
            "one more head can do as much as seven: sequences of the fastest pair, of all heads",
            paper="248k, 272k",
            ours=f"{over_seeds([min(n) for n in pairs])}, {over_seeds(together)}",
            holds=[min(n) < t for n, t in zip(pairs, together, strict=True)],
        ),
    ]


def strength_table(study: Study) -> pd.DataFrame:
    """Strength of every head beside all others, against what it does alone.

    Columns: `seed`, `run`, `head`, `strength`, `quantity`, `value`, `observed`. `quantity` is
    "accuracy" or "loss" of the whole network with only that head on, or "learning_time", sequences
    of the head trained alone; not `observed`, they are the length of the run, which did not learn.
    """
    ends = study.each_network(lambda model, batch: only_and_without(model, batch))
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
        return f"{over_seeds(r[name], decimals(2))}; {pooled[name]:.2f}"

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


def learning_times(table: pd.DataFrame) -> list[dict[str, float]]:
    """When each network of a table learned, by `heads`, seed after seed; infinity if never."""
    found = [
        {name: learned(*curve) for name, curve in network.items()}
        for network in curves(table, "heads").values()
    ]
    return [
        {name: t.time if t.observed else math.inf for name, t in network.items()}
        for network in found
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


def draw_pairs(table: pd.DataFrame, canvas: Canvas) -> None:
    """Figure 17: one panel a network; a title says whose pairs they are."""
    axes = plot_each_network(table, canvas, plot_learning_of_heads)
    for ax, (seed, rows) in zip(axes, table.groupby("seed"), strict=True):
        strongest = next(name for name in rows["heads"] if _is_alone(name))
        first = ax is axes[0]
        words = "Training with the strongest head" if first else f"seed {seed}"
        ax.set_title(f"{words}, {strongest}, and one other" if first else f"{words}: {strongest} +")


def draw_apart(table: pd.DataFrame, canvas: Canvas) -> None:
    """Figure 4b: one panel a network."""
    axes = plot_each_network(table, canvas, plot_learning_of_heads)
    axes[0].set_title("Training with one head of layer 1 (the paper's 2)")


def _is_alone(heads: str) -> bool:
    return heads != ALL_HEADS and "+" not in heads


def _with_all_heads(study: Study, parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Losses of networks by `heads`, and of those with all heads."""
    every = study.losses("main").assign(heads=ALL_HEADS)
    table = pd.concat([*parts, every], ignore_index=True)
    return table[["seed", "run", "heads", "sequences", "loss"]]


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
        "4b",
        ("main", "single"),
        apart_table,
        draw_apart,
        apart_claims,
        size=(8.4, 3.6),
        main_text=True,
    ),
    Figure(
        "17",
        ("main", "single", "pairs"),
        pairs_table,
        draw_pairs,
        pairs_claims,
        size=(8.4, 3.6),
    ),
    Figure(
        "18",
        ("main", "single"),
        strength_table,
        draw_strength,
        strength_claims,
        size=(9.6, 3.8),
    ),
)
