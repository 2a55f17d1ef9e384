"""Open families of values with a `kind`: tasks, clamps, schedules, optimisers and starts.

A class joins its family where it is written, by `kind: Literal["sink"] = "sink"`, and JSON with
that kind is then read as that class. JSON never names a module: kinds of other packages are found
by their entry points (group `ih_interp.plugins`), or where the program has imported them.
"""

import importlib
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.metadata import entry_points
from typing import Annotated, Any, ClassVar, TypeAlias, TypeVar, cast

from pydantic import (
    BaseModel,
    GetCoreSchemaHandler,
    PlainValidator,
    SerializeAsAny,
    ValidationError,
)

from ih_interp._config_base import Frozen, explain, short

PLUGINS = "ih_interp.plugins"
"""The group of entry points by which a package names the modules with its kinds."""

Base = TypeVar("Base", bound="Kinded")

_KINDS: defaultdict[str, dict[str, type["Kinded"]]] = defaultdict(dict)


class Kinded(Frozen):
    """The base of a family's base. A subclass with a default `kind` joins the family."""

    family: ClassVar[str]
    """The family in one word, "clamp"; the base of the family sets it."""
    kind: str
    """Which class of its family it is, in JSON."""

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        field = cls.model_fields["kind"]
        if field.is_required():
            return
        other = _KINDS[cls.family].setdefault(field.default, cls)
        if _name(other) != _name(cls):
            raise TypeError(
                f"{_name(cls)}: kind={field.default!r} is the {cls.family} {_name(other)} already; "
                f'give this class a kind of its own, kind: Literal["..."] = "...".'
            )
        _KINDS[cls.family][field.default] = cls  # the cell of a notebook was run again


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def kinds(base: type[Base]) -> dict[str, type[Base]]:
    """Return the classes of a family that are known now, by kind."""
    return cast(dict[str, type[Base]], dict(_KINDS[base.family]))


def find(family: str, kind: object) -> type[Kinded]:
    """Return the class of a kind; ValueError where neither this package nor a plugin has it."""
    known = _KINDS[family]
    is_word = isinstance(kind, str)
    if is_word and kind not in known:
        for plugin in entry_points(group=PLUGINS):
            plugin.load()
    if is_word and kind in known:
        return known[kind]
    near = get_close_matches(str(kind), known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(
        f"kind={short(kind)}: no {family} has this kind{hint}; import the module that defines it "
        f"first (--plugins MODULE on the command line), or choose from {', '.join(sorted(known))}."
    )


def read(base: type[Base], value: object) -> Base:
    """Return a value of a family, given or as a JSON object; ValueError for anything else."""
    if isinstance(value, base):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(f"{short(value)}: expected a {base.family}.")
    fields = cast(Mapping[str, Any], value)
    kind = find(base.family, fields.get("kind"))
    try:
        return cast(Base, kind.model_validate(dict(fields)))
    except ValidationError as error:
        raise ValueError(explain(error, kind)) from None


class _Reading:
    """The way in which pydantic reads a value of an open family: it asks the registry."""

    def __get_pydantic_core_schema__(self, family: Any, handler: GetCoreSchemaHandler) -> Any:
        reading = PlainValidator(lambda value: read(family, value))
        return reading.__get_pydantic_core_schema__(family, handler)


AnyOf: TypeAlias = Annotated[SerializeAsAny[Base], _Reading()]
"""The type of a field that takes any value of an open family, `AnyOf[AbstractTask]`."""


def foreign_kinds(value: object) -> dict[str, str]:
    """Return "family kind" and its module for every value in a configuration of other packages."""
    return {
        f"{one.family} {one.kind}": type(one).__module__
        for one in _kinded_in(value)
        if not type(one).__module__.startswith("ih_interp.")
    }


def _kinded_in(value: object) -> Iterator[Kinded]:
    if isinstance(value, Kinded):
        yield value
    if isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _kinded_in(getattr(value, name))
    elif isinstance(value, tuple | list):
        for part in cast(Sequence[object], value):
            yield from _kinded_in(part)


def refuse_missing_kinds(foreign: Mapping[str, str]) -> None:
    """Raise ValueError that names the module to import for a kind of `foreign_kinds`."""
    for name, module in foreign.items():
        family, _, kind = name.partition(" ")
        try:
            find(family, kind)
        except ValueError:
            remedy = (
                "read it where its class is defined"  # in a notebook or a script
                if module == "__main__"
                else f"import {module} first, or write --plugins {module} on the command line "
                "(install its package where it is not found)"
            )
            raise ValueError(
                f"the {family} {kind!r} is defined by {module}, which is not imported here: "
                f"{remedy}"
            ) from None


def load_plugins(modules: Sequence[str]) -> None:
    """Import modules that define kinds; ValueError names the one that cannot be imported."""
    for module in modules:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # whatever the code of a plugin raises
            raise ValueError(
                f"The plugin {module} cannot be imported: {type(error).__name__}: {error}"
            ) from error


def plugins_for(value: object) -> list[str]:
    """Return the modules that another process has to import to read a configuration.

    Raises ValueError for a class that no other process can import, as one of a notebook's.
    """
    modules = foreign_kinds(value)
    for name, module in modules.items():
        if module == "__main__" or module not in sys.modules:
            raise ValueError(
                f"the {name} is defined in {module}, which other processes cannot import: move "
                "its class to a module"
            )
    return sorted(set(modules.values()))
