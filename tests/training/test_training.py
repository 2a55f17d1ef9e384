"""`ih.train`: what a run leaves in its folder, what it refuses, what it leaves alone."""

import json
import signal
import threading

import pytest
import torch
from small_runs import SMALL, folder_bytes

import ih_interp as ih
from ih_interp import clamps
from ih_interp.config import RunConfig, Seeds
from ih_interp.storage import run_files
from ih_interp.training.state import TrainingFailedError


def test_a_run_folder_holds_the_whole_run(tmp_path):
    (run,) = ih.train(SMALL, tmp_path, progress=False)
    assert run.finished
    assert run.steps == [0, 8, 16, 24]
    assert run_files.saved_states(run.folder) == [run.folder / run_files.STATE]
    table = run.metrics
    assert sorted(table["step"].unique()) == [0, 8, 16, 24]
    assert (table["sequences"] == 8 * table["step"]).all()
    assert table.groupby(["step", "split"]).size().max() == 1
    recorded = json.loads((run.folder / run_files.CONFIG).read_text())
    assert RunConfig.load(recorded["run"]) == SMALL
    assert recorded["versions"]["torch"] == str(torch.__version__).split("+")[0] or recorded[
        "versions"
    ]["torch"].startswith(str(torch.__version__))
    assert ih.Run(run.folder).config == SMALL


def test_runs_of_different_lengths_train_in_one_fleet(tmp_path):
    short = SMALL.replace(name="short", sequences=10 * 8)
    long = SMALL.replace(name="long", seeds=Seeds(init=6))
    together = ih.train([short, long], tmp_path / "together", progress=False)
    alone = [ih.train(c, tmp_path / "alone", progress=False)[0] for c in (short, long)]
    for one, other in zip(together, alone, strict=True):
        assert folder_bytes(one.folder) == folder_bytes(other.folder)


def test_one_runs_nan_ends_that_run_alone(tmp_path):
    wild = SMALL.replace(name="wild", optimiser=ih.Adam(learning_rate=1e30))
    with pytest.raises(TrainingFailedError, match=r"wild: the loss was (nan|inf) at update \d+"):
        ih.train([wild, SMALL], tmp_path, progress=False)
    assert ih.Run(tmp_path / "small").finished
    assert not ih.Run(tmp_path / "wild").finished
    (alone,) = ih.train(SMALL, tmp_path / "alone", progress=False)
    assert folder_bytes(tmp_path / "small") == folder_bytes(alone.folder)


def test_metrics_go_to_the_callback(tmp_path):
    rows = []
    (run,) = ih.train(
        SMALL, tmp_path, progress=False, on_metrics=lambda run, row: rows.append((run.folder, row))
    )
    assert [row for _, row in rows] == run_files.read_metrics(run.folder)
    assert {folder for folder, _ in rows} == {run.folder}


def test_a_clamp_can_wait_for_a_level(tmp_path):
    """The evaluation before the first update is below the level: on from the update after it."""
    schedule = clamps.from_level("loss", below=100.0)
    waiting = SMALL.replace(
        name="waiting", clamps=[clamps.InductionAttention(heads=["L1H3"], schedule=schedule)]
    )
    second = waiting.replace(
        name="second",
        clamps=[clamps.InductionAttention(heads=["L1H3"], schedule=clamps.during(start=1))],
    )
    never = waiting.replace(
        name="never",
        clamps=[
            clamps.InductionAttention(
                heads=["L1H3"], schedule=clamps.from_level("loss", below=1e-9)
            )
        ],
    )
    free = SMALL.replace(name="free")
    runs = dict(
        zip(
            ("waiting", "second", "never", "free"),
            ih.train([waiting, second, never, free], tmp_path, progress=False),
            strict=True,
        )
    )
    losses = {
        name: run.metrics.query("split == 'train'")["loss"].to_list() for name, run in runs.items()
    }
    assert losses["waiting"] == pytest.approx(losses["second"], abs=1e-6)
    assert losses["waiting"][1] != pytest.approx(losses["free"][1], abs=1e-3)
    assert losses["never"] == pytest.approx(losses["free"], abs=1e-6)


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([SMALL, SMALL], "Several runs are named small"),
        ([SMALL.replace(task=SMALL.task.replace(n_train_classes=40))], "n_train_classes=40"),
        ([SMALL.replace(clamps=[clamps.AblateHeads(heads=["L2H0"])])], "no head L2H0"),
    ],
)
def test_what_cannot_train_is_refused_before_anything_is_written(runs, words, tmp_path):
    good = SMALL.replace(name="good")
    with pytest.raises(ValueError, match=words):
        ih.train([good, *runs], tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_schedule_that_waits_for_a_missing_split_is_refused(tmp_path):
    all_classes = SMALL.replace(task=SMALL.task.replace(n_train_classes=20))
    waiting = clamps.from_level(split="test_exemplars", below=1.0)
    clamp = clamps.AblateHeads(heads=["L1H0"], schedule=waiting)
    with pytest.raises(ValueError, match="test_exemplars"):
        ih.train(all_classes.replace(clamps=[clamp]), tmp_path, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_a_graft_is_bound_to_the_weights_that_it_reads(tmp_path):
    ih.train(SMALL, tmp_path, progress=False)
    graft = clamps.GraftIn(run=str(tmp_path / "small"), step=8, layer=0)
    (run,) = ih.train(SMALL.replace(name="grafted", clamps=[graft]), tmp_path, progress=False)
    (recorded,) = run.config.clamps
    assert recorded == graft.pinned()
    assert recorded.sha256 is not None


def test_a_folder_of_another_run_is_refused(tmp_path):
    ih.train(SMALL, tmp_path, progress=False)
    other = SMALL.replace(seeds=Seeds(init=6))
    with pytest.raises(ValueError, match=r"holds another run: seeds is .*'init': 5.*'init': 6"):
        ih.train(other, tmp_path, progress=False)


def test_signals_are_put_back(tmp_path):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    ih.train(SMALL, tmp_path, progress=False)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_training_works_outside_the_main_thread(tmp_path):
    thread = threading.Thread(target=lambda: ih.train(SMALL, tmp_path, progress=False))
    thread.start()
    thread.join()
    assert ih.Run(tmp_path / "small").finished


def test_random_state_is_not_touched(tmp_path):
    before = torch.get_rng_state()
    ih.train(SMALL, tmp_path, progress=False)
    assert torch.equal(torch.get_rng_state(), before)
