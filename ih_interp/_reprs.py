"""Short `repr`s of values that hold arrays, so that a notebook's cell is not flooded by numbers."""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)

MOST_NUMBERS = 8  # that are shown themselves, as of every head of a layer
MOST_ITEMS = 16  # of a list, as the heads of `coalitions`
LONGEST = 300  # letters that they may take together
MOST_LETTERS = 100  # of anything else; longer ones are told by their class


def short_repr(cls: Class) -> Class:
    """Give a dataclass, a NamedTuple or a mapping a `repr` that shows arrays by their shapes.

    Numbers, and arrays of one axis and up to eight of them, stand there themselves, rounded to four
    digits. Decorates the class last, above `@dataclass`.

    >>> from typing import NamedTuple
    >>> import numpy as np
    >>> @short_repr
    ... class Fit(NamedTuple):
    ...     slope: np.ndarray
    ...     residuals: np.ndarray
    >>> Fit(np.array(0.123456), np.zeros((2, 100)))
    Fit(slope=0.1235, residuals=ndarray[2, 100])
    """
    setattr(cls, "__repr__", _short)  # noqa: B010  pyright knows no repr of a class to come
    return cls


def _short(self: Any) -> str:
    shown = ", ".join(f"{name}={_shown(value)}" for name, value in _parts(self))
    return f"{type(self).__name__}({shown})"


def _parts(value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if dataclasses.is_dataclass(value):
        return [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.repr]
    return list(value._asdict().items())


def _shown(value: Any) -> str:
    if hasattr(value, "shape"):
        return _array(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    if type(value) in (dict, list, tuple):
        return _items(value)
    told = repr(value) if isinstance(value, str) else str(value)
    is_short = len(told) <= MOST_LETTERS and "\n" not in told
    return told if is_short or type(value).__repr__ is _short else type(value).__name__


def _items(value: Any) -> str:
    """Those of a dict, list or tuple, where they are few; else how many."""
    many = f"[{len(value):,} items]"
    if len(value) > MOST_ITEMS:
        return many
    if isinstance(value, dict):
        told = f"{{{', '.join(f'{key!r}: {_shown(each)}' for key, each in value.items())}}}"
    else:
        told = f"[{', '.join(map(_shown, value))}]"
    return told if len(told) <= LONGEST else many


def _array(value: Any) -> str:
    """The numbers, where they are few; else class and shape, as `Tensor[1000, 8]`."""
    shape = tuple(value.shape)
    if shape in [(), *((n,) for n in range(MOST_NUMBERS + 1))]:
        try:
            return _shown(value.tolist())
        except RuntimeError:  # of a tensor without numbers, as in a trace
            pass
    return f"{type(value).__name__}[{', '.join(map(str, shape))}]"
