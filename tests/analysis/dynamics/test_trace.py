import copy
import logging
import shutil
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

import ih_interp as ih
from ih_interp import clamps
from ih_interp.analysis.dynamics.trace import _say_once
from ih_interp.storage import run_files
from ih_interp.tasks.exemplars import GaussianSource


def test_a_tidy_table_of_every_head_at_every_checkpoint(clamped_run):
    table = ih.trace(clamped_run, ih.induction_strength)
    assert list(table.columns) == ["step", "sequences", "name", "value"]
    assert len(table) == 3 * 16
    assert sorted(table["sequences"].unique()) == [0, 16, 32]


def test_the_runs_own_clamps_are_in_force(clamped_run):
    table = ih.trace(clamped_run, ih.induction_strength)
    assert table.query("name == 'L1H3'")["value"].to_list() == pytest.approx([0.4] * 3, abs=1e-6)
    free = ih.trace(clamped_run, ih.induction_strength, clamps=())
    assert free.query("name == 'L1H3'")["value"].abs().max() < 0.3


def test_values_are_those_of_each_checkpoint(clamped_run):
    batch = clamped_run.task.enumerate("train")[:50]
    table = ih.trace(clamped_run, ih.heads.previous_token_score, batch=batch, steps=[2], clamps=())
    expected = ih.heads.previous_token_score(clamped_run.model(2), batch)
    assert_close(torch.tensor(table["value"].to_list()).reshape(2, 8), expected)


def test_chunks_are_averaged_by_their_size(clamped_run, monkeypatch):
    whole = ih.trace(clamped_run, lambda model, batch: ih.evaluate(model, batch).mean())
    monkeypatch.setattr("ih_interp.clamps._active.CHUNK", 1_000)
    parts = ih.trace(clamped_run, lambda model, batch: ih.evaluate(model, batch).mean())
    assert set(whole["name"]) == {
        "loss", "accuracy", "in_context_accuracy", "probability", "in_context_probability",
        "context_probability",
    }  # fmt: skip
    assert parts["value"].to_list() == pytest.approx(whole["value"].to_list(), abs=1e-6)


@pytest.fixture(scope="module")
def run_of_many(tmp_path_factory):
    """Four pairs of two copies: 23,639,040 training sequences, too many to list."""
    config = ih.RunConfig(
        task=ih.TaskConfig(
            exemplars=GaussianSource(n_classes=20, n_exemplars=2, n_features=16),
            n_pairs=4,
            n_copies=2,
            n_labels=10,
            n_train_classes=20,
        ),
        sequences=8,
        batch_size=8,
        evaluation_size=8,
    )
    return ih.train(config, tmp_path_factory.mktemp("many"), progress=False)[0]


@pytest.fixture
def notes(caplog, monkeypatch):
    # import-linter, of another test, disables every logger that is there.
    monkeypatch.setattr(logging.getLogger("ih_interp"), "disabled", False)
    _say_once.cache_clear()
    return caplog


SAID = "a fixed sample of 4,096 of the 23,639,040 sequences of 'train'"


def test_without_a_batch_a_fixed_sample_is_measured_and_said(run_of_many, notes):
    seen = []

    def target(model, batch):
        seen.append(batch.tokens)
        return batch.target.double().mean()

    table = ih.trace(run_of_many, target, steps=[0])
    sample = run_of_many.task.sample("train", 4_096, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.cat(seen), sample.tokens)
    assert table["value"].item() == pytest.approx(sample.target.double().mean().item())
    assert table.attrs == {"batch": SAID}
    assert notes.messages == [f"Measured over {SAID}; give batch= for others."]
    again = ih.trace(run_of_many, target, steps=[0])
    assert again.equals(table)
    assert len(notes.messages) == 1


def test_the_tables_keep_the_name_of_a_measure_that_has_one(clamped_run):
    batch = clamped_run.task.enumerate("train")[:7]

    def score(model, batch):
        return ih.induction_strength(model, batch)

    named = {ih.induction_strength: "induction strength", score: None, ih.evaluate: None}
    for measure, words in named.items():
        table = ih.trace(clamped_run, measure, batch=batch, steps=[0], clamps=[])
        assert table.attrs.get("measure") == words


