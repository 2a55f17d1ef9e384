"""Figure 12: the loss over training without layer 0's direct path, and without layer 1's heads."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes
from transformer_lens import HookedTransformer

from ih_interp.analysis.dynamics.trace import trace
from ih_interp.analysis.patching.preserving import PerSequence, direct_path_removed
from ih_interp.clamps import AblateHeads
from ih_interp.evaluation import evaluate
from ih_interp.paper.drawing import draw_conditions, panels
from ih_interp.paper.judging import Measured, Rule, by_rules
from ih_interp.paper.study import Figure, Study, some_steps
from ih_interp.plots._style import FAINT, Line
from ih_interp.runs import Run
from ih_interp.types import Batch, Head

REMOVED_LINES: Mapping[str, tuple[str, Line]] = {
    "last layer": ("without the heads of layer 1", Line("#D55E00", (0, (5, 1)))),
    "direct path": ("without layer 0's direct path", Line("#000000")),
}
"""The parts that Figure 12 removes, in words, and their lines."""

COSTS = 0.003  # accuracy that removing the direct path costs at most: 0.3 points


def last_layer_removed(model: HookedTransformer, batch: Batch) -> PerSequence:
    """Return what is lost without the heads of layer 1, in the form of `direct_path_removed`."""
    heads = tuple(Head(1, head) for head in range(model.cfg.n_heads))
    found, whole = evaluate(model, batch, [AblateHeads(heads=heads)]), evaluate(model, batch)
    changes = {"accuracy_change": found.accuracy - whole.accuracy}
    changes["loss_change"] = found.loss - whole.loss
    return PerSequence(accuracy=found.accuracy, loss=found.loss, **changes)


PARTS = {"direct path": direct_path_removed, "last layer": last_layer_removed}


def removed_table(study: Study) -> pd.DataFrame:
    """Return the losses without layer 0's direct path, and without the heads of layer 1.

    Columns: those of `Study.each_run`, `sequences`, `removed` ("direct path" or "last layer"),
    `loss`, `accuracy`, and `loss_change`, `accuracy_change` against the same checkpoint, whole, on
    the same sequences (the paper interpolates a loss on others). These are those of `curve_batch`
    and, at the last step, of `batch`, as a sample is too small for what is lost there. Loss is
    in nats, ln 2 for a guess between the context's two labels, ln L for L labels and no idea;
    accuracy has chance 1/L, 1/2 for that guess. A part that does nothing changes them by 0.
    """

    def measure(run: Run, batch: Batch) -> pd.DataFrame:
        *learning, last = some_steps(run)
        parts = [
            trace(run, remove, batch=shown, steps=steps).assign(
                removed=removed, n_sequences=len(shown)
            )
            for shown, steps in ((study.curve_batch(run), learning), (batch, [last]))
            for removed, remove in PARTS.items()
        ]
        return pd.concat(parts, ignore_index=True)

    index = ["seed", "run", "n_sequences", "sequences", "removed"]
    wide = study.each_run(measure).set_index([*index, "name"])["value"].unstack("name")
    columns = ["loss", "accuracy", "loss_change", "accuracy_change"]
    return wide[columns].rename_axis(columns=None).reset_index()


def _costs(rows: pd.DataFrame) -> Measured:
    """Return what one network loses without each part."""
    direct, last = (rows[rows["removed"] == part].sort_values("sequences") for part in PARTS)
    end = direct.iloc[-1]
    return {
        "points": -100 * float(end["accuracy_change"]),
        "most": float(direct.loc[direct["sequences"] > 0, "loss_change"].max()),
        "end": float(end["loss_change"]),
        "last layer": float(last["loss_change"].iloc[-1]),
    }


direct_claims = by_rules(
    "12",
    _costs,
    Rule(
        "at the end layer 0's direct path to the output does not matter: points of accuracy "
        "that removing it costs (less than 0.3)",
        "0.013; in its other networks 0.009 to 0.26",
        "{points:.3f}",
        lambda n: n["points"] < 100 * COSTS,
    ),
    Rule(
        "while learning it matters for a time: loss that removing it costs, most after the "
        "untrained start, and at the end (nats; a fifth or less at the end)",
        "0.165, 0.0016",
        "{most:.3f}, {end:.4f}",
        lambda n: n["most"] > 0 and n["end"] <= n["most"] / 5,
    ),
    Rule(
        "the heads of the last layer come to carry the answer: loss without them, less that "
        "with them, at the end (nats; over 1)",
        "1.89",
        "{last layer:.2f}",
        lambda n: n["last layer"] > 1,
    ),
)


def plot_removed(table: pd.DataFrame, ax: Axes) -> Axes:
    """Draw Figure 12: loss over training without a part, less the loss with it.

    Columns `seed`, `sequences`, `removed` (a key of `REMOVED_LINES`), `loss_change`.
    """
    draw_conditions(table, ax, "removed", REMOVED_LINES, y="loss_change")
    ax.axhline(0, **FAINT)
    ax.set(
        ylabel="increase of the loss (nats)",
        title="Loss without a part of the network (layers count from 0)",
        xlim=(0, float(table["sequences"].max())),
    )
    ax.legend(loc="center right")
    return ax


FIGURES = (Figure("12", ("main",), removed_table, panels(plot_removed), direct_claims),)
