"""Kaplan-Meier against a textbook and simulations; what is censored counts as longer, not as is."""

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
import torch

from ih_interp.analysis.dynamics.emergence import (
    Crossing,
    emergence_table,
    half_of_end,
    logistic_midpoint,
)
from ih_interp.analysis.dynamics.survival import (
    bootstrap_over_seeds,
    crossings_by_seed,
    emergence_summary,
    kaplan_meier,
    median_time,
    paired_times,
    restricted_mean,
    survival_table,
    widest_coverage,
)


def crossings(observed=(), censored=()):
    return [Crossing(float(t), True) for t in observed] + [
        Crossing(float(t), False) for t in censored
    ]


# Weeks in remission of leukaemia patients (Freireich et al. 1963), as in Klein and Moeschberger.
TREATED = crossings(
    [6, 6, 6, 7, 10, 13, 16, 22, 23], [6, 9, 10, 11, 17, 19, 20, 25, 32, 32, 34, 35]
)
PLACEBO = crossings([1, 1, 2, 2, 3, 4, 4, 5, 5, 8, 8, 8, 8, 11, 11, 12, 12, 15, 17, 22, 23])


def test_a_textbooks_curve():
    curve = kaplan_meier(TREATED)
    published = {6: 0.857, 7: 0.807, 10: 0.753, 13: 0.690, 16: 0.627, 22: 0.538, 23: 0.448}
    found = dict(zip(curve.time, curve.share, strict=True))
    for week, share in published.items():
        assert found[week] == pytest.approx(share, abs=5e-4)
    assert found[0] == 1
    assert found[35] == found[23]
    assert median_time(TREATED) == 23
    assert median_time(PLACEBO) == 8
    # Greenwood at 10 weeks: standard error 0.0963; log-log interval as R's survfit prints it.
    place = list(curve.time).index(10)
    assert curve.low[place] == pytest.approx(0.503, abs=1e-3)
    assert curve.high[place] == pytest.approx(0.889, abs=1e-3)
    assert np.isnan(curve.low[0])


def test_by_hand():
    """At 1 one of four gets there, one ends at 2, at 3 one of the two left: 3/4, 3/4, 3/8, 3/8."""
    runs = crossings([1, 3], [2, 4])
    curve = kaplan_meier(runs)
    assert list(curve.time) == [0, 1, 2, 3, 4]
    assert list(curve.share) == pytest.approx([1, 0.75, 0.75, 0.375, 0.375])
    assert median_time(runs) == 3
    assert restricted_mean(runs, 4.0) == pytest.approx(1 + 2 * 0.75 + 0.375)
    assert restricted_mean(runs, 1.5) == pytest.approx(1 + 0.5 * 0.75)
    with pytest.raises(ValueError, match="horizon=5"):
        restricted_mean(runs, 5.0)
    assert restricted_mean(crossings([1, 3]), 9.0) == pytest.approx(2)  # all known


@pytest.mark.parametrize("seed", range(20))
def test_steps_are_those_of_scipy(seed):
    """With ties and censoring: the quick formula behind medians, the curve behind drawings."""
    rng = np.random.default_rng(seed)
    runs = [Crossing(float(rng.integers(1, 8)), bool(rng.random() < 0.6)) for _ in range(12)]
    curve = kaplan_meier(runs)
    end = float(curve.time[-1])
    widths = np.diff(np.append(curve.time, end))
    assert restricted_mean(runs, end) == pytest.approx(float((widths * curve.share).sum()))
    below = curve.time[curve.share <= 0.5]
    if not np.isclose(curve.share, 0.5).any():
        assert median_time(runs) == (below[0] if len(below) else math.inf)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_without_censoring_the_median_is_the_ordinary_one(n):
    times = np.random.default_rng(n).exponential(size=n)
    assert median_time(crossings(times)) == pytest.approx(np.median(times))
    assert restricted_mean(crossings(times), 100.0) == pytest.approx(times.mean())


def test_a_median_that_is_not_reached():
    assert median_time(crossings([1], [5, 5])) == math.inf
    assert median_time(crossings([], [5])) == math.inf
    assert median_time(crossings([1, 2], [5, 5])) == 2  # at one half from 2 on, and no later fall
    assert kaplan_meier(crossings([], [5, 5])).share.tolist() == [1, 1]
    with pytest.raises(ValueError, match="crossings"):
        median_time([])
    with pytest.raises(ValueError, match="crossings"):
        kaplan_meier([])


