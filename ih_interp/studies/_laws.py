"""Laws that predict when the whole is learned from the times of its parts alone."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from scipy.integrate import solve_ivp

from ih_interp.studies.study import LEARNED

SMALLEST, LARGEST = -5.0, -0.5  # log10 of the start from which the toy model's factors may grow

Times: TypeAlias = Float[ndarray, "network subcircuit"]
Law: TypeAlias = Callable[[Times, float], Float[ndarray, " network"]]


def stagewise(alone: Times, start: float) -> Float[ndarray, " network"]:
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


def scaled(combine: Callable[..., ndarray]) -> Law:
    """Return the law `exp(constant) combine(times)`."""
    return lambda alone, constant: np.exp(constant) * combine(alone, axis=1)


def _product(alone: Times, axis: int) -> ndarray:
    return np.exp(np.log(alone).mean(axis=axis))


LAWS: Mapping[str, tuple[Law, tuple[float, float]]] = {
    "stagewise": (lambda alone, start: stagewise(alone, 10**start), (SMALLEST, LARGEST)),
    "product": (scaled(_product), (-5.0, 10.0)),
    "sum": (scaled(np.sum), (-5.0, 10.0)),
    "maximum": (scaled(np.max), (-5.0, 10.0)),
    "constant": (lambda alone, log: np.full(len(alone), np.exp(log)), (0.0, 20.0)),
}
"""Laws of the time until the whole is learned, and the range of the one constant of each: that of a
stagewise law is log10 of the start; a product is the geometric mean's multiple; "constant" ignores
A, B and C."""
