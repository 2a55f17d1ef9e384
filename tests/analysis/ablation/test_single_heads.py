"""Single heads against clamped evaluations, and against counting by hand."""

import json
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose
from transformer_lens import HookedTransformer

import ih_interp as ih
from ih_interp.analysis.ablation.single_heads import (
    ablate_each_head,
    add_back,
    by_strength,
    label_specific_accuracy,
    mistakes_corrected,
)
from ih_interp.batch import Batch
from ih_interp.types import Head

ALL = [Head(1, head) for head in range(8)]


@pytest.fixture
def spread(model):
    """Weights so large that heads differ."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "W_" in name and "embed" not in name:
                value.mul_(4)
    return model


def evaluated(model, batch, on, *, perfect=(), ablatable=ALL):
    """Metrics by sequence, by clamps that ablate heads, one evaluation a subset."""
    off = [head for head in ablatable if head not in on]
    clamps = [ih.clamps.AblateHeads(heads=off)] if off else []
    if perfect:
        clamps.append(ih.clamps.InductionAttention(heads=list(perfect), strength=1.0))
    return ih.evaluate(model, batch, clamps)


def mean(value):
    return float(value.double().mean())


def rows(table, **where):
    for column, value in where.items():
        table = table[table[column] == value]
    return table


@pytest.mark.parametrize("perfect", [False, True])
def test_ablate_each_head_equal_clamped_evaluations(perfect, spread, batch):
    table = ablate_each_head(spread, batch, perfect_match=perfect)
    strength = ih.induction_strength(spread, batch)[1]
    for head in ALL:
        kept = {"only": [head], "without": [h for h in ALL if h != head]}
        for which, on in kept.items():
            expected = evaluated(spread, batch, on, perfect=on if perfect else ())
            for metric in ("accuracy", "loss"):
                (row,) = rows(table, head=str(head), kept=which, metric=metric).itertuples()
                assert row.value == pytest.approx(mean(getattr(expected, metric)), abs=1e-5)
                assert row.low <= row.value <= row.high
                assert row.strength == pytest.approx(float(strength[head.head]))
    for which, on in {"all": ALL, "none": []}.items():
        expected = evaluated(spread, batch, on, perfect=on if perfect else ())
        found = rows(table, kept=which, metric="loss")["value"].item()
        assert found == pytest.approx(mean(expected.loss), abs=1e-5)


def test_heads_that_are_not_named_stay_on(spread, batch):
    table = ablate_each_head(spread, batch, ["L1H2", "L1H4"], metrics="loss")
    on = [head for head in ALL if head != (1, 4)]
    expected = mean(evaluated(spread, batch, on).loss)
    found = rows(table, head="L1H2", kept="only")["value"].item()
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("length", [4, 5])
def test_plain_tokens_have_no_strength(length, model):
    """Of even length, or of odd length with a target that no context shows."""
    tokens = torch.randint(5, 90, (6, length), generator=torch.Generator().manual_seed(2))
    plain = Batch(tokens, torch.tensor([0, 1, 2, 3, 4, 0]))

    def first_logit(logits, batch):
        return logits[:, 0]

    table = ih.ablation.ablate_each_head(model, plain, ["L1H0", "L1H2"], metrics=first_logit)
    assert table["strength"].isna().all()
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_z", silence(2))]):
        expected = model(tokens)[:, -1, 0].mean().item()
    found = rows(table, head="L1H2", kept="without")["value"].item()
    assert found == pytest.approx(expected, abs=1e-5)


def silence(head):
    def hook(z, hook):
        z = z.clone()
        z[:, :, head] = 0
        return z

    return hook


def test_heads_are_added_back_by_strength_or_as_told(spread, batch):
    strength = ih.induction_strength(spread, batch)[1]
    order = [Head(1, int(head)) for head in strength.argsort(descending=True)]
    assert list(by_strength(spread, batch, ALL)) == order
    for given, told in ((None, order), (["L1H6", "L1H0"], [Head(1, 6), Head(1, 0)])):
        table = add_back(spread, batch, given, metrics="loss")
        assert table["n_heads"].tolist() == list(range(len(told) + 1))
        assert table["head"].tolist()[1:] == [str(head) for head in told]
        assert pd.isna(table["head"][0])
        for n, value in enumerate(table["value"]):
            expected = mean(evaluated(spread, batch, told[:n]).loss)
            assert value == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("perfect", [False, True])
def test_mistakes_corrected_equal_counting(perfect, spread, batch):
    base = by_strength(spread, batch, ALL)[0]
    table = mistakes_corrected(spread, batch, perfect_match=perfect)
    right = {
        head: evaluated(spread, batch, [head], perfect=[head] if perfect else ()).accuracy
        for head in ALL
    }
    assert len(table) == 7
    assert set(table["base"]) == {str(base)}
    for row in table.itertuples():
        head = Head.parse(row.head)
        wrong = [n for n in range(len(batch)) if right[base][n] == 0]
        corrected = sum(right[head][n].item() for n in wrong)
        assert row.mistakes == len(wrong) > 0
        assert row.value == pytest.approx(corrected / len(wrong))
        assert row.accuracy == pytest.approx(mean(right[head]))
        assert row.low <= row.value <= row.high
    other = mistakes_corrected(spread, batch, "L1H5", heads=["L1H5", "L1H1"])
    assert other[["base", "head"]].to_numpy().tolist() == [["L1H5", "L1H1"]]


def test_who_makes_no_mistake_has_none_to_correct(spread, batch):
    target = 0 * batch.target + 3
    right = {"unembed.hook_logits": lambda z, hook: z + 99 * torch.eye(5)[target][:, None]}
    easy = batch.replace(targets=target)
    with spread.hooks(fwd_hooks=list(right.items())):
        table = mistakes_corrected(spread, easy, "L1H0")
    assert (table["mistakes"] == 0).all()
    assert table["value"].isna().all()


@pytest.mark.parametrize("perfect", [False, True])
def test_accuracy_by_label_equals_counting(perfect, spread, batch):
    table = label_specific_accuracy(spread, batch, perfect_match=perfect)
    for head in ALL:
        on = [head]
        right = evaluated(spread, batch, on, perfect=on if perfect else ()).accuracy
        wrong = int((right == 0).sum())
        of_head = rows(table, head=str(head))
        for label in batch.target.unique().tolist():
            here = batch.target == label
            accuracy = rows(of_head, label=label, quantity="accuracy")
            assert accuracy["value"].item() == pytest.approx(mean(right[here]))
            assert accuracy["sequences"].item() == int(here.sum())
            missed = int((right[here] == 0).sum())
            assert accuracy["mistakes"].item() == missed
            share = rows(of_head, label=label, quantity="mistake_share")["value"].item()
            assert share == pytest.approx(missed / wrong)
        shares = rows(of_head, quantity="mistake_share")["value"]
        assert shares.sum() == pytest.approx(1)


def test_chunks_do_not_matter(spread, task, monkeypatch):
    batch = task.sample("train", 40, generator=torch.Generator().manual_seed(0))
    whole = ablate_each_head(spread, batch, perfect_match=True)
    monkeypatch.setattr("ih_interp.clamps._active.CHUNK", 16)
    parts = ablate_each_head(spread, batch, perfect_match=True)
    assert_allclose(parts["value"], whole["value"], atol=1e-5)


def test_clamps_stay(spread, batch):
    clamp = ih.clamps.PreviousTokenAttention(heads=["L0H0"])
    with ih.clamped(spread, [clamp], batch):
        found = ablate_each_head(spread, batch, metrics="loss")
        labels = label_specific_accuracy(spread, batch)
    off = ih.clamps.AblateHeads(heads=[head for head in ALL if head != (1, 3)])
    expected = mean(ih.evaluate(spread, batch, [clamp, off]).loss)
    assert rows(found, head="L1H3", kept="only")["value"].item() == pytest.approx(
        expected, abs=1e-5
    )
    perfect = ih.clamps.InductionAttention(heads=["L1H3"], strength=1.0)
    right = ih.evaluate(spread, batch, [clamp, off, perfect]).accuracy
    of_head = rows(labels, head="L1H3", quantity="accuracy")
    weighted = (of_head["value"] * of_head["sequences"]).sum() / len(batch)
    assert weighted == pytest.approx(mean(right))


def test_no_heads_are_refused(model, batch):
    with pytest.raises(ValueError, match="heads"):
        ablate_each_head(model, batch, [])


class Trained(NamedTuple):
    model: HookedTransformer
    batch: ih.Batch
    measured: dict


@pytest.fixture(scope="module")
def trained(shared):
    folder = shared / "reference/icl_dynamics/trained"
    everything = ih.Exemplars.load(shared / "data/omniglot_features.h5")
    exemplars = ih.Exemplars(everything.features[:50].clone())
    task = ih.FewShotTask(exemplars, ih.TaskConfig(n_train_classes=50))
    model = ih.load_icl_dynamics(folder / "checkpoint.eqx", folder / "config.json", task)
    measured = json.loads((folder / "measured.json").read_text())
    return Trained(model, task.enumerate("train"), measured)


def test_the_published_ablate_each_head(trained):
    table = ablate_each_head(trained.model, trained.batch)
    for name in ("accuracy", "loss"):
        for kept, published in (("only", "only_head"), ("without", "without_head")):
            found = rows(table, kept=kept, metric=name)
            assert found["head"].tolist() == [str(head) for head in ALL]
            assert_allclose(found["value"], trained.measured[published][name], atol=1e-3)
        whole = rows(table, kept="all", metric=name)["value"].item()
        assert whole == pytest.approx(trained.measured[name], abs=1e-3)
    strength = rows(table, kept="only", metric="loss")["strength"]
    assert_allclose(strength, trained.measured["induction_strength"][1], atol=1e-3)


def test_what_the_paper_says_of_heads_holds_for_its_network(trained):
    """Added back by strength the loss falls to that of the whole; a perfect match helps."""
    few = trained.batch[torch.arange(0, len(trained.batch), 16)]
    table = add_back(trained.model, few, metrics="loss")
    assert (np.diff(table["value"]) < 0.01).all()
    whole = mean(ih.evaluate(trained.model, few).loss)
    assert table["value"].iloc[-1] == pytest.approx(whole, abs=1e-6)
    computed, perfected = (
        ablate_each_head(trained.model, few, metrics="accuracy", perfect_match=perfect)
        for perfect in (False, True)
    )
    gain = rows(perfected, kept="only")["value"] - rows(computed, kept="only")["value"]
    matches = rows(computed, kept="only")["strength"] > 0.2  # others copied from elsewhere
    assert matches.sum() == 6
    assert (gain[matches] > 0.01).all()


def test_a_network_that_diverged_has_no_accuracies_and_no_intervals(spread, batch):
    with torch.no_grad():
        spread.unembed.W_U.fill_(torch.nan)
    table = ablate_each_head(spread, batch, metrics="accuracy")
    assert table[["value", "low", "high"]].isna().all(axis=None)
    for function in (mistakes_corrected, label_specific_accuracy):
        with pytest.raises(ValueError, match="L1H0"):
            function(spread, batch, heads=ALL[:2])


def test_strengths_of_nan_have_no_order(spread, batch):
    def nowhere(pattern, hook):
        return pattern * torch.nan

    for function in (mistakes_corrected, add_back):
        with (
            spread.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", nowhere)]),
            pytest.raises(ValueError, match="nan"),
        ):
            function(spread, batch)
