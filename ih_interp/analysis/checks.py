"""One check of every argument of a public function, by its annotation.

`checked()` reads the annotations once and compares the arguments of each call with them: types,
choices (`Literal`), ranges (`Annotated[int, Within(0, 9)]`), and tokens against the model.
"""

import functools
import inspect
import math
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    ParamSpec,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ih_interp._copies import given_copies as given_copies
from ih_interp._expect import with_article
from ih_interp._sequences import refuse_other_exemplars, refuse_other_targets, refuse_outside
from ih_interp._stock import refuse_other_names, refuse_unfit_weights
from ih_interp._torch_state import plain_torch
from ih_interp.batch import Batch
from ih_interp.hooked_model import REMEDY, HookedModel
from ih_interp.tasks.few_shot import FewShotTask

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Within(NamedTuple):
    """The range of a number, both ends included."""

    low: float = -math.inf
    high: float = math.inf


Seed: TypeAlias = Annotated[int, Within(0, 2**32 - 1)]
Positive: TypeAlias = Annotated[int, Within(1)]
Positions: TypeAlias = Annotated[int, Within(1, 10**6)]
NotNegative: TypeAlias = Annotated[float, Within(0, sys.float_info.max)]
Confidence: TypeAlias = Annotated[float, Within(0, 1), "0.95 is usual"]

FLAG, INTEGER = (bool, np.bool_), (int, np.integer)
NUMBER = (*INTEGER, float, np.floating)
KINDS: dict[Any, tuple[type, ...]] = {int: INTEGER, float: NUMBER, bool: FLAG}
WORDS: dict[Any, str] = {
    **{int: "an integer", float: "a number", bool: "True or False"},
    **{Callable: "a function", type(None): "None"},
}

REMEDIES: dict[Any, str] = {
    HookedModel: REMEDY,
    Batch: "give the Batch itself, not its tokens",
    FewShotTask: "a run's is run.task",
    torch.Generator: "make it with torch.Generator().manual_seed(0)",
    Tensor: "give torch.tensor([...])",
    np.ndarray: "give np.array([...])",
    pd.DataFrame: "give a table, one row per point, as trace or emergence_table returns it",
}
"""What to do where another type came. A string in `Annotated` says it for one argument."""


def checked(remedy: str = "") -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Return a decorator which checks each argument of a function against its annotation.

    Functions that the user gives are called with copies of their arguments, so that what they write
    changes no other number. Raises TypeError for another type, and for a call that does not fit the
    signature (`remedy` ends its message); ValueError for another choice, a number out of range, and
    tokens or targets that the model does not have.
    """

    def decorate(function: Callable[Given, Result]) -> Callable[Given, Result]:
        signature = inspect.signature(function)

        @functools.cache  # at the first call every name in an annotation is defined
        def hints_of() -> dict[str, Any]:
            return get_type_hints(inspect.unwrap(function), include_extras=True)

        @functools.wraps(function)
        def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                name, names = getattr(function, "__name__", ""), _listed(signature)
                hint = f"; {remedy}" if remedy else ""
                raise TypeError(f"{name} takes ({names}): {error}{hint}.") from None
            hints = hints_of()
            for name, value in bound.arguments.items():
                hint = hints.get(name, Any)
                _check(name, value, hint)
                if callable(value) and Callable in map(_kind, _alternatives(hint)[0]):
                    bound.arguments[name] = given_copies(value)
            _check_sequences(bound.arguments, hints)
            return function(*bound.args, **bound.kwargs)

        return call

    return decorate


def _listed(signature: inspect.Signature) -> str:
    """Return the names of parameters; those behind a star are given by name."""
    names = list(signature.parameters)
    kinds = [parameter.kind for parameter in signature.parameters.values()]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        names.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    return ", ".join(names)


def checked_in_plain_torch(
    remedy: str = "", *, gradient: bool | None = False
) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Return `checked`, and run the function, once its arguments are checked, in `plain_torch`."""
    plain = plain_torch(gradient=gradient)
    return lambda function: checked(remedy)(plain(function))


