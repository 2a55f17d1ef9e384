"""Checks of arguments, and the words in which they are refused."""

import operator
from collections.abc import Iterable
from contextlib import suppress
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

Entry = TypeVar("Entry")


def expect(value: object, kind: type | tuple[type, ...], what: str, remedy: str = "") -> None:
    """Raise TypeError for another kind of object: "what: expected a Kind, got another; remedy."."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(with_article(one.__name__) for one in kinds)
        raise _wrong_kind(value, names, what, remedy)


def _wrong_kind(value: object, expected: str, what: str, remedy: str) -> TypeError:
    came, hint = with_article(type(value).__name__), f"; {remedy}" if remedy else ""
    return TypeError(f"{what}: expected {expected}, got {came}{hint}.")


def integer(value: object, what: str, remedy: str = "") -> int:
    """Return a whole number of any library as Python's; TypeError for True and anything else.

    Arrays and tensors without axes are numbers too.

    >>> integer(torch.tensor(5), "n")
    5
    """
    is_bool = isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool
    with suppress(TypeError):
        if not is_bool and getattr(value, "shape", ()) == ():
            return operator.index(value)  # pyright: ignore[reportArgumentType]
    raise _wrong_kind(value, "an integer", what, remedy)


def with_article(name: str) -> str:
    """Return a name with its article, "a Batch" or "an int"."""
    vowel = name[0] in "AEIOUaeiou" or name.startswith("ndarray")
    return f"{'an' if vowel else 'a'} {name}"


def installing(extra: str) -> str:
    """Return in words how the packages of an extra are installed.

    >>> installing("report")
    "from a clone of ih_interp, pip install -c .ci/constraints.txt -e '.[report]'"
    """
    return f"from a clone of ih_interp, pip install -c .ci/constraints.txt -e '.[{extra}]'"


def values_are_known() -> bool:
    """Return whether tensors have values now: not in a trace, a compiler or a `vmap` or `grad`."""
    level = torch._C._functorch.maybe_current_level()  # pyright: ignore
    return level is None and get_proxy_mode() is None and not torch.compiler.is_compiling()


def once_each(values: Iterable[Entry], name: str) -> tuple[Entry, ...]:
    """Return the values of an argument or a field; ValueError where one came twice."""
    given = tuple(values)
    if len(set(given)) < len(given):
        raise ValueError(f"{name}={', '.join(map(str, given))}: expected each once.")
    return given


def as_indices(values: Tensor, what: str) -> Int[Tensor, "..."]:
    """Return whole numbers as int64; ValueError for floats, complex numbers and booleans."""
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{what}: expected integers, as torch.int64, got {values.dtype}.")
    return values.long()
