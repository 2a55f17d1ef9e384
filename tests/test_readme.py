"""The README's code runs as it stands, in its order, with fewer sequences to train on."""

import re
from pathlib import Path

import pytest
from matplotlib import pyplot as plt

pytestmark = pytest.mark.slow

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.MULTILINE | re.DOTALL)
LONG, SHORT = "sequences=64_000", "sequences=1_600"


def test_the_readme_runs_from_the_top(tmp_path, monkeypatch, capsys):
    assert len(BLOCKS) >= 4
    code = "\n".join(BLOCKS)
    assert code.count(LONG) == 1
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(code.replace(LONG, SHORT), str(README), "exec"), names)
    plt.close("all")
    shown = [float(number) for number in re.findall(r"\d\.\d+e[+-]\d+", capsys.readouterr().out)]
    assert shown[3] == pytest.approx(2 * 0.9 - 1, abs=1e-4)  # what the comment says L1H3 shows
    assert {run.name for run in Path("runs/readme").iterdir()} >= {"free", "clamped"}
    assert len(list(Path("figures").glob("losses.*"))) == 3
    assert len(names["report"].table("r_squared")) == 6
    assert names["config"].name == "main-5"
