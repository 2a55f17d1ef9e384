"""The toy model of three vectors: a product alone makes a plateau and a sudden drop.

Gradient descent learns `T*_ijk = a*_i b*_j c*_k` as `a_i b_j c_k`: three factors that only work
together, like the subcircuits of an induction head. Clamping one to its true value shortens the
plateau, clamping two removes it. Source: Singh et al. (2024), arXiv:2404.07129, Section 4, Figures
5a and 9; the vectors are those of the published code, drawn with JAX's generator.
"""

import math
from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias

import numpy as np
import pandas as pd
from pydantic import Field, model_validator

from ih_interp import _jax_random as jax_random
from ih_interp._config_base import Frozen
from ih_interp._expect import expect

Name: TypeAlias = Literal["a", "b", "c"]
Vectors: TypeAlias = dict[str, np.ndarray]
"""`a`, `b` and `c`, float64."""

NAMES: tuple[Name, ...] = ("a", "b", "c")
Size: TypeAlias = Annotated[int, Field(ge=1)]


class ToyConfig(Frozen):
    """A description of one descent; defaults are the paper's."""

    sizes: tuple[Size, Size, Size] = (20, 20, 20)
    """Entries of a, b and c."""
    seed: int = Field(default=1, ge=0, lt=2**32)
    """Draws the true vectors and the initial ones."""
    learning_rate: float = Field(default=1.0, gt=0)
    """Step size of gradient descent."""
    iterations: int = Field(default=1_000, ge=1)
    """The number of steps, each on the full loss."""
    clamp: dict[Name, Size | None] = Field(default_factory=dict[Name, Size | None])
    """The number of first entries of a vector held at their true values; None for all of them."""

    @model_validator(mode="after")
    def _fits(self) -> "ToyConfig":
        for name, first in self.clamp.items():
            size = self.sizes[NAMES.index(name)]
            if first is not None and first > size:
                raise ValueError(
                    f"clamp[{name!r}]={first}: expected at most {size}, the size of {name!r}."
                )
        return self


def draw_vectors(config: ToyConfig) -> tuple[Vectors, Vectors]:
    """Draw the true and the initial vectors, before any clamp, standard normal, from one seed."""
    keys = jax_random.split(jax_random.key(config.seed), 6)
    sizes = [(size,) for size in config.sizes * 2]
    draws = [drawn.astype(np.float64) for drawn in map(jax_random.normal, keys, sizes)]
    return dict(zip(NAMES, draws[:3], strict=True)), dict(zip(NAMES, draws[3:], strict=True))


def descend(config: ToyConfig) -> Iterator[Vectors]:
    """Yield the clamped vectors before every step of descent; ValueError where it diverges."""
    true, vectors = draw_vectors(config)
    held = _held(config)
    for iteration in range(config.iterations):
        vectors = {n: np.concatenate([true[n][: held[n]], vectors[n][held[n] :]]) for n in NAMES}
        with np.errstate(over="ignore", invalid="ignore"):
            loss = _loss(vectors, true)
        if not math.isfinite(loss):
            raise ValueError(
                f"learning_rate={config.learning_rate}: expected a finite loss and got {loss} in "
                f"iteration {iteration}; lower it."
            )
        yield vectors
        gradients = _gradients(vectors, true)
        vectors = {n: vectors[n] - config.learning_rate * gradients[n] for n in NAMES}


