"""Figures 5, 9 and 10: three vectors and three subcircuits, clamped in training or at inference."""

from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from ih_interp.analysis.dynamics.emergence import plateau_length
from ih_interp.analysis.dynamics.progress import progress_beside_training
from ih_interp.paper.claims import (
    Claim,
    Measured,
    by_rules,
    by_seed,
    curves,
    judge,
    outlasts,
    over_seeds,
    times_of,
    when,
)
from ih_interp.paper.drawing import panels
from ih_interp.paper.study import Figure, Study, some_steps
from ih_interp.plots import plot_clamped_losses, plot_progress, plot_toy
from ih_interp.plots._style import CLAMP_LINES, CLAMPED_VECTORS, conditions_of
from ih_interp.plots._tables import expect_known
from ih_interp.plots.seeds import plot_curve
from ih_interp.toy import NAMES, ToyConfig, plateau_loss, train_toy

MEASURES = {
    "loss": "training loss",
    "progress_1": "progress measure 1: direction of a",
    "progress_2": "progress measure 2: loss with b, c perfect",
}
"""Panels of Figure 9."""

ORDER = (
    ("layer 1 + copy", "copy"),
    ("match", "copy"),
    ("copy", "layer 1"),
    ("layer 1", "previous token"),
    ("layer 1", "none"),
)
"""Clamps of Figure 5b of which the first learns earlier in every network of the paper."""


# Figures 5a and 9: the toy model of three vectors


def toy_table(_: Study, names: Iterable[str] = CLAMPED_VECTORS) -> pd.DataFrame:
    """Return the toy model's descents with these vectors clamped.

    Columns: `clamped`, those of `train_toy`, and `plateau`, the loss of a product that is zero.
    """
    parts: list[pd.DataFrame] = []
    for name in names:
        config = ToyConfig(clamp={vector: None for vector in NAMES if vector in name.split(", ")})
        parts.append(train_toy(config).assign(clamped=name, plateau=plateau_loss(config)))
    return pd.concat(parts, ignore_index=True)


def toy_claims(table: pd.DataFrame) -> list[Claim]:
    """Judge the plateau that three interacting vectors make, and that clamping two removes."""
    crossed = {name: _tenth(_descent(table, name)["loss"]) for name in CLAMPED_VECTORS}
    faster = {"faster_clamped": lambda n: np.inf > n["none"] > 2 * n["c"] > 4 * n["b, c"]}
    return judge("5a", [crossed], faster)


def toy_progress_claims(table: pd.DataFrame) -> list[Claim]:
    """Judge how the progress measures fall: with the loss, or at once where b and c are clamped."""
    free, clamped = _descent(table, "none"), _descent(table, "b, c")
    same = float((clamped["progress_2"] - clamped["loss"])[1:].abs().max()) < 1e-9
    told = {
        f"{name} {measure} at {iteration}": rows.loc[iteration, f"progress_{measure}"]
        for name, rows in (("none", free), ("b, c", clamped))
        for measure in (1, 2)
        for iteration in (50, 100, 200, 500, 600, 800)
    }
    waits, falls = judge(
        "9",
        [told],
        {
            "free_waits": lambda _: all(_waits(free[m], 200) for m in MEASURES),
            "clamped_falls": lambda _: (
                same and all(4 * _tenth(clamped[m]) < _tenth(free[m]) for m in [*MEASURES][1:])
            ),
        },
    )
    if not same:
        falls = falls._replace(ours=falls.ours.replace("the loss", "not the loss"))
    return [waits, falls]


def plot_toy_progress(table: pd.DataFrame, axes: Sequence[Axes] | np.ndarray) -> None:
    """Draw Figure 9: the toy model's loss and its two progress measures, one panel per measure."""
    expect_known(table, "clamped", CLAMPED_VECTORS)
    for ax, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        for clamped, line, curve in conditions_of(table, "clamped", CLAMPED_VECTORS, None):
            own = {"color": line.colour, "linestyle": line.dash, "label": clamped}
            plot_curve(curve, ax, x="iteration", y=measure, **own)
        ax.set(xlabel="iteration", xlim=(0, table["iteration"].max()), ylim=(0, None), title=title)
    axes[0].set_ylabel("loss, or progress measure")
    axes[0].legend(title="clamped in training", loc="upper right")


def _descent(table: pd.DataFrame, clamped: str) -> pd.DataFrame:
    return table[table["clamped"] == clamped].set_index("iteration")


def _tenth(measure: pd.Series) -> float:
    """Return the first iteration below a tenth of a measure's first value, or infinity."""
    below = measure < 0.1 * measure.iloc[0]
    return float(below.idxmax()) if below.any() else np.inf


