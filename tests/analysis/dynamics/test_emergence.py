import math

import numpy as np
import pandas as pd
import pytest

from ih_interp.analysis.dynamics.emergence import (
    GOOD_FIT,
    LEARNED,
    Crossing,
    first_above,
    first_below,
    fit_logistic,
    half_of_end,
    learned,
    logistic_midpoint,
    plateau_length,
    steepest_descent,
)

GRID = np.arange(0.0, 1_001.0, 10.0)


def logistic(sequences, low=0.05, high=0.85, rate=6.0, midpoint=300.0):
    """In the power form: (t / midpoint)^rate is to 1 as the risen part is to the rest."""
    power = (np.asarray(sequences) / midpoint) ** rate
    return low + (high - low) * power / (1 + power)


def noise(scale, seed=0, size=101):
    return np.random.default_rng(seed).normal(scale=scale, size=size)


def test_a_planted_crossing_is_found():
    sequences = np.arange(0.0, 100.0, 10.0)
    line = 2 - sequences / 50
    for level in (0.3, 1.0, 1.77):
        assert first_below(sequences, line, level) == pytest.approx(50 * (2 - level))


def test_a_curve_below_from_the_start_and_one_that_never_is():
    sequences = np.array([0.0, 1.0])
    assert first_below(sequences, np.array([0.1, 0.0]), 0.5) == 0.0
    assert first_below(sequences, np.array([2.0, 1.0]), 0.5) == math.inf


def test_the_first_of_several_crossings_counts():
    curve = np.array([2.0, 0.0, 2.0, 0.0])
    assert first_below(np.arange(4.0), curve, 1.0) == pytest.approx(0.5)


def test_time_on_a_planted_plateau():
    sequences = np.arange(0.0, 1_000.0)
    loss = np.where(sequences <= 100, 2 - 0.012 * sequences, 0.75)
    loss = np.where(sequences > 600, 0.75 - 0.01 * (sequences - 600), loss)
    # Below 0.8 at 100, below 0.6 at 615.
    assert plateau_length(sequences, loss) == (pytest.approx(515, abs=0.1), True)


def test_the_papers_level():
    assert pytest.approx(0.4 * math.log(2)) == LEARNED


def test_columns_cut_from_a_table_are_read_by_place():
    """Their index starts anywhere: read by it, a crossing would lie elsewhere, or nowhere."""
    table = pd.DataFrame({"split": ["test", "train"] * 4, "sequences": np.repeat(np.arange(4), 2)})
    table["loss"] = [9.0, 2.0, 9.0, 1.0, 9.0, 0.0, 9.0, 0.0]
    rows = table[table["split"] == "train"]
    assert first_below(rows["sequences"], rows["loss"], 0.5) == pytest.approx(1.5)
    assert first_below([0, 1, 2], [2, 1, 0], 0.5) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("sequences", "curve", "words"),
    [
        ([0, 1, 2], [2, 1], r"\(3,\) and the curve \(2,\)"),
        ([[0, 1]], [[2, 1]], r"\[point\]"),
        ([0, 2, 1], [2, 1, 0], "ascending"),
        ([0, 1, 0, 1], [2, 1, 2, 1], "ascending"),
        ([0, 1, 2], [2, np.nan, 0], "The curve holds nan"),
    ],
)
def test_what_is_no_curve_is_refused(sequences, curve, words):
    for measure in (plateau_length, lambda x, y: first_below(x, y, 0.5)):
        with pytest.raises(ValueError, match=words):
            measure(sequences, curve)


def test_a_stay_passes_over_a_dip():
    """Below at one point, back, then below for good from 1.0 / 2.0 of the way after 4."""
    curve = [2, 2, 0.5, 2, 2, 0, 0, 0]
    x = np.arange(8.0)
    assert first_below(x, curve, 1.0) == pytest.approx(1 + 1 / 1.5)
    for points in (2, 3):
        assert first_below(x, curve, 1.0, for_at_least=points) == pytest.approx(4.5)
    assert first_below(x, curve, 1.0, for_at_least=4) == math.inf
    assert first_below([0, 1, 2], [0, 2, 0], 1.0, for_at_least=2) == math.inf
    assert first_below([0, 1, 2], [0, 0, 2], 1.0, for_at_least=2) == 0
    for points in (0, 9):
        with pytest.raises(ValueError, match=f"for_at_least={points}"):
            first_below(x, curve, 1.0, for_at_least=points)


