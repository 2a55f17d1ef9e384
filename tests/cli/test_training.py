"""`train` and `report` call the library with what was asked; `runs` tells what is on the disk."""

import json
import os
import sys
import types
from pathlib import Path

import pytest
from small_runs import FOUR_UPDATES, folder_bytes
from typer.testing import CliRunner

import ih_interp as ih
from ih_interp.cli import app
from ih_interp.training import train as training
from ih_interp.training.state import TrainingFailedError


def call(*arguments, **named):
    return CliRunner().invoke(app, list(map(str, arguments)), **named)


@pytest.fixture
def calls(monkeypatch):
    """The calls of `ih.train`, which trains nothing here."""
    made = []
    monkeypatch.setattr(ih, "train", lambda *given, **named: made.append((given, named)))
    return made


def write(path, value):
    path.write_text(json.dumps(value))
    return path


def test_a_configuration_trains_as_in_python(tmp_path, small_run):
    file = write(tmp_path / "four.json", FOUR_UPDATES.save())
    done = call("train", file, "--runs", tmp_path / "runs")
    assert done.exit_code == 0, done.output
    folder = tmp_path / "runs" / FOUR_UPDATES.name
    assert folder_bytes(folder) == folder_bytes(small_run.folder)
    loss = small_run.metrics.query("step == 4 and split == 'train'")["loss"].item()
    assert done.stdout == f"small: {folder}, finished, 4 of 4 updates, loss {loss:.4f}\n"
    again = call("train", folder / "config.json", "--runs", tmp_path / "runs", "--json")
    assert json.loads(again.stdout)[0]["state"] == "finished"


def test_files_lists_and_standard_input_are_read_in_order(tmp_path, calls):
    named = [FOUR_UPDATES.replace(name=name).save() for name in "abcd"]
    one = write(tmp_path / "one.json", named[0])
    several = write(tmp_path / "several.json", named[1:3])
    options = ("--runs", tmp_path, "--workers", 2, "--engine", "eager", "--repair")
    done = call("train", one, several, "-", *options, input=json.dumps(named[3]))
    assert done.exit_code == 0, done.output
    [((configs, root), given)] = calls
    assert configs == [FOUR_UPDATES.replace(name=name) for name in "abcd"]
    assert root == tmp_path
    asked = {"engine": "eager", "workers": 2, "device": "cpu", "repair": True, "plugins": ()}
    assert given == asked


def test_a_cluster_is_read_from_its_option(tmp_path, calls, monkeypatch):
    cluster = types.ModuleType("cluster")
    cluster.Slurm = type("Slurm", (), {"parse": staticmethod(lambda text: ("slurm", text))})
    monkeypatch.setitem(sys.modules, "ih_interp.training.cluster", cluster)
    file = write(tmp_path / "four.json", FOUR_UPDATES.save())
    for options in ((), ("--no-wait",)):
        done = call("train", file, "--runs", tmp_path, "--slurm", "partition=a,cpus=4", *options)
        assert done.exit_code == 0, done.output
    waiting, not_waiting = (given for _, given in calls)
    assert waiting["cluster"] == not_waiting["cluster"] == ("slurm", "partition=a,cpus=4")
    assert waiting["wait"]
    assert not not_waiting["wait"]
    alone = call("train", file, "--no-wait")
    assert (alone.exit_code, len(calls)) == (2, 2)
    assert "--slurm" in alone.stderr


