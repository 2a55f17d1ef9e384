"""The study of critical periods: its windows, what a run saved, and verdicts on planted tables."""

import itertools
import zlib

import numpy as np
import pandas as pd
import pytest

import ih_interp as ih
from ih_interp.studies._periods_runs import ONSETS, closed_loops, free_runs, same_doses, windows
from ih_interp.studies.critical_periods import (
    STUDY,
    by_onset,
    draw,
    judge_periods,
    savings,
    summarise,
)
from ih_interp.studies.findings import flatness
from ih_interp.studies.study import CLAMPS, SMOKE, Scale, Trial

SCALE = Scale(seeds=(5, 6, 7))
SEEDS = range(5, 13)
FREE = {seed: 3_200.0 * (seed + 10) for seed in SEEDS}


def planted(saved, *, observed=lambda arm, clamp, onset, seed: True):
    """A table in which the run of an arm, clamp, onset and seed saves this many windows."""
    conditions = [("window", onset) for onset in ONSETS]
    conditions += [(arm, np.nan) for arm in ("closed loop", "from the start", "spread")]
    rows = [
        {"arm": "free", "clamp": "none", "seed": seed, "time": FREE[seed], "observed": True,
         "plateau_start": 0.2 * FREE[seed], "plateau_end": 0.8 * FREE[seed], "run": f"free-{seed}"}
        for seed in SEEDS
    ]  # fmt: skip
    for clamp, (arm, onset), seed in itertools.product(CLAMPS, conditions, SEEDS):
        key = (arm, clamp, onset, seed)
        run = f"{arm}-{clamp}-{onset}-{seed}".replace(" ", "")
        time = FREE[seed] * (1 - saved(*key) / 10)
        rows.append(
            {"arm": arm, "clamp": clamp, "onset": onset, "seed": seed, "free": FREE[seed],
             "time": time, "observed": observed(*key), "run": run}
        )  # fmt: skip
    return pd.DataFrame(rows).assign(config="0", dose=7)


def noise(*key):
    return float(np.random.default_rng(zlib.crc32(repr(key).encode())).normal(0, 0.3))


def free_table():
    rows = [{"arm": "free", "clamp": "none", "seed": s, "time": FREE[s]} for s in SCALE.seeds]
    return pd.DataFrame(rows)


def test_windows_tile_the_free_learning_time_of_each_network():
    trials = windows(SCALE, free_table())
    assert len(trials) == len(CLAMPS) * 10 * 3
    assert len({trial.config.name for trial in trials}) == len(trials)
    for clamp, seed in itertools.product(CLAMPS, SCALE.seeds):
        own = [t for t in trials if t.condition["clamp"] == clamp and t.config.seeds.init == seed]
        updates = FREE[seed] / 32
        under = [0] * round(updates)
        for trial in own:
            (on,) = [c.schedule for c in trial.config.clamps]
            under = [n + on.gate(step) for step, n in enumerate(under)]
            assert on.stop - on.start == round(updates / 10)
            assert trial.config.sequences == pytest.approx(1.5 * FREE[seed], abs=32)
            assert trial.config.evaluate == ("free",)
        assert under == [1.0] * len(under)


def test_closed_loops_wait_for_the_network_without_clamps():
    for trial in closed_loops(SCALE, free_table()):
        (clamp,) = trial.config.clamps
        begin, end = clamp.schedule.levels
        assert (begin.below, begin.under, end.below, end.under) == (0.8, "free", 0.6, "free")


def test_fixed_doses_are_those_of_the_closed_loop():
    loops = [
        {"arm": "closed loop", "clamp": clamp, "seed": seed, "dose": 40 + seed}
        for clamp in CLAMPS
        for seed in SCALE.seeds
    ]
    table = pd.concat([free_table(), pd.DataFrame(loops)])
    for trial in same_doses(SCALE, table):
        (clamp,) = trial.config.clamps
        seed = trial.config.seeds.init
        updates = round(FREE[seed] / 32)
        dose = sum(clamp.schedule.gate(step) for step in range(updates))
        if trial.condition["arm"] == "from the start":
            assert dose == 40 + seed
            assert clamp.schedule.gate(39 + seed) == 1
        else:  # in ten pulses, each a whole number of updates
            assert dose == pytest.approx(40 + seed, abs=10)
            assert clamp.schedule.gate(
                updates // 2 // clamp.schedule.period * clamp.schedule.period
            )


def test_free_runs_have_no_clamps():
    assert all(not trial.config.clamps for trial in free_runs(SCALE, pd.DataFrame()))


def test_a_row_counts_the_updates_under_the_clamp(tmp_path):
    config = SMOKE.run("one", 5, [CLAMPS["match"](ih.clamps.during(1, 4))], evaluate=("free",))
    (run,) = ih.train([config], tmp_path, progress=False)
    trial = Trial({"arm": "window"}, config)
    (row,) = STUDY.rows(trial, run)
    assert (row["dose"], row["observed"], row["time"]) == (3, False, config.sequences)
    assert row["plateau_end"] == np.inf
    assert (row["run"], row["config"]) == ("one-5", run.config.fingerprint)