def _waits(measure: pd.Series, start: int) -> bool:
    """Return whether half of the value at `start` takes longer to lose than the next 40%."""
    later = measure.loc[start:]
    half, tenth = ((later < share * later.iloc[0]).idxmax() for share in (0.5, 0.1))
    return bool(later.iloc[-1] < 0.1 * later.iloc[0] and half - start > tenth - half)


# Figures 5b and 10: clamps on the three subcircuits, in training and at inference


def clamped_table(study: Study) -> pd.DataFrame:
    """Return losses as `Study.losses`: `seed`, `clamp`, `run`, `sequences`, `loss` in training."""
    return study.losses("clamped", by="clamp")[["seed", "clamp", "run", "sequences", "loss"]]


def clamped_claims(table: pd.DataFrame) -> list[Claim]:
    """Judge how clamps on subcircuits move the phase change, and which remove it."""
    networks: list[Measured] = []
    for rows in by_seed(table):
        plateaus = {f"{c} plateau": plateau_length(*of) for c, of in curves(rows, "clamp").items()}
        networks.append({**times_of(rows, "clamp"), **plateaus})
    in_order, *others = judge(
        "5b",
        networks,
        {
            "in_order": lambda n: all(outlasts(n[late], n[early]) for early, late in ORDER),
            "no_plateau": lambda n: all(
                outlasts(n["none plateau"], n[f"{clamp} plateau"], factor=8)
                for clamp in ("match", "layer 1 + copy")
            ),
            "earlier": lambda n: outlasts(n["none"], n["previous token"]),
        },
    )
    times = {clamp: [n[clamp] for n in networks] for clamp in CLAMP_LINES}
    by_time = sorted(times, key=lambda clamp: float(np.median([*map(when, times[clamp])])))
    told = ", ".join(f"{clamp} {over_seeds(times[clamp])}" for clamp in by_time)
    return [in_order._replace(ours=told), *others]


def draw_clamped(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw Figure 5b: the first two thirds of the runs, when all but the slowest have learned."""
    plot_clamped_losses(table, canvas.subplots(), end=float(table["sequences"].max()) * 2 / 3)


def progress_table(study: Study) -> pd.DataFrame:
    """Return clamps in training beside progress measures of the run without them.

    Columns: `seed`, `run`, `clamp`, `when` ("training", or "inference": perfected in checkpoints of
    the free run), `sequences`, `loss` as in `Study.losses`: over the runs' evaluations, but at
    inference over `curve_batch`. "none" is the free run as it was evaluated, in both.
    """
    none = study.losses("clamped", by="clamp").query("clamp == 'none'")
    parts = [none.assign(when=when) for when in ("training", "inference")]
    for seed in study.seeds:
        runs = study.runs["clamped"][seed]
        free, clamped = runs["none"], {name: runs[name] for name in ("previous token", "match")}
        table = progress_beside_training(
            free, clamped, batch=study.curve_batch(free), steps=some_steps(free)
        )
        trained = table["when"] == "training"
        names = table["clamp"].map({name: run.config.name for name, run in clamped.items()})
        parts.append(table.assign(run=names.where(trained, free.config.name)))
    columns = ["seed", "run", "clamp", "when", "sequences", "loss"]
    return pd.concat(parts, ignore_index=True)[columns]


def _progress(rows: pd.DataFrame) -> Measured:
    """Return when one network's loss falls: perfected at inference, free, with a clamped match."""
    late, free = (
        times_of(rows[rows["when"] == where], "clamp") for where in ("inference", "training")
    )
    return {**late, "none": free["none"], "match trained": free["match"]}


progress_claims = by_rules(
    "10",
    _progress,
    match=lambda n: (
        outlasts(n["match"], n["none"], factor=1 / 2)
        and outlasts(n["none"], n["match trained"], factor=2)
    ),
    previous_token=lambda n: (
        outlasts(n["previous token"], n["none"], factor=3 / 4)
        and outlasts(n["none"], n["previous token"], factor=4 / 5)
    ),
)

toy_progress_table = partial(toy_table, names=("none", "b, c"))  # without c alone, as in Figure 9
draw_toy_progress = panels(plot_toy_progress, 1, 3)
draw_progress = panels(plot_progress, 1, 2, sharey=True)

FIGURES = (
    Figure("5a", (), toy_table, panels(plot_toy), toy_claims),
    Figure("9", (), toy_progress_table, draw_toy_progress, toy_progress_claims, (9.6, 3.0)),
    Figure("5b", ("clamped",), clamped_table, draw_clamped, clamped_claims, (5.8, 3.9)),
    Figure("10", ("clamped",), progress_table, draw_progress, progress_claims, (8.4, 3.4)),
)
