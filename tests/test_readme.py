"""The code of the README and of the guides runs as it stands, with fewer sequences to train on."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

import ih_interp as ih

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs" / f"{n}.md" for n in ("analysis", "training", "reproducing", "studies")),
    *(ROOT / "docs" / f"{n}.md" for n in ("command_line", "tracking")),
]
LONG, SHORT = "sequences=64_000", "sequences=1_600"


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def test_the_pages_run_from_the_top(tmp_path, monkeypatch, capsys):
    assert all(blocks(page) for page in PAGES)
    code = "\n".join(block for page in PAGES for block in blocks(page))
    assert code.count(LONG) == 1
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code.replace(LONG, SHORT), "README.md", "exec"), names)
    plt.close("all")
    shown = [float(number) for number in re.findall(r"\d\.\d+e[+-]\d+", capsys.readouterr().out)]
    assert shown[3] == pytest.approx(2 * 0.9 - 1, abs=1e-4)  # what the comment says L1H3 shows
    assert {run.name for run in Path("runs/readme").iterdir()} >= {"free", "clamped", "late"}
    assert len(list(Path("figures").glob("losses.*"))) == 3
    assert len(names["report"].table("r_squared")) == 6
    assert names["config"].name == "main-5"
    assert ih.RunConfig.load(json.loads(Path("from_file.json").read_text())) == names["written"]
    listed = {run.name: run.state for run in names["list_runs"]("runs/readme")}
    assert (
        listed.items() >= {"free": "finished", "tracked": "finished", "printed": "finished"}.items()
    )
    assert list(Path("logs", "tracked").iterdir())


@pytest.mark.slow
def test_the_page_on_tasks_of_your_own_runs(tmp_path):
    """In a process of its own: its kinds would join the families of this one."""
    code = "\n".join(blocks(ROOT / "docs" / "bring_your_own.md"))
    (tmp_path / "own.py").write_text(code + "\nassert step.updates == 10 and float(loss) > 0\n")
    done = subprocess.run(
        [sys.executable, "own.py"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_the_readme_is_short():
    words = re.sub(r"```.*?```", "", PAGES[0].read_text(), flags=re.DOTALL).split()
    assert len(words) <= 1_000


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
        assert "://" in link or (page.parent / link).exists(), link
