"""Games against their definitions, subset by subset."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose

from ih_interp.analysis.ablation import interactions

OR = np.array([0.0, 1.0, 1.0, 1.0])
AND = np.array([0.0, 0.0, 0.0, 1.0])


def subsets(players):
    players = list(players)
    return [s for k in range(len(players) + 1) for s in itertools.combinations(players, k)]


def at(values, players):
    """The value of a subset, found by its bits."""
    return values[sum(1 << player for player in players)]


def random_game(n, seed=0):
    return np.random.default_rng(seed).normal(size=2**n)


some_game = st.integers(1, 5).flatmap(
    lambda n: arrays(np.float64, 2**n, elements=st.floats(-100, 100, width=32))
)


def test_members_and_sizes_say_who_is_in():
    assert interactions.members(3)[0b101].tolist() == [1, 0, 1]
    assert interactions.sizes(3).tolist() == [bin(i).count("1") for i in range(8)]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_transforms_equal_their_sums(n):
    v = random_game(n)
    for T in subsets(range(n)):
        m = sum((-1) ** (len(T) - len(S)) * at(v, S) for S in subsets(T))
        f = sum(at(v, S) * (-1) ** len({*S} & {*T}) for S in subsets(range(n))) / 2**n
        assert at(interactions.moebius(v), T) == pytest.approx(m)
        assert at(interactions.walsh(v), T) == pytest.approx(f)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_values_of_players_equal_their_averages_over_orders_and_subsets(n):
    v = random_game(n)
    orders = list(itertools.permutations(range(n)))
    for i in range(n):
        others = [j for j in range(n) if j != i]
        before = [order[: order.index(i)] for order in orders]
        marginal = [at(v, (*S, i)) - at(v, S) for S in before]
        assert interactions.shapley(v)[i] == pytest.approx(np.mean(marginal))
        each = [at(v, (*S, i)) - at(v, S) for S in subsets(others)]
        assert interactions.banzhaf(v)[i] == pytest.approx(np.mean(each))
        assert interactions.first_in(v)[i] == pytest.approx(at(v, [i]) - at(v, []))
        assert interactions.last_in(v)[i] == pytest.approx(at(v, range(n)) - at(v, others))


@pytest.mark.parametrize("n", [2, 3, 5])
def test_interactions_equal_their_averages_over_subsets(n):
    v = random_game(n)
    for i, j in itertools.permutations(range(n), 2):
        rest = [k for k in range(n) if k not in (i, j)]
        by_size = [[] for _ in range(n - 1)]
        for S in subsets(rest):
            change = at(v, (*S, i, j)) - at(v, (*S, i)) - at(v, (*S, j)) + at(v, S)
            by_size[len(S)].append(change)
        average = np.mean([np.mean(changes) for changes in by_size])
        assert interactions.shapley_interaction(v)[i, j] == pytest.approx(average)


def test_the_diagonal_holds_the_values_of_single_players():
    v = random_game(4)
    pairs = interactions.shapley_interaction(v)
    assert_allclose(np.diag(pairs), interactions.shapley(v), atol=1e-12)


def test_or_is_redundant_and_and_is_complementary():
    for game, sign in ((OR, -1.0), (AND, 1.0)):
        assert interactions.shapley_interaction(game)[0, 1] == sign
    assert interactions.first_in(OR).tolist() == [1, 1]
    assert interactions.last_in(OR).tolist() == [0, 0]
    assert interactions.shapley(AND).tolist() == [0.5, 0.5]


def test_additive_fit_equals_least_squares():
    v = random_game(5, seed=3)
    design = np.column_stack([np.ones(32), interactions.members(5)])
    solution, residual, *_ = np.linalg.lstsq(design, v)
    fit = interactions.additive_fit(v)
    assert fit.r_squared == pytest.approx(1 - residual[0] / ((v - v.mean()) ** 2).sum())
    assert_allclose([fit.intercept, *fit.slopes], solution)


def test_an_additive_game_has_no_interactions():
    weights = np.array([3.0, -1.0, 0.5, 7.0])
    v = 2 + interactions.members(4) @ weights
    fit = interactions.additive_fit(v)
    assert fit.r_squared == pytest.approx(1)
    assert fit.intercept == pytest.approx(2)
    for per_player in (
        fit.slopes,
        interactions.shapley(v),
        interactions.first_in(v),
        interactions.last_in(v),
    ):
        assert_allclose(per_player, weights)
    off = ~np.eye(4, dtype=bool)
    assert_allclose(interactions.shapley_interaction(v)[off], 0, atol=1e-12)
    assert_allclose(interactions.variance_shares(v), [1, 0, 0, 0], atol=1e-12)
    assert_allclose(interactions.spectrum_by_order(v).moebius, [11.5, 0, 0, 0], atol=1e-12)


def test_parity_is_all_of_the_highest_order():
    parity = (-1.0) ** interactions.sizes(3)
    assert interactions.variance_shares(parity).tolist() == [0, 0, 1]
    assert interactions.additive_fit(parity).r_squared == 0


def test_a_constant_game_has_no_share_to_give():
    for level in (0.0, 0.1):
        v = np.full(8, level)
        assert np.isnan(interactions.additive_fit(v).r_squared)
        assert np.isnan(interactions.variance_shares(v)).all()
        assert (interactions.spectrum_by_order(v).variance < 1e-30).all()


def test_a_random_game_explains_its_share_of_dimensions():
    many = np.random.default_rng(0).normal(size=(4_000, 16))
    assert interactions.additive_fit(many).r_squared.mean() == pytest.approx(4 / 15, abs=0.01)


EVERY = (
    interactions.moebius,
    interactions.walsh,
    interactions.shapley,
    interactions.banzhaf,
    interactions.shapley_interaction,
    interactions.first_in,
    interactions.last_in,
    interactions.variance_shares,
    lambda v: interactions.additive_fit(v).r_squared,
    lambda v: interactions.additive_fit(v).intercept,
    lambda v: interactions.spectrum_by_order(v).moebius,
)


@pytest.mark.parametrize("function", EVERY)
def test_axes_in_front_are_games_of_their_own(function):
    many = np.random.default_rng(0).normal(size=(2, 3, 8))
    one_by_one = np.stack([np.stack([function(v) for v in row]) for row in many])
    assert_allclose(function(many), one_by_one, atol=1e-12)


@pytest.mark.parametrize("length", [0, 1, 3, 12])
def test_other_lengths_are_refused(length):
    with pytest.raises(ValueError, match=f"{length} values"):
        interactions.moebius(np.zeros(length))


@given(some_game)
@settings(deadline=None)
def test_the_walsh_transform_turns_back(v):
    assert_allclose(interactions.walsh(interactions.walsh(v)) * len(v), v, atol=1e-9)


@given(some_game)
@settings(deadline=None)
def test_efficiency(v):
    """What all achieve together is handed out, no more and no less."""
    assert interactions.shapley(v).sum() == pytest.approx(v[-1] - v[0], abs=1e-9)


@given(some_game)
@settings(deadline=None)
def test_variance_is_that_over_subsets(v):
    assert interactions.spectrum_by_order(v).variance.sum() == pytest.approx(v.var(), abs=1e-9)


@given(some_game, st.data())
@settings(deadline=None)
def test_names_of_players_do_not_matter(v, data):
    n = interactions.n_players(v)
    order = data.draw(st.permutations(range(n)))
    renamed = v[interactions.members(n)[:, np.argsort(order)] @ (1 << np.arange(n))]
    assert_allclose(interactions.shapley(renamed), interactions.shapley(v)[order], atol=1e-9)
    pairs = interactions.shapley_interaction(v)[np.ix_(order, order)]
    assert_allclose(interactions.shapley_interaction(renamed), pairs, atol=1e-9)


@given(some_game)
@settings(deadline=None)
def test_who_changes_nothing_gets_nothing(v):
    n = interactions.n_players(v)
    with_null = np.concatenate([v, v])  # the new last player
    assert interactions.shapley(with_null)[-1] == pytest.approx(0, abs=1e-9)
    assert interactions.banzhaf(with_null)[-1] == pytest.approx(0, abs=1e-9)
    assert_allclose(interactions.shapley(with_null)[:-1], interactions.shapley(v), atol=1e-9)
    assert_allclose(interactions.shapley_interaction(with_null)[n], 0, atol=1e-9)


@given(some_game, st.floats(-3, 3), st.integers(0, 99))
@settings(deadline=None)
def test_everything_but_shares_is_linear(v, factor, seed):
    w = random_game(interactions.n_players(v), seed)
    for function in EVERY[:7]:
        both = function(v + factor * w)
        assert_allclose(both, function(v) + factor * function(w), atol=1e-7)


def by_definition(v):
    """What the functions say, subset by subset, with Python's own numbers."""
    v = [float(x) for x in v]
    n = len(v).bit_length() - 1
    first = [v[1 << i] - v[0] for i in range(n)]
    last = [v[-1] - v[len(v) - 1 - (1 << i)] for i in range(n)]
    orders = list(itertools.permutations(range(n)))
    joins = [[sum(1 << j for j in order[: order.index(i)]) for order in orders] for i in range(n)]
    shapley = [sum(v[s | 1 << i] - v[s] for s in joins[i]) / len(orders) for i in range(n)]
    return {"first_in": first, "last_in": last, "shapley": shapley}


