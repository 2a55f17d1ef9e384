"""The base of every value that is written to JSON: frozen, keyword-only, strict about fields."""

import json
import reprlib
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = _SHORT.maxset = 12

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

    def replace(self: Value, **changes: Any) -> Value:
        """A copy with these fields changed, checked like a new one."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self)(**{**fields, **changes})


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


def short(value: object) -> str:
    """Return `repr` for a message: the first 12 of many names, and how many there are."""
    told = _SHORT.repr(value)
    size = len(cast(list[object], value)) if isinstance(value, list) else 0
    return f"{told} ({size:,} in all)" if size > _SHORT.maxlist else told
