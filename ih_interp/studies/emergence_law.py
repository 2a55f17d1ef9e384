"""Emergence law: do the times of A, B and C alone tell when a network learns the whole task?

Networks have all heads, since one head alone is slow with more pairs; clamps of a head are on L1H0,
as heads of a layer are alike before training. A cell is a batch size and a task. Laws have one
constant, which is fitted on half of the cells, and predict the others.
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy import ndarray

from ih_interp.analysis.statistics import bootstrap
from ih_interp.clamps import AbstractClamp, a_alone, b_alone, c_alone
from ih_interp.config import Grid
from ih_interp.plots._style import HEAD_COLOURS, HEAD_MARKERS, short_count
from ih_interp.studies._laws import LAWS
from ih_interp.studies.findings import Finding, Tested, above_zero, judge
from ih_interp.studies.study import SMOKE, Scale, Study, Trial, time_rows, trace_runs
from ih_interp.tasks.few_shot import TaskConfig

GRID: Mapping[str, tuple[int, ...]] = {
    "batch": (16, 64),
    "pairs": (2, 3, 4),
    "classes": (50, 200),
    "labels": (8, 16),
}
"""The values of each factor; cells are all their combinations."""

PER_DECADE = 15  # evaluations, for parts that learn within a thousand sequences
ALONE = ("A alone", "B alone", "C alone")
CONDITIONS = (*ALONE, "free")
CELL = ["cell", *GRID]

FACTORS = ("context", "batch", "classes", "labels")
SQUARE_ROOT = "root of batch x context (arXiv:2511.16893)"
QUADRATIC = "updates quadratic in context (arXiv:2511.01033)"
PUBLISHED = {SQUARE_ROOT: {"batch": 0.5, "context": 0.5}, QUADRATIC: {"context": 3.0}}
"""Exponents of the number of tokens until learned, by law: updates x batch x context."""


def runs_alone(scale: Scale, _: pd.DataFrame) -> list[Trial]:
    """Return the runs of all cells with each subcircuit alone; they are short."""
    short = max(scale.sequences // 8, *GRID["batch"])  # at least an update of each
    return _grid(scale.replace(sequences=short), ALONE)


def free_runs(scale: Scale, _: pd.DataFrame) -> list[Trial]:
    """Return the runs of all cells with nothing clamped."""
    return _grid(scale, ("free",))


def _grid(scale: Scale, conditions: Sequence[str]) -> list[Trial]:
    cells = [dict(zip(GRID, cell, strict=True)) for cell in itertools.product(*GRID.values())]
    of_all = itertools.product(conditions, cells, scale.seeds)
    return [_trial(scale, cell, condition, seed) for condition, cell, seed in of_all]


def _trial(scale: Scale, cell: Mapping[str, int], condition: str, seed: int) -> Trial:
    task = TaskConfig(
        exemplars=scale.exemplars,
        n_pairs=cell["pairs"],
        n_train_classes=cell["classes"],
        n_labels=cell["labels"],
    )
    name = "-".join(f"{factor}{value}" for factor, value in cell.items())
    places = (GRID[factor].index(value) for factor, value in cell.items())
    size = cell["batch"]
    run = scale.run(
        f"{condition}-{name}".replace(" ", ""),
        seed,
        _clamps(condition),
        task=task,
        batch_size=size,
        sequences=scale.sequences // size * size,
        evaluations=Grid(every=scale.every, per_decade=PER_DECADE),
    )
    known = {"condition": condition, "cell": name, **cell, "context": 2 * cell["pairs"] + 1}
    return Trial({**known, "half": ("fitted", "predicted")[sum(places) % 2]}, run)


def _clamps(condition: str) -> tuple[AbstractClamp, ...]:
    of = {"A alone": a_alone(), "B alone": b_alone("L1H0"), "C alone": c_alone("L1H0")}
    return of.get(condition, ())


def networks(table: pd.DataFrame) -> pd.DataFrame:
    """Return a row per network: `CELL`, `context`, `half`, `seed`, and a time per condition.

    Networks that did not learn under some condition are left out.
    """
    keys = [*CELL, "context", "half", "seed"]
    there = table.assign(time=table["time"].where(table["observed"].astype(bool)))
    times = there.pivot(index=keys, columns="condition", values="time")
    return times.reindex(columns=list(CONDITIONS)).dropna().reset_index()


def predict(table: pd.DataFrame) -> pd.DataFrame:
    """Return what each law, with a factor fitted on half of the cells, predicts of the others.

    Columns: those of `networks`, `law`, `factor`, `predicted` (sequences), and `error`
    (|ln(predicted / time)|, 0 for a perfect prediction). The fit is by least squares of logarithms.
    """
    known = networks(table)
    alone, is_fitted = known[[*ALONE]].to_numpy(dtype=float), known["half"] == "fitted"
    parts: list[pd.DataFrame] = []
    for name, law in LAWS.items():
        ratio = np.log(known["free"] / law(alone))
        constant = ratio[is_fitted].mean()
        made = {"law": name, "factor": np.exp(constant), "error": (ratio - constant).abs()}
        predicted = known["free"] * np.exp(constant - ratio)
        parts.append(known.assign(predicted=predicted, **made)[~is_fitted])
    return pd.concat(parts, ignore_index=True)


def errors(table: pd.DataFrame) -> pd.DataFrame:
    """Return |ln(predicted / time)| by cell that is predicted and law, the mean over networks.

    It is NaN where no network of a cell learned under every condition.
    """
    cells = table.loc[table["half"] == "predicted", "cell"].unique()
    found = predict(table).pivot_table(index="cell", columns="law", values="error")
    return found.reindex(index=cells, columns=[*LAWS]).astype(float)


def exponents(table: pd.DataFrame, factor: str) -> pd.Series:
    """Return exponents of the tokens until learned without clamps in one factor, others held.

    An exponent is the least-squares slope of ln(sequences x context) on ln(factor) over the cells
    that differ in it alone, averaged over seeds: one number per combination of the others. It is
    NaN where a network of these cells did not learn: leaving slow ones out would flatten it.
    """
    varied = "pairs" if factor == "context" else factor
    held = [name for name in GRID if name != varied]
    free = table[table["condition"] == "free"]
    tokens = (free["time"] * free["context"]).where(free["observed"].astype(bool))
    lines = free.assign(x=np.log(free[factor]), y=np.log(tokens)).groupby([*held, "seed"])
    slopes = lines[["x", "y"]].apply(lambda line: _slope(*line.to_numpy().T))
    return slopes.groupby(held).agg(lambda seeds: seeds.mean(skipna=False))


def _slope(x: ndarray, y: ndarray) -> float:
    return np.nan if np.isnan(y).any() else float(np.polyfit(x, y, 1)[0])


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return the errors of laws, as factors, and exponents, each with an interval over cells.

    Columns: `kind` ("error" or "exponent"), `name`, `value`, `low`, `high`, `n_cells` (or
    combinations of the other factors), `n_missing`, and the `run` and `config` of every run.
    """
    of_laws, rows = errors(table), list[tuple[object, ...]]()
    given = [("error", law, of_laws[law], np.exp) for law in of_laws]
    given += [("exponent", factor, exponents(table, factor), np.asarray) for factor in FACTORS]
    for kind, name, values, told in given:
        there = values.dropna()
        ends = bootstrap(there, told) if len(there) > 1 else (np.nan,) * 3
        rows.append((kind, name, *map(float, ends), len(there), len(values) - len(there)))
    columns = ["kind", "name", "value", "low", "high", "n_cells", "n_missing"]
    return trace_runs(pd.DataFrame(rows, columns=columns), table, [])