@pytest.mark.parametrize("censoring", ["end", "random"])
def test_censored_runs_do_not_bias_the_median(censoring):
    """Exponential times of mean 1, median ln 2; about 40% of the runs end before."""
    rng = np.random.default_rng(0)
    times = rng.exponential(size=3_000)
    ends = np.full(3_000, 0.9) if censoring == "end" else rng.exponential(1.5, size=3_000)
    runs = [Crossing(float(min(t, e)), bool(t <= e)) for t, e in zip(times, ends, strict=True)]
    assert 0.3 < 1 - np.mean([run.observed for run in runs]) < 0.5
    assert median_time(runs) == pytest.approx(math.log(2), abs=0.06)
    assert np.median([run.time for run in runs if run.observed]) < 0.5
    assert np.mean([run.time for run in runs]) < 0.62  # the mean is 1
    assert restricted_mean(runs, 0.8) == pytest.approx(1 - math.exp(-0.8), abs=0.02)


def test_the_interval_of_few_seeds_covers_what_is_said_and_no_more():
    """Three seeds: from the fastest to the slowest, which holds the median in 3 of 4 cases."""
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        times = rng.exponential(size=3)
        _, low, high = bootstrap_over_seeds(crossings(times), n_resamples=100)
        assert (low, high) == (times.min(), times.max())
        covered += low <= math.log(2) <= high
    assert widest_coverage(3) == 0.75
    assert covered / 200 == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / 200))


def test_the_interval_of_many_seeds_covers_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        times = rng.exponential(size=25)
        runs = [Crossing(min(t, 1.2), t < 1.2) for t in map(float, times)]
        _, low, high = bootstrap_over_seeds(runs, level=0.9, n_resamples=200)
        covered += low <= math.log(2) <= high
    assert 0.8 <= covered / 100 <= 0.98


def test_an_interval_may_be_open():
    found = bootstrap_over_seeds(crossings([1, 2, 3], [9, 9]))
    assert found.value == 3
    assert found.low == 1
    assert found.high == math.inf
    again = bootstrap_over_seeds(crossings([1, 2, 3], [9, 9]))
    assert again == found
    with pytest.raises(ValueError, match="1 seeds"):
        bootstrap_over_seeds(crossings([1]))


def test_pairs_by_hand():
    """Half the time in every pair: ratio 1/2, and of 2^4 flips two are as extreme."""
    slow = dict(enumerate(crossings([10, 20, 40, 80])))
    fast = {seed: Crossing(run.time / 2, True) for seed, run in slow.items()}
    found = paired_times(fast, slow)
    for end in found.ratio:
        assert end == pytest.approx(0.5)
    assert found.p == pytest.approx(2 / 16)
    assert found.p_of_signs == pytest.approx(2 / 16)
    assert found[2:7] == (4, 0, 4, 0, 0)
    back = paired_times(slow, fast)
    assert back.ratio.value == pytest.approx(2)
    assert (back.earlier, back.later) == (0, 4)


def test_censored_pairs_count_where_their_order_is_known():
    """5 < 10; 5 before the end at 20; 30 or later than 20 and 3 or later than 9, not known; a tie.

    And once the other way round: 8, after which the first went on to 40 without it.
    """
    pairs = [
        (Crossing(5.0, True), Crossing(10.0, True)),
        (Crossing(5.0, True), Crossing(20.0, False)),
        (Crossing(30.0, True), Crossing(20.0, False)),
        (Crossing(3.0, False), Crossing(9.0, True)),
        (Crossing(7.0, True), Crossing(7.0, True)),
        (Crossing(40.0, False), Crossing(8.0, True)),
    ]
    first, second = (dict(enumerate(side)) for side in zip(*pairs, strict=True))
    found = paired_times(first, second)
    assert (found.earlier, found.later, found.undecided) == (2, 1, 3)
    assert (found.n_compared, found.n_left_out) == (2, 4)
    assert found.ratio.value == pytest.approx(math.sqrt(0.5))
    assert found.p_of_signs == 1
    assert paired_times(second, first)[4:7] == (1, 2, 3)


