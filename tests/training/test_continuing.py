"""A finished run that goes on with more sequences, and evaluation under clamps, free, or both."""

import pytest
from small_runs import SMALL, folder_bytes

import ih_interp as ih
from ih_interp import clamps
from ih_interp.config import Grid
from ih_interp.storage import run_files
from ih_interp.training import loop
from ih_interp.training.fleet import Fleet
from ih_interp.training.state import TrainingFailedError

pytestmark = pytest.mark.slow

LONG = SMALL.replace(sequences=40 * 8, optimiser=ih.Adam(clip=1.0, learning_rate=1e-3))
SHORT = LONG.replace(sequences=20 * 8)
"""It ends between two points of the longer run."""

WAITS = [clamps.InductionAttention(heads=["L1H3"], schedule=clamps.from_level("loss", below=1.5))]


@pytest.mark.parametrize("given", [[], WAITS], ids=["free", "waits"])
@pytest.mark.parametrize("short", [20, 24])
def test_a_run_that_goes_on_is_the_one_trained_at_once(given, short, tmp_path):
    first = SHORT.replace(sequences=short * 8, clamps=given)
    (straight,) = ih.train(LONG.replace(clamps=given), tmp_path / "straight", progress=False)
    (begun,) = ih.train(first, tmp_path / "on", progress=False)
    before, rows = folder_bytes(begun.folder), begun.rows(before=1)
    (run,) = ih.train(LONG.replace(clamps=given), tmp_path / "on", progress=False)
    assert (run.finished, run.folder, run.config.sequences) == (True, begun.folder, 40 * 8)
    found, expected = folder_bytes(run.folder), folder_bytes(straight.folder)
    for name in expected.keys() - {run_files.METRICS}:
        assert found[name] == expected[name]
    for name in before.keys() - {run_files.METRICS}:
        assert found[name] == before[name]
    due = {row["step"] for row in straight.rows(before=41)}
    kept = run.rows(before=41)
    assert [row for row in kept if row["step"] in due] == straight.rows(before=41)
    if not given:
        assert kept[: len(rows)] == rows


def test_a_run_that_goes_on_may_be_killed(tmp_path, monkeypatch):
    (straight,) = ih.train(LONG, tmp_path / "straight", progress=False)
    (begun,) = ih.train(SHORT, tmp_path / "on", progress=False)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    advance = Fleet.advance

    def die_at(step):
        def die(fleet):
            if fleet.runs[0].step == step:
                raise RuntimeError("killed")
            return advance(fleet)

        return die

    for step in (20, 33):
        monkeypatch.setattr(Fleet, "advance", die_at(step))
        with pytest.raises(TrainingFailedError, match="killed"):
            ih.train(LONG, tmp_path / "on", progress=False)
        assert not ih.Run(begun.folder).finished
    monkeypatch.setattr(Fleet, "advance", advance)
    (run,) = ih.train(LONG, tmp_path / "on", progress=False)
    assert folder_bytes(straight.folder).items() - folder_bytes(run.folder).items() == {
        (run_files.METRICS, folder_bytes(straight.folder)[run_files.METRICS])
    }
    assert [path.name for path in run_files.saved_states(run.folder)] == [run_files.STATE]


def test_fewer_sequences_than_are_there_are_refused(tmp_path):
    (run,) = ih.train(SMALL, tmp_path, progress=False)
    before = folder_bytes(run.folder)
    with pytest.raises(ValueError, match="sequences=192"):
        ih.train(SMALL.replace(sequences=8 * 8), tmp_path, progress=False)
    with pytest.raises(ValueError, match="batch_size"):
        ih.train(SMALL.replace(sequences=400, batch_size=4), tmp_path, progress=False)
    assert folder_bytes(run.folder) == before


def test_a_run_whose_last_state_is_gone_goes_on_from_its_beginning(tmp_path):
    (straight,) = ih.train(LONG, tmp_path / "straight", progress=False)
    (begun,) = ih.train(SHORT, tmp_path / "on", progress=False)
    (begun.folder / run_files.STATE).unlink()
    (run,) = ih.train(LONG, tmp_path / "on", progress=False)
    assert (
        folder_bytes(run.folder)[run_files.METRICS]
        == folder_bytes(straight.folder)[run_files.METRICS]
    )


def test_a_damaged_last_state_is_told_with_its_remedy(tmp_path):
    (begun,) = ih.train(SHORT, tmp_path, progress=False)
    (begun.folder / run_files.STATE).write_bytes(b"no state")
    with pytest.raises(TrainingFailedError, match="repair=True"):
        ih.train(LONG, tmp_path, progress=False)
    with pytest.warns(UserWarning, match=run_files.STATE):
        (run,) = ih.train(LONG, tmp_path, progress=False, repair=True)
    assert run.finished


