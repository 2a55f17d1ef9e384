"""Intervals that cover as often as they say, p-values that are uniform where nothing is there."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from ih_interp.analysis import statistics
from ih_interp.analysis.statistics import (
    Estimate,
    adjusted_for_discoveries,
    bootstrap,
    sign_flip_test,
)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_cover_a_known_mean_as_often_as_they_say(level):
    """400 samples of 100 at once, as columns: 4 standard errors of the share are 0.1 and 0.06."""
    samples = 3 + 2 * normal(100, 400)
    found = bootstrap(samples, level=level, n_resamples=500)
    coverage = ((found.low <= 3) & (found.high >= 3)).mean()
    assert coverage == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 400))
    normal_width = 2 * stats.norm.ppf((1 + level) / 2) * 2 / np.sqrt(100)
    assert (found.high - found.low).mean() == pytest.approx(normal_width, rel=0.05)


@pytest.mark.parametrize("statistic", [np.mean, np.log])
def test_intervals_are_those_of_scipy(statistic):
    """Of a skewed sample, and of a statistic of its mean; resamples differ, so nearly the same."""
    sample = np.random.default_rng(1).exponential(size=60)
    of_mean = (lambda mean: mean) if statistic is np.mean else statistic
    theirs = stats.bootstrap(
        (sample,),
        lambda x, axis: of_mean(np.mean(x, axis=axis)),
        method="percentile",
        n_resamples=20_000,
        rng=np.random.default_rng(2),
    ).confidence_interval
    ours = bootstrap(sample, of_mean, n_resamples=20_000)
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.02 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.02 * width)
    assert ours.value == pytest.approx(of_mean(sample.mean()))


def test_resamples_are_counts_of_drawing_with_replacement():
    """Blocks of 64 and the rest; the variance of a weight is (1 - 1/n) / n^2."""
    blocks = list(statistics._resampled(10, 1_000, np.random.default_rng(0)))
    assert [len(block) for block in blocks] == [64] * 15 + [40]
    weights = np.concatenate(blocks)
    assert weights.sum(axis=1) == pytest.approx(1)
    assert (weights * 10 == np.round(weights * 10)).all()
    assert weights.mean() == pytest.approx(0.1)
    assert weights.var() == pytest.approx(0.9 / 100, rel=0.05)


def test_the_same_seed_gives_the_same_interval():
    values = normal(50, 2)
    one, same, other = (bootstrap(values, seed=seed) for seed in (3, 3, 4))
    assert (one.low == same.low).all()
    assert (one.high == same.high).all()
    assert (one.low != other.low).any()
    assert (one.value == other.value).all()


def test_a_statistic_of_several_means_keeps_its_shape():
    """The ratio of two means that go together sequence by sequence has no spread at all."""
    first = normal(40, 3) ** 2
    found = bootstrap(np.stack([first, 2 * first], axis=1), lambda mean: mean[1] / mean[0])
    assert isinstance(found, Estimate)
    assert [part.shape for part in found] == [(3,)] * 3
    for part in found:
        assert part == pytest.approx(2)
    assert bootstrap(first, lambda mean: mean.sum()).value.shape == ()


def test_what_has_no_interval_is_refused():
    with pytest.raises(ValueError, match="values"):
        bootstrap(normal(1, 2))
    with pytest.raises(ValueError, match=r"level=95\.0"):
        bootstrap(normal(5), level=95.0)
    with pytest.raises(ValueError, match="n_resamples=0"):
        bootstrap(normal(5), n_resamples=0)
    with pytest.raises(ValueError, match="effects"):
        sign_flip_test(normal(0, 2))


def literal_sign_flips(effects):
    """Every flip of every sequence, one at a time."""
    observed = abs(effects.sum()) - 1e-9
    flips = list(itertools.product((-1, 1), repeat=len(effects)))
    return sum(abs(np.dot(signs, effects)) >= observed for signs in flips) / len(flips)


@pytest.mark.parametrize("size", [2, 3, 5, 9])
def test_few_sequences_are_flipped_in_every_way(size):
    effects = normal(size, 4, seed=size) + 0.5
    effects[:, 3] = np.round(effects[:, 3])  # ties
    expected = [literal_sign_flips(column) for column in effects.T]
    assert sign_flip_test(effects) == pytest.approx(expected)
    assert sign_flip_test(effects, seed=9) == pytest.approx(expected)


def test_random_flips_come_near_the_enumeration():
    effects = normal(9, 4) + 0.4
    found = sign_flip_test(effects, n_permutations=500)  # fewer than 2^9
    assert (found != sign_flip_test(effects, n_permutations=511)).any()  # and 512 are all
    expected = np.array([literal_sign_flips(column) for column in effects.T])
    assert (np.abs(found - expected) < 4 * np.sqrt(expected * (1 - expected) / 500) + 0.002).all()


def test_no_effect_gives_uniform_p_values():
    p = sign_flip_test(normal(30, 500), n_permutations=499)
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.03)


def test_an_effect_gives_small_p_values_down_to_the_smallest():
    effects = normal(30, 20) + 2
    assert sign_flip_test(effects, n_permutations=499) == pytest.approx(1 / 500)
    assert sign_flip_test(-effects, n_permutations=499) == pytest.approx(1 / 500)
    assert sign_flip_test(np.ones((4, 1))) == pytest.approx(2 / 16)
    assert sign_flip_test(np.zeros((40, 1)), n_permutations=99) == 1


def test_sums_that_cancel_count_as_ties():
    """0.1 + 0.2 - 0.3 is not 0 to the last digit; every flip reaches it all the same."""
    assert sign_flip_test(np.array([[0.1], [0.2], [-0.3]])) == 1


def test_an_effect_that_is_no_number_has_no_p_value():
    effects = np.stack([normal(6) + 3, np.full(6, np.nan)], axis=1)
    effects[1:, 1] = 3
    p = sign_flip_test(effects)
    assert p[0] == pytest.approx(2 / 64)
    assert np.isnan(p[1])


def test_adjusted_values_by_hand_and_by_scipy():
    """Sorted .005 .01 .03 .04 .5 times 5 / rank: .025 .025 .05 .05 .5, then minima from above."""
    p = np.array([0.04, 0.01, 0.5, 0.005, 0.03])
    assert adjusted_for_discoveries(p) == pytest.approx([0.05, 0.025, 0.5, 0.025, 0.05])
    many = np.random.default_rng(0).uniform(size=100)
    assert adjusted_for_discoveries(many) == pytest.approx(stats.false_discovery_control(many))


def test_values_that_are_missing_stay_missing_and_do_not_count():
    """As many tests as were done: two, not three; the map of a model keeps its shape."""
    p = np.array([[0.01, np.nan], [0.04, np.nan]])
    adjusted = adjusted_for_discoveries(p)
    assert adjusted[:, 0] == pytest.approx([0.02, 0.04])
    assert np.isnan(adjusted[:, 1]).all()
    assert np.isnan(adjusted_for_discoveries(np.array([np.nan]))).all()


def test_false_discoveries_are_as_rare_as_asked():
    """A tenth of 200 tests are true effects; over 50 rounds the false share stays under q."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(50):
        z = rng.normal(size=200) + np.where(np.arange(200) < 20, 4, 0)
        called = adjusted_for_discoveries(2 * stats.norm.sf(np.abs(z))) <= 0.2
        shares.append(called[20:].sum() / max(1, called.sum()))
    assert 0.1 < np.mean(shares) < 0.2