def judge_laws(table: pd.DataFrame) -> list[Finding]:
    """Judge whether the stagewise law predicts best, and whether a published exponent holds.

    Effects are one per cell, or per combination of the other factors. Cells share their seeds, so
    that verdicts are about these networks, and context has a narrow range, 5 to 9 tokens.
    """
    of_laws, tests = errors(table), list[Tested]()
    for law in ("product", "sum", "maximum", "constant"):
        claim = f"The stagewise law predicts cells that were not fitted better than the {law}"
        less = of_laws[law] - of_laws["stagewise"]
        words = "|ln(predicted / measured)| is smaller by {}"
        tests.append(above_zero(claim, less, words=words, units="cells"))
    context, batch = exponents(table, "context"), exponents(table, "batch")
    for claim, found, effects, known in (
        ("Tokens grow faster than the root of the context", context, context - 0.5, SQUARE_ROOT),
        ("Updates grow more slowly than the context's square", context, 3 - context, QUADRATIC),
        ("Tokens grow faster than the root of the batch", batch, batch - 0.5, SQUARE_ROOT),
    ):
        words = f"exponent {found.mean():.2f}; distance from the published one {{}}"
        units = "combinations of the other factors"
        tests.append(above_zero(claim, effects, known=known, words=words, units=units))
    return judge(tests)