def test_pairs_without_two_times_have_no_ratio():
    first, second = {1: Crossing(5.0, True)}, {1: Crossing(9.0, False)}
    found = paired_times(first, second)
    assert math.isnan(found.ratio.value)
    assert math.isnan(found.p)
    assert found.earlier == 1
    nobody = paired_times(second, second)
    assert math.isnan(nobody.p_of_signs)
    assert nobody.undecided == 1
    with pytest.raises(ValueError, match=r"\[1\] and \[2\]"):
        paired_times(first, {2: Crossing(1.0, True)})
    with pytest.raises(ValueError, match="time of 0"):
        paired_times({1: Crossing(0.0, True)}, first)


SEQUENCES = np.arange(0, 1_001, 20)


def curves(planted):
    """Losses that fall from 0.7 to 0 at a planted time a condition and seed; the rows shuffled."""
    parts = [
        pd.DataFrame(
            {
                "clamp": clamp,
                "seed": seed,
                "sequences": SEQUENCES,
                "loss": np.where(time > SEQUENCES, 0.7, 0.01),
                "value": np.where(time > SEQUENCES, 0.0, 0.8),
            }
        )
        for clamp, times in planted.items()
        for seed, time in enumerate(times)
    ]
    return pd.concat(parts).sample(frac=1, random_state=0, ignore_index=True)


PLANTED = {"match": [110, 190, 150], "none": [410, math.inf, 610], "copy": [math.inf] * 3}


def test_planted_steps_come_back_as_one_row_a_run():
    times = emergence_table(curves(PLANTED))
    assert list(times.columns) == ["clamp", "seed", "time", "observed"]
    assert len(times) == 9
    for row in times.itertuples():
        planted = PLANTED[row.clamp][row.seed]
        assert row.observed == (planted < math.inf)
        assert row.time == 1_000 if not row.observed else abs(row.time - planted) <= 20
    for criterion in (half_of_end, logistic_midpoint):
        strengths = emergence_table(curves(PLANTED), criterion, value="value")
        merged = times.merge(strengths, on=["clamp", "seed"])
        assert (merged["time_x"] - merged["time_y"]).abs().max() <= 20
        assert (merged["observed_x"] == merged["observed_y"]).all()


def test_a_summary_a_condition():
    times = emergence_table(curves(PLANTED))
    summary = emergence_summary(times, n_resamples=200).set_index("clamp")
    assert summary["n_seeds"].to_dict() == {"match": 3, "none": 3, "copy": 3}
    assert summary["n_observed"].to_dict() == {"match": 3, "none": 2, "copy": 0}
    for clamp in PLANTED:
        runs = list(crossings_by_seed(times[times["clamp"] == clamp]).values())
        assert summary.loc[clamp, "median"] == median_time(runs)
        assert summary.loc[clamp, "restricted_mean"] == pytest.approx(
            restricted_mean(runs, 1_000.0)
        )
    assert summary.loc["match", "median"] == pytest.approx(150, abs=20)
    assert summary.loc["none", "median_high"] == math.inf
    assert summary.loc["copy", ["median", "median_low"]].to_list() == [math.inf] * 2
    assert summary.loc["copy", "restricted_mean"] == 1_000
    assert (summary["horizon"] == 1_000).all()
    assert (summary["widest_coverage"] == 0.75).all()
    one = emergence_summary(times[times["seed"] == 0])
    assert one["median_low"].isna().all()
    assert (one.set_index("clamp")["median"].sort_values().index == list(PLANTED)).all()


def test_the_horizon_is_one_that_every_resample_knows():
    """Runs of two lengths: a resample may hold only the shorter."""
    times = pd.DataFrame({"clamp": "none", "seed": range(4), "time": [300.0, 500, 800, 900]})
    times["observed"] = [True, False, True, False]
    summary = emergence_summary(times, n_resamples=100)
    assert summary["horizon"].item() == 500
    assert emergence_summary(times, horizon=400.0)["horizon"].item() == 400


def test_a_table_of_survival_for_drawing():
    table = survival_table(emergence_table(curves(PLANTED)))
    assert list(table.columns) == ["clamp", "sequences", "share", "low", "high", "censored"]
    none = table[table["clamp"] == "none"]
    assert none["share"].tolist() == pytest.approx([1, 2 / 3, 1 / 3, 1 / 3])
    assert none["censored"].tolist() == [0, 0, 0, 1]


