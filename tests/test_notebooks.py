"""Notebooks run from the top, stay short, and compute nothing that the package could."""

import json
from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks():
    assert NOTEBOOKS


PRESET = 'preset = "quick"'


def at_the_smoke_preset(notebook):
    """The notebook with its one line that says how long to train changed."""
    hits = 0
    for cell in notebook.cells:
        hits += cell.source.count(PRESET)
        cell.source = cell.source.replace(PRESET, 'preset = "smoke"')
    return hits


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_from_the_top(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    hits = at_the_smoke_preset(notebook)
    assert hits == (path.stem[:2] > "02")  # the first two have runs of their own
    nbclient.NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    errors = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output["output_type"] == "error"
    ]
    assert not errors


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_tells_and_the_package_computes(path):
    cells = json.loads(path.read_text())["cells"]
    assert path.stat().st_size < 300_000
    assert len(cells) <= 40
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            assert "def " not in source, source
            assert len(source.splitlines()) <= 14, source
