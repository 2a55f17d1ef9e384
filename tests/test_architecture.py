"""The architecture: imports point one way, the surface is short and inert, files stay small.

The order of imports stands in pyproject.toml, and so do the rules that ruff holds: how complex a
function may be, and that nothing runs code from data.
"""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

import ih_interp as ih

PACKAGE = Path(ih.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE, MAX_BODY = 350, 40
"""Lines of a file (the aim is 250), and of a function without its signature and docstring."""


def test_imports_point_one_way(capsys):
    config = str(PACKAGE.parent / "pyproject.toml")
    assert lint_imports(config_filename=config, no_cache=True) == 0, capsys.readouterr().out


def test_files_and_functions_are_small():
    too_long = []
    for path in FILES:
        source = path.read_text()
        lengths = {"": source.count("\n") - MAX_FILE}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lengths[node.name] = body_length(node) - MAX_BODY
        too_long += [
            f"{path.name} {name}: {extra} too many" for name, extra in lengths.items() if extra > 0
        ]
    assert not too_long, "\n".join(too_long)


def body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and its docstring."""
    body = function.body[ast.get_docstring(function) is not None :]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_the_length_of_a_body_is_that_of_its_statements():
    source = 'def f(\n    x,\n):\n    """A.\n\n    B.\n    """\n    y = x\n\n    return y\n'
    assert body_length(ast.parse(source).body[0]) == 3
    assert body_length(ast.parse('def f():\n    """Nothing."""\n').body[0]) == 0


def test_nothing_resets_the_hooks_of_others():
    for path in FILES:
        assert "reset_hooks(" not in path.read_text(), path


def test_importing_costs_nothing():
    code = "import sys, ih_interp; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_public_name_can_be_had():
    assert {"train", "Run", "clamped", "clamps", "induction_strength", "Exemplars"} <= set(dir(ih))
    assert all(getattr(ih, name) is not None for name in dir(ih))


PUBLIC = ("ablation", "dynamics", "heads", "patching", "tasks", "track")
"""Folders that list themselves; so do `clamps`, below, and `plots`, in a test of its own."""


def test_the_package_shows_few_names():
    importlib.import_module("ih_interp.analysis.dynamics.trace")  # which binds more names
    assert len(dir(ih)) <= 44
    assert {"analysis", "training"}.isdisjoint(dir(ih))


@pytest.mark.parametrize("name", PUBLIC)
def test_a_folder_lists_its_names_with_a_sentence_each(name):
    folder = getattr(ih, name)
    listed = re.findall(r"^    (\w+): [A-Z`]", folder.__doc__, re.MULTILINE)
    assert sorted(listed) == dir(folder)
    for public in listed:
        value = getattr(folder, public)
        assert getattr(value, "__name__", public) in (public, "previous_token_chance")


def test_clamps_are_listed_with_a_sentence_each():
    listed = set(re.findall(r"`?(\w+)`?[,:]", ih.clamps.__doc__))
    listed |= {"check", "in_order"}
    assert set(dir(ih.clamps)) - {"Clamp", "ClampUnchangedWarning", "Always", "clamped"} <= listed


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="inductoin_strength"):
        ih.inductoin_strength  # noqa: B018
