"""Short `repr`s of values that hold arrays, for a notebook's cell, and what errors say in words."""

import dataclasses
from typing import Any, TypeVar

Class = TypeVar("Class", bound=type)

MOST_NUMBERS = 8  # shown one by one, as of every head of a layer
MOST_ITEMS = 16  # of a list, as the heads of `coalitions`
LONGEST = 300  # letters of all items together
MOST_LETTERS = 100  # of anything else; a longer one is shown by its class


def short_repr(cls: Class) -> Class:
    """Give a dataclass, a NamedTuple or a dict a `repr` that shows arrays by their shapes.

    Numbers, and arrays of one axis and up to eight of them, are shown rounded to four digits. Write
    it above `@dataclass`.

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


def with_notes(error: BaseException) -> str:
    """Return what an error says, and the notes that were added to it, as sentences.

    >>> error = ValueError("no such head")
    >>> error.add_note("It was raised in a hook.")
    >>> with_notes(error)
    'no such head. It was raised in a hook.'
    """
    notes: list[str] = getattr(error, "__notes__", [])
    return ". ".join([str(error).rstrip("."), *notes]) if notes else str(error)


def _short(self: Any) -> str:
    if dataclasses.is_dataclass(self):
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.repr}
    else:
        parts = self if isinstance(self, dict) else self._asdict()
    shown = ", ".join(f"{name}={_shown(value)}" for name, value in parts.items())
    return f"{type(self).__name__}({shown})"


def _shown(value: Any) -> str:
    if hasattr(value, "shape"):
        return _array(value, tuple(value.shape))
    if isinstance(value, float):
        return f"{value:.4g}"
    if type(value) in (dict, list, tuple):
        return _items(value)
    words = repr(value) if isinstance(value, str) else str(value)
    is_short = len(words) <= MOST_LETTERS and "\n" not in words
    return words if is_short or type(value).__repr__ is _short else type(value).__name__


def _items(value: Any) -> str:
    """Return the items of a dict, list or tuple where they are few, else how many there are."""
    words = ""
    if len(value) <= MOST_ITEMS and isinstance(value, dict):
        words = f"{{{', '.join(f'{key!r}: {_shown(each)}' for key, each in value.items())}}}"
    elif len(value) <= MOST_ITEMS:
        words = f"[{', '.join(map(_shown, value))}]"
    return words if 0 < len(words) <= LONGEST else f"[{len(value):,} items]"


def _array(value: Any, shape: tuple[int, ...]) -> str:
    """Return the numbers where they are few, else class and shape, as `Tensor[1000, 8]`."""
    if len(shape) < 2 and sum(shape) <= MOST_NUMBERS:
        try:
            return _shown(value.tolist())
        except RuntimeError:  # a tensor without numbers, as in a trace
            pass
    return f"{type(value).__name__}[{', '.join(map(str, shape))}]"
