"""What studies share: levels, stages, findings, files; every study at the smoke preset."""

import math

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import ih_interp as ih
from ih_interp.cli import app
from ih_interp.studies import STUDIES, findings
from ih_interp.studies.findings import (
    BEGIN,
    END,
    HEADING,
    Finding,
    above_zero,
    judge,
    write_findings,
)
from ih_interp.studies.run import draw_study, find_study, read_table, run_study
from ih_interp.studies.study import SMOKE, guess_loss, learned_level, stop_when_learned, trace_runs


def test_the_level_of_the_papers_task_is_the_papers():
    assert learned_level(ih.TaskConfig()) == pytest.approx(0.4 * math.log(2))
    assert guess_loss(ih.TaskConfig(n_pairs=4, n_labels=8)) == pytest.approx(math.log(4))
    assert guess_loss(ih.TaskConfig(n_pairs=4, n_copies=2)) == pytest.approx(math.log(3))


def test_the_guess_of_repeated_tokens_is_a_mean_over_asked_positions():
    task = ih.tasks.RepeatedTokens(n_tokens=16, min_period=2, max_period=5, length=11)
    batch = task.sample("train", 4_000, seed=0)
    periods = task.length - batch.asked.sum(dim=1)  # a block's positions are not asked
    logs = [
        math.log(p) for p, row in zip(periods, batch.asked, strict=True) for _ in range(row.sum())
    ]
    assert guess_loss(task) == pytest.approx(np.mean(logs), abs=0.02)


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="expected a few-shot task or RepeatedTokens"):
        guess_loss(ih.tasks.MarkovChains())


def test_a_run_ends_at_the_evaluation_that_finds_it_learned(tmp_path):
    (run,) = ih.train([SMOKE.run("one", 5)], tmp_path, progress=False)
    level = learned_level(run.config.task)
    stop_when_learned(run, {"split": "train", "under": "clamped", "loss": level})
    stop_when_learned(run, {"split": "test_relabel", "under": "clamped", "loss": 0.0})
    with pytest.raises(ih.StopRun):
        stop_when_learned(run, {"split": "train", "under": "clamped", "loss": 0.99 * level})


def test_effects_are_tested_over_networks():
    test = above_zero("it grows", [1.0, 2.0, 1.5, 1.0, 2.5, 1.2, 1.1, np.nan], words="{} units")
    assert test.agrees
    assert test.p == pytest.approx(2 / 2**7)
    assert test.found.endswith("7 networks; 1 without a number) units")
    assert above_zero("it grows", [-1.0, -2.0], words="{}").agrees is False
    assert np.isnan(above_zero("it grows", [1.0, np.nan], words="{}").p)


def test_verdicts_are_adjusted_for_the_number_of_claims():
    alone = findings.Tested("a", "nothing", "1", agrees=True, p=0.03)
    assert judge([alone])[0].verdict == "yes"
    assert judge([alone._replace(agrees=False)])[0].verdict == "no"
    many = judge([alone, *[alone._replace(p=0.9)] * 4])
    assert [each.verdict for each in many] == ["open"] * 5
    assert many[0].p == pytest.approx(0.15)
    assert judge([alone._replace(p=np.nan)])[0].verdict == "open"


def test_findings_of_other_studies_stay(tmp_path):
    finding = Finding("a holds", "nothing", "1.0", 0.01, "yes")
    write_findings(tmp_path, "one", [finding], command="ih-interp study one")
    write_findings(tmp_path, "two", [finding._replace(p=np.nan)], command="ih-interp study two")
    write_findings(tmp_path, "one", [finding._replace(verdict="no")], command="ih-interp study one")
    table = pd.read_csv(tmp_path / "findings.csv")
    assert table[["study", "verdict"]].to_numpy().tolist() == [["one", "no"], ["two", "yes"]]
    text = (tmp_path / "README.md").read_text()
    assert text.startswith(HEADING.partition("\n")[0])
    assert text.index(BEGIN) < text.index("### One") < text.index("### Two") < text.index(END)


def test_words_of_a_readme_stay(tmp_path):
    (tmp_path / "README.md").write_text(f"Mine.\n\n{BEGIN}\nstale\n{END}\nBelow.\n")
    finding = Finding("a holds", "nothing", "1.0", 0.01, "yes")
    write_findings(tmp_path, "one", [finding], command="ih-interp study one")
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("Mine.")
    assert text.endswith("Below.\n")
    assert "stale" not in text


def test_a_summary_names_its_runs():
    table = pd.DataFrame({"by": ["a", "a", "b"], "run": ["x", "y", "z"], "config": ["1", "2", "3"]})
    summary = trace_runs(pd.DataFrame({"by": ["b", "a"], "n": [1, 2]}), table, ["by"])
    assert summary.to_numpy().tolist() == [["b", 1, "z", "3"], ["a", 2, "x y", "1 2"]]


def test_studies_are_found_by_any_spelling():
    for study in STUDIES.values():
        assert find_study(study.word) is find_study(study.file_name) is study
    with pytest.raises(ValueError, match="There is no study 'other'; choose from critical-periods"):
        find_study("other")


def test_an_unknown_preset_and_a_missing_table_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="There is no preset 'slow'; choose from smoke, quick"):
        run_study("critical periods", preset="slow")
    with pytest.raises(FileNotFoundError, match="expected a table to draw again"):
        run_study("critical periods", redraw=True)
    result = CliRunner().invoke(app, ["study", "periods"])
    assert result.exit_code == 2
    assert "There is no study" in result.output


@pytest.mark.parametrize("name", STUDIES)
def test_the_first_runs_of_every_preset_can_be_made(name):
    for scale in STUDIES[name].scales.values():
        assert STUDIES[name].stages[0](scale, pd.DataFrame())


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_runs_in_an_empty_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = STUDIES[name]
    said = []
    found = run_study(study.word, preset="smoke", say=said.append)
    assert found
    assert {finding.verdict for finding in found} == {"not judged"}
    folder, names = tmp_path / "figures", study.file_name
    wanted = {f"{names}.{kind}" for kind in ("csv", "pdf", "png")} | {f"{names}_summary.csv"}
    assert {path.name for path in folder.iterdir()} == wanted | {"findings.csv", "README.md"}
    root = tmp_path / "runs" / f"{names}-smoke-synthetic"
    marks = {run.name: ih.Run(run).config.fingerprint for run in root.iterdir() if run.is_dir()}
    table = read_table(study, folder)
    assert dict(zip(table["run"], table["config"], strict=True)) == marks
    summary = pd.read_csv(folder / f"{names}_summary.csv", dtype={"config": str})
    for _, row in summary.iterrows():
        assert [marks[run] for run in row["run"].split(" ")] == row["config"].split(" ")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    again = run_study(study.word, preset="smoke", redraw=True)
    assert [finding[:3] for finding in again] == [finding[:3] for finding in found]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    canvas = draw_study(study, table)
    assert canvas.axes or canvas.texts  # which say that no network learned