def test_savings_are_told_in_windows():
    table = planted(lambda arm, clamp, onset, seed: 2.0 - seed / 10)
    saved = savings(table)
    assert len(saved) == len(table) - len(SEEDS)
    assert saved["savings"].to_numpy() == pytest.approx(2.0 - saved["seed"] / 10)
    assert by_onset(table, "match").shape == (8, 10)


def test_medians_count_runs_that_never_learned_as_such():
    def observed(arm, clamp, onset, seed):
        return clamp != "copy" or seed < 7

    table = planted(lambda arm, clamp, onset, seed: -5 if seed >= 10 else seed, observed=observed)
    summary = summarise(table)
    medians = summary.set_index(["clamp", "arm", "onset"])["savings"]
    # From the most saved on: 9 8 7 6 5 -5 -5 -5; the median is between 6 and 5.
    assert medians["match", "window", 0.3] == pytest.approx(5.5)
    assert medians["copy", "window", 0.3] == -np.inf
    assert summary["run"].str.split(" ").str.len().eq(8).all()


def test_flatness_is_exact_for_few_shuffles():
    values = np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [2.0, 3.0, 9.0]])
    ranks = np.array([[1, 2, 3], [1, 3, 2], [1, 2, 3]])
    every = [
        np.array(rows).mean(axis=0).var()
        for rows in itertools.product(*(itertools.permutations(row) for row in ranks.tolist()))
    ]
    exact = np.mean(np.array(every) >= ranks.mean(axis=0).var() - 1e-12)
    assert flatness(values) == pytest.approx(exact, abs=0.015)
    assert flatness(np.zeros((4, 3))) == 1


def verdicts(saved):
    found = judge_periods(planted(saved))
    return {f.claim.partition(": ")[2]: f.verdict for f in found if f.claim.startswith("match")}


def test_a_planted_period_is_found():
    got = verdicts(
        lambda arm, clamp, onset, seed: max(0, 0.6 - onset) + noise(clamp, onset, seed) / 9
    )
    assert got["a window saves time, on average over onsets"] == "yes"
    assert got["a window saves less time than it lasts, on average over onsets"] == "yes"
    assert got["the first five windows save more than the last five"] == "yes"
    assert got["savings differ between onsets"] == "yes"


def test_reversed_effects_are_refused_and_noise_stays_open():
    def late(arm, clamp, onset, seed):
        loop = -1 if arm == "closed loop" else 0
        return 2 + (0 if np.isnan(onset) else onset) + loop + noise(clamp, onset, seed) / 9

    got = verdicts(late)
    assert got["a window saves less time than it lasts, on average over onsets"] == "no"
    assert got["the first five windows save more than the last five"] == "no"
    assert got["help on the plateau saves more than as much at the start"] == "no"
    open_ = verdicts(lambda arm, clamp, onset, seed: noise(arm, clamp, onset, seed))
    assert open_["savings differ between onsets"] == "open"
    assert open_["the first five windows save more than the last five"] == "open"


def test_the_figure_shows_every_network_and_those_that_never_learned():
    from matplotlib.figure import Figure

    table = planted(
        lambda arm, clamp, onset, seed: -5 if seed == 12 else 1.0,
        observed=lambda arm, clamp, onset, seed: seed != 12,
    )
    canvas = Figure()
    draw(table, canvas)
    upper = canvas.axes[2]  # match
    curves = [line for line in upper.lines if line.get_alpha() == 0.5]
    assert [len(curve.get_xdata()) for curve in curves] == [len(ONSETS)] * len(SEEDS)
    triangles = next(line for line in upper.lines if line.get_marker() == "v")
    assert set(triangles.get_ydata()) == {-5.0}


def test_networks_that_do_not_learn_by_themselves_have_no_windows():
    table = planted(lambda *key: 1.0)
    table.loc[(table["arm"] == "free") & (table["seed"] == 9), "observed"] = False
    assert 9 not in set(savings(table)["seed"])
    assert by_onset(table, "match").shape == (7, 10)
    nothing = table.assign(observed=False)
    assert {finding.verdict for finding in judge_periods(nothing)} == {"open"}
    assert summarise(nothing).empty


def test_two_runs_that_did_not_learn_cannot_be_compared():
    def observed(arm, clamp, onset, seed):
        return arm not in ("closed loop", "spread") or seed == 5

    table = planted(lambda *key: 1.0, observed=observed)
    found = {f.claim: f.found for f in judge_periods(table)}
    pulses = found["copy: help on the plateau saves more than as much in ten pulses"]
    assert pulses.startswith("not measured; 7 without a number")
    start = found["copy: help on the plateau saves more than as much at the start"]
    assert "7 of 16 runs did not learn" in start


def test_a_missing_value_has_no_p():
    assert np.isnan(flatness(np.array([[1.0, np.nan], [2.0, 3.0]])))
