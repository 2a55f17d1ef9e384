"""Laws that predict when the whole is learned from the times of its parts alone."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.integrate import solve_ivp

from ih_interp.studies.study import LEARNED

START = 0.01  # of the toy model's factors; a smaller one changes the law by a factor alone

Times: TypeAlias = Float[ndarray, "network subcircuit"]
Law: TypeAlias = Callable[[Times], Float[ndarray, " network"]]


def stagewise(alone: Times, start: float = START) -> Float[ndarray, " network"]:
    """Return the time at which a product of three factors is learned, from their times alone.

    The factors of the toy model grow by `da/dt = (1 - abc) bc / tau_A`, and so on, from `start`. A
    factor alone, with the others at 1, is learned when `(1 - a)^2` is `LEARNED`, which gives tau;
    the product is learned when `(1 - abc)^2` is.
    """
    tau = alone / np.log((1 - start) / np.sqrt(LEARNED))
    return np.array([_time_of_product(row / row.mean(), start) * row.mean() for row in tau])


def _time_of_product(tau: Float[ndarray, " subcircuit"], start: float) -> float:
    def slope(_: float, factors: ndarray) -> ndarray:
        product = factors.prod()
        return (1 - product) * product / factors / tau

    def unlearned(_: float, factors: ndarray) -> float:
        return float((1 - factors.prod()) ** 2 - LEARNED)

    unlearned.terminal = True  # pyright: ignore[reportFunctionMemberAccess]
    longest = 100 * tau.max() / start
    solved = solve_ivp(slope, (0, longest), np.full(3, start), events=unlearned, rtol=1e-6)
    return float(solved.t_events[0][0])


LAWS: Mapping[str, Law] = {
    "stagewise": stagewise,
    "product": lambda alone: np.exp(np.log(alone).mean(axis=1)),
    "sum": lambda alone: alone.sum(axis=1),
    "maximum": lambda alone: alone.max(axis=1),
    "constant": lambda alone: np.ones(len(alone)),
}
"""Laws of the time until the whole is learned, up to a factor, which is fitted.

A product is that of the cube roots; "constant" ignores A, B and C.
"""