DTYPES = (
    *(np.uint8, np.int8, np.uint16, np.int64, np.uint64),
    *(np.float16, np.float32, np.longdouble, object),
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("values", [(3, 1, 2, 0), (100, 1, 0, 99, 7, 0, 3, 120)])
def test_games_of_any_type_are_those_of_double_precision(dtype, values):
    game, double = np.array(values, dtype), np.array(values, np.float64)
    for name, wanted in by_definition(values).items():
        assert_allclose(getattr(interactions, name)(game), wanted, rtol=1e-12)
    for function in EVERY:
        found = np.asarray(function(game))
        assert found.dtype == np.float64
        assert_allclose(found, function(double), rtol=1e-12, atol=1e-12)


def test_games_of_truth_values_count_them():
    assert interactions.first_in(np.array([True, False, True, False])).tolist() == [-1, 0]
    assert interactions.shapley_interaction(np.array([True, False, False, False]))[0, 1] == 1


def test_r_squared_of_narrow_types():
    for dtype in (np.float16, np.float32, np.int16):
        additive = np.array([0, 300, 300, 600], dtype)
        assert interactions.additive_fit(additive).r_squared == pytest.approx(1, abs=1e-12)
    for dtype in (np.float16, np.float32):
        constant = np.full(256, 0.1, dtype)
        assert np.isnan(interactions.additive_fit(constant).r_squared)
        assert np.isnan(interactions.variance_shares(constant)).all()


@pytest.mark.parametrize("function", EVERY)
def test_nan_makes_nan_and_infinity_is_refused(function):
    game = random_game(3)
    game[[0, -1]] = np.nan
    assert np.isnan(function(game)).any()
    for place in range(8):
        game = random_game(3)
        game[place] = np.inf
        with pytest.raises(ValueError, match="infinite"):
            function(game)


@pytest.mark.parametrize(
    "values", [np.array([1j, 0]), np.array(["1", "2"]), np.array([None, "a"], object)]
)
def test_what_is_no_number_has_no_game(values):
    for function in EVERY:
        with pytest.raises(TypeError, match="The game"):
            function(values)


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e160, 1e300])
def test_shares_do_not_depend_on_the_unit(scale):
    game = np.array([0.0, 1.0, 1.0, 1.0])
    np.testing.assert_allclose(interactions.variance_shares(game * scale), [2 / 3, 1 / 3])
    assert interactions.additive_fit(game * scale).r_squared == pytest.approx(2 / 3)
