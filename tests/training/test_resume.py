"""Runs that were stopped, killed or damaged end with the same bytes."""

import os
import shutil
import signal

import pytest
from small_runs import SMALL, folder_bytes, stop_after_an_update

import ih_interp as ih
from ih_interp.config import Seeds
from ih_interp.storage import run_files
from ih_interp.training import evaluating, loop, state
from ih_interp.training.fleet import Fleet
from ih_interp.training.state import TrainingFailedError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("stop_at", [1, 8, 9, 23, 24])
def test_a_stopped_run_resumes_to_the_same_bytes(stop_at, tmp_path, monkeypatch):
    (straight,) = ih.train(SMALL, tmp_path / "straight", progress=False)
    advance = Fleet.advance

    def advance_then_signal(fleet):
        losses = advance(fleet)
        if fleet.runs[0].step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return losses

    monkeypatch.setattr(Fleet, "advance", advance_then_signal)
    with pytest.raises(KeyboardInterrupt):
        ih.train(SMALL, tmp_path / "resumed", progress=False)
    stopped = ih.Run(tmp_path / "resumed" / "small")
    assert not stopped.finished
    assert state.saved_step(stopped.folder) == stop_at
    monkeypatch.setattr(Fleet, "advance", advance)
    (resumed,) = ih.train(SMALL, tmp_path / "resumed", progress=False)
    assert folder_bytes(resumed.folder) == folder_bytes(straight.folder)


def test_an_evaluation_that_is_interrupted_at_the_end_is_done_again(tmp_path, monkeypatch):
    configs = [SMALL.replace(name=f"run-{seed}", seeds=Seeds(init=seed)) for seed in (5, 6)]
    straight = ih.train(configs, tmp_path / "straight", progress=False)
    evaluate = evaluating.Evaluator.measure

    def interrupted(evaluator, run, weights):
        if run.step == 24:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(evaluator, run, weights)

    with monkeypatch.context() as patch:
        patch.setattr(evaluating.Evaluator, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ih.train(configs, tmp_path / "resumed", progress=False)
    saved = [state.saved_step(tmp_path / "resumed" / config.name) for config in configs]
    assert saved == [24, 24]
    resumed = ih.train(configs, tmp_path / "resumed", progress=False)
    for one, other in zip(straight, resumed, strict=True):
        assert folder_bytes(one.folder) == folder_bytes(other.folder)
        assert run_files.saved_states(other.folder) == [other.folder / run_files.STATE]


def test_a_killed_run_resumes_to_the_same_bytes(tmp_path, monkeypatch):
    """Killed between two saves: what came after the last one is done again."""
    (straight,) = ih.train(SMALL, tmp_path / "straight", progress=False)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    advance = Fleet.advance

    def die_at_17(fleet):
        if fleet.runs[0].step == 17:
            raise RuntimeError("killed")
        return advance(fleet)

    monkeypatch.setattr(Fleet, "advance", die_at_17)
    with pytest.raises(RuntimeError, match="killed"):
        ih.train(SMALL, tmp_path / "killed", progress=False)
    monkeypatch.setattr(Fleet, "advance", advance)
    (resumed,) = ih.train(SMALL, tmp_path / "killed", progress=False)
    assert folder_bytes(resumed.folder) == folder_bytes(straight.folder)


def test_a_finished_run_is_not_touched(tmp_path, monkeypatch):
    (run,) = ih.train(SMALL, tmp_path, progress=False)
    before = folder_bytes(run.folder)
    monkeypatch.setattr(Fleet, "advance", lambda fleet: pytest.fail("trained again"))
    (again,) = ih.train(SMALL, tmp_path, progress=False)
    assert folder_bytes(again.folder) == before


@pytest.mark.parametrize("step", [0, 16, 24])
def test_what_the_callback_raises_is_raised_with_everything_saved(step, tmp_path):
    def fail(_, row):
        if row["step"] == step:
            raise OSError("the dashboard is down")

    (straight,) = ih.train(SMALL, tmp_path / "straight", progress=False)
    with pytest.raises(OSError, match=r"^the dashboard is down$"):
        ih.train(SMALL, tmp_path / "resumed", progress=False, on_metrics=fail)
    folder = tmp_path / "resumed" / "small"
    is_at_its_end = step == 24
    assert ih.Run(folder).finished == is_at_its_end
    assert state.saved_step(folder) == step
    (resumed,) = ih.train(SMALL, tmp_path / "resumed", progress=False)
    assert folder_bytes(resumed.folder) == folder_bytes(straight.folder)


def test_a_copied_folder_is_its_own_run(tmp_path, monkeypatch):
    stop_after_an_update(tmp_path, monkeypatch)
    shutil.copytree(tmp_path / "small", tmp_path / "other")
    runs = ih.train([SMALL, SMALL.replace(name="other")], tmp_path, progress=False)
    assert [(run.config.name, run.finished) for run in runs] == [("small", True), ("other", True)]


def test_metrics_that_were_lost_are_missed_before_training_goes_on(tmp_path, monkeypatch):
    stop_after_an_update(tmp_path, monkeypatch)
    (tmp_path / "small" / run_files.METRICS).unlink()
    with pytest.raises(TrainingFailedError, match="lacks 1 of 1 evaluations"):
        ih.train(SMALL, tmp_path, progress=False)


@pytest.mark.parametrize("lost", ["checkpoints/00000008.safetensors", run_files.METRICS])
def test_what_a_finished_run_has_lost_comes_back(lost, tmp_path):
    (run,) = ih.train(SMALL, tmp_path, progress=False)
    before = folder_bytes(run.folder)
    assert lost in before
    (run.folder / lost).unlink()
    (again,) = ih.train(SMALL, tmp_path, progress=False)
    assert folder_bytes(again.folder) == before