def test_every_sequence_is_measured_where_there_are_few_or_they_are_named(clamped_run, notes):
    seen = []

    def count(model, batch):
        seen.append(len(batch))
        return 0.0

    table = ih.trace(clamped_run, count, steps=[0], clamps=[])
    assert sum(seen) == len(clamped_run.task.enumerate("train")) == 8 * 7 * 8 * 2 * 2
    assert table.attrs == {"batch": "all 1,792 sequences of 'train'"}
    batch = clamped_run.task.enumerate("train")[:7]
    assert ih.trace(clamped_run, count, batch=batch, steps=[0], clamps=[]).attrs == {}
    assert notes.messages == []


def test_all_that_measure_over_training_take_the_same_sample(run_of_many, notes):
    sample = run_of_many.task.sample("train", 4_096, seed=0)
    calls = {
        "progress": lambda **given: ih.progress(run_of_many, [], steps=[0], **given),
        "beside": lambda **given: ih.dynamics.progress_beside_training(
            run_of_many, {"none": run_of_many}, steps=[0], **given
        ),
        "wiring": lambda **given: ih.patching.wiring_over_training(
            run_of_many, ih.patching.swap_exemplars, via="k", steps=[0], **given
        ),
    }
    for name, call in calls.items():
        table = call()
        assert table.equals(call(batch=sample)), name
        assert table.attrs == {"batch": SAID}, name
    wires = partial(
        ih.patching.redundancy_over_training, run_of_many, ih.patching.swap_exemplars, via="k",
        steps=[0], bootstrap_options={"n_resamples": 2},
    )  # fmt: skip
    table = wires()
    assert table.equals(wires(batch=run_of_many.task.sample("train", 1_024, seed=0)))
    assert table.attrs["batch"].startswith("a fixed sample of 1,024 of the 23,639,040")
    assert len(notes.messages) == 2


def test_a_number_a_checkpoint(clamped_run):
    table = ih.trace(clamped_run, lambda model, batch: model(batch.tokens).mean(), steps=[0, 4])
    assert table["name"].to_list() == ["value", "value"]


def test_a_clamp_that_the_measure_does_not_reach_is_refused(clamped_run):
    with pytest.raises(ValueError, match="never fired"):
        ih.trace(clamped_run, lambda model, batch: model(batch.tokens, stop_at_layer=1).mean())


def test_what_cannot_be_a_row_is_refused(clamped_run):
    batch = clamped_run.task.enumerate("train")[:3]
    for measure in (
        lambda model, batch: model(batch.tokens)[:, 0, 0],  # one a sequence, without a name
        lambda model, batch: {"a": model(batch.tokens)[0, 0, :2].detach()},
        lambda model, batch: {"a": model(batch.tokens)[:, :, 0]},
        lambda model, batch: [model(batch.tokens).mean()],
    ):
        with pytest.raises(ValueError, match=r"The measure gave (\(|list)"):
            ih.trace(clamped_run, measure, batch=batch, clamps=())
    with pytest.raises(ValueError, match="batch"):
        ih.trace(clamped_run, ih.induction_strength, batch=batch[:0])
    with pytest.raises(ValueError, match="no checkpoint at step 1"):
        ih.trace(clamped_run, ih.induction_strength, steps=[1])


@pytest.mark.untyped
def test_what_is_no_list_or_no_function_is_told_in_words(clamped_run):
    match = clamps.match("L1H3")
    for given, words in (
        ({"clamps": match}, "clamps"),
        ({"clamps": [ih.clamps.c_alone("L1H3")]}, r"clamps\[0\]"),
        ({"steps": 2}, "steps=2"),
        ({"steps": [2.0]}, r"steps\[0\]=2\.0"),
        ({"batch": clamped_run.task.enumerate().tokens}, "batch"),
    ):
        with pytest.raises(TypeError, match=words):
            ih.trace(clamped_run, ih.induction_strength, **given)
    with pytest.raises(ValueError, match="steps"):
        ih.trace(clamped_run, ih.induction_strength, steps=[])
    with pytest.raises(TypeError, match="clamps"):
        ih.progress(clamped_run, match)


