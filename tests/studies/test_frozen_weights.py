"""The study of frozen weights: its runs, its judgement of planted tables, its files."""

import functools
import math
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

import ih_interp as ih
from ih_interp.analysis.dynamics.survival import crossings_by_seed, median_time
from ih_interp.clamps import Freeze
from ih_interp.clamps.schedules import Always, During
from ih_interp.model import build_model, trained_parameters
from ih_interp.studies._frozen_runs import (
    ALWAYS,
    GROUPS,
    LIMIT,
    STAGES,
    THAWED,
    WEIGHTS,
    free_runs,
    held_runs,
    joined,
    of,
    parameters,
    relative,
)
from ih_interp.studies.frozen_weights import (
    STUDY,
    judge_frozen,
    log_ratio,
    lost_share,
    summarise_frozen,
)
from ih_interp.studies.run import draw_study
from ih_interp.studies.study import SMOKE, Scale, train_stages
from ih_interp.training.fleet import trace_key

QUICK = STUDY.scales["quick"]
PAIRS = {name: joined(stage.weights) for name, stage in STAGES.items()}
N_CLAIMS = 18


def free_table(times):
    rows = [
        {**trial.condition, "seed": trial.config.seeds.init, "time": time}
        for trial, time in zip(free_runs(QUICK, pd.DataFrame()), times, strict=True)
    ]
    return pd.DataFrame(rows)


def row(trial, time, *, observed=True, induction=0.6):
    """A row of the study's table, as `scored_rows` gives it."""
    config = trial.config
    own = {"seed": config.seeds.init, "run": config.name, "config": config.fingerprint}
    scores = {"induction": induction, "previous_token": 0.8}
    return {**trial.condition, **own, "time": time, "observed": observed, **scores}


def planted(ratio, *, until=lambda what, until: 1.0, noise=0.01, induction=0.6):
    """A table whose times are these multiples of the free ones, cut where runs end."""
    rng = np.random.default_rng(0)
    rows = [row(t, rng.uniform(54e3, 78e3)) for t in free_runs(QUICK, pd.DataFrame())]
    free = {r["seed"]: r["time"] for r in rows}
    for trial in held_runs(QUICK, pd.DataFrame(rows)):
        what, thawed = trial.condition["what"], trial.condition["until"]
        factor = ratio(what) if thawed == ALWAYS else until(what, thawed)
        time = free[trial.config.seeds.init] * factor * math.exp(rng.normal(0, noise))
        end = trial.config.sequences
        rows.append(row(trial, min(time, end), observed=time < end, induction=induction))
    return pd.DataFrame(rows)


COSTS = {
    **dict.fromkeys(WEIGHTS, 1.1),
    **{PAIRS["previous token"]: 1.2, PAIRS["layer 1"]: 1.1},
    **{PAIRS["match"]: 1.6, PAIRS["copy"]: 1.4, "all of layer 0": 1.2, "all of layer 1": 3.0},
    **{"previous token": 0.7, "layer 1": 0.8, "match": 0.2, "copy": 0.5},
}


@functools.cache
def _as_claimed():
    return planted(lambda what: COSTS.get(what, 1.3), until=lambda _, until: 1 + 0.1 * until)


def as_claimed():
    return _as_claimed().copy()


def verdicts(table):
    return {finding.claim: finding.verdict for finding in judge_frozen(table)}


def test_every_weight_is_one_of_the_models():
    model = build_model(SMOKE.run("free", 5).task, seed=5)
    attention = {name for name in trained_parameters(model) if ".attn.W_" in name}
    assert {*parameters(WEIGHTS)} == attention


def test_the_conditions_are_those_of_the_question():
    trials = held_runs(QUICK, free_table([60e3] * 8))
    of_one = [t for t in trials if t.config.seeds.init == 5]
    frozen = {
        (t.condition["what"], t.condition["until"]) for t in of_one if "frozen" in t.config.name
    }
    alone = {(weight, ALWAYS) for weight in WEIGHTS}
    pairs = {(f"{a} + {b}", ALWAYS) for a, b in combinations(WEIGHTS, 2)}
    groups = {(group, ALWAYS) for group in GROUPS}
    assert frozen == alone | pairs | groups | {(p, u) for p in PAIRS.values() for u in THAWED}
    clamps = {t.condition["what"] for t in of_one if t.condition["kind"] == "clamped"}
    assert clamps == {*STAGES}
    assert {*PAIRS.values()} <= {f"{a} + {b}" for a, b in combinations(WEIGHTS, 2)}
    assert {t.config.seeds.init for t in trials} == {*QUICK.seeds}
    names = [t.config.name for t in [*trials, *free_runs(QUICK, pd.DataFrame())]]
    assert len({name.lower() for name in names}) == len(names)


def test_runs_end_by_the_free_time_of_their_own_network():
    times = [50e3 + 1_234 * n for n in range(8)]
    free = dict(zip(QUICK.seeds, times, strict=True))
    for trial in held_runs(QUICK, free_table(times)):
        own, until = free[trial.config.seeds.init], trial.condition["until"]
        after = 0 if until == ALWAYS else until
        assert 0 <= trial.config.sequences - (after + LIMIT) * own < 32
        (clamp,) = trial.config.clamps
        if until == ALWAYS:
            assert isinstance(clamp.schedule, Always)
        else:
            assert isinstance(clamp, Freeze)
            assert isinstance(clamp.schedule, During)
            assert abs(clamp.schedule.stop * 32 - until * own) <= 16
            assert {*clamp.parameters} == {*parameters(trial.condition["what"].split(" + "))}


