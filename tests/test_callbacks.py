"""What callbacks of training get, and how they end one run."""

import pytest
from conftest import SMALL
from small_runs import folder_bytes

import ih_interp as ih
from ih_interp.config import Grid

CONFIG = SMALL.replace(
    name="c", sequences=64, evaluations=Grid(every=16), checkpoints=Grid(every=16)
)


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