CLAMPED = SMALL.replace(
    evaluations=Grid(), clamps=[clamps.InductionAttention(heads=["L1H3"], strength=0.9)]
)


def test_a_run_is_measured_under_its_clamps_free_or_both(tmp_path):
    configs = [
        CLAMPED.replace(name="-".join(evaluate), evaluate=evaluate)
        for evaluate in (("clamped",), ("free",), ("clamped", "free"))
    ]
    clamped, free, both = (run.metrics for run in ih.train(configs, tmp_path, progress=False))
    assert list(both["under"].unique()) == ["clamped", "free"]
    for alone, under in ((clamped, "clamped"), (free, "free")):
        part = both[both["under"] == under].reset_index(drop=True)
        assert part.equals(alone)
    run = ih.Run(tmp_path / "free")
    for split in run.task.splits:
        row = free[(free["split"] == split) & (free["step"] == 24)].iloc[0]
        batch = ih.evaluation.evaluation_sets(run.task, run.config)[split]
        assert row["loss"] == pytest.approx(ih.evaluate(run.model(), batch).mean()["loss"])


def test_a_run_without_clamps_is_measured_once(tmp_path, monkeypatch):
    calls = []
    evaluate = ih.training.evaluating.evaluate
    monkeypatch.setattr(
        ih.training.evaluating,
        "evaluate",
        lambda *given, **named: calls.append(given) or evaluate(*given, **named),
    )
    config = SMALL.replace(evaluations=Grid(), evaluate=("clamped", "free"))
    (run,) = ih.train(config, tmp_path, progress=False)
    assert len(calls) == 2 * len(run.task.splits)
    one, other = (rows.drop(columns="under") for _, rows in run.metrics.groupby("under"))
    assert one.reset_index(drop=True).equals(other.reset_index(drop=True))


def test_a_graph_measures_free_as_the_model_does(tmp_path, evaluating_by_graph, monkeypatch):
    from small_runs import make_fleet

    from ih_interp.training import evaluating

    fleet = make_fleet(tmp_path, [CLAMPED.replace(evaluate=("free", "clamped"))])
    run, weights = fleet.runs[0], fleet.weights(0)
    plain = fleet.evaluator.measure(run, weights)
    by_graph = evaluating.Evaluator(fleet.evaluator._model, compiled=True).measure(run, weights)
    for row, expected in zip(by_graph, plain, strict=True):
        assert row["under"] == expected["under"]
        assert row["loss"] == pytest.approx(expected["loss"], abs=1e-6)


@pytest.mark.parametrize("evaluate", [(), ("free", "free"), ("both",), "free"])
def test_other_evaluations_are_refused(evaluate):
    with pytest.raises(ValueError, match="evaluate"):
        SMALL.replace(evaluate=evaluate)


LEVEL = {"metric": "previous_token_score", "head": "L0H2", "above": 0.05, "under": "free"}


def test_what_a_schedule_waits_for_of_heads_is_measured(tmp_path):
    schedule = clamps.from_level(**LEVEL)
    config = SMALL.replace(
        evaluate=("clamped", "free"),
        clamps=[clamps.InductionAttention(heads=["L1H3"], schedule=schedule)],
    )
    (run,) = ih.train(config, tmp_path, progress=False)
    metrics = run.metrics
    column = "previous_token_score L0H2"
    there = metrics[(metrics["under"] == "free") & (metrics["split"] == "train")]
    batch = ih.evaluation.evaluation_sets(run.task, config)["train"]
    for step, value in zip(there["step"], there[column], strict=True):
        expected = ih.heads.previous_token_score(run.model(step), batch)[0, 2]
        assert value == pytest.approx(float(expected), abs=1e-6)
    assert metrics[column].notna().sum() == len(there)
    assert {schedule.gate(step, run.rows(before=0)) for step in range(24)} == {0.0, 1.0}


@pytest.mark.parametrize(
    ("change", "evaluate", "word"),
    [
        ({"metric": "no_score"}, ("free",), "no_score"),
        ({"head": "L5H0"}, ("free",), "ih.heads"),
        ({}, ("clamped",), "evaluate"),
        ({"metric": "composition_scores"}, ("free",), "ih.heads"),
    ],
)
def test_levels_that_cannot_be_measured_are_refused(change, evaluate, word, tmp_path):
    schedule = clamps.from_level(**{**LEVEL, **change})
    given = [clamps.InductionAttention(heads=["L1H3"], schedule=schedule)]
    with pytest.raises(ValueError, match=word):
        ih.train(SMALL.replace(clamps=given, evaluate=evaluate), tmp_path, progress=False)
    assert not any(tmp_path.iterdir())
