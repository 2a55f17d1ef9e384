"""The base of every value that is written to JSON: frozen, keyword-only, strict about fields.

It also says what its fields are: `help` and `?` show a signature in words and the docstring that
stands under each field, and nothing of pydantic.
"""

import inspect
import json
import reprlib
import textwrap
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
)

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from torch import Tensor

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # pydantic has no public name for it

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 12

Value = TypeVar("Value", bound=BaseModel)

LIMITS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}
"""Of numbers, in words, in the order in which they are said."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
class Readable(ModelMetaclass):
    """The class of configuration classes: `dir` and `help` list what is ours, not pydantic's."""

    def __dir__(cls) -> list[str]:
        ours = [base for base in cls.__mro__ if isinstance(base, Readable)]
        names = {name for base in ours for name in vars(base) if not name.startswith("_")}
        return sorted(names - {"model_config"})


class Frozen(BaseModel, metaclass=Readable):
    """A frozen pydantic model that refuses unknown fields, NaN and infinity.

    The docstring under a field becomes a line of the class's own, under "Fields:".
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        kind = cls.model_fields.get("kind")
        if kind is not None and not kind.is_required():
            kind.description = f"Always {_written(kind.default)}: tells it from others in JSON."
        cls.__signature__ = _signature(cls.model_fields)
        own = inspect.cleandoc(cls.__dict__.get("__doc__") or cls.__name__)
        cls.__doc__ = f"{own}\n\n{_told(cls.model_fields)}".rstrip()

    def __init__(self, *given: object, **fields: Any) -> None:
        """Take the fields by name; TypeError in words for values that came without one."""
        if given:
            cls = type(self)
            names = [name for name in cls.model_fields if name not in ("kind", "schedule")]
            needed = [name for name in names if cls.model_fields[name].is_required()]
            first = (needed or names or ["schedule"])[0]
            raise TypeError(
                f"{cls.__name__} takes its fields by name and {given[0]!r} came without one; "
                f"write {cls.__name__}({first}=...)."
            )
        super().__init__(**fields)

    # As of pydantic's own: values that are read from JSON are made without a call of it.
    setattr(__init__, "__pydantic_base_init__", True)  # noqa: B010  a function has no such name

    @model_validator(mode="before")
    @classmethod
    def _plain_numbers(cls, fields: object) -> object:
        """NumPy's and torch's numbers and arrays as Python's; True is no number."""
        if not isinstance(fields, Mapping):
            return fields
        plain = {str(n): _plain(value) for n, value in cast(Mapping[Any, Any], fields).items()}
        for name, value in plain.items():
            field = cls.model_fields.get(name)
            kinds = set() if field is None else {field.annotation, *get_args(field.annotation)}
            if isinstance(value, bool) and kinds & {int, float}:
                raise ValueError(f"{name}={value}: expected a number.")
        return plain

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        """What a call has to say to get this value: the fields that differ from their defaults."""
        fields = type(self).model_fields
        given = [(name, getattr(self, name)) for name in fields]
        return [(n, v) for n, v in given if n != "kind" and v != _default_of(fields[n])]

    def __str__(self) -> str:
        return repr(self)

    def replace(self: Value, **changes: Any) -> Value:
        """A copy with these fields changed, checked like a new one."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**fields, **changes})


def _plain(value: Any) -> Any:
    """A value without NumPy and torch, also inside of lists and tuples."""
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return cast(Any, value).tolist()
    if type(value) in (list, tuple):
        return type(value)(_plain(part) for part in value)
    return value


def canonical_json(value: BaseModel) -> str:
    """The one spelling of a value that hashes and comparisons use: sorted keys, no spaces."""
    return json.dumps(value.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def explain(error: ValidationError) -> str:
    """A pydantic error in one line a field: `field: what is wrong (got value)`."""
    problems = (
        (".".join(map(str, problem["loc"])) or "value", problem["msg"], problem["input"])
        for problem in error.errors()
    )
    return "; ".join(
        f"{field}: {message} (got {short(value)})" for field, message, value in problems
    )


class _Words(str):
    """Words that stand in a signature without quotation marks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _signature(fields: dict[str, FieldInfo]) -> inspect.Signature:
    """The fields as keywords, those without default first; `kind`, which never varies, is out."""
    return inspect.Signature(
        [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                annotation=_Words(_type(field.annotation)),
                default=inspect.Parameter.empty
                if field.is_required()
                else _Words(_written(_default_of(field))),
            )
            for name, field in _in_order(fields)
            if name != "kind"
        ]
    )


def _in_order(fields: dict[str, FieldInfo]) -> list[tuple[str, FieldInfo]]:
    """Those without default first, and last those that every clamp has."""

    def place(item: tuple[str, FieldInfo]) -> tuple[bool, bool]:
        return item[0] in ("schedule", "kind"), not item[1].is_required()

    return sorted(fields.items(), key=place)


def _default_of(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def _written(value: object) -> str:
    """A value as one would write it: a tuple, which stands for a list, in square brackets."""
    if type(value) is tuple:
        return f"[{', '.join(map(_written, value))}]"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _type(annotation: Any) -> str:
    """A type in words: `list of heads`, `int | None`, `"flow" | "block"`."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0])
    if origin is Literal:
        return " | ".join(map(_written, parts))
    if origin in (Union, UnionType):
        return _one_of(parts)
    if origin in (tuple, list) and parts:
        number = "" if origin is list or Ellipsis in parts else f"{len(parts)} "
        return f"list of {number}{_plural(parts[0])}"
    if origin is dict:
        return f"dict of {' to '.join(map(_type, parts))}"
    return "None" if annotation is NoneType else getattr(annotation, "__name__", str(annotation))


def _one_of(parts: tuple[Any, ...]) -> str:
    """The members of a union; many classes by the one base that they share."""
    bases = [part.__mro__ for part in parts if isinstance(part, Readable)]
    if len(bases) > 5:
        shared = next(base for base in bases[0] if all(base in others for others in bases))
        return _type(shared)
    return " | ".join(map(_type, parts))


def _plural(annotation: Any) -> str:
    """The members of a list: `heads`, `clamps`, `ints`; of choices the choices themselves."""
    word = _type(annotation)
    return f"{word.removeprefix('Abstract').lower()}s" if word.isidentifier() else word


def _told(fields: dict[str, FieldInfo]) -> str:
    """One paragraph a field: its name, its type and limits, and the docstring under it."""
    lines = [_told_one(name, field) for name, field in _in_order(fields)]
    return "\n".join(["Fields:", *lines]) if lines else ""


def _told_one(name: str, field: FieldInfo) -> str:
    limits = [
        f"{words} {bound:,}" if isinstance(bound, int | float) else f"{words} {bound}"
        for short, words in LIMITS.items()
        for bound in (getattr(limit, short, None) for limit in field.metadata)
        if bound is not None
    ]
    what = ", ".join([_type(field.annotation), *limits])
    text = f"{name} ({what}): {' '.join((field.description or '').split())}"
    return textwrap.fill(text, 96, initial_indent=" " * 4, subsequent_indent=" " * 8)


def short(value: object) -> str:
    """Return `repr` for a message: the first 12 of many names, and how many there are."""
    told = _SHORT.repr(value)
    size = len(cast(list[object], value)) if isinstance(value, list) else 0
    return f"{told} ({size:,} in all)" if size > _SHORT.maxlist else told