def test_plugins_are_found_in_the_working_folder(tmp_path, calls, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("my_plugin_of_a_command.py").write_text("SEEN = []\n")
    file = write(tmp_path / "four.json", FOUR_UPDATES.save())
    done = call("train", file, "--plugins", "my_plugin_of_a_command")
    assert done.exit_code == 0, done.output
    assert sys.modules.pop("my_plugin_of_a_command").SEEN == []
    assert calls[0][1]["plugins"] == ["my_plugin_of_a_command"]
    missing = call("train", file, "--plugins", "no_such_plugin")
    assert missing.exit_code == 2
    assert "no_such_plugin" in missing.stderr


WRONG = {
    "no JSON": ("{", "is not JSON"),
    "another field": (json.dumps(FOUR_UPDATES.save() | {"sequence": 8}), "sequences"),
    "a wrong run of a list": (
        json.dumps([FOUR_UPDATES.save(), FOUR_UPDATES.save() | {"batch_size": 0}]),
        "run 2",
    ),
    "no run": ("[]", "empty"),
    "a number": ("5", "got 5"),
    "a name twice": (json.dumps([FOUR_UPDATES.save()] * 2), "small"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_configurations_are_told_in_words(case, tmp_path):
    text, word = WRONG[case]
    (tmp_path / "wrong.json").write_text(text)
    done = call("train", tmp_path / "wrong.json", "--runs", tmp_path / "runs")
    assert done.exit_code == 2
    assert word in done.stderr
    assert "Traceback" not in done.output
    assert not (tmp_path / "runs").exists()


def test_a_missing_file_and_another_run_are_told_in_words(tmp_path, small_run):
    done = call("train", tmp_path / "none.json")
    assert done.exit_code == 2
    assert "none.json" in done.stderr
    other = write(tmp_path / "other.json", FOUR_UPDATES.replace(seeds=ih.Seeds(init=1)).save())
    done = call("train", other, "--runs", small_run.folder.parent)
    assert done.exit_code == 2
    assert "another run" in done.stderr


def test_files_that_are_none_are_told_without_the_systems_numbers(tmp_path, small_run):
    for source, words in ((tmp_path / "none.json", "no file"), (small_run.folder, "config.json")):
        done = call("train", source)
        assert done.exit_code == 2
        told = done.stderr.splitlines()[-1]
        assert str(source) in told
        assert words in told
        assert "Errno" not in told
        assert "not JSON" not in told


@pytest.fixture
def refusing(tmp_path, monkeypatch):
    """A cluster that takes no jobs, and says so in two lines."""
    for name in ("sbatch", "srun", "squeue"):
        (tmp_path / name).write_text("#!/bin/sh\necho no such >&2\necho partition >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


def test_a_refusal_by_slurm_is_one_line(tmp_path, refusing):
    file = write(tmp_path / "four.json", FOUR_UPDATES.save())
    done = call("train", file, "--runs", tmp_path / "runs", "--slurm", "partition=nope")
    assert done.exit_code == 1
    assert isinstance(done.exception, SystemExit)
    loading, told = done.stderr.splitlines()
    assert "loading" in loading
    assert "nope" in told
    assert "no such; partition" in told


def test_a_machine_without_slurm_is_told_in_a_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    file = write(tmp_path / "four.json", FOUR_UPDATES.save())
    done = call("train", file, "--runs", tmp_path / "runs", "--slurm", "partition=short")
    assert (done.exit_code, type(done.exception)) == (1, SystemExit)
    assert "sbatch" in done.stderr


def test_runs_that_failed_end_with_a_status_beside_the_others(tmp_path, small_run, monkeypatch):
    def fail(*_, **__):
        raise TrainingFailedError("a run failed")

    monkeypatch.setattr(ih, "train", fail)
    file = write(tmp_path / "four.json", FOUR_UPDATES.save())
    done = call("train", file, "--runs", small_run.folder.parent)
    assert done.exit_code == 1
    assert "a run failed" in done.stderr
    assert "finished, 4 of 4 updates" in done.stdout


def test_an_interrupt_says_how_to_go_on(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", interrupted)
    monkeypatch.setattr(ih, "train", interrupted)
    done = call("train", write(tmp_path / "four.json", FOUR_UPDATES.save()))
    assert done.exit_code == 130
    assert "Everything is saved" in done.stderr


def test_runs_are_listed(clamped_run, tmp_path):
    root = clamped_run.folder.parent
    done = call("runs", root)
    assert done.exit_code == 0, done.output
    head, row = done.stdout.splitlines()
    assert head.split()[:4] == ["run", "updates", "loss", "state"]
    assert row.split()[:4] == ["clamped", "4", "of", "4"]
    assert "induction_attention" in row
    (told,) = json.loads(call("runs", root, "--json").stdout)
    assert (told["name"], told["step"], told["steps"]) == ("clamped", 4, 4)
    assert told["clamps"] == [str(clamped_run.clamps[0])]
    empty = call("runs", tmp_path)
    assert (empty.exit_code, empty.stdout) == (0, "")
    assert call("runs", tmp_path / "none").exit_code == 2


def test_runs_that_need_a_module_are_told_the_reason_once(foreign, tmp_path):
    done = call("runs", tmp_path / "runs")
    assert done.exit_code == 0, done.output
    _, reason = done.stdout.strip().split("\n\n")
    assert reason.startswith("one/a, two/a: config.json cannot be read")
    assert f"--plugins {foreign}" in reason
    again = call("runs", tmp_path / "runs", "--plugins", foreign)
    assert again.stdout.count("finished") == 2
    assert "\n\n" not in again.stdout


def test_different_reasons_are_told_apart(foreign, tmp_path):
    (tmp_path / "runs" / "two" / "a" / "config.json").write_text("{")
    _, one, two = call("runs", tmp_path / "runs").stdout.strip().split("\n\n")
    assert one.startswith("one/a: ")
    assert two.startswith("two/a: config.json")


def test_a_report_on_runs_that_need_a_module_names_the_option(foreign, tmp_path):
    done = call("report", tmp_path / "runs" / "one" / "a")
    assert done.exit_code == 2
    assert f"--plugins {foreign}" in done.stderr


def test_a_report_is_saved(tmp_path, monkeypatch):
    saved = []

    class Page:
        def __init__(self, runs, title=None):
            self.of = (runs, title)

        def save(self, path):
            saved.append((*self.of, path))
            return path

    monkeypatch.setattr(ih, "report", Page, raising=False)
    out = tmp_path / "page.html"
    done = call("report", tmp_path / "a", tmp_path / "b", "--out", out, "--title", "Two")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(out)
    assert saved == [([tmp_path / "a", tmp_path / "b"], "Two", out)]
