"""The notebooks for Google Colab: a first cell clones and installs the repository.

    python docs/_site/colab.py https://github.com/OWNER/NAME FOLDER

The workflow docs.yml keeps what this writes on the branch `colab`, which the site's pages link.
"""

import argparse
import re
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
INSTALL = """\
!git clone -q {repository} ih_interp_clone
%cd ih_interp_clone/notebooks
%pip install -q .. 'transformer-lens>=3.9,<4'"""
"""Installed as it is, not editable: a kernel that runs finds only what lies in its packages."""


def address(repository: str, name: str) -> str | None:
    """Return where Colab opens a notebook of a repository on GitHub, None for one elsewhere."""
    place = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+?)(\.git)?/?", repository)
    github = "https://colab.research.google.com/github"
    return f"{github}/{place[1]}/blob/colab/{name}" if place else None


def with_install(path: Path, repository: str) -> nbformat.NotebookNode:
    """Return a notebook that begins by installing the repository."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(INSTALL.format(repository=repository)))
    return notebook


def main() -> None:
    """Write all notebooks into the folder given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository")
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        nbformat.write(with_install(path, given.repository), given.folder / path.name)


if __name__ == "__main__":
    main()
