import pytest
import torch
from torch.testing import assert_close

import ih_interp as ih
from ih_interp import clamps
from ih_interp.config import Grid, RunConfig
from ih_interp.evaluation import means
from ih_interp.exemplars import GaussianSource

CONFIG = RunConfig(
    name="run",
    exemplars=GaussianSource(n_classes=20, n_exemplars=2, n_features=16),
    task=ih.TaskConfig(n_train_classes=8),
    clamps=[clamps.InductionAttention(heads=["L1H3"], strength=0.7)],
    sequences=32,
    batch_size=8,
    evaluations=Grid(),
    evaluation_size=10,
    checkpoints=Grid(every=16),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return ih.train(CONFIG, tmp_path_factory.mktemp("runs"), progress=False)[0]


def test_a_tidy_table_of_every_head_at_every_checkpoint(run):
    table = ih.trace(run, ih.induction_strength)
    assert list(table.columns) == ["step", "sequences", "name", "value"]
    assert len(table) == 3 * 16
    assert sorted(table["sequences"].unique()) == [0, 16, 32]


def test_the_runs_own_clamps_are_in_force(run):
    table = ih.trace(run, ih.induction_strength)
    assert table.query("name == 'L1H3'")["value"].to_list() == pytest.approx([0.4] * 3, abs=1e-6)
    free = ih.trace(run, ih.induction_strength, clamps=())
    assert free.query("name == 'L1H3'")["value"].abs().max() < 0.3


def test_values_are_those_of_each_checkpoint(run):
    batch = run.task.enumerate("train")[:50]
    table = ih.trace(run, ih.previous_token_score, batch=batch, steps=[2], clamps=())
    expected = ih.previous_token_score(run.model(2), batch)
    assert_close(torch.tensor(table["value"].to_list()).reshape(2, 8), expected)


def test_chunks_are_averaged_by_their_size(run, monkeypatch):
    from ih_interp.analysis import trace as module

    whole = ih.trace(run, lambda model, batch: means(ih.evaluate(model, batch)))
    monkeypatch.setattr(module, "CHUNK", 1_000)
    parts = ih.trace(run, lambda model, batch: means(ih.evaluate(model, batch)))
    assert set(whole["name"]) == {
        "loss", "accuracy", "in_context_accuracy", "probability", "in_context_probability",
        "context_probability",
    }  # fmt: skip
    assert parts["value"].to_list() == pytest.approx(whole["value"].to_list(), abs=1e-6)


def test_a_number_a_checkpoint(run):
    table = ih.trace(run, lambda model, batch: model(batch.tokens).mean(), steps=[0, 4])
    assert table["name"].to_list() == ["value", "value"]


def test_a_clamp_that_the_measure_does_not_reach_is_refused(run):
    with pytest.raises(ValueError, match="never fired"):
        ih.trace(run, lambda model, batch: model(batch.tokens, stop_at_layer=1).mean())


def test_what_cannot_be_a_row_is_refused(run):
    with pytest.raises(ValueError, match=r"The measure gave \(3,\)"):
        ih.trace(run, lambda model, batch: model(batch.tokens)[0, 0, :3])
    with pytest.raises(ValueError, match="no checkpoint at step 1"):
        ih.trace(run, ih.induction_strength, steps=[1])
