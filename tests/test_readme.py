"""The code of the README and of the guides runs as it stands, with fewer sequences to train on."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

from ih_interp.training.listing import list_runs

ROOT = Path(__file__).parents[1]
README, OWN = ROOT / "README.md", ROOT / "docs" / "bring_your_own.md"
CLUSTER = ROOT / "docs" / "cluster.md"
GUIDES = sorted((ROOT / "docs").glob("*.md"))
LONG, SHORT = "sequences=64_000", "sequences=1_600"


def blocks(page: Path) -> list[str]:
    """Return what runs; blocks that are marked `py`, not `python`, would download."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def run(page: Path, names: dict):
    code = "\n".join(blocks(page))
    exec(compile(code.replace(LONG, SHORT), str(page), "exec"), names)
    plt.close("all")


@pytest.fixture(scope="module")
def first_page(tmp_path_factory):
    """The names of the README's code, what it printed, and the folder where it ran."""
    folder, names, printed = tmp_path_factory.mktemp("readme"), {}, io.StringIO()
    assert "".join(blocks(README)).count(LONG) == 1
    with contextlib.chdir(folder), contextlib.redirect_stdout(printed):
        run(README, names)
    return folder, names, printed.getvalue()


def test_the_readme_runs_from_the_top(first_page):
    folder, _, printed = first_page
    shown = [float(number) for number in re.findall(r"\d\.\d+e[+-]\d+", printed)]
    assert shown[3] == pytest.approx(2 * 0.9 - 1, abs=1e-4)  # what the comment says L1H3 shows
    assert {run.name for run in (folder / "runs" / "readme").iterdir()} >= {"free", "clamped"}


LOGS = Path("logs", "tracked")


def states():
    return {run.name: run.state for run in list_runs("runs/readme")}


def legend(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


MADE = {
    "analysis": lambda names: len(names["report"].table("r_squared")) == 6,
    "command_line": lambda _: states()["free"] == "finished",
    "concepts": lambda names: float(names["scores"][0, 2]) == pytest.approx(1),
    "figures_for_a_paper": lambda names: (
        len(list(Path("figures").glob("emergence.*"))) == 3
        and legend(names["ax"]) == ["free", "clamped"]
    ),
    "language_models": lambda names: (
        set(names["without"]["step"]) == {0, 100}
        and names["ax"].get_ylabel() == "induction score"
        and "chance" in legend(names["ax"])
    ),
    "reproducing": lambda names: names["config"].name == "main-5",
    "tracking": lambda _: states()["printed"] == "finished" and any(LOGS.iterdir()),
    "training": lambda names: names["run"].config.name == "late",
}
"""What the code of a page has made, where that can be said in a line."""


@pytest.mark.parametrize(
    "page", [g for g in GUIDES if g not in {OWN, CLUSTER} and blocks(g)], ids=lambda g: g.stem
)
def test_the_guide_runs_after_the_readme(page, first_page, monkeypatch):
    folder, names, _ = first_page
    monkeypatch.chdir(folder)
    mine = dict(names)
    run(page, mine)
    assert MADE.get(page.stem, lambda _: True)(mine)


def test_guides_that_have_code_are_found():
    assert set(MADE) <= {page.stem for page in GUIDES if blocks(page)}


@pytest.mark.slow
def test_the_page_on_clusters_runs(tmp_path, monkeypatch, capsys):
    (code,) = blocks(CLUSTER)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "cluster.md", "exec"), {})
    assert "[True, True, True, True]" in capsys.readouterr().out
    assert len(list(Path("runs/sweep/.cluster/logs").glob("*_report.json"))) == 2


@pytest.mark.slow
def test_the_page_on_tasks_of_your_own_runs(tmp_path):
    """In a process of its own: its kinds would join the families of this one."""
    code = "\n".join(blocks(OWN))
    (tmp_path / "own.py").write_text(code + "\nassert step.updates == 10 and float(loss) > 0\n")
    done = subprocess.run(
        [sys.executable, "own.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_is_short():
    words = re.sub(r"```.*?```", "", README.read_text(), flags=re.DOTALL).split()
    assert len(words) <= 1_000


@pytest.mark.parametrize("page", [*GUIDES, *sorted(ROOT.glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert "://" in link or (page.parent / link).exists(), link
