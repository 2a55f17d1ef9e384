"""Runs with a clamp of the user's own, whose module this program has not imported."""

import shutil
import sys

import pytest

from ih_interp import registry
from ih_interp._recorded import rewrite_config
from ih_interp.storage import run_files

NAME = "noisy_of_the_command_line"
MODULE = f'''
from typing import Literal

import ih_interp as ih


class Noisy(ih.clamps.HeadClamp):
    kind: Literal["{NAME}"] = "{NAME}"
    sets = "z"

    def hooks(self, setting):
        return []
'''


@pytest.fixture
def foreign(small_run, tmp_path, monkeypatch):
    """The module's name; `one/a` and `two/a` in `tmp_path / "runs"` need it to be read."""
    for sweep in ("one", "two"):
        folder = tmp_path / "runs" / sweep / "a"
        shutil.copytree(small_run.folder, folder)
        rewrite_config(folder / run_files.CONFIG, {"kinds": {f"clamp {NAME}": NAME}})
    (tmp_path / f"{NAME}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield NAME
    sys.modules.pop(NAME, None)
    registry._KINDS["clamp"].pop(NAME, None)
