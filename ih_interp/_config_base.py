"""The base of every value that is written to JSON: frozen, keyword-only, strict about fields.

`help` and `?` show its signature in words and the docstring under each field, not pydantic's.
"""

import inspect
import json
import reprlib
import textwrap
from collections.abc import Mapping
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
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
from pydantic_core import ErrorDetails
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
"""Limits of numbers in words, in the order in which help shows them."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(Field,))
class Readable(ModelMetaclass):
    """The metaclass of configurations, whose `dir` and `help` list our names, not pydantic's."""

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

    positional: ClassVar[tuple[str, ...]] = ()
    """The fields that may come without their names, in order."""

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
        """Take the fields by name; TypeError for positional values, ValueError for wrong ones."""
        fields = dict(zip(self.positional, given, strict=False)) | fields
        if given := given[len(self.positional) :]:
            name, fields = type(self).__name__, type(self).model_fields
            first = next((field for field, _ in _in_order(fields) if field != "kind"), "field")
            raise TypeError(
                f"{name} takes its fields by name and {given[0]!r} came without one; "
                f"write {name}({first}=...)."
            )
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ValueError(f"{type(self).__name__}: {explain(error, type(self))}.") from None

    # The mark of pydantic's own `__init__`: reading JSON then makes values without calling it.
    setattr(__init__, "__pydantic_base_init__", True)  # noqa: B010  a function has no such name

    @model_validator(mode="before")
    @classmethod
    def _plain_numbers(cls, fields: object) -> object:
        """Turn NumPy's and torch's numbers and arrays into Python's; refuse True as a number."""
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
        """Return the fields that differ from their defaults, as a call would write them."""
        fields = type(self).model_fields
        given = [(name, getattr(self, name)) for name in fields]
        return [(n, v) for n, v in given if n != "kind" and v != _default_of(fields[n])]

    def __str__(self) -> str:
        return repr(self)

    def replace(self: Value, **changes: Any) -> Value:
        """Return a copy with these fields changed, checked like a new one."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**fields, **changes})


def _plain(value: Any) -> Any:
    """Return a value without NumPy's and torch's types, inside lists and tuples too."""
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return cast(Any, value).tolist()
    if type(value) in (list, tuple):
        return type(value)(_plain(part) for part in value)
    return value


def canonical_json(value: BaseModel) -> str:
    """Return the one spelling of a value for hashes and comparisons: sorted keys, no spaces."""
    return json.dumps(value.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


def explain(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """Return a pydantic error in words, one clause per field of the model."""
    fields = {} if model is None else model.model_fields
    return "; ".join(_clause(problem, fields) for problem in error.errors())


def _clause(problem: ErrorDetails, fields: Mapping[str, FieldInfo]) -> str:
    kind, given, limits = problem["type"], short(problem["input"]), problem.get("ctx", {})
    name = ".".join(map(str, problem["loc"])) or "value"
    field = fields.get(name)
    what = f"{name}={given}"
    if kind == "extra_forbidden":
        near = get_close_matches(name, fields, n=1)
        return f"{what}: there is no such field{f' (did you mean {near[0]}?)' if near else ''}"
    if kind == "missing":
        return (
            f"{name}: expected {'a value' if field is None else _type(field.annotation)}, got none"
        )
    if kind == "value_error":  # of our own validators, which say what came
        words = problem["msg"].removeprefix("Value error, ").rstrip(".")
        return words if name == "value" or words.startswith(name) else f"{name}: {words}"
    if kind == "literal_error":
        return f"{what}: expected {limits['expected']}"
    for limit, words in LIMITS.items():
        if limit in limits:
            return f"{what}: expected {words} {limits[limit]}"
    if field is not None and kind.endswith(("_type", "_parsing")):
        return f"{what}: expected {_type(field.annotation)}"
    return f"{what}: {problem['msg']}"


class _Words(str):
    """Words that stand in a signature without quotation marks."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _signature(fields: dict[str, FieldInfo]) -> inspect.Signature:
    """Return the fields as keywords, without `kind`, which never varies."""
    keywords: list[inspect.Parameter] = []
    for name, field in _in_order(fields):
        default: Any = _Words(_written(_default_of(field)))
        default = inspect.Parameter.empty if field.is_required() else default
        annotation = _Words(_type(field.annotation))
        kind = inspect.Parameter.KEYWORD_ONLY
        keywords.append(inspect.Parameter(name, kind, annotation=annotation, default=default))
    return inspect.Signature([keyword for keyword in keywords if keyword.name != "kind"])


def _in_order(fields: dict[str, FieldInfo]) -> list[tuple[str, FieldInfo]]:
    """Return fields without default first, and those that every clamp has last."""
    of_all = ("schedule", "kind")
    return sorted(fields.items(), key=lambda f: (f[0] in of_all, not f[1].is_required()))


def _default_of(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True)


def _written(value: object) -> str:
    """Return a value as Python source, in which a tuple, which stands for a list, has brackets."""
    if type(value) is tuple:
        return f"[{', '.join(map(_written, value))}]"
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _type(annotation: Any) -> str:
    """Return a type in words: `list of heads`, `int | None`, `"flow" | "block"`."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0])
    if origin is Literal:
        return " | ".join(map(_written, parts))
    if origin in (Union, UnionType):
        bases = [part.__mro__ for part in parts if isinstance(part, Readable)]
        if len(bases) > 5:  # many classes are told by the one base that they share
            parts = [base for base in bases[0] if all(base in others for others in bases)][:1]
        return " | ".join(map(_type, parts))
    if origin in (tuple, list) and parts:
        number = "" if origin is list or Ellipsis in parts else f"{len(parts)} "
        word = _type(parts[0])  # a name, or choices, which have no plural
        plural = f"{word.removeprefix('Abstract').lower()}s" if word.isidentifier() else word
        return f"list of {number}{plural}"
    if origin is dict:
        return f"dict of {' to '.join(map(_type, parts))}"
    return "None" if annotation is NoneType else getattr(annotation, "__name__", str(annotation))


def _told(fields: dict[str, FieldInfo]) -> str:
    """Return one paragraph per field: its name, type and limits, and the docstring under it."""
    lines = ["Fields:"] if fields else []
    for name, field in _in_order(fields):
        limits = [
            f"{words} {bound:,}" if isinstance(bound, int | float) else f"{words} {bound}"
            for short, words in LIMITS.items()
            for bound in (getattr(limit, short, None) for limit in field.metadata)
            if bound is not None
        ]
        what = ", ".join([_type(field.annotation), *limits])
        text = f"{name} ({what}): {' '.join((field.description or '').split())}"
        lines.append(textwrap.fill(text, 96, initial_indent=" " * 4, subsequent_indent=" " * 8))
    return "\n".join(lines)


def short(value: object) -> str:
    """Return a `repr` for messages: the first 12 of many items, and how many there are."""
    told = _SHORT.repr(value)
    size = len(cast(list[object], value)) if isinstance(value, list) else 0
    return f"{told} ({size:,} in all)" if size > _SHORT.maxlist else told
