"""Figures 4b and 17: heads trained alone and in pairs, beside networks with all of them."""

import pandas as pd
from matplotlib.figure import Figure as Canvas

from ih_interp.paper.figures._fig04b_17_drawing import ALL_HEADS, plot_learning_of_heads
from ih_interp.paper.study import (
    Claim,
    Figure,
    Study,
    judged,
    over_seeds,
    over_times,
    surely_longer,
    times_of,
    when,
)
from ih_interp.plots.seeds import plot_each_network


def apart_table(study: Study) -> pd.DataFrame:
    """Training loss of single-head networks and of all heads.

    Columns: `seed`, `run`, `heads` ("L1H3" or `ALL_HEADS`), `sequences`, `loss` as in
    `Study.losses`.
    """
    singles = study.losses("single").rename(columns={"condition": "heads"})
    return _with_all_heads(study, [singles])


def apart_claims(table: pd.DataFrame) -> list[Claim]:
    """One head is enough if it is trained alone; all together learn faster than any."""
    times = times_of(table, "heads")
    apart = [[time for name, time in n.items() if name != ALL_HEADS] for n in times]
    together = [n[ALL_HEADS] for n in times]
    first, last = (over_times(end(n, key=when) for n in apart) for end in (min, max))
    n_learned = [sum(time.observed for time in n) for n in apart]
    return [
        judged(
            "4b",
            f"every head learns the task if trained alone: how many of {len(apart[0])} do "
            "by the end; sequences of the first, the last",
            paper="8; 309k, 615k; 6 of 8 in one of its other networks",
            ours=f"{over_seeds(n_learned)}; {first}, {last}",
            holds=[found == len(n) for found, n in zip(n_learned, apart, strict=True)],
            varies=True,
        ),
        judged(
            "4b",
            "all heads together learn faster than any alone: sequences together, first alone",
            paper="272k, 309k; not in two of its other networks",
            ours=f"{over_times(together)}, {first}",
            holds=[
                all(surely_longer(one, every) for one in n)
                for n, every in zip(apart, together, strict=True)
            ],
            varies=True,
        ),
    ]


def pairs_table(study: Study) -> pd.DataFrame:
    """Training loss of the strongest head beside each other, of it alone, and of all heads.

    Columns: `seed`, `run`, `heads` ("L1H3", "L1H3 + L1H0", `ALL_HEADS`), `sequences`, `loss` as in
    `Study.losses`.
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
    times = times_of(table, "heads")
    pairs = [[time for name, time in n.items() if "+" in name] for n in times]
    alone = [next(time for name, time in n.items() if _is_alone(name)) for n in times]
    together = [n[ALL_HEADS] for n in times]
    faster = [
        sum(surely_longer(one, pair) for pair in n) for n, one in zip(pairs, alone, strict=True)
    ]
    fastest = over_times(min(n, key=when) for n in pairs)
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
            ours=f"{fastest}, {over_times(together)}",
            holds=[
                any(surely_longer(every, pair) for pair in n)
                for n, every in zip(pairs, together, strict=True)
            ],
        ),
    ]


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
        "17", ("main", "single", "pairs"), pairs_table, draw_pairs, pairs_claims, size=(8.4, 3.6)
    ),
)
