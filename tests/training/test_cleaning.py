"""What is deleted is needed by nothing that a finished run is read for."""

import shutil

import pytest
import torch
from small_runs import FOUR_UPDATES, SMALL, folder_bytes, stop_after_an_update

import ih_interp as ih
from ih_interp.engine import compile_cache
from ih_interp.storage import run_files
from ih_interp.storage.lock import claimed
from ih_interp.training import cleaning
from ih_interp.training.cleaning import clean


@pytest.fixture
def run(small_run, tmp_path):
    return ih.Run(shutil.copytree(small_run.folder, tmp_path / "runs" / "small"))


def names(found):
    return sorted(item.path.name for item in found.items)


def test_a_cleaned_run_is_read_as_before_and_not_trained_again(run, small_run, monkeypatch):
    root = run.folder.parent
    shutil.copy(run.folder / run_files.STATE, run.folder / run_files.STATE_BEFORE)
    both = sorted([run_files.STATE, run_files.STATE_BEFORE])
    assert names(clean(root)) == names(clean(root, yes=True)) == both
    assert clean(root).items == []
    assert run_files.saved_states(run.folder) == []
    assert folder_bytes(run.folder) == folder_bytes(small_run.folder)
    assert run.metrics.equals(small_run.metrics)
    assert all(torch.equal(run.model(s).W_U, small_run.model(s).W_U) for s in small_run.steps)
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")}
    called = []
    (again,) = ih.train(FOUR_UPDATES, root, progress=False, on_metrics=lambda *_: called.append(1))
    assert again.finished
    assert not called
    assert {path: path.stat().st_mtime_ns for path in run.folder.rglob("*")} == before


def test_a_cleaned_run_goes_on_to_the_same_numbers_from_its_beginning(tmp_path):
    longer = FOUR_UPDATES.replace(sequences=8 * 8)
    ih.train(FOUR_UPDATES, tmp_path / "a", progress=False)
    clean(tmp_path / "a", yes=True)
    (on,) = ih.train(longer, tmp_path / "a", progress=False)
    (once,) = ih.train(longer, tmp_path / "b", progress=False)
    assert folder_bytes(on.folder) == folder_bytes(once.folder)


def test_a_cleaned_run_is_repaired(run, small_run):
    clean(run.folder, yes=True)
    run_files.checkpoint_path(run.folder, 2).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="removed"):
        ih.train(FOUR_UPDATES, run.folder.parent, progress=False, repair=True)
    assert folder_bytes(run.folder) == folder_bytes(small_run.folder)


def test_what_a_run_goes_on_from_stays(tmp_path, monkeypatch):
    stop_after_an_update(tmp_path, monkeypatch)
    (state,) = run_files.saved_states(tmp_path / SMALL.name)
    left = tmp_path / SMALL.name / f".{run_files.METRICS}.123"
    left.write_bytes(b"half")
    foreign = tmp_path / SMALL.name / ".notes.123"
    foreign.write_bytes(b"the user's")
    assert names(clean(tmp_path, yes=True)) == [left.name]
    assert state.is_file()
    assert foreign.is_file()
    assert not left.exists()


@pytest.mark.parametrize("lost", ["checkpoint", "metrics", "config"])
def test_the_state_of_a_damaged_run_stays(lost, run):
    path = {
        "checkpoint": run_files.checkpoint_path(run.folder, 2),
        "metrics": run.folder / run_files.METRICS,
        "config": run.folder / run_files.CONFIG,
    }[lost]
    path.unlink()
    found = clean(run.folder, yes=True)
    assert found.items == []
    assert [*found.left] == ([run.folder] if lost == "config" else [])
    assert (run.folder / run_files.STATE).is_file()


def test_a_run_in_training_is_left_alone(run, monkeypatch):
    with claimed([run.folder]):
        found = clean(run.folder, yes=True)
        assert found.items == []
        assert "being trained" in found.left[run.folder]
    # One that another process begins to train between the search and the deletion:
    monkeypatch.setattr("ih_interp.storage.lock.WAIT_SECONDS", 0)
    monkeypatch.setattr(cleaning, "holder", lambda folder: None)
    with claimed([run.folder]):
        found = clean(run.folder, yes=True)
    assert found.items == []
    assert "being trained" in found.left[run.folder]
    assert (run.folder / run_files.STATE).is_file()


def test_links_are_left_alone(run, tmp_path):
    state = run.folder / run_files.STATE
    state.rename(tmp_path / "elsewhere")
    state.symlink_to(tmp_path / "elsewhere")
    assert clean(run.folder, yes=True).items == []
    assert (tmp_path / "elsewhere").is_file()


@pytest.fixture
def graphs(tmp_path, monkeypatch):
    monkeypatch.delenv(compile_cache.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compile_cache, "_candidates", lambda: iter([place]))
    place = tmp_path / "cache" / "ih_interp"
    (place / "ab").mkdir(parents=True, mode=0o700)
    (place / "ab" / "graph.so").write_bytes(b"1234")
    return place


def test_compiled_graphs_are_deleted_where_they_are_asked_for(run, graphs, tmp_path, monkeypatch):
    clean(run.folder, yes=True)
    assert clean(run.folder, yes=True).items == []
    (told,) = clean(run.folder, graphs=True).items
    assert (told.path, told.bytes) == (graphs, 4)
    assert (graphs / "ab" / "graph.so").is_file()
    with claimed([run.folder]):
        found = clean(run.folder, graphs=True, yes=True)
    assert (graphs in found.left, found.items) == (True, [])
    assert clean(run.folder, graphs=True, yes=True).items == [told]
    assert list(graphs.iterdir()) == []
    assert clean(run.folder, graphs=True).items == []
    monkeypatch.setenv(compile_cache.VARIABLE, str(tmp_path))
    assert compile_cache.kept_graphs() is None
