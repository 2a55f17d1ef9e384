"""What `reproduce` and `study` tell, in words and as JSON."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from ih_interp.cli import app
from ih_interp.cli.figures import claims_text
from ih_interp.paper.claims import Claim


def test_the_smoke_preset_runs_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["reproduce", "3a", "5a", "--preset", "smoke"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "figures" / "fig3a.png").is_file()
    assert (tmp_path / "runs" / "smoke-synthetic" / "main-5" / "config.json").is_file()
    assert "no claim is judged" in result.output
    assert "DOES NOT HOLD" not in result.output
    claims = pd.read_csv(tmp_path / "figures" / "claims.csv")
    assert set(claims["holds"]) == {"not judged"}
    (tmp_path / "figures" / "fig3a.png").unlink()
    again = CliRunner().invoke(app, ["reproduce", "3a", "--preset", "smoke", "--redraw"])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "figures" / "fig3a.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reproduce", "9z"], "There is no figure 9z"),
        (["reproduce", "--exemplars", "none.h5"], "There is no feature file at none.h5"),
        (["reproduce", "--seeds", "0"], "at least one network"),
        (["reproduce", "--preset", "slow"], "'slow' is not one of"),
    ],
)
def test_wrong_input_ends_in_words_without_a_traceback(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert words in result.output
    assert "Traceback" not in result.output


def test_figures_are_spelled_one_way_in_help_errors_and_input(tmp_path, monkeypatch):
    from ih_interp.paper.figures import FIGURES
    from ih_interp.paper.reproduce import named

    monkeypatch.chdir(tmp_path)
    told = " ".join(CliRunner().invoke(app, ["reproduce", "9z"]).output.split())
    words = told.partition("choose from ")[2].rstrip(".").split(", ")
    assert {"11init", "table1", "3b"} <= set(words)
    assert [named(word) for word in words] == [[name] for name in FIGURES]
    assert "table1" in CliRunner().invoke(app, ["reproduce", "--help"]).output


def test_an_interrupt_says_how_to_go_on(monkeypatch):
    import ih_interp.paper.reproduce as module

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "reproduce", interrupted)
    result = CliRunner().invoke(app, ["reproduce"])
    assert result.exit_code == 130
    assert "Everything is saved" in result.output


def test_claims_are_told_with_their_verdicts():
    text = claims_text(
        [
            Claim("3a", "it waits", "150k", "140k", held=1, of=1),
            Claim("5b", "in order", "a", "b", held=2, of=3),
        ]
    )
    assert "3a  it waits: holds" in text
    assert "5b  in order: DOES NOT HOLD" in text
    assert "1 of 2 claims hold." in text


def test_claims_and_findings_are_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["reproduce", "5a", "--preset", "smoke", "--json"])
    assert result.exit_code == 0, result.output
    claims = json.loads(result.stdout)
    assert {claim["verdict"] for claim in claims} == {"not judged"}
    assert {claim["figure"] for claim in claims} == {"5a"}
    table = pd.read_csv("figures/claims.csv")
    assert [claim["claim"] for claim in claims] == list(table["claim"])

    import ih_interp.studies.run as module
    from ih_interp.studies.findings import Finding

    found = [Finding("it lasts", "nothing", "0.1", float("nan"), "open")]
    monkeypatch.setattr(module, "run_study", lambda *_, say, **__: say("a line") or found)
    result = CliRunner().invoke(app, ["study", "critical-periods", "--json"])
    assert json.loads(result.stdout)[0] == {**found[0]._asdict(), "p": None}
    assert "a line" in result.stderr


def test_names_that_a_shell_completes_are_those_that_there_are():
    from ih_interp.cli.figures import FIGURES as WORDS, STUDIES as STUDY_WORDS
    from ih_interp.paper.figures import FIGURES
    from ih_interp.studies import STUDIES

    assert set(WORDS) == {figure.word for figure in FIGURES.values()}
    assert set(STUDY_WORDS) == {study.word for study in STUDIES.values()}