def test_rising_is_falling_upside_down():
    x = np.arange(50.0)
    curve = np.cumsum(noise(1.0, size=50))
    for level in (-2.0, 0.3, 5.0):
        assert first_above(x, curve, level) == first_below(x, -curve, -level)
    assert first_above([0, 10], [0, 1], 0.25) == pytest.approx(2.5)


@pytest.mark.parametrize("planted", [123.0, 500.0, 987.0])
def test_a_planted_step_is_recovered_within_the_grids_spacing(planted):
    loss = np.where(planted > GRID, 0.7, 0.01)
    strength = np.where(planted > GRID, 0.0, 0.8)
    for found in (
        learned(GRID, loss),
        half_of_end(GRID, strength),
        logistic_midpoint(GRID, strength),
    ):
        assert found.observed
        assert abs(found.time - planted) <= 10


def test_what_a_curve_ends_too_early_to_show_is_censored_at_its_end():
    flat = np.full(len(GRID), 0.5)
    assert learned(GRID, flat) == Crossing(1_000.0, observed=False)
    assert learned(GRID, flat, level=0.6) == Crossing(0.0, observed=True)
    weak = np.linspace(0, 0.09, len(GRID))
    assert half_of_end(GRID, weak) == Crossing(1_000.0, observed=False)
    assert half_of_end(GRID, weak, at_least=0.05) == Crossing(500.0, observed=True)
    assert logistic_midpoint(GRID, weak) == Crossing(1_000.0, observed=False)
    late = logistic(GRID, midpoint=1_200.0)
    assert late[-1] - late[0] > 0.1
    assert logistic_midpoint(GRID, late + noise(0.003)) == Crossing(1_000.0, observed=False)


@pytest.mark.parametrize("criterion", [half_of_end, logistic_midpoint])
def test_a_loss_is_no_strength(criterion):
    """Else every run would be counted as one that never learned."""
    with pytest.raises(ValueError, match=r"falls from 1\.7 to 0\.02"):
        criterion(GRID, np.linspace(1.7, 0.02, len(GRID)))


@pytest.mark.parametrize("midpoint", [60.0, 300.0, 800.0])
@pytest.mark.parametrize("rate", [3.0, 12.0])
def test_a_planted_logistic_is_recovered(midpoint, rate):
    exact = fit_logistic(GRID, logistic(GRID, rate=rate, midpoint=midpoint))
    assert exact == pytest.approx((0.05, 0.85, rate, midpoint, 1.0), rel=1e-4)


def test_noise_moves_a_logistic_no_more_than_it_should():
    """100 noisy curves: right on average, and each within a few of the standard error."""
    fits = [fit_logistic(GRID, logistic(GRID) + noise(0.05, seed)) for seed in range(100)]
    found = np.array(fits)
    error = found.std(axis=0)[:4] / 10
    assert (np.abs(found.mean(axis=0)[:4] - (0.05, 0.85, 6, 300)) < 4 * error + 1e-3).all()
    assert found[:, 3].std() < 6
    variance = logistic(GRID).var()
    assert found[:, 4].mean() == pytest.approx(variance / (variance + 0.05**2), abs=0.01)


def test_the_first_point_is_the_low_end():
    """At no sequences ln is -inf and a rise has not begun; the point counts."""
    curve = logistic(GRID)
    curve[0] = 0.4
    assert fit_logistic(GRID, curve).r_squared < fit_logistic(GRID[1:], curve[1:]).r_squared
    assert fit_logistic(GRID[1:], logistic(GRID[1:])).midpoint == pytest.approx(300, rel=1e-4)


@pytest.mark.parametrize(
    "curve", [0.3 + noise(0.1), -logistic(GRID), np.full(len(GRID), 0.2), np.sin(GRID / 50)]
)
def test_curves_that_do_not_rise_have_no_midpoint(curve):
    with pytest.raises(ValueError, match="does not rise"):
        fit_logistic(GRID, curve)