def test_what_is_no_p_value_is_refused():
    with pytest.raises(ValueError, match="p="):
        adjusted_for_discoveries(np.array([0.1, 1.5]))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.float16, np.float32, np.bool_, object])
def test_values_of_any_type_are_those_of_double_precision(dtype):
    values = np.random.default_rng(0).integers(0, 100, size=(20, 3))
    values = values % 2 if dtype is np.bool_ else values
    double = values.astype(np.float64)
    for found, wanted in zip(bootstrap(values.astype(dtype)), bootstrap(double), strict=True):
        assert found.tolist() == wanted.tolist()
    assert sign_flip_test(values.astype(dtype)).tolist() == sign_flip_test(double).tolist()


def test_the_same_numbers_as_tensors_of_half_precision():
    values = torch.arange(12).reshape(6, 2)
    wanted = bootstrap(values.double().numpy())
    found = bootstrap(values.bfloat16())
    assert [end.tolist() for end in found] == [end.tolist() for end in wanted]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_no_interval_and_no_p_is_made_of_what_is_no_number(bad):
    values = np.random.default_rng(0).normal(size=(30, 2))
    values[4, 1] = bad
    found = bootstrap(values, n_resamples=50)
    assert np.isfinite([end[0] for end in found]).all()
    assert np.isnan([found.low[1], found.high[1]]).all()
    assert not np.isfinite(found.value[1])
    assert np.isnan(sign_flip_test(values)).tolist() == [False, True]


def test_complex_values_and_words_are_refused():
    for values in (np.ones((3, 2)) * 1j, np.array([["a"], ["b"]])):
        for function in (bootstrap, sign_flip_test):
            with pytest.raises(TypeError, match="expected"):
                function(values)


@pytest.mark.parametrize("seed", [-1, -7])
def test_what_is_no_seed_is_refused_in_words(seed):
    with pytest.raises(ValueError, match="seed"):
        bootstrap(np.arange(3.0), seed=seed)
    with pytest.raises(ValueError, match="seed"):
        sign_flip_test(np.ones((3, 1)), n_permutations=2, seed=seed)


def test_what_a_statistic_gives_has_to_be_numbers_of_one_shape():
    with pytest.raises(ValueError, match="shapes"):
        bootstrap(np.arange(3.0), lambda mean: np.zeros(int(3 * mean) % 2))
