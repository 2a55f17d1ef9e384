"""What callbacks of training get, and how they end one run."""

import inspect
import signal
import sys

import pytest
import torch
from small_runs import FOUR_UPDATES, folder_bytes

import ih_interp as ih
from ih_interp.config import Grid

CONFIG = FOUR_UPDATES.replace(
    name="c", sequences=64, evaluations=Grid(every=16), checkpoints=Grid(every=16)
)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_callback_finds_the_checkpoint_of_its_row(workers, tmp_path):
    found = {}

    def look(run, row):
        found[run.config.name, row["step"]] = run.model(row["step"]).W_U.detach().clone()

    configs = [CONFIG, CONFIG.replace(name="d", seeds=ih.Seeds(init=1))]
    runs = ih.train(configs, tmp_path, workers=workers, progress=False, on_metrics=look)
    for run in runs:
        assert [step for name, step in found if name == run.config.name] == [0, 2, 4, 6, 8]
        assert all(
            (found[run.config.name, step] == run.model(step).W_U).all() for step in run.steps
        )


def test_stop_run_ends_one_run_as_far_as_it_got(tmp_path):
    def stop(run, row):
        if run.config.name == "c" and row["step"] == 4:
            raise ih.StopRun

    configs = [CONFIG, CONFIG.replace(name="d")]
    one, other = ih.train(configs, tmp_path / "a", progress=False, on_metrics=stop)
    whole, _ = ih.train(configs, tmp_path / "b", progress=False)
    assert (one.stopped, one.finished, one.steps) == (4, False, [0, 2, 4])
    assert (other.stopped, other.finished) == (None, True)
    assert list(one.metrics["step"].unique()) == [0, 2, 4]
    assert one.metrics.equals(whole.metrics.query("step <= 4"))
    ih.train(configs, tmp_path / "a", progress=False)
    assert (one.stopped, one.steps) == (4, [0, 2, 4])  # left alone
    (one.folder / "stopped.json").unlink()
    ih.train(configs, tmp_path / "a", progress=False)
    assert folder_bytes(one.folder) == folder_bytes(whole.folder)


@pytest.mark.slow
def test_stop_run_reaches_workers(tmp_path):
    def stop(run, row):
        if run.config.name == "c":
            raise ih.StopRun

    configs = [CONFIG.replace(sequences=8 * 4_000), CONFIG.replace(name="d")]
    one, other = ih.train(
        configs, tmp_path, engine="eager", workers=2, progress=False, on_metrics=stop
    )
    assert one.stopped is not None
    assert one.stopped < 2_000
    assert one.steps[-1] == one.stopped
    assert other.finished


def test_stop_run_at_the_last_update_changes_nothing(tmp_path):
    def stop(run, row):
        if row["step"] == run.config.n_steps:
            raise ih.StopRun

    (run,) = ih.train(CONFIG, tmp_path, progress=False, on_metrics=stop)
    assert run.finished
    assert run.stopped is None


def test_a_stopped_run_gets_back_what_it_lost_and_no_more(tmp_path):
    def stop(run, row):
        if row["step"] == 4:
            raise ih.StopRun

    (run,) = ih.train(CONFIG, tmp_path, progress=False, on_metrics=stop)
    before = folder_bytes(run.folder)
    (run.folder / "checkpoints" / "00000002.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="removed"):
        ih.train(CONFIG, tmp_path, progress=False, repair=True)
    assert (run.stopped, run.steps) == (4, [0, 2, 4])
    assert folder_bytes(run.folder) == before


@pytest.mark.parametrize("content", ["[]", "{}", '{"run": "another", "step": 4}', '{"step": "4"}'])
def test_a_damaged_note_of_where_a_run_was_stopped_is_named(content, tmp_path):
    (run,) = ih.train(CONFIG, tmp_path, progress=False, on_metrics=lambda run, row: None)
    (run.folder / "stopped.json").write_text(content)
    with pytest.raises(ValueError, match=r"stopped\.json"):
        _ = run.stopped
    with pytest.warns(UserWarning, match=r"removed.*stopped\.json"):
        ih.train(CONFIG, tmp_path, progress=False, repair=True)
    assert run.stopped is None


LEFT_ON = {
    "gradient": (lambda: torch.set_grad_enabled(False), lambda: torch.set_grad_enabled(True)),
    "autocast": (
        lambda: torch.set_autocast_enabled("cpu", True),
        lambda: torch.set_autocast_enabled("cpu", False),
    ),
    "precision": (
        lambda: torch.set_float32_matmul_precision("medium"),
        lambda: torch.set_float32_matmul_precision("highest"),
    ),
    "dtype": (
        lambda: torch.set_default_dtype(torch.float64),
        lambda: torch.set_default_dtype(torch.float32),
    ),
}


@pytest.mark.parametrize("state", LEFT_ON)
def test_what_a_callback_leaves_switched_changes_no_number(state, small_run, tmp_path):
    switch, back = LEFT_ON[state]
    try:
        (run,) = ih.train(FOUR_UPDATES, tmp_path, progress=False, on_metrics=lambda *_: switch())
    finally:
        back()
    assert folder_bytes(run.folder) == folder_bytes(small_run.folder)


async def never_awaited(run, row):
    raise AssertionError


def never_begun(run, row):
    yield AssertionError


@pytest.mark.parametrize("callback", [3, never_awaited, never_begun, lambda row: None])
def test_a_callback_that_would_not_run_is_refused_before_anything_is_written(callback, tmp_path):
    with pytest.raises(TypeError, match=r"give a function\(run, row\)"):
        inspect.unwrap(ih.train)(CONFIG, tmp_path / "runs", progress=False, on_metrics=callback)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_the_process_ignores_ends_no_training(number, small_run, tmp_path):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        (run,) = ih.train(
            FOUR_UPDATES,
            tmp_path,
            progress=False,
            on_metrics=lambda *_: signal.raise_signal(number),
        )
    finally:
        signal.signal(number, before)
    assert folder_bytes(run.folder) == folder_bytes(small_run.folder)


def test_without_a_console_there_is_no_bar(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stderr", None)
    assert ih.train(CONFIG, tmp_path)[0].finished
