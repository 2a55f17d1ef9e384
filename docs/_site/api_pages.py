"""The pages of the API: public names, read from the package's stubs and docstrings."""

import ast
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[2]
TOP = "ih_interp"
ALSO = ("ih_interp.toy", "ih_interp.studies.study")
"""Modules that are public and no names of `ih`."""


@dataclass(frozen=True)
class Name:
    """A public name: what users write, and the module and name of its definition."""

    shown: str
    module: str
    name: str

    @property
    def path(self) -> str:
        return f"{self.module}.{self.name}"


@cache
def _package() -> griffe.Module:
    found = griffe.load(TOP, search_paths=[ROOT], resolve_aliases=False, allow_inspection=False)
    assert isinstance(found, griffe.Module)
    return found


def _file(module: str) -> Path:
    """Return the file which lists a module's names: its stub, if it has one."""
    place = ROOT.joinpath(*module.split("."))
    for path in (place / "__init__.pyi", place / "__init__.py", place.with_suffix(".py")):
        if path.exists():
            return path
    raise FileNotFoundError(f"{module}: expected a module of the package.")


@cache
def public_names(module: str) -> tuple[Name, ...]:
    """Return the public functions and classes of a module, in the order of its file."""
    path = _file(module)
    lists_others = path.name.startswith("__init__")
    names: list[Name] = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and lists_others:
            source = f"{module}.{node.module}" if node.level else node.module
            if source.startswith(module + "."):
                names += [Name(alias.name, source, alias.name) for alias in node.names]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(Name(node.name, module, node.name))
    found = [_defined(name) for name in names if not name.name.startswith("_")]
    return tuple(name for name in found if not _found(name.path).is_module)


def _defined(name: Name) -> Name:
    """Return the name with the module that defines it, where others only import it."""
    found = _package()[name.path.removeprefix(TOP + ".")]
    while isinstance(found, griffe.Alias):
        name = Name(name.shown, *found.target_path.rsplit(".", maxsplit=1))
        found = _package()[name.path.removeprefix(TOP + ".")]
    return name


@cache
def modules() -> dict[str, str]:
    """Return what each page documents: its title, such as `ih.heads`, and the module."""
    found = {"ih": TOP}
    for node in ast.parse(_file(TOP).read_text()).body:
        assert isinstance(node, ast.ImportFrom)
        source = ".".join(part for part in (TOP, node.module) if part)
        for alias in node.names:
            if ROOT.joinpath(*source.split("."), alias.name).is_dir() or not node.module:
                found[f"ih.{alias.name}"] = f"{source}.{alias.name}"
    return found | {module: module for module in ALSO}


def _place(title: str) -> str:
    return f"docs/api/{title.rsplit('.', maxsplit=1)[-1]}.md"


def navigation() -> list[tuple[str, str]]:
    """Return the title and the path of every page."""
    return [(title, _place(title)) for title in modules()]


@cache
def entries() -> dict[str, list[Name]]:
    """Return the names which each page documents; a name stands on one page."""
    below = [public_names(module) for title, module in modules().items() if title != "ih"]
    at_home = {name.path for names in below for name in names}
    top = [name for name in public_names(TOP) if name.path not in at_home]
    return {title: list(public_names(module)) for title, module in modules().items()} | {"ih": top}


@cache
def addresses() -> dict[str, str]:
    """Return the definition's path of everything that users write, such as `ih.trace`."""
    return {
        f"{title}.{name.shown}": name.path
        for title, module in modules().items()
        for name in public_names(module)
    }


def _found(path: str) -> griffe.Object:
    """Return what stands at a path, such as `ih_interp.runs.Run`."""
    found = _package() if path == TOP else _package()[path.removeprefix(TOP + ".")]
    assert isinstance(found, griffe.Object)
    return found


def sentence(path: str) -> str:
    """Return the first paragraph of a docstring, on one line."""
    found = _found(path)
    if found.docstring:
        return found.docstring.value.split("\n\n")[0].replace("\n", " ")
    assert isinstance(found, griffe.Attribute)
    return f"The same as `{found.value}`."


def pages() -> dict[str, str]:
    """Return every page's Markdown by its path."""
    return {_place(title): _page(title, module) for title, module in modules().items()}


def _page(title: str, module: str) -> str:
    lines = [f"# `{title}` {{#{module}}}", "", sentence(module), ""]
    if title == "ih":
        below = [f"[`{other}`]({Path(_place(other)).name})" for other in modules() if other != "ih"]
        lines += [f"Modules: {', '.join(below)}.", ""]
    lines += ["| name | |", "|---|---|"]
    for name in public_names(module):
        lines.append(f"| [`{name.shown}`][{name.path}] | {_cell(sentence(name.path))} |")
    for name in entries()[title]:
        lines += ["", f"::: {name.path}", *_left_out(name)]
    return "\n".join(lines) + "\n"


def _left_out(name: Name) -> list[str]:
    """Return the option that leaves out what a class with a constructor keeps for itself."""
    members = _found(name.path).members
    if "__init__" not in members:
        return []
    kept = [n for n, m in members.items() if m.is_attribute and not m.docstring and n[0] != "_"]
    filters = ["!^_", *(f"!^{attribute}$" for attribute in kept)]
    return ["    options:", f"      filters: {json.dumps(filters)}"]


def _cell(text: str) -> str:
    """Return text in which no `|` ends a table's cell; those in code do not."""
    parts = re.split("(`[^`]*`)", text)
    parts[::2] = [part.replace("|", "&#124;") for part in parts[::2]]
    return "".join(parts)


BLOCK = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)
WRITTEN = re.compile(r"(?<!\[)`(ih(?:_interp)?\.[\w.]+)(?:\(\))?`(?!\])")


def with_links(markdown: str) -> str:
    """Return a page in which names in code, `ih.trace` or `ih.clamps`, lead to their entries."""
    places = addresses() | modules() | {module: module for module in modules().values()}

    def linked(code: re.Match[str]) -> str:
        path = places.get(code[1])
        return code[0] if path is None else f"[{code[0]}][{path}]"

    parts = BLOCK.split(markdown)
    parts[::2] = [WRITTEN.sub(linked, part) for part in parts[::2]]
    return "".join(parts)
