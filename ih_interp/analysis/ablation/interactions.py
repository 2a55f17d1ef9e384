"""Cooperative games: the worth of each player and each pair when every subset has a value.

A game is `values [..., 2^n]`: bit i of a subset's index says whether player i is in, so that index
0 is the empty subset, 2^n - 1 all players, and `values[0b101]` players 0 and 2. Axes in front are
games of their own and are kept. With v(S) the value of a subset S:

    Moebius transform    m(T) = sum over S within T of (-1)^(|T|-|S|) v(S), so that
                         v(S) = sum over T within S of m(T)
    Walsh transform      F(T) = 2^-n sum over all S of v(S) (-1)^|S and T|

A game is additive where v(S) is v(empty) plus a number for each player in S: m(T) = F(T) = 0 for
every T of two or more. A metric for which lower is better turns every sign.

Values may be numbers of any type; all is computed in double precision. A NaN makes NaN of every
result that it enters. Infinite values raise ValueError, because their differences are undefined.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy import ndarray

from ih_interp._columns import numbers
from ih_interp._reprs import short_repr

AnyGame: TypeAlias = Shaped[ndarray, "*game subset"]
"""Numbers of any type, from the caller."""

Game: TypeAlias = Float[ndarray, "*game subset"]
PerPlayer: TypeAlias = Float[ndarray, "*game player"]
PerPair: TypeAlias = Float[ndarray, "*game player player"]
"""Symmetric; the diagonal holds the same index of the single player."""

ROUNDING = 1e-12  # of the largest value; a game that varies by less is a constant one


@short_repr
class Spectrum(NamedTuple):
    """The parts of a game of order 1, 2, ..., n: of single players, pairs and larger sets."""

    variance: Float[ndarray, "*game order"]
    """Sum of F(T)^2 over the sets of that size; the sum over orders is the game's variance."""
    moebius: Float[ndarray, "*game order"]
    """Sum of |m(T)|. The Moebius basis is not orthogonal, so these are not shares."""


@short_repr
class AdditiveFit(NamedTuple):
    """The best additive game: the intercept plus the slopes of the players that are in."""

    r_squared: Float[ndarray, "*game"]
    intercept: Float[ndarray, "*game"]
    slopes: PerPlayer


@functools.lru_cache(maxsize=8)
def members(n_players: int) -> Int[ndarray, "subset player"]:
    """Return 1 where the player is in the subset; a read-only array.

    >>> members(2).tolist()
    [[0, 0], [1, 0], [0, 1], [1, 1]]
    """
    found = np.arange(2**n_players)[:, None] >> np.arange(n_players) & 1
    found.setflags(write=False)
    return found


def sizes(n_players: int) -> Int[ndarray, " subset"]:
    """Return how many players every subset has.

    >>> sizes(2).tolist()
    [0, 1, 1, 2]
    """
    return members(n_players).sum(axis=1)


def moebius(values: AnyGame) -> Game:
    """Return what every subset adds beyond its parts, m(T): the dividends of Harsanyi (1963).

    >>> moebius(np.array([0.0, 1.0, 1.0, 1.0])).tolist()  # OR: the second adds nothing
    [0.0, 1.0, 1.0, -1.0]
    """
    return _butterfly(values, lambda out, within: (out, within - out))


def walsh(values: AnyGame) -> Game:
    """Return F(T) = 2^-n sum over S of v(S) (-1)^|S and T|; F(empty) is the mean over subsets.

    These are coordinates in an orthonormal basis under the uniform weight over subsets, so the sum
    of F(T)^2 over all but the empty T is the variance of v over subsets.

    >>> walsh(np.array([0.0, 1.0, 1.0, 1.0])).tolist()
    [0.75, -0.25, -0.25, -0.25]
    """
    return _butterfly(values, lambda out, within: ((out + within) / 2, (out - within) / 2))


def first_in(values: AnyGame) -> PerPlayer:
    """Return v(i) - v(empty), the effect of a player alone."""
    values = _game(values)
    return values[..., 2 ** np.arange(n_players(values))] - values[..., :1]


def last_in(values: AnyGame) -> PerPlayer:
    """Return v(all) - v(all but i), the loss without a player; `first_in` if additive."""
    values = _game(values)
    n = n_players(values)
    return values[..., -1:] - values[..., 2**n - 1 - 2 ** np.arange(n)]


def shapley(values: AnyGame) -> PerPlayer:
    """Return a player's marginal contribution, averaged over every order in which all come in.

    sum over S without i of |S|! (n-|S|-1)! / n! (v(S+i) - v(S)) = sum over T with i of m(T) / |T|;
    their sum is v(all) - v(empty) (Shapley 1953).
    """
    n = n_players(values)
    return (moebius(values) / np.maximum(sizes(n), 1)) @ members(n)