def test_a_poor_fit_says_so():
    hill = np.where(GRID < 300, 0, np.where(GRID < 700, 0.9, 0.45))
    assert 0.5 < fit_logistic(GRID, hill).r_squared < GOOD_FIT
    with pytest.raises(ValueError, match="R squared"):
        logistic_midpoint(GRID, hill)
    with pytest.raises(ValueError, match="4 points"):
        fit_logistic(GRID[:4], logistic(GRID[:4]))


def test_the_steepest_place_is_where_the_slope_is():
    """Against ln t a logistic is steepest at its midpoint, by rise x rate / 4."""
    curve = -logistic(GRID, rate=8.0) + noise(0.001)
    at = steepest_descent(GRID, curve, scale="log")
    assert at.crossing.observed
    assert at.crossing.time == pytest.approx(300, abs=15)
    assert at.slope == pytest.approx(-0.8 * 8 / 4, rel=0.05)
    line = steepest_descent([0, 1, 4, 5, 6], [9, 8, 5, 1, 0], n_points=2)
    assert line == (Crossing(4.5, observed=True), -4.0)


def test_the_first_fall_is_passed_over():
    loss = np.where(GRID < 50, 2 - GRID / 40, 0.7) - 0.6 * logistic(GRID, 0.0, 1.0, 12.0, 600.0)
    assert steepest_descent(GRID, loss).crossing.time < 100
    from_plateau = steepest_descent(GRID, loss, after=first_below(GRID, loss, 0.8))
    assert from_plateau.crossing.time == pytest.approx(600, abs=15)


def test_what_falls_fastest_at_its_end_may_fall_faster_yet():
    assert not steepest_descent(GRID, -(GRID**2)).crossing.observed
    with pytest.raises(ValueError, match="falls nowhere"):
        steepest_descent(GRID, GRID)
    with pytest.raises(ValueError, match="n_points=5"):
        steepest_descent(GRID, -GRID, after=990.0)
    with pytest.raises(ValueError, match="n_points=1"):
        steepest_descent(GRID, -GRID, n_points=1, scale="log")


def test_a_plateau_that_has_not_ended_is_censored():
    x = np.arange(0.0, 5.0)
    assert plateau_length(x, [2, 0.8, 0.7, 0.7, 0.5]) == Crossing(pytest.approx(2.5), True)
    assert plateau_length(x, [2, 0.5, 0.7, 0.7, 0.5]).time == pytest.approx(0.2 / 1.5)
    assert plateau_length(x, [2, 0.6, 0.7, 0.7, 0.7]) == Crossing(
        pytest.approx(4 - 1.2 / 1.4), False
    )
    assert plateau_length(x, [2, 2, 2, 2, 2]) == Crossing(0.0, observed=False)
    # Around ln 5, where a model guesses among all labels.
    assert plateau_length(x, [1.8, 1.6, 1.6, 1.4, 0.0], band=(1.5, 1.7)).time == pytest.approx(2.0)
    with pytest.raises(ValueError, match="band"):
        plateau_length(x, x, band=(0.8, 0.6))


def test_a_curve_without_points_is_told_to_be_unfinished():
    with pytest.raises(ValueError, match="no points"):
        learned([], [])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -5.0])
def test_places_of_a_curve_are_numbers_of_sequences(bad):
    for sequences in ([0.0, bad], [bad], [bad, 10.0]):
        with pytest.raises(ValueError, match=f"sequences holds {bad:g}"):
            learned(sequences, np.ones(len(sequences)))


def test_curves_of_words_and_complex_numbers_are_refused():
    for curve in (["3.0", "0.1"], np.array([3.0, 1j])):
        with pytest.raises(TypeError, match="The curve: expected"):
            learned([0.0, 10.0], curve)


def test_columns_of_any_type_are_curves():
    nullable = pd.Series([3, 0], dtype="Float32", index=[9, 9])
    assert first_below([0, 10], nullable, 1.5) == 5
    with pytest.raises(ValueError, match="The curve holds nan"):
        first_below([0, 10], pd.Series([3, None], dtype="Float32"), 1.5)


def test_a_scale_is_one_of_two():
    with pytest.raises((ValueError, TypeError), match="Log"):
        steepest_descent(np.arange(1.0, 9), -np.arange(8.0), scale="Log")


def test_a_curve_whose_squares_are_no_numbers_is_refused_in_words():
    with pytest.raises(ValueError, match="spans"):
        fit_logistic(np.arange(6.0), 1e200 * np.arange(6.0))