@pytest.mark.parametrize(
    ("measure", "words"),
    [
        (ih.induction_score, r"lambda model, batch: induction_score\(model, generator=\.\.\.\)"),
        (ih.heads.label_copying_score, r"label_copying_score\(circuit=\.\.\.\)"),
        (int, "measure cannot be int"),
        ("loss", "measure='loss'"),
    ],
)
def test_a_measure_takes_a_model_and_a_batch(clamped_run, measure, words):
    with pytest.raises(TypeError, match=words):
        ih.trace(clamped_run, measure)


def unfinished(run, folder):
    shutil.copytree(run.folder, folder)
    run_files.checkpoint_path(folder, run.config.n_steps).unlink()
    return ih.Run(folder)


@pytest.mark.untyped  # the checker of types stands between, and is named
def test_an_unfinished_run_is_told_once(clamped_run, tmp_path):
    run = unfinished(clamped_run, tmp_path / "killed")
    batch = run.task.enumerate("train")[:20]
    with pytest.warns(UserWarning, match="is not finished") as told:
        table = ih.trace(run, ih.induction_strength, batch=batch)
    assert [warning.filename for warning in told] == [__file__]
    assert sorted(table["step"].unique()) == [0, 2]
    ih.trace(run, ih.induction_strength, batch=batch, steps=[2])  # asked for: nothing is missing


def test_named_values_of_every_sequence_are_averaged(clamped_run, monkeypatch):
    batch = clamped_run.task.enumerate("train")[:50]
    expected = ih.evaluate(clamped_run.model(2), batch, clamped_run.clamps).mean()
    monkeypatch.setattr("ih_interp.clamps._active.CHUNK", 17)
    table = ih.trace(clamped_run, ih.evaluate, batch=batch, steps=[2])
    found = dict(zip(table["name"], table["value"], strict=True))
    assert found == pytest.approx(expected, abs=1e-6)
    assert table["sequences"].unique().tolist() == [16]


def test_named_values_may_be_of_any_kind_of_number(clamped_run):
    class Found(NamedTuple):
        a: object
        b: object

    measures = {
        "tuple": lambda model, batch: Found(batch.target, np.float32(0.5)),
        "mapping": lambda model, batch: {"a": batch.target.float().mean(), "b": 0.5},
    }
    batch = clamped_run.task.enumerate("train")[:5]
    for measure in measures.values():
        table = ih.trace(clamped_run, measure, batch=batch, steps=[0], clamps=())
        assert table["name"].to_list() == ["a", "b"]
        expected = [float(batch.target.double().mean()), 0.5]
        assert table["value"].to_list() == pytest.approx(expected)


def test_names_that_change_between_chunks_are_refused(clamped_run, monkeypatch):
    monkeypatch.setattr("ih_interp.clamps._active.CHUNK", 4)
    names = iter("ab")
    with pytest.raises(ValueError, match=r"\['b'\] in one chunk"):
        ih.trace(
            clamped_run,
            lambda *_: {next(names): 1.0},
            batch=clamped_run.task.enumerate()[:8],
            clamps=(),
        )


def test_a_level_is_read_from_metrics_up_to_the_step(clamped_run, tmp_path):
    """Metrics are saved later than checkpoints: of a killed run they may end before them."""
    level = clamps.from_level(below=100.0)  # crossed at step 0: on from step 1
    waiting = clamps.InductionAttention(heads=["L1H2"], strength=1.0, schedule=level)
    batch = clamped_run.task.enumerate("train")[:20]
    table = ih.trace(clamped_run, ih.induction_strength, batch=batch, clamps=[waiting])
    strengths = table[table["name"] == "L1H2"]["value"].to_list()
    assert strengths[0] < 0.5
    assert strengths[1:] == pytest.approx([1.0, 1.0], abs=1e-6)
    killed = tmp_path / "killed"
    shutil.copytree(clamped_run.folder, killed)
    (killed / run_files.METRICS).unlink()
    for steps in ([2], [0, 4]):
        with pytest.raises(ValueError, match=r"metrics\.jsonl lacks 1 of 1 evaluations"):
            ih.trace(
                ih.Run(killed), ih.induction_strength, batch=batch, clamps=[waiting], steps=steps
            )
    kept = ih.trace(ih.Run(killed), ih.induction_strength, batch=batch)
    assert kept.equals(ih.trace(clamped_run, ih.induction_strength, batch=batch))


