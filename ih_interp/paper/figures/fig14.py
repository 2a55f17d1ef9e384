"""Figure 14: the loss as heads of the last layer are added back one by one."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ih_interp.analysis.ablation.single_heads import add_back
from ih_interp.analysis.dynamics.emergence import LEARNED
from ih_interp.paper.drawing import plot_each_network
from ih_interp.paper.judging import Measured, Rule, by_rules
from ih_interp.paper.study import Figure, Study
from ih_interp.plots.single_heads import plot_add_back
from ih_interp.runs import Run
from ih_interp.types import Batch

ORDERS = ("the strongest first", "without the strongest")
"""Orders in which heads are added back, by falling induction strength."""


def added_table(study: Study) -> pd.DataFrame:
    """Return the loss as heads are added back: `seed`, `run`, `order`, `n_heads`, `value` ...

    `order` is one of `ORDERS`; `value` is in nats (ln 2 for a guess between the context's two
    labels, ln L for L labels and no idea), `low` and `high` are `add_back`'s intervals over
    sequences. The last row of the first order is the whole network.
    """

    def measure(run: Run, batch: Batch) -> pd.DataFrame:
        model = run.model()
        first = add_back(model, batch, metrics="loss").assign(order=ORDERS[0])
        others = first["head"].dropna().tolist()[1:]
        second = add_back(model, batch, others, metrics="loss").assign(order=ORDERS[1])
        return pd.concat([first, second], ignore_index=True)

    return study.each_run(measure)


def draw_added(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw the first network large, the others small."""

    def plot(rows: pd.DataFrame, ax: Axes) -> None:
        tables = {name: rows[rows["order"] == name] for name in ORDERS}
        whole = float(tables[ORDERS[0]]["value"].iloc[-1])
        plot_add_back(tables, ax, none_ablated=whole)

    plot_each_network(table, canvas, plot)


def _measure(rows: pd.DataFrame) -> Measured:
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
    _measure,
    Rule(
        "every head added back, the strongest first, lowers the loss: with 1, 2, 4, all heads",
        "0.117, 0.044, 0.0048, 0.0016",
        "{with 1:.4f}, {with 2:.4f}, {with 4:.4f}, {with all:.4f}",
        lambda n: (n["falls"] > 0).all(),
    ),
    Rule(
        "with diminishing returns: the first head takes more off the loss than all after it, "
        "and so does the second: the first, the second, the others",
        "1.78, 0.07, 0.04",
        "{first:.2f}, {second:.2f}, {others:.2f}",
        lambda n: n["first"] > n["falls"][1:].sum() and n["second"] > n["others"] > 0,
    ),
    Rule(
        f"no head is essential: all but the strongest get the loss below {LEARNED:.3f}",
        "0.03 without its weakest too; in other seeds accuracy falls to 0.89",
        "{without:.3f}",
        lambda n: n["without"] < LEARNED,
        varies=True,
    ),
)


FIGURES = (Figure("14", ("main",), added_table, draw_added, added_claims, (9.0, 3.8)),)