def banzhaf(values: AnyGame) -> PerPlayer:
    """Return a player's marginal contribution, averaged over every subset of the others: -2 F(i).

    They are the slopes of the best additive fit (Banzhaf 1965; Hammer and Holzman 1992).
    """
    return -2 * walsh(values)[..., 2 ** np.arange(n_players(values))]


def shapley_interaction(values: AnyGame) -> PerPair:
    """Return the Shapley interaction index: how much one player changes another's contribution.

    v(S+ij) - v(S+i) - v(S+j) + v(S), averaged over sizes of S and over the S of a size; by Moebius
    sum over R with i and j of m(R) / (|R| - 1) (Grabisch and Roubens 1999). Diagonal: `shapley`.
    """
    n = n_players(values)
    within = members(n).astype(float)
    weighted = moebius(values) * (1 / np.maximum(sizes(n) - 1, 1))
    pairs = (within.T * weighted[..., None, :]) @ within
    return np.where(np.eye(n, dtype=bool), shapley(values)[..., None], pairs)


def spectrum_by_order(values: AnyGame) -> Spectrum:
    """Return Walsh variance and Moebius mass by the size of the set, from 1 to n."""
    n = n_players(values)
    of_order = (sizes(n)[:, None] == np.arange(1, n + 1)).astype(float)
    return Spectrum(walsh(values) ** 2 @ of_order, np.abs(moebius(values)) @ of_order)


def variance_shares(values: AnyGame) -> Float[ndarray, "*game order"]:
    """Return shares of the variance by order, in [0, 1], summing to 1; NaN for a constant game."""
    values = _game(values)
    # Squares of very large or small values overflow. Powers of two change no digit.
    _, exponent = np.frexp(np.abs(values).max(axis=-1, keepdims=True))
    values = np.ldexp(values, -exponent)
    return spectrum_by_order(values).variance / variance(values)[..., None]


def variance(values: AnyGame) -> Float[ndarray, "*game"]:
    """Return the variance over subsets; NaN where it is rounding, below 1e-12 of the largest."""
    values = _game(values)
    found = np.asarray(values.var(axis=-1))
    rounding = (ROUNDING * np.abs(values).max(axis=-1)) ** 2
    return np.where(found > rounding, found, np.nan)


def additive_fit(values: AnyGame) -> AdditiveFit:
    """Return the additive game nearest to this one, all subsets counting alike.

    R squared = sum over |T| = 1 of F(T)^2 / sum over all but the empty T, in [0, 1]: 1 for an
    additive game, n / (2^n - 1) for a random one on average, and NaN for a constant one, which
    varies by less than 1e-12 of its largest value.

    >>> additive_fit(np.array([0.0, 1.0, 1.0, 1.0])).r_squared.round(3).item()
    0.667
    """
    values = _game(values)
    slopes = banzhaf(values)
    intercept = values.mean(axis=-1) - slopes.sum(axis=-1) / 2
    r_squared = np.asarray(variance_shares(values)[..., 0])
    return AdditiveFit(r_squared, np.asarray(intercept), slopes)


def n_players(values: AnyGame) -> int:
    """Return how many players a game has; ValueError for a length other than 2, 4, 8, ..."""
    shape = numbers(values, "The game").shape
    length = shape[-1] if shape else 0
    n = length.bit_length() - 1
    if n < 1 or length != 2**n:
        raise ValueError(
            f"The game has {length} values on its last axis: expected one per subset, 2^n of them."
        )
    return n


def _game(values: AnyGame) -> Game:
    """Return the game in double precision, so that no difference overflows the caller's type."""
    game = numbers(values, "The game")
    if n_infinite := np.count_nonzero(np.isinf(game)):
        raise ValueError(
            f"The game has {n_infinite} infinite values: expected finite numbers, or NaN; leave "
            "out the sequences with an infinite metric."
        )
    return game


def _butterfly(
    values: AnyGame, step: Callable[[ndarray, ndarray], tuple[ndarray, ndarray]]
) -> Game:
    """Return the game after one step per player, on the values without and with that player."""
    result = values = _game(values)
    for player in range(n_players(values)):
        pairs = result.reshape(*values.shape[:-1], -1, 2, 2**player)
        new = np.empty_like(pairs)
        new[..., 0, :], new[..., 1, :] = step(pairs[..., 0, :], pairs[..., 1, :])
        result = new.reshape(values.shape)
    return result
