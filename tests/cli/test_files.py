"""`features` makes and tells feature files; `clean` tells before it deletes."""

import errno
import json
import shutil
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import ih_interp as ih
from ih_interp.cli import app
from ih_interp.storage import run_files


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def array(tmp_path):
    path = tmp_path / "array.npy"
    np.save(path, np.random.default_rng(0).normal(size=(6, 3, 4)).astype(np.float32))
    return path


def test_a_file_of_features_is_told_and_converted(array, tmp_path):
    exemplars = ih.Exemplars.load(array)
    told = json.loads(call("features", array, "--json").stdout)
    assert (told["classes"], told["exemplars"], told["features"]) == (6, 3, 4)
    assert told["sha256"] == exemplars.sha256
    assert told["mean_norm"] == pytest.approx(float(exemplars.features.norm(dim=-1).mean()), 1e-3)
    done = call("features", array, "--out", tmp_path / "out.npz")
    assert done.exit_code == 0, done.output
    assert exemplars.sha256 in done.stdout
    assert torch.equal(ih.Exemplars.load(tmp_path / "out.npz").features, exemplars.features)


def test_features_of_images_are_made_by_the_networks_of_the_package(tmp_path, monkeypatch):
    asked, gaussian = [], ih.Exemplars.gaussian(n_classes=4, n_exemplars=2, n_features=8)
    monkeypatch.setattr(
        ih.Exemplars,
        "omniglot",
        lambda *given, **named: asked.append((given, named)) or ih.Exemplars(gaussian.features),
    )
    options = ("--network", "squeezenet1_1", "--exemplars", 2)
    done = call("features", tmp_path / "images", "--out", tmp_path / "x.npz", *options)
    assert done.exit_code == 0, done.output
    assert asked == [((tmp_path / "images", 2), {"network": "squeezenet1_1"})]
    assert torch.equal(ih.Exemplars.load(tmp_path / "x.npz").features, gaussian.features)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["images"], "--out"),
        (["images", "--out", "x.h5"], "x.h5"),
        (["none.npz"], "none.npz"),
        (["text.txt", "--out", "x.npz"], "text.txt"),
    ],
)
def test_features_that_could_not_be_saved_are_not_computed(arguments, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("text")
    monkeypatch.setattr(ih.Exemplars, "omniglot", None)
    done = call("features", *arguments)
    assert done.exit_code == 2
    assert word in done.stderr


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "a/b"), "a/b: no such file."),
        (OSError("There is no room."), "There is no room."),
    ],
)
def test_errors_of_the_system_are_told_in_words(error, told, array, monkeypatch):
    monkeypatch.setattr(ih.Exemplars, "load", Mock(side_effect=error))
    done = call("features", array)
    assert (done.exit_code, done.stderr) == (2, f"ih-interp: {told}\n")


def test_clean_lists_what_it_cannot_read_and_reads_it_with_its_module(foreign, tmp_path):
    root = tmp_path / "runs"
    folders = [root / sweep / "a" for sweep in ("one", "two")]
    told = json.loads(call("clean", root, "--yes", "--json").stdout)
    assert (told["items"], [*told["left"]]) == ([], [*map(str, folders)])
    assert all(f"--plugins {foreign}" in why for why in told["left"].values())
    assert "left alone: one/a, two/a: config.json" in call("clean", root).stdout
    assert all((folder / run_files.STATE).is_file() for folder in folders)
    done = call("clean", root, "--yes", "--plugins", foreign)
    assert "left alone" not in done.stdout
    assert not any((folder / run_files.STATE).exists() for folder in folders)


def test_clean_tells_and_then_deletes(small_run, tmp_path):
    shutil.copytree(small_run.folder, tmp_path / "small")
    state = tmp_path / "small" / run_files.STATE
    size = state.stat().st_size
    told = json.loads(call("clean", tmp_path, "--json").stdout)
    assert (told["deleted"], told["bytes"]) == (False, size)
    assert [item["path"] for item in told["items"]] == [str(state)]
    assert "--yes" in call("clean", tmp_path).stdout
    assert state.is_file()
    done = call("clean", tmp_path, "--yes")
    assert "deleted" in done.stdout
    assert not state.is_file()
    assert "Nothing" in call("clean", tmp_path).stdout