def test_all_freezes_share_a_graph():
    """One without a schedule, one with; compiling takes longer than eight of these runs."""
    trials = held_runs(QUICK, free_table([60e3 + n for n in range(8)]))
    freezes = [t for t in trials if t.condition["kind"] == "frozen"]
    assert len({trace_key(t.config) for t in freezes}) == 2
    assert len({trace_key(t.config) for t in trials}) == 2 + len(STAGES)


def test_log_ratios_against_a_loop():
    table = as_claimed()
    times = relative(table)
    found = log_ratio(times, PAIRS["match"], "L1 V")
    for seed in QUICK.seeds:
        own = table[(table["seed"] == seed) & (table["until"] == ALWAYS)].set_index("what")["time"]
        assert_allclose(found[seed], math.log(own[PAIRS["match"]] / own["L1 V"]))
        free = table[(table["seed"] == seed) & (table["kind"] == "free")]["time"].item()
        assert_allclose(log_ratio(times, "L1 V")[seed], math.log(own["L1 V"] / free))


def test_two_runs_that_did_not_learn_cannot_be_compared():
    times = relative(planted(lambda _: 3.0))
    assert log_ratio(times, "L0 Q", "L0 K").isna().all()
    assert_allclose(log_ratio(times, "L0 Q"), math.log(LIMIT), rtol=1e-3)  # at least


def test_the_share_of_frozen_time_that_is_lost():
    times = relative(planted(lambda _: 1.0, until=lambda _, until: 1 + 0.3 * until, noise=0))
    for until in THAWED:
        assert_allclose(lost_share(times, PAIRS["copy"], until), 0.3)


def test_planted_effects_are_found():
    found = verdicts(as_claimed())
    assert len(found) == N_CLAIMS
    assert {*found.values()} == {"yes"}, found


def test_reversed_effects_are_told():
    factors = {PAIRS["match"]: 0.6, "all of layer 1": 0.6, PAIRS["previous token"]: 0.6}
    factors |= {PAIRS["layer 1"]: 0.9, PAIRS["copy"]: 0.9, "all of layer 0": 0.9}
    factors |= {"previous token": 0.2, "match": 0.3, "copy": 0.8, "layer 1": 0.9}
    table = planted(lambda what: factors.get(what, 0.8), until=lambda _, until: 1 + 0.9 * until)
    table.loc[table["kind"] == "frozen", "induction"] = 0.1
    found = verdicts(table)
    assert {*found.values()} == {"no"}, found


def test_without_effects_nothing_is_decided_about_delays():
    delays = {
        c: v
        for c, v in verdicts(planted(lambda _: 1.0, noise=0.05)).items()
        if "delays" in c and "for half" not in c
    }
    assert len(delays) == len(WEIGHTS) + 3
    assert {*delays.values()} == {"open"}, delays


def test_runs_that_did_not_learn_are_said_to_count_with_their_length():
    (finding,) = (f for f in judge_frozen(as_claimed()) if "all of layer 1 d" in f.claim)
    (layers,) = (f for f in judge_frozen(as_claimed()) if "Freezing all of layer 1" in f.claim)
    assert finding == layers
    assert "8 of 16 runs did not learn" in layers.found


def test_networks_that_never_learn_are_left_out():
    table = as_claimed()
    lost = (table["kind"] == "free") & (table["seed"] == 5)
    table.loc[lost, "observed"] = False
    assert {*relative(table)["seed"]} == {*QUICK.seeds} - {5}
    assert {*verdicts(table).values()} == {"yes"}
    table.loc[table["kind"] == "free", "observed"] = False
    assert {*verdicts(table).values()} == {"open"}
    assert summarise_frozen(table)["run"].notna().all()


def test_the_summary_against_plain_medians():
    table = as_claimed()
    summary, times = summarise_frozen(table), relative(table)
    assert len(summary) == table.groupby(["kind", "what", "until"]).ngroups
    for _, found in summary.iterrows():
        rows = of(times, found["what"], found["until"])
        assert found["median"] == median_time([*crossings_by_seed(rows.reset_index()).values()])
        assert found["n_observed"] == rows["observed"].sum()
        assert_allclose(found["induction"], rows["induction"].mean())
        assert sorted(found["run"].split()) == sorted(rows["run"])
    never = summary.set_index("what").loc["all of layer 1"]
    assert never["median"] == math.inf
    assert never["n_observed"] == 0


def test_the_figure_says_what_never_learned():
    canvas = draw_study(STUDY, as_claimed())
    assert isinstance(canvas, Figure)
    alone, pairs, _, thaws = canvas.axes
    assert "learned: never" in {text.get_text() for text in alone.texts}
    assert len(pairs.texts) == len(WEIGHTS) * (len(WEIGHTS) + 1) // 2
    assert [*PAIRS.values()] == [text.get_text() for text in thaws.get_legend().get_texts()]


def test_the_figure_says_that_there_is_nothing_to_compare():
    table = as_claimed().assign(observed=False)
    words = [text.get_text() for text in draw_study(STUDY, table).texts]
    assert any("No network learned" in text for text in words)


@pytest.mark.slow
def test_frozen_weights_stay_until_the_thaw_and_runs_end_once_learned(tmp_path):
    scale = Scale(**{**SMOKE.model_dump(), "seeds": (5,), "sequences": 64})
    train_stages(STUDY, scale, tmp_path, engine="eager", say=lambda _: None)
    for folder in tmp_path.iterdir():
        run = ih.Run(folder)
        first, last = (
            dict(run.model(step).named_parameters()) for step in run.steps[:: len(run.steps) - 1]
        )
        held = {n for n in parameters(WEIGHTS) if bool((first[n] == last[n]).all())}
        asked = {n for c in run.config.clamps if isinstance(c, Freeze) for n in c.parameters}
        if "until" in run.config.name:
            assert not held
        elif asked:
            assert held == asked, run.config.name
