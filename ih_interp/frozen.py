"""The base of every value that is written to JSON: frozen, keyword-only, strict about fields."""

import json
from collections.abc import Mapping
from typing import Any, TypeVar, cast, get_args

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from torch import Tensor

Value = TypeVar("Value", bound=BaseModel)
Made = TypeVar("Made", bound="Frozen")


class Frozen(BaseModel):
    """A frozen pydantic model that refuses unknown fields, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __new__(cls: type[Made], *given: object, **fields: object) -> Made:
        """TypeError in words for values that came without the name of their field."""
        del fields
        if given:
            names = [name for name in cls.model_fields if name not in ("kind", "schedule")]
            needed = [name for name in names if cls.model_fields[name].is_required()]
            first = (needed or names or ["schedule"])[0]
            raise TypeError(
                f"{cls.__name__} takes its fields by name and {given[0]!r} came without one; "
                f"write {cls.__name__}({first}=...)."
            )
        return object.__new__(cls)

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
    return "; ".join(f"{field}: {message} (got {value!r})" for field, message, value in problems)
