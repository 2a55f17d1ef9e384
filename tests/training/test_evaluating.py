"""Evaluation by graph against the model as it is."""

import pytest
import torch
from small_runs import SMALL, make_fleet

import ih_interp as ih
from ih_interp import clamps
from ih_interp.engine.feature_table import Rows
from ih_interp.tasks.pairs import features_by_token
from ih_interp.training import evaluating
from ih_interp.training.fleet import trace_key


def test_renumbered_rows_are_the_same_exemplars(task):
    rows = Rows.of_splits(task, ["train"])
    tokens = task.enumerate("train").tokens
    exemplars = tokens[:, [0, 2, 4]] - task.n_labels
    renumbered = rows.renumber[tokens][:, [0, 2, 4]] - task.n_labels
    whole = features_by_token(task.exemplars)
    assert torch.equal(rows.features[renumbered], whole[exemplars])
    assert torch.equal(rows.renumber[tokens][:, [1, 3]], tokens[:, [1, 3]])


@pytest.mark.parametrize(
    ("size", "chunk"), [(800, 800), (4_000, 2_000), (4_096, 1_024), (5_000, 1_250), (8_012, 1_603)]
)
def test_chunks_divide_the_sequences_or_the_last_is_filled_up(size, chunk):
    assert evaluating.chunk_size(size) == chunk


@pytest.mark.parametrize("max_chunk", [2_000, 35])
def test_a_graph_evaluates_as_the_model_does(max_chunk, tmp_path, monkeypatch, evaluating_by_graph):
    """In one chunk, in several, and with the last one filled up: three times 27 are 81."""
    monkeypatch.setattr(evaluating, "MAX_CHUNK", max_chunk)
    monkeypatch.setattr(evaluating, "MIN_CHUNK", 30)
    configs = [
        SMALL.replace(
            name=f"run-{head}-{n}",
            clamps=[
                clamps.InductionAttention(heads=[head], schedule=clamps.ramp(0, n)),
                clamps.PreviousTokenAttention(heads=["L0H2"], strength=n / 50),
            ],
            task=ih.TaskConfig(n_train_classes=8, n_test_classes=n_test),
            evaluation_size=size,
        )
        for head, n, n_test, size in (
            ("L1H3", 20, 4, 20),
            ("L1H6", 30, 10, 20),
            ("L1H7", 40, 4, 32),
        )
    ]
    assert len(set(map(trace_key, configs))) == 1
    fleet = make_fleet(tmp_path, configs)
    by_graph = evaluating.Evaluator(fleet.evaluator._model, compiled=True)
    for _ in range(3):
        fleet.advance()
    for place, run in enumerate(fleet.runs):
        plain = fleet.evaluator.measure(run, fleet.weights(place))
        found = by_graph.measure(run, fleet.weights(place))
        assert len(by_graph._graphs) == place + 1
        for row, expected in zip(found, plain, strict=True):
            assert (row["split"], row["under"]) == (expected["split"], expected["under"])
            assert row["loss"] == pytest.approx(expected["loss"], abs=1e-6)
            numbers = [
                {n: v for n, v in r.items() if isinstance(v, float)} for r in (row, expected)
            ]
            assert numbers[0] == pytest.approx(numbers[1], abs=1e-6)
