"""The emergence law: the grid, laws against slow versions, and planted times."""

import itertools

import numpy as np
import pandas as pd
import pytest

from ih_interp.studies._laws import LAWS, stagewise
from ih_interp.studies.emergence_law import (
    ALONE,
    GRID,
    errors,
    exponents,
    free_runs,
    judge_laws,
    networks,
    predict,
    runs_alone,
    summarise,
)
from ih_interp.studies.study import LEARNED, Scale


def planted(whole, *, noise=0.03, never=()):
    """A table in which the time of the whole is a function of those of A, B and C."""
    rng = np.random.default_rng(0)
    rows = []
    for cell in itertools.product(*GRID.values()):
        factors = dict(zip(GRID, cell, strict=True))
        half = sum(GRID[name].index(value) for name, value in factors.items()) % 2
        name = "-".join(map(str, cell))
        for seed in (5, 6, 7):
            alone = rng.lognormal(9, 0.5, size=3)
            context = 2 * factors["pairs"] + 1
            time = float(whole(alone, factors, context)) * rng.lognormal(0, noise)
            of = dict(zip((*ALONE, "free"), (*alone, time), strict=True))
            rows += [
                {"condition": condition, "cell": name, **factors, "context": context,
                 "half": ("fitted", "predicted")[half], "seed": seed, "time": t,
                 "observed": (name, condition) not in never, "run": f"{condition}-{name}-{seed}",
                 "config": "0"}
                for condition, t in of.items()
            ]  # fmt: skip
    return pd.DataFrame(rows)


def slow_stagewise(alone, start, steps=200_000):
    """Euler's small steps."""
    tau = np.array(alone) / np.log((1 - start) / np.sqrt(LEARNED))
    step = tau.min() / 2_000
    factors = np.full(3, start)
    for n in range(steps):
        product = factors.prod()
        if (1 - product) ** 2 < LEARNED:
            return n * step
        factors = factors + step * (1 - product) * product / factors / tau
    raise AssertionError("not learned")


def test_the_grid_has_every_cell_under_every_condition_for_every_network():
    scale = Scale(seeds=(5, 6, 7))
    trials = [*runs_alone(scale, pd.DataFrame()), *free_runs(scale, pd.DataFrame())]
    n_cells = np.prod([len(values) for values in GRID.values()])
    assert n_cells >= 24
    assert len(trials) == n_cells * 4 * 3
    assert len({trial.config.name for trial in trials}) == len(trials)
    halves = pd.DataFrame([trial.condition for trial in trials]).drop_duplicates("cell")["half"]
    assert halves.value_counts().to_dict() == {"fitted": n_cells / 2, "predicted": n_cells / 2}
    for trial in trials:
        assert trial.config.batch_size == trial.condition["batch"]
        assert trial.config.task.n_pairs == trial.condition["pairs"]
        assert trial.config.task.n_labels == trial.condition["labels"]
        assert trial.config.task.n_train_classes == trial.condition["classes"]
        assert trial.config.sequences % trial.config.batch_size == 0


@pytest.mark.parametrize("alone", [(100.0, 100.0, 100.0), (50.0, 100.0, 400.0)])
@pytest.mark.parametrize("start", [0.05, 0.2])
def test_the_stagewise_time_is_that_of_small_steps(alone, start):
    assert stagewise(np.array([alone]), start)[0] == pytest.approx(
        slow_stagewise(alone, start), rel=0.01
    )


def test_equal_factors_have_a_closed_form():
    # da/dt = (1 - a^3) a^2 / tau: the integral of 1 / ((1 - a^3) a^2) from the start to the end.
    start, end = 0.01, (1 - np.sqrt(LEARNED)) ** (1 / 3)
    tau = 100 / np.log((1 - start) / np.sqrt(LEARNED))
    a = np.geomspace(start, end, 200_001)
    exact = tau * np.trapezoid(1 / ((1 - a**3) * a**2), a)
    assert stagewise(np.full((1, 3), 100.0), start)[0] == pytest.approx(exact, rel=1e-4)


def test_the_stagewise_time_scales_with_its_parts():
    alone = np.array([[50.0, 100.0, 400.0]])
    assert stagewise(7 * alone, 0.1) == pytest.approx(7 * stagewise(alone, 0.1), rel=1e-5)


def test_a_smaller_start_changes_the_stagewise_law_by_a_factor():
    alone = np.random.default_rng(0).lognormal(9, 0.5, size=(20, 3))
    ratio = stagewise(alone, 0.001) / stagewise(alone)
    assert ratio == pytest.approx(ratio.mean(), rel=0.02)


def test_times_without_a_law_leave_laws_open():
    rng = np.random.default_rng(1)
    findings = judge_laws(planted(lambda *_: rng.lognormal(11, 0.3)))
    assert {f.verdict for f in findings if "stagewise" in f.claim} <= {"open", "no"}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAWS)
def test_times_made_by_a_law_are_attributed_to_it(name):
    table = planted(lambda alone, *_: 7 * LAWS[name](alone[None])[0])
    of_laws = errors(table).mean()
    assert of_laws.idxmin() == name
    assert of_laws[name] < 0.05
    assert predict(table).query("law == @name")["factor"].iloc[0] == pytest.approx(7, rel=0.03)


def test_networks_that_never_learned_are_left_out():
    cell = "16-2-50-8"
    table = planted(lambda alone, *_: alone.sum(), never={(cell, "free")})
    known = networks(table)
    assert cell not in set(known["cell"])
    assert len(known) == (len(table) / 4) - 3


def test_exponents_are_found():
    table = planted(
        lambda _, f, context: 1e4 * f["batch"] ** 0.5 * context**0.7 / context, noise=1e-6
    )
    for factor, exponent in (("batch", 0.5), ("context", 0.7), ("classes", 0.0), ("labels", 0.0)):
        found = exponents(table, factor)
        assert found.to_numpy() == pytest.approx(exponent, abs=1e-3)
    assert len(exponents(table, "context")) == 8
    lost = (table["cell"] == "16-2-50-8") & (table["condition"] == "free") & (table["seed"] == 5)
    table.loc[lost, "observed"] = False
    assert exponents(table, "context").isna().sum() == 1
    assert exponents(table.assign(observed=False), "batch").isna().all()


@pytest.mark.parametrize(
    ("exponent", "verdicts"), [(1.2, ("yes", "yes")), (0.2, ("no", "yes")), (3.6, ("yes", "no"))]
)
def test_exponents_are_set_beside_the_published_ones(exponent, verdicts):
    table = planted(lambda _, f, context: 1e4 * context ** (exponent - 1))
    findings = {finding.claim: finding.verdict for finding in judge_laws(table)}
    assert findings["Tokens grow faster than the root of the context"] == verdicts[0]
    assert findings["Updates grow more slowly than the context's square"] == verdicts[1]


@pytest.mark.slow
def test_the_law_that_made_the_times_wins_and_exponents_are_judged():
    def whole(alone, factors, context):
        return 7 * stagewise(alone[None])[0]

    findings = {finding.claim: finding.verdict for finding in judge_laws(planted(whole))}
    assert (
        findings["The stagewise law predicts cells that were not fitted better than the constant"]
        == "yes"
    )
    summary = summarise(planted(whole))
    value = summary.set_index("name")["value"]
    assert value["stagewise"] < 1.1
    assert value["batch"] == pytest.approx(0, abs=0.3)
    assert (summary["low"] <= summary["value"]).all()