def test_a_measures_batch_is_its_own_to_change(clamped_run):
    def careless(model, batch):
        value = float(ih.evaluate(model, batch).loss.mean())
        batch.tokens.zero_()
        batch.target.zero_()
        return value

    batch = clamped_run.task.enumerate("train")[:20]
    kept = batch.tokens.clone()
    fair = ih.trace(clamped_run, lambda m, b: float(ih.evaluate(m, b).loss.mean()), batch=batch)
    assert ih.trace(clamped_run, careless, batch=batch, clamps=()).shape == fair.shape
    assert torch.equal(batch.tokens, kept)
    assert ih.trace(clamped_run, careless, batch=batch).equals(fair)


def _silent(model, batch):
    with torch.no_grad():
        model.blocks[0].attn.W_V.zero_()


def _behind_torch(model, batch):
    model.blocks[0].attn.W_V.data.mul_(2)


def _bias(model, batch):
    with torch.no_grad():
        model.blocks[0].attn.b_V.add_(1)


def _features(model, batch):
    model.embed.features.mul_(2)


def _hook(model, batch):
    model.add_hook("hook_embed", lambda activation, hook: 2 * activation)


def _native_hook(model, batch):
    model.blocks[0].register_forward_hook(lambda *called: None)


def _other_parameter(model, batch):
    model.unembed.W_U = torch.nn.Parameter(model.unembed.W_U.detach().clone())


@pytest.mark.parametrize(
    "change", [_silent, _behind_torch, _bias, _features, _hook, _native_hook, _other_parameter]
)
def test_a_measure_that_leaves_the_model_changed_is_refused(change, clamped_run):
    def measure(model, batch):
        change(model, batch)
        return 1.0

    batch = clamped_run.task.enumerate("train")[:4]
    with pytest.raises(ValueError, match="The measure left"):
        ih.trace(clamped_run, measure, batch=batch, clamps=())


def test_a_measure_may_change_the_model_and_put_it_back(clamped_run):
    def ablated(model, batch):
        weight = model.blocks[1].attn.W_O
        kept = weight.detach().clone()
        with torch.no_grad(), model.hooks(fwd_hooks=[("hook_embed", lambda a, hook: a)]):
            weight.zero_()
            loss = float(ih.evaluate(model, batch).loss.mean())
            weight.copy_(kept)
        return loss

    batch = clamped_run.task.enumerate("train")[:4]
    assert len(ih.trace(clamped_run, ablated, batch=batch)) == 3


@pytest.mark.untyped
def test_steps_are_an_array_or_a_column(clamped_run):
    batch = clamped_run.task.enumerate("train")[:4]
    expected = ih.trace(clamped_run, ih.evaluate, batch=batch, steps=[0, 2])
    for given in (np.array([0, 2]), torch.tensor([0, 2]), pd.Series([0, 2]), [0, np.int64(2)]):
        found = ih.trace(clamped_run, ih.evaluate, batch=batch, steps=given)
        assert found.equals(expected)


def left_hook(model):
    model.blocks[0].attn.register_forward_hook(lambda module, given, out: out * 0)


def left_method(model):
    model.blocks[0].attn.calculate_z_scores = lambda v, pattern: v


def left_module(model):
    model.blocks[0].attn = copy.deepcopy(model.blocks[0].attn)


@pytest.mark.parametrize("leave", [left_hook, left_method, left_module])
def test_what_a_measure_leaves_on_the_model_is_refused(leave, small_run):
    batch = small_run.task.sample("train", 10, generator=torch.Generator().manual_seed(0))

    def measure(model, batch):
        leave(model)
        return 0.0

    with pytest.raises(ValueError, match="The measure left"):
        ih.trace(small_run, measure, batch=batch)


@pytest.mark.parametrize("name", ["attn_scale", "eps", "cfg"])
def test_a_measure_that_leaves_other_settings_is_refused(name, small_run):
    def measure(model, batch):
        if name == "attn_scale":
            model.blocks[1].attn.attn_scale = 1.0
        elif name == "eps":
            model.ln_final.eps = 1.0
        else:
            model.cfg.output_logits_soft_cap = 1.0
        return 0.0

    with pytest.raises(ValueError, match="The measure left"):
        ih.trace(small_run, measure, batch=small_run.task.sample("train", 8, seed=0))