def train_toy(config: ToyConfig | None = None) -> pd.DataFrame:
    """Train the toy model and return one row per iteration, measured before its step.

    - `iteration`: from 0.
    - `loss`: 0.5 mean_ijk (T* - a b c)^2, at least 0; at the plateau, where the product has shrunk
      to zero, `plateau_loss`.
    - `progress_1`: 1 - cos(a*, a)^2, in [0, 1]; 0 when a points along a* or against it, 1 - 1/I on
      average for a random direction.
    - `progress_2`: the loss with b and c perfect up to sign, the smaller over the sign of a of
      0.5 mean_ijk (T* - (+-a) b* c*)^2, at least 0; at a = 0 `plateau_loss`. It also depends on the
      length of a, which b and c can make up for: unless both are clamped it may stay above 0.
    """
    config = ToyConfig() if config is None else config
    expect(config, ToyConfig, f"config={config!r}", "write ToyConfig(...)")
    true, _ = draw_vectors(config)
    measures = {"loss": _loss, "progress_1": _progress_1, "progress_2": _progress_2}
    rows = [{n: measure(v, true) for n, measure in measures.items()} for v in descend(config)]
    return pd.DataFrame(rows).rename_axis("iteration").reset_index()


def plateau_loss(config: ToyConfig) -> float:
    """Return the loss of a zero product: 0.5 mean (T*)^2 = |a*|^2 |b*|^2 |c*|^2 / (2 I J K)."""
    expect(config, ToyConfig, f"config={config!r}", "write ToyConfig(...)")
    true, _ = draw_vectors(config)
    return math.prod(_square(true[name]) for name in NAMES) / (2 * math.prod(config.sizes))


def lone_vector_losses(config: ToyConfig) -> np.ndarray:
    """Return the exact losses when only one vector is free: exponential, no plateau.

    With b and c clamped the gradient of a is r (a - a*) with r = |b*|^2 |c*|^2 / (I J K), so that
    every step multiplies a - a* by f = 1 - learning_rate r, and the loss of iteration t is
    f^(2t) r |a - a*|^2 / 2 of the initial a. The same holds for b and c. Raises ValueError unless
    two vectors are clamped whole and the third is free.
    """
    held = _held(config)
    free = [name for name in NAMES if held[name] == 0]
    whole = [n for n, size in zip(NAMES, config.sizes, strict=True) if held[n] == size]
    if len(free) != 1 or len(whole) != 2:
        raise ValueError(
            f"clamp={config.clamp}: expected two vectors clamped whole and one free, which have "
            "a closed form."
        )
    true, initial = draw_vectors(config)
    rate = math.prod(_square(true[name]) for name in whole) / math.prod(config.sizes)
    factor = 1 - config.learning_rate * rate
    start = rate * _square(initial[free[0]] - true[free[0]]) / 2
    return start * factor ** (2 * np.arange(config.iterations))


def _held(config: ToyConfig) -> dict[str, int]:
    """Return how many first entries of every vector are clamped."""
    return {
        name: (config.clamp[name] or size) if name in config.clamp else 0
        for name, size in zip(NAMES, config.sizes, strict=True)
    }


def _gradients(vectors: Vectors, true: Vectors) -> Vectors:
    a, b, c = (vectors[name] for name in NAMES)
    error = (_product(vectors) - _product(true)) / (a.size * b.size * c.size)
    return {"a": (error @ c) @ b, "b": a @ (error @ c), "c": b @ np.tensordot(a, error, axes=1)}


def _product(vectors: Vectors) -> np.ndarray:
    return np.einsum("i,j,k->ijk", *(vectors[name] for name in NAMES))


def _loss(vectors: Vectors, true: Vectors) -> float:
    return 0.5 * float(np.mean((_product(true) - _product(vectors)) ** 2))


def _progress_1(vectors: Vectors, true: Vectors) -> float:
    # The squared sine: the part of a across a*, without the cancellation of 1 - cos^2 near 0.
    a, a_true = vectors["a"], true["a"]
    across = a - a_true * (a @ a_true) / _square(a_true)
    return _square(across) / _square(a)


def _progress_2(vectors: Vectors, true: Vectors) -> float:
    a, a_true = vectors["a"], true["a"]
    others = _square(true["b"]) * _square(true["c"]) / (a.size * true["b"].size * true["c"].size)
    return 0.5 * others * min(_square(a_true - a), _square(a_true + a))


def _square(vector: np.ndarray) -> float:
    return float(vector @ vector)