def draw(table: pd.DataFrame, canvas: Canvas) -> None:
    """Draw predicted against measured times, the laws' errors, and exponents beside known ones."""
    left, middle, right = canvas.subplots(1, 3, width_ratios=(1.3, 1, 1))
    predicted, summary = predict(table), summarise(table)
    for law, colour, marker in zip(LAWS, HEAD_COLOURS, HEAD_MARKERS, strict=False):
        rows = predicted[predicted["law"] == law]
        left.plot(rows["free"], rows["predicted"], marker, color=colour, markersize=4, label=law)
    if len(predicted):
        ends = [predicted["free"].min(), predicted["free"].max()]
        left.plot(ends, ends, color="0.6", linewidth=0.8)
        _count_in_logs(left)
    parts = "A (previous token),\nB (match) and C (copy)"
    left.set(xlabel="sequences until learned", ylabel=f"predicted from times alone of {parts}")
    left.legend(title="law, one factor", fontsize=8)
    n_cells = predicted["cell"].nunique()
    left.set_title(f"{n_cells} cells that were not fitted")
    _draw_intervals(summary[summary["kind"] == "error"], middle)
    middle.set(xlabel="error of a prediction (a factor; 1 is perfect)", title="Laws")
    _draw_intervals(summary[summary["kind"] == "exponent"], right)
    right.set(xlabel="exponent of the tokens until learned", title="Exponents")
    for (source, known), sign in zip(PUBLISHED.items(), "|x", strict=True):
        rows = [FACTORS.index(factor) - 0.25 for factor in known]
        right.plot(known.values(), rows, sign, color="#D55E00", markersize=9, label=source)
    right.legend(loc="center right", fontsize=7)


def _count_in_logs(ax: Axes) -> None:
    ax.set(xscale="log", yscale="log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
        axis.set_minor_formatter(NullFormatter())


def _draw_intervals(summary: pd.DataFrame, ax: Axes) -> None:
    for row, (value, low, high) in enumerate(summary[["value", "low", "high"]].to_numpy()):
        ax.plot([low, high], [row, row], color="0.35")
        ax.plot(value, row, "o", color="black", markersize=5)
    ax.set_yticks(range(len(summary)), summary["name"].tolist())
    ax.set_ylim(len(summary) - 0.5, -0.8)


FEW = Scale(seeds=(5, 6, 7), evaluation_size=500)  # many cells: three networks in each

STUDY = Study(
    name="emergence law",
    question="Do the times of A, B and C alone tell when a network learns the whole task?",
    scales={
        "smoke": SMOKE.replace(sequences=128, every=64),
        "quick": FEW.replace(learning_rate=3e-4, sequences=256_000, every=3_200),
        "paper": FEW.replace(learning_rate=3e-5, sequences=2_048_000, every=5_000),
    },
    stages=(runs_alone, free_runs),
    summarise=summarise,
    judge=judge_laws,
    draw=draw,
    size=(13.0, 4.2),
    rows=time_rows,
)