@functools.cache
def _alternatives(hint: Any) -> tuple[list[Any], list[Any]]:
    """Return the types of which an annotation allows any, and what `Annotated` says of them."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        hints, notes = _alternatives(args[0])
        return hints, [*args[1:], *notes]
    if origin not in (Union, types.UnionType):
        return [hint], []
    hints, notes = zip(*map(_alternatives, args), strict=True)
    return [*chain(*hints)], [*chain(*notes)]


@functools.cache
def _kind(hint: Any) -> Any:
    """Return the class of what a type allows, or `Literal`; None where any value may come."""
    kind = getattr(hint, "array_type", get_origin(hint) or hint)  # the first of jaxtyping's types
    if kind is tuple and get_args(hint)[-1] is not ...:
        return Sequence
    is_open = getattr(kind, "_is_protocol", False) and kind is not HookedModel
    anything = kind in (object, Any) or is_open
    return kind if kind is Literal or (isinstance(kind, type) and not anything) else None


def _fits(value: Any, hint: Any) -> bool:
    kind = _kind(hint)
    if kind is Literal:
        return isinstance(value, str) and value in get_args(hint)
    is_flag = isinstance(value, FLAG)  # which Python takes for a number
    return isinstance(value, KINDS.get(kind) or kind) and is_flag == (kind is bool)


def _check(name: str, value: Any, hint: Any) -> None:
    """Raise TypeError or ValueError where a value is not what an annotation says."""
    hints, notes = _alternatives(hint)
    kinds = [_kind(one) for one in hints]
    if None in kinds:
        return
    said = [note for note in [*notes, *map(REMEDIES.get, kinds)] if isinstance(note, str)]
    remedy = f"; {said[0]}" if said else ""
    fitting = [one for one in hints if _fits(value, one)]
    if not fitting:
        _refuse(name, value, hints, remedy)
    low, high = next((note for note in notes if isinstance(note, Within)), Within())
    if isinstance(value, NUMBER) and not isinstance(value, bool) and not low <= value <= high:
        raise ValueError(f"{name}={value}: expected a number in [{low:g}, {high:g}]{remedy}.")
    if isinstance(value, Sequence | Mapping) and not isinstance(value, str) and len(fitting) == 1:
        _check_items(name, value, fitting[0])


def _check_items(name: str, value: Sequence[Any] | Mapping[Any, Any], hint: Any) -> None:
    wanted = get_args(hint)
    if get_origin(hint) is tuple and wanted[-1] is not ...:
        if len(value) != len(wanted):
            raise ValueError(f"{name}={shown(value)}: expected {len(wanted)} values.")
    else:
        wanted = wanted[-1:] * len(value)
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    for (key, item), of_item in zip(pairs, wanted, strict=False):
        _check(f"{name}[{key!r}]", item, of_item)


def _refuse(name: str, value: Any, hints: Sequence[Any], remedy: str) -> None:
    choices = [repr(c) for hint in hints if _kind(hint) is Literal for c in get_args(hint)]
    kinds = [kind for kind in map(_kind, hints) if kind is not Literal]
    words = [*choices, *(WORDS.get(kind) or with_article(kind.__name__) for kind in kinds)]
    expected = " or ".join(dict.fromkeys(words))
    if choices and isinstance(value, str):
        raise ValueError(f"{name}={shown(value)}: expected {expected}{remedy}.")
    what = name if isinstance(value, torch.nn.Module | Batch) else f"{name}={shown(value)}"
    came = with_article(type(value).__name__)
    raise TypeError(f"{what}: expected {expected}, got {came}{remedy}.")


def _check_sequences(given: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Check models, and tokens and targets against the model where there is one."""
    model = next((v for v in given.values() if isinstance(v, HookedModel)), None)
    if model is not None:
        refuse_unfit_weights(model)
        refuse_other_names(model)
    for name, value in given.items():
        if isinstance(value, Batch):
            _check_tokens(name, value.tokens, model)
            high = sys.maxsize if model is None else model.cfg.d_vocab_out
            refuse_other_targets(name, value, high)
            if model is not None:
                refuse_other_exemplars(model, value)
        elif isinstance(value, Tensor):
            arrays = [a for a in _alternatives(hints.get(name))[0] if hasattr(a, "array_type")]
            whole = [a for a in arrays if isinstance(a.dtypes, Sequence) and "int64" in a.dtypes]
            if any(a.dim_str.split() == ["batch", "pos"] for a in whole):
                _check_tokens(name, value, model)
            elif whole:
                _check_integers(name, value)


def _check_integers(name: str, tokens: Tensor) -> None:
    """Refuse uint8 and bool, which are masks to torch, and other types that are no indices."""
    if tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name}: expected torch.int64, got {tokens.dtype}; use .long().")


def _check_tokens(name: str, tokens: Tensor, model: HookedModel | None) -> None:
    if tokens.ndim == 2 and len(tokens) == 0:
        raise ValueError(f"{name}: expected at least one sequence, got none.")
    if tokens.ndim != 2 or tokens.is_floating_point() or 0 in tokens.shape:
        raise ValueError(
            f"{name}: expected integers [batch, pos], neither of them empty, got {tokens.dtype} of "
            f"shape {tuple(tokens.shape)}."
        )
    _check_integers(name, tokens)
    high = sys.maxsize if model is None else model.cfg.d_vocab
    refuse_outside(f"{name}: expected tokens", tokens, high)
    if model is not None and tokens.shape[1] > model.cfg.n_ctx:
        raise ValueError(
            f"{name} has {tokens.shape[1]} positions: expected at most {model.cfg.n_ctx}, as many "
            "as the model takes."
        )


def shown(value: object) -> str:
    """Return the `repr` of a value on one line of at most 60 characters."""
    is_module = isinstance(value, torch.nn.Module)  # whose repr is all its parts
    text = f"{type(value).__name__}(...)" if is_module else " ".join(repr(value).split())
    return text if len(text) < 60 else f"{text[:57]}..."
