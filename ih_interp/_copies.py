"""Copies for functions of the user, so that what they write into changes no other number."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from ih_interp.batch import Batch

Function = TypeVar("Function", bound=Callable[..., Any])


def given_copies(function: Function) -> Function:
    """Return a user's function so that it gets copies of tensors, batches, arrays and lists.

    The package's own functions, which write into nothing, are returned as they are.
    """
    module = str(getattr(function, "__module__", ""))
    if module.startswith("ih_interp.") or getattr(function, "_gets_copies", False):
        return function

    @functools.wraps(function)
    def called(*given: Any) -> Any:
        return function(*map(_copy, given))

    setattr(called, "_gets_copies", True)  # noqa: B010
    return cast(Function, called)


def _copy(value: Any) -> Any:
    if isinstance(value, Batch):
        return value.map(torch.clone)
    value = value.clone() if isinstance(value, Tensor) else value
    return value.copy() if isinstance(value, np.ndarray | list) else value
