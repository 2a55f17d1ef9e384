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
from dataclasses import dataclass, fields, replace
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
from transformer_lens import HookedTransformer

from ih_interp._stock import refuse_other_names, refuse_unfit_weights
from ih_interp._torch_state import plain_torch
from ih_interp.evaluation import given_copies as given_copies, refuse_outside
from ih_interp.model import refuse_other_exemplars
from ih_interp.tasks.few_shot import FewShotTask
from ih_interp.types import Batch, with_article

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Within(NamedTuple):
    """The range of a number, both ends included."""

    low: float = -math.inf
    high: float = math.inf


ANY_NUMBER = Within()

Seed: TypeAlias = Annotated[int, Within(0, 2**32 - 1)]
Positive: TypeAlias = Annotated[int, Within(1)]
Positions: TypeAlias = Annotated[int, Within(1, 10**6)]
NotNegative: TypeAlias = Annotated[float, Within(0, sys.float_info.max)]
Confidence: TypeAlias = Annotated[float, Within(0, 1), "0.95 is usual"]

INTEGER, FLAG = (int, np.integer), (bool, np.bool_)
NUMBER = (*INTEGER, float, np.floating)
KINDS: dict[Any, tuple[type, ...]] = {int: INTEGER, float: NUMBER, bool: FLAG}
WORDS: dict[type, str] = {
    **(dict.fromkeys(NUMBER, "a number") | dict.fromkeys(INTEGER, "an integer")),
    **dict.fromkeys(FLAG, "True or False"),
}

