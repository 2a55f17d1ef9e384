"""What a list of runs says of each, and that no folder makes it fail."""

import os
import shutil
import socket

import pytest
from small_runs import FOUR_UPDATES, SMALL, stop_after_an_update

import ih_interp as ih
from ih_interp.storage import run_files
from ih_interp.storage.lock import claimed
from ih_interp.training.listing import disk_bytes, list_runs


@pytest.fixture
def root(small_run, tmp_path):
    shutil.copytree(small_run.folder, tmp_path / "deep" / "small")
    return tmp_path


def only(root):
    (found,) = list_runs(root)
    return found


def test_a_finished_run(root, small_run):
    found = only(root)
    rows = small_run.metrics.query("step == 4 and split == 'train'")
    assert (found.name, found.state, found.step, found.steps) == ("small", "finished", 4, 4)
    assert found.folder == root / "deep" / "small"
    assert found.loss == rows["loss"].item()
    assert found.bytes == sum(p.stat().st_size for p in found.folder.rglob("*") if p.is_file())
    assert only(found.folder) == found


def test_an_interrupted_run_and_a_stopped_one(tmp_path, monkeypatch):
    stop_after_an_update(tmp_path, monkeypatch)
    found = only(tmp_path)
    assert (found.state, found.step, found.steps) == ("interrupted", 1, 24)

    def stop(run, row):
        if row["step"] == 8:
            raise ih.StopRun

    ih.train(SMALL, tmp_path, progress=False, on_metrics=stop)
    found = only(tmp_path)
    assert (found.state, found.step) == ("stopped", 8)


def test_a_run_in_training_names_who_trains_it(root):
    with claimed([root / "deep" / "small"]):
        found = only(root)
    assert found.state == "training"
    assert found.trained_by == f"{os.getpid()} on {socket.gethostname()}"
    assert only(root).state == "finished"


def test_a_free_evaluation_is_not_taken_for_the_training_loss(tmp_path):
    clamp = ih.clamps.InductionAttention(heads=["L1H3"])
    config = FOUR_UPDATES.replace(clamps=[clamp], evaluate=("free", "clamped"))
    (run,) = ih.train(config, tmp_path, progress=False)
    last = run.metrics.query("step == 4 and split == 'train'").set_index("under")["loss"]
    assert only(tmp_path).loss == last["clamped"] != last["free"]


DAMAGE = {
    "metrics are cut short": (lambda run: (run / run_files.METRICS).write_bytes(b"{"), "damaged"),
    "a checkpoint is missing": (lambda run: run_files.checkpoint_path(run, 2).unlink(), "damaged"),
    "the configuration is no JSON": (
        lambda run: (run / run_files.CONFIG).write_text("{"),
        "damaged",
    ),
    "the configuration is missing": (lambda run: (run / run_files.CONFIG).unlink(), "damaged"),
    "another version wrote it": (
        lambda run: (run / run_files.CONFIG).write_text('{"format": 99, "fingerprint": ""}'),
        "unreadable",
    ),
    "the lock is a link": (lambda run: (run / ".lock").symlink_to("config.json"), "unreadable"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_run_that_cannot_be_read_is_a_row_with_the_reason(case, root):
    damage, state = DAMAGE[case]
    damage(root / "deep" / "small")
    found = only(root)
    assert found.state == state
    assert found.reason


def test_other_folders_are_no_runs_and_links_are_not_followed(root, tmp_path):
    (root / "model").mkdir()
    (root / "model" / "config.json").write_text('{"architectures": ["GPT2"]}')
    (root / "link").symlink_to(root / "deep")
    assert [run.name for run in list_runs(root)] == ["small"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list_runs(root / "nowhere")


def test_sizes_count_links_as_themselves(tmp_path):
    (tmp_path / "file").write_bytes(b"123")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert disk_bytes(tmp_path) == 3 + (tmp_path / "link").lstat().st_size