def test_several_columns_make_a_condition():
    table = curves({"match": [110, 190]}).assign(labels=5)
    times = emergence_table(table, by=["labels", "clamp"])
    assert list(times.columns) == ["labels", "clamp", "seed", "time", "observed"]
    assert emergence_summary(times, by=["labels", "clamp"], n_resamples=50)["labels"].item() == 5


def test_what_is_no_table_of_runs_is_refused():
    table = curves({"match": [110, 190]})
    with pytest.raises(ValueError, match=r"\['condition'\]"):
        emergence_table(table, by="condition")
    with pytest.raises(ValueError, match="0 rows"):
        emergence_table(table[:0])
    with pytest.raises(ValueError, match="The run of clamp match, seed 0: sequences"):
        emergence_table(pd.concat([table, table]).query("seed == 0"))
    with pytest.raises(ValueError, match="twice"):
        crossings_by_seed(emergence_table(curves(PLANTED)))


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA], ids=repr)
def test_a_condition_or_seed_that_is_missing_is_kept(gap):
    table = curves(PLANTED)
    named = emergence_table(table)
    unnamed = pd.Series([gap if c == "none" else c for c in table["clamp"]], dtype=object)
    times = emergence_table(table.assign(clamp=unnamed))
    assert times["time"].tolist() == named["time"].tolist()
    assert times["clamp"].isna().sum() == 3
    for summarise in (emergence_summary, survival_table):
        found, wanted = summarise(times), summarise(named)
        pd.testing.assert_frame_equal(found.drop(columns="clamp"), wanted.drop(columns="clamp"))
        kept = found["clamp"].fillna("none").tolist()
        assert kept == wanted["clamp"].tolist()
    seeds = pd.Series([gap if s == 0 else s for s in table["seed"]], dtype=object)
    assert len(emergence_table(table.assign(seed=seeds))) == 9


def test_categories_without_rows_and_repeated_row_numbers_change_nothing():
    times = emergence_table(curves(PLANTED))
    wanted = emergence_summary(times, n_resamples=20)
    kinds = pd.Categorical(times["clamp"], categories=[*PLANTED, "never run"])
    other = times.assign(clamp=kinds).set_axis([7] * len(times))
    found = emergence_summary(other, n_resamples=20)
    assert found["clamp"].tolist() == wanted["clamp"].tolist()
    pd.testing.assert_frame_equal(found.drop(columns="clamp"), wanted.drop(columns="clamp"))
    assert survival_table(other)["share"].tolist() == survival_table(times)["share"].tolist()
    twice = pd.concat([times, times["time"]], axis=1)
    for function in (emergence_summary, survival_table):
        with pytest.raises(ValueError, match=r"more than one column \['time'\]"):
            function(twice)


def test_the_order_of_rows_changes_no_number():
    times = emergence_table(curves(PLANTED)).query("clamp != 'copy'")
    wanted = emergence_summary(times, n_resamples=50).set_index("clamp")
    for seed in range(4):
        shuffled = times.sample(frac=1, random_state=seed)
        found = emergence_summary(shuffled, n_resamples=50).set_index("clamp")
        pd.testing.assert_frame_equal(found.loc[wanted.index], wanted)
    runs = TREATED
    again = runs[::-1]
    assert bootstrap_over_seeds(runs) == bootstrap_over_seeds(again)
    assert median_time(runs) == median_time(again)


BAD_TIMES = (math.nan, math.inf, -1.0, -math.inf)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("observed", [True, False])
@pytest.mark.parametrize("bad", BAD_TIMES)
def test_times_that_are_none_are_refused_by_all(bad, observed, place):
    runs = crossings([1, 2, 3])
    runs[place] = Crossing(bad, observed)
    seeds = dict(enumerate(runs))
    table = pd.DataFrame(runs).assign(clamp="a", seed=range(3))
    calls = (
        lambda: median_time(runs),
        lambda: kaplan_meier(runs),
        lambda: restricted_mean(runs, 1.0),
        lambda: bootstrap_over_seeds(runs),
        lambda: paired_times(seeds, dict(enumerate(crossings([1, 2, 3])))),
        lambda: paired_times(dict(enumerate(crossings([1, 2, 3]))), seeds),
        lambda: emergence_summary(table),
        lambda: survival_table(table),
        lambda: crossings_by_seed(table),
    )
    for call in calls:
        with pytest.raises(ValueError, match=f"time.* holds {bad:g}"):
            call()


