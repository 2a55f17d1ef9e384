"""Trackers, by what TensorBoard reads back from the files of one."""

import logging
import shutil
import sys

import pytest
import torch
from small_runs import FOUR_UPDATES, SMALL, folder_bytes

import ih_interp as ih
from ih_interp.config import Grid
from ih_interp.evaluation import evaluation_sets

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

CLAMPS = [
    ih.clamps.PreviousTokenAttention(heads=["L0H0"], schedule=ih.clamps.during(start=4, stop=20)),
    ih.clamps.AblateHeads(
        heads=["L0H1"], schedule=ih.clamps.from_level("loss", below=100.0, split="train")
    ),
]
CLAMPED = SMALL.replace(clamps=CLAMPS, evaluate=("clamped", "free"))


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "logs"


def points(folder):
    """Every scalar as TensorBoard shows it: by name, its steps and values."""
    read = event_accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    read.Reload()
    return {
        name: [(event.step, event.value) for event in read.Scalars(name)]
        for name in read.Tags()["scalars"]
    }


def expected(run):
    """The metrics of a run in the same form, in single precision as in the files."""
    table = run.metrics
    found = {}
    for name in [name for name in table if name not in ("step", "sequences", "split", "under")]:
        for (split, under), rows in table.groupby(["split", "under"]):
            values = torch.tensor(rows[name].to_numpy()).float().tolist()
            found[f"{name.replace(' ', '/')}/{split}/{under}"] = list(
                zip(rows["step"], values, strict=True)
            )
    return found


def metrics_of(found):
    return {name: values for name, values in found.items() if name.count("/") >= 2}


def test_the_files_hold_the_metrics_and_the_gates(logs, tmp_path):
    tracker = ih.track.TensorBoard(logs)
    (run,) = ih.train(CLAMPED, tmp_path / "runs", progress=False, on_metrics=tracker)
    found = points(logs / run.config.name)
    assert metrics_of(found) == expected(run)
    assert found["gate/0_previous_token_attention"] == [(0, 0), (8, 1), (16, 1), (24, 0)]
    assert found["gate/1_ablate_heads"] == [(0, 0), (8, 1), (16, 1), (24, 1)]
    (bare,) = ih.train(CLAMPED, tmp_path / "bare", progress=False)
    assert folder_bytes(run.folder) == folder_bytes(bare.folder)


def both(model, batch):
    """A measure of both of its arguments, by name."""
    return {"loss": ih.evaluate(model, batch).loss, "half": 0.5}


def test_measures_are_those_of_a_trace_at_every_checkpoint(logs, tmp_path):
    def weight(model):
        return float(model.W_U.detach().norm())

    measures = {"previous": ih.heads.previous_token_score, "both": both, "weight": weight}
    config = CLAMPED.replace(checkpoints=Grid(every=32))  # four times as many as evaluations
    tracker = ih.track.TensorBoard(logs, measures=measures)
    (run,) = ih.train(config, tmp_path, progress=False, on_metrics=tracker)
    found = points(logs / run.config.name)
    assert run.steps == [0, 4, 8, 12, 16, 20, 24]
    batch = run.task.sample("train", 500, seed=run.config.seeds.evaluation)
    for name in ("previous", "both"):
        table = ih.trace(run, measures[name], batch=batch)
        for part, rows in table.groupby("name"):
            values = torch.tensor(rows["value"].to_numpy()).float().tolist()
            assert found[f"{name}/{part}"] == list(zip(rows["step"], values, strict=True))
    norms = [float(run.model(step).W_U.detach().norm()) for step in run.steps]
    assert [value for _, value in found["weight"]] == pytest.approx(norms)
    assert metrics_of(found).items() >= expected(run).items()


def test_a_measure_may_draw_its_own_sequences_always_the_same(logs, tmp_path):
    def chance(model, generator):
        return float(torch.rand((), generator=generator))

    tracker = ih.track.TensorBoard(logs, measures={"chance": chance})
    (run,) = ih.train(FOUR_UPDATES, tmp_path, progress=False, on_metrics=tracker)
    own = torch.rand((), generator=torch.Generator().manual_seed(run.config.seeds.evaluation))
    assert points(logs / run.config.name)["chance"][-1] == (4, float(own))
    assert len(points(logs / run.config.name)["chance"]) == len(run.steps)


def test_the_sequences_may_be_given(logs, tmp_path):
    batch = evaluation_sets(FOUR_UPDATES.task.build(), FOUR_UPDATES)["train"]
    tracker = ih.track.TensorBoard(logs, measures={"both": both}, batch=batch)
    (run,) = ih.train(FOUR_UPDATES, tmp_path, progress=False, on_metrics=tracker)
    found = points(logs / run.config.name)
    last = run.metrics.query("step == 4 and split == 'train'")["loss"].item()
    assert found["both/loss"][-1][1] == pytest.approx(last, abs=1e-6)


