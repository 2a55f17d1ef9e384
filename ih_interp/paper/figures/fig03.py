"""Figure 3: induction heads emerge together, as the loss falls."""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ih_interp.analysis.dynamics.emergence import first_below, plateau_length
from ih_interp.analysis.dynamics.trace import trace
from ih_interp.analysis.heads.attention import induction_strength
from ih_interp.batch import Batch
from ih_interp.paper.claims import Measured, by_rules, curves, spearman, when
from ih_interp.paper.drawing import BESIDE, panels, plot_each_network
from ih_interp.paper.study import Figure, Study, each_run, some_steps
from ih_interp.plots import plot_losses, plot_strengths
from ih_interp.plots._style import FAINT
from ih_interp.runs import Run
from ih_interp.types import Head

STRONG = 0.25  # induction strength above which a head is an induction head


def loss_table(study: Study) -> pd.DataFrame:
    """Return losses of every main run: columns of `Study.losses` but `condition`."""
    return study.losses("main", ("train", "test_exemplars", "test_relabel")).drop(
        columns="condition"
    )


def _losses(rows: pd.DataFrame) -> Measured:
    """Return one network's sequences from loss 0.8 to 0.6, from 0.6 to 0.1, and its last losses."""
    of_split = curves(rows, "split")
    sequences, loss = of_split["train"]
    end = first_below(sequences, loss, 0.1)
    fall = end - first_below(sequences, loss, 0.6) if math.isfinite(end) else math.inf
    last = {split: loss[-1] for split, (_, loss) in of_split.items()}
    return {"plateau": when(plateau_length(sequences, loss)), "fall": fall, **last}


loss_claims = by_rules(
    "3a",
    _losses,
    # Sequences per factor of e: an exponential slide needs as many on both stretches.
    pauses=lambda n: (
        n["fall"] < math.inf
        and n["plateau"] / math.log(0.8 / 0.6) > 2 * n["fall"] / math.log(0.6 / 0.1)
    ),
    test_exemplars=lambda n: n["test_exemplars"] < math.log(2) / 2,
    test_relabel=lambda n: n["test_relabel"] < math.log(2) / 2,
)


@each_run
def strength_table(_: Study, run: Run, batch: Batch) -> pd.DataFrame:
    """Return induction strengths over training.

    Columns: `seed`, `run`, `n_sequences`, `step`, `sequences`, `name` (a head), `value`, its
    `induction_strength`, in [-1, 1]; 0 where it does not tell the labels apart.
    """
    return trace(run, induction_strength, batch=batch, steps=some_steps(run))


def _strengths(rows: pd.DataFrame) -> Measured:
    """Return one network's strengths at the end, and how far their order was fixed at half time.

    Half time is when the head that ends strongest first has half of its last strength; `order` is
    NaN where no strength is above 0.
    """
    heads = rows[rows["name"].str.match("L1H")]
    strengths = heads.pivot_table(index="sequences", columns="name", values="value")
    last = strengths.iloc[-1]
    order = math.nan
    if last.max() > 0:
        half = strengths[strengths[str(last.idxmax())] >= last.max() / 2].iloc[0]
        order = spearman(half, last)
    return {
        "several": float((last > STRONG).sum()),
        "strongest": float(last.max()),
        "weakest": float(last.min()),
        "order": order,
    }


strength_claims = by_rules(
    "3b",
    _strengths,
    several=lambda n: n["several"] >= 2,
    graded=lambda n: n["strongest"] > 2 * n["weakest"] and n["strongest"] > STRONG,
    ordered=lambda n: n["order"] > 0.8 and n["strongest"] > STRONG,
)


def draw_strengths(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw Figure 3b: one panel per network, all of one height."""
    axes = plot_each_network(table, canvas, _plot_last_layer)
    lows, highs = zip(*(ax.get_ylim() for ax in axes), strict=True)
    for ax in axes:
        ax.set_ylim(min(lows), max(highs))


def _plot_last_layer(table: pd.DataFrame, ax: Axes) -> None:
    layer = max(Head.parse(name).layer for name in table["name"])
    plot_strengths(table, ax, layer=layer, measure="induction strength")
    ax.axhline(0, **FAINT)
    ax.set_title(f"Induction strength, heads of layer {layer} (the paper's {layer + 1})")


FIGURES = (
    Figure("3a", ("main",), loss_table, panels(plot_losses), loss_claims),
    Figure("3b", ("main",), strength_table, draw_strengths, strength_claims, BESIDE),
)