def test_a_horizon_is_finite():
    for bad in (math.inf, math.nan, -1.0):
        with pytest.raises(ValueError, match="horizon"):
            restricted_mean(crossings([1, 3]), bad)


@pytest.mark.parametrize(
    "observed",
    [[True, False, False], [1, 0, 0], [1.0, 0.0, 0.0], pd.array([1, 0, 0], dtype="boolean")],
    ids=str,
)
def test_observed_may_come_as_0_and_1(observed):
    table = pd.DataFrame(
        {"clamp": "a", "seed": range(3), "time": [5.0, 7, 9], "observed": observed}
    )
    found = emergence_summary(table, n_resamples=20)
    assert found[["n_observed", "median"]].iloc[0].tolist() == [1, math.inf]
    assert survival_table(table)["censored"].tolist() == [0, 0, 1, 1]
    runs = list(map(Crossing, [5.0, 7.0, 9.0], list(observed)))
    assert np.allclose(kaplan_meier(runs).share, [1, 2 / 3, 2 / 3, 2 / 3])


@pytest.mark.parametrize("bad", ["False", "True", 2, 0.5, np.nan, None, pd.NA], ids=repr)
def test_observed_of_another_kind_is_refused_by_name(bad):
    observed = pd.Series([True, bad, False], dtype=object)
    table = pd.DataFrame(
        {"clamp": "a", "seed": range(3), "time": [5.0, 7, 9], "observed": observed}
    )
    for function in (emergence_summary, survival_table, crossings_by_seed):
        with pytest.raises(ValueError, match="The column 'observed' holds"):
            function(table)


def test_pairs_need_seeds_that_are_there():
    times = emergence_table(curves({"match": [110, 190]}))
    for seeds, words in (
        ([0, np.nan], "missing"),
        ([None, 1], "missing"),
        ([0, 0.5], "whole numbers"),
        ([3, 3.0], "comes twice"),
    ):
        with pytest.raises(ValueError, match=words):
            crossings_by_seed(times.assign(seed=pd.Series(seeds, dtype=object)))


def test_a_condition_is_told_by_columns_that_are_not_made():
    times = emergence_table(curves({"match": [110, 190]}))
    for by in ("time", "seed", ["clamp", "clamp"]):
        with pytest.raises(ValueError, match="by="):
            emergence_table(curves({"match": [110, 190]}), by=by)
    for by in ("median", "observed"):
        with pytest.raises(ValueError, match="by="):
            emergence_summary(times.assign(median=1), by=by)


def test_times_of_any_number_type_are_as_good():
    times = [Fraction(1, 2), Decimal("1.5"), np.float16(2), torch.tensor(3.0)]
    crossings = [Crossing(time, True) for time in times]
    assert median_time(crossings) == 1.75
    np.testing.assert_allclose(kaplan_meier(crossings).time, [0, 0.5, 1.5, 2, 3])


@pytest.mark.parametrize("given", [None, Crossing(1.0, True), "soon"])
def test_a_statistic_that_is_no_number_is_refused(given):
    with pytest.raises(TypeError, match="number"):
        bootstrap_over_seeds([Crossing(1.0, True)] * 2, lambda _: given, n_resamples=3)


@pytest.mark.parametrize("name", ["median_low", "restricted_mean", "widest_coverage", "n_observed"])
def test_a_condition_has_no_name_of_the_summarys_columns(name):
    times = pd.DataFrame({name: ["a"], "seed": [0], "time": [1.0], "observed": [True]})
    with pytest.raises(ValueError, match="by="):
        emergence_summary(times, by=name)


def test_an_index_with_the_name_of_a_column_does_not_matter():
    times = pd.DataFrame({"clamp": ["a", "b"], "seed": 0, "time": [1.0, 2.0], "observed": True})
    named = times.set_index("clamp", drop=False)
    pd.testing.assert_frame_equal(survival_table(named), survival_table(times))


@pytest.mark.parametrize("n", [0, -1, 2.5])
def test_no_seeds_cover_nothing(n):
    with pytest.raises((ValueError, TypeError), match="n_seeds"):
        widest_coverage(n)