def test_a_run_that_resumes_has_no_point_twice(logs, tmp_path):
    (whole,) = ih.train(SMALL, tmp_path / "whole", progress=False)

    def crash(run, row):
        if row["step"] == 16:
            raise KeyError("a callback")

    root, first = tmp_path / "runs", ih.track.TensorBoard(logs)
    with pytest.raises(KeyError, match="a callback"):
        ih.train(SMALL, root, progress=False, on_metrics=ih.track.All(first, crash))
    first.close()
    # A kill goes on from an older state, and evaluates again what was reported.
    folder = root / SMALL.name
    for name in ("state.safetensors", "state-before.safetensors"):
        (folder / name).unlink(missing_ok=True)
    shutil.rmtree(folder / "checkpoints")
    (folder / "metrics.jsonl").unlink()
    (run,) = ih.train(SMALL, root, progress=False, on_metrics=ih.track.TensorBoard(logs))
    assert points(logs / SMALL.name) == expected(run) == expected(whole)


@pytest.mark.parametrize("same", [True, False])
def test_a_run_that_goes_on_has_no_point_twice(same, logs, tmp_path):
    tracker = ih.track.TensorBoard(logs)
    ih.train(CLAMPED, tmp_path / "a", progress=False, on_metrics=tracker)
    longer = CLAMPED.replace(sequences=40 * 8)
    tracker = tracker if same else ih.track.TensorBoard(logs)
    (run,) = ih.train(longer, tmp_path / "a", progress=False, on_metrics=tracker)
    found = points(logs / run.config.name)
    assert metrics_of(found) == expected(run)
    assert [step for step, _ in found["gate/1_ablate_heads"]] == [0, 8, 16, 24, 32, 40]


def test_a_run_that_goes_on_forgets_the_evaluation_that_its_metrics_forget(logs, tmp_path):
    short = CLAMPED.replace(sequences=20 * 8)
    ih.train(short, tmp_path, progress=False, on_metrics=ih.track.TensorBoard(logs))
    (run,) = ih.train(CLAMPED, tmp_path, progress=False, on_metrics=ih.track.TensorBoard(logs))
    assert 20 not in set(run.metrics["step"])
    assert metrics_of(points(logs / run.config.name)) == expected(run)


@pytest.mark.slow
def test_two_workers_report_as_one_process(logs, tmp_path):
    configs = [SMALL.replace(name=f"s{n}", seeds=ih.Seeds(init=n)) for n in (1, 2, 3)]
    tracker = ih.track.TensorBoard(logs, measures={"match": ih.induction_strength})
    for run in ih.train(configs, tmp_path, workers=2, progress=False, on_metrics=tracker):
        found = points(logs / run.config.name)
        assert metrics_of(found) == expected(run)
        assert [step for step, _ in found["match/L1H3"]] == run.steps


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_may_be_stopped_beside_a_tracker(workers, logs, tmp_path):
    def stop(run, row):
        if run.config.name == "a" and row["step"] >= 8 and row["split"] == "train":
            raise ih.StopRun

    configs = [SMALL.replace(name="a", sequences=8 * 2_000), SMALL.replace(name="b")]
    both_told = ih.track.All(stop, ih.track.TensorBoard(logs))
    one, other = ih.train(
        configs, tmp_path, engine="eager", workers=workers, progress=False, on_metrics=both_told
    )
    both_told.close()
    assert one.stopped is not None
    assert one.stopped < 2_000
    assert other.finished
    for run in (one, other):
        assert points(logs / run.config.name) == expected(run)


def broken(model, batch):
    raise RuntimeError("a broken measure")


def test_a_tracker_that_fails_says_so_once_and_stops_nothing(logs, tmp_path, caplog):
    tracker = ih.track.TensorBoard(logs, measures={"broken": broken, "both": both})
    with caplog.at_level(logging.WARNING, logger="ih_interp"):
        (run,) = ih.train(SMALL, tmp_path, progress=False, on_metrics=tracker)
    assert run.finished
    assert len(caplog.records) == 1
    assert "a broken measure" in caplog.text
    found = points(logs / run.config.name)
    assert metrics_of(found) == expected(run)  # all else is written
    assert [step for step, _ in found["both/half"]] == run.steps


def test_a_place_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    (tmp_path / "logs").write_text("a file")
    tracker = ih.track.TensorBoard(tmp_path / "logs")
    with caplog.at_level(logging.WARNING, logger="ih_interp"):
        (run,) = ih.train(SMALL, tmp_path / "runs", progress=False, on_metrics=tracker)
    assert run.finished
    assert len(caplog.records) == 1


def test_a_measure_may_end_a_run(logs, tmp_path):
    def stop(model):
        raise ih.StopRun

    tracker = ih.track.TensorBoard(logs, measures={"stop": stop})
    (run,) = ih.train(SMALL, tmp_path, progress=False, on_metrics=tracker)
    assert run.stopped == 0
    assert points(logs / run.config.name) == expected(run)


@pytest.mark.untyped
@pytest.mark.parametrize("measure", [5, lambda: 0, lambda model, batch, more: 0])
def test_what_is_no_measure_is_refused(measure, logs):
    with pytest.raises(TypeError, match="expected a function"):
        ih.track.TensorBoard(logs, measures={"wrong": measure})


def test_what_is_no_callback_is_refused():
    with pytest.raises(TypeError, match="5"):
        ih.track.All(5)


def test_a_missing_library_is_named_with_its_command(logs, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(ImportError, match=r"pip install -c \S+ -e '\.\[tensorboard\]'"):
        ih.track.TensorBoard(logs)