REMEDIES: dict[Any, str] = {
    HookedTransformer: "a run's is run.model(step)",
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
        def wanted_by_name() -> dict[str, _Wanted]:
            hints = get_type_hints(inspect.unwrap(function), include_extras=True)
            return {name: _Wanted.of(hints.get(name, Any)) for name in signature.parameters}

        @functools.wraps(function)
        def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError as error:
                name, names = getattr(function, "__name__", ""), ", ".join(signature.parameters)
                hint = f"; {remedy}" if remedy else ""
                raise TypeError(f"{name} takes ({names}): {error}{hint}.") from None
            wanted = wanted_by_name()
            for name, value in bound.arguments.items():
                wanted[name].check(name, value)
                if wanted[name].functions and callable(value):
                    bound.arguments[name] = given_copies(value)
            _check_sequences(bound.arguments, wanted)
            return function(*bound.args, **bound.kwargs)

        return call

    return decorate


def checked_in_plain_torch(
    remedy: str = "", *, gradient: bool | None = False
) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Return `checked`, and run the function, once its arguments are checked, in `plain_torch`."""
    plain = plain_torch(gradient=gradient)
    return lambda function: checked(remedy)(plain(function))


@dataclass(frozen=True)
class _Wanted:
    """The types and the choices that an annotation allows."""

    kinds: tuple[type, ...] = ()
    choices: tuple[object, ...] = ()
    items: tuple["_Wanted", ...] = ()
    """For the elements of a sequence or the values of a mapping; for a tuple one by one."""
    length: int | None = None
    anything: bool = False
    optional: bool = False
    functions: bool = False
    tokens: bool = False
    """Allows whole numbers that are token ids."""
    sequences: bool = False
    """Allows token ids `[batch, pos]`."""
    within: Within = ANY_NUMBER
    remedy: str = ""

    @classmethod
    def of(cls, hint: Any) -> "_Wanted":
        origin, args = get_origin(hint), get_args(hint)
        if origin is Annotated:
            wanted = cls.of(args[0])
            within = next((a for a in args[1:] if isinstance(a, Within)), wanted.within)
            remedy = next((a for a in args[1:] if isinstance(a, str)), wanted.remedy)
            return replace(wanted, within=within, remedy=remedy)
        if origin in (Union, types.UnionType):
            return cls._any_of([cls.of(arg) for arg in args])
        if origin is Literal:
            return cls(choices=args)
        if hint is None or hint is type(None):
            return cls(optional=True)
        if Callable in (origin, hint):
            return cls(functions=True)
        if origin is tuple and args and args[-1] is not ...:
            return cls((Sequence,), items=tuple(map(cls.of, args)), length=len(args))
        if isinstance(origin, type):  # Sequence[...], Mapping[...] and their likes
            inner = (cls.of(args[-1]),) if issubclass(origin, Sequence | Mapping) else ()
            return cls((origin,), items=inner if inner and not inner[0].anything else ())
        return cls._of_class(hint)

    @classmethod
    def _of_class(cls, hint: Any) -> "_Wanted":
        if hasattr(hint, "array_type"):  # of jaxtyping
            whole = isinstance(hint.dtypes, list | tuple) and "int64" in hint.dtypes
            kind = hint.array_type
            sequences = whole and hint.dim_str.split() == ["batch", "pos"]
            return cls((kind,), tokens=whole, sequences=sequences, remedy=REMEDIES.get(kind, ""))
        is_class = isinstance(hint, type) and hint not in (object, Any)
        if not is_class or getattr(hint, "_is_protocol", False):
            return cls(anything=True)
        return cls(KINDS.get(hint, (hint,)), remedy=REMEDIES.get(hint, ""))

    @classmethod
    def _any_of(cls, parts: Sequence["_Wanted"]) -> "_Wanted":
        found = {
            field.name: [v for part in parts if (v := getattr(part, field.name)) != field.default]
            for field in fields(cls)
        }
        joined: dict[str, Any] = {name: values[0] for name, values in found.items() if values}
        joined |= {name: tuple(chain(*found[name])) for name in ("kinds", "choices")}
        if len(found["items"]) > 1:  # it is not known which of them the elements should fit
            joined |= {"items": (), "length": None}
        return cls(**joined)

    def check(self, name: str, value: Any) -> None:
        """Raise TypeError or ValueError where a value is not what is wanted."""
        fits = self.anything or (value is None and self.optional)
        if fits or (self.functions and callable(value)):
            return
        is_bool = isinstance(value, FLAG)
        if (is_bool and bool not in self.kinds) or not isinstance(value, self.kinds):
            if not (isinstance(value, str) and value in self.choices):
                self._refuse(name, value)
            return
        low, high = self.within
        if isinstance(value, NUMBER) and not is_bool and not low <= value <= high:
            hint = f"; {self.remedy}" if self.remedy else ""
            raise ValueError(f"{name}={value}: expected a number in [{low:g}, {high:g}]{hint}.")
        if self.items:
            self._check_items(name, value)

    def _check_items(self, name: str, value: Any) -> None:
        if not isinstance(value, Sequence | Mapping) or isinstance(value, str):
            return
        if self.length is not None and len(value) != self.length:
            raise ValueError(f"{name}={shown(value)}: expected {self.length} values.")
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for place, (key, item) in enumerate(pairs):
            self.items[place if self.length else 0].check(f"{name}[{key!r}]", item)

    def _refuse(self, name: str, value: Any) -> None:
        words = [repr(choice) for choice in self.choices]
        words += [WORDS.get(kind) or with_article(kind.__name__) for kind in self.kinds]
        words += ["a function"] if self.functions else []
        words += ["None"] if self.optional else []
        expected = " or ".join(dict.fromkeys(words))
        hint = f"; {self.remedy}" if self.remedy else ""
        if self.choices and isinstance(value, str):
            raise ValueError(f"{name}={shown(value)}: expected {expected}{hint}.")
        is_large = isinstance(value, torch.nn.Module | Batch)
        what = name if is_large else f"{name}={shown(value)}"
        came = with_article(type(value).__name__)
        raise TypeError(f"{what}: expected {expected}, got {came}{hint}.")


def _check_sequences(given: Mapping[str, Any], wanted: Mapping[str, _Wanted]) -> None:
    """Check models, and tokens and targets against the model where there is one."""
    model = next((v for v in given.values() if isinstance(v, HookedTransformer)), None)
    if model is not None:
        refuse_unfit_weights(model)
        refuse_other_names(model)
    for name, value in given.items():
        if isinstance(value, Batch):
            _check_tokens(name, value.tokens, model)
            high = sys.maxsize if model is None else model.cfg.d_vocab_out
            refuse_outside(f"{name}: expected targets", value.target, high)
            if model is not None:
                refuse_other_exemplars(model, value)
        elif isinstance(value, Tensor) and wanted[name].sequences:
            _check_tokens(name, value, model)
        elif isinstance(value, Tensor) and wanted[name].tokens:
            _check_integers(name, value)


def _check_integers(name: str, tokens: Tensor) -> None:
    """Refuse uint8 and bool, which are masks to torch, and other types that are no indices."""
    if tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"{name}: expected torch.int64, got {tokens.dtype}; use .long().")


def _check_tokens(name: str, tokens: Tensor, model: HookedTransformer | None) -> None:
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
