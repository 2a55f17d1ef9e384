"""JAX's default random numbers, in numpy, to repeat the draws of the published code.

That code splits labels, initialises its networks and draws its toy vectors with `jax.random`. The
generator is Threefry-2x32 with 20 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3"); keys, splitting and shaping follow JAX 0.4 (`jax_threefry_partitionable` off). Tests
compare it with numbers that JAX printed.
"""

import math
from typing import TypeAlias

import numpy as np
from scipy.special import erf, erfinv

Key: TypeAlias = np.ndarray
"""Two 32-bit words, uint32 `[2]`."""

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = np.uint32(0x1BD11BDA)


def key(seed: int) -> Key:
    """Return `jax.random.PRNGKey(seed)` for seeds below 2**32."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}: expected a number in [0, 2**32).")
    return np.array([0, seed], dtype=np.uint32)


def split(key: Key, num: int = 2) -> list[Key]:
    """Return `jax.random.split(key, num)`."""
    return list(_bits(key, 2 * num).reshape(num, 2))


def permutation(key: Key, n: int) -> np.ndarray:
    """Return `jax.random.permutation(key, n)`: int64 `[n]`."""
    order = np.arange(n)
    for _ in range(math.ceil(3 * math.log(max(1, n)) / math.log(2**32 - 1))):
        key, sort_key = split(key)
        order = order[np.argsort(_bits(sort_key, n), kind="stable")]
    return order


def normal(key: Key, shape: tuple[int, ...]) -> np.ndarray:
    """Return `jax.random.normal`: float32, equal to JAX's but for the last bits of erfinv."""
    low = np.nextafter(np.float32(-1), np.float32(0))
    return (math.sqrt(2) * erfinv(_uniform(key, shape, low, np.float32(1)))).astype(np.float32)


def truncated_normal(key: Key, shape: tuple[int, ...], bound: float = 2.0) -> np.ndarray:
    """Return `jax.random.truncated_normal(key, -bound, bound)`: float32, inside the bounds."""
    edge = np.float32(erf(bound / math.sqrt(2)))
    draws = math.sqrt(2) * erfinv(_uniform(key, shape, -edge, edge))
    inside = np.nextafter(np.float32(bound), np.float32(0))
    return np.clip(draws.astype(np.float32), -inside, inside)


def _uniform(key: Key, shape: tuple[int, ...], low: np.float32, high: np.float32) -> np.ndarray:
    # 23 random bits become the mantissa of a number in [1, 2), as in JAX.
    mantissa = _bits(key, math.prod(shape)) >> np.uint32(9)
    unit = (mantissa | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)
    return np.maximum(low, unit * (high - low) + low).reshape(shape).astype(np.float64)


def _bits(key: Key, n: int) -> np.ndarray:
    """Return `n` random words: the counters 0..n-1, halved and enciphered under the key."""
    counters = np.zeros(n + n % 2, dtype=np.uint32)
    counters[:n] = np.arange(n, dtype=np.uint32)
    return np.concatenate(_encipher(key, *np.split(counters, 2)))[:n]


def _encipher(key: Key, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return Threefry-2x32 with 20 rounds of counters, two uint32 `[n]`."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ _PARITY)
    left, right = left + schedule[0], right + schedule[1]
    for block in range(5):
        for distance in _ROTATIONS[block % 2]:
            left = left + right
            right = (right << np.uint32(distance)) | (right >> np.uint32(32 - distance))
            right = right ^ left
        left = left + schedule[(block + 1) % 3]
        right = right + schedule[(block + 2) % 3] + np.uint32(block + 1)
    return left, right
