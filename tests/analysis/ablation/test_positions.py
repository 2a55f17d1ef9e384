"""Ablation where tokens are asked anywhere, with foils and padding, on every architecture."""

import numpy as np
import pytest
import torch
from architectures import ARCHITECTURES, architecture
from brute_force import HEADS, LENGTHS, SCALES, asked_here_and_there, by_brute_force, clean_z
from numpy.testing import assert_allclose

from ih_interp.analysis.ablation._replacements import one_cycle
from ih_interp.analysis.ablation.additivity import additivity_test
from ih_interp.analysis.ablation.coalitions import coalitions
from ih_interp.analysis.ablation.single_heads import (
    ablate_each_head,
    add_back,
    label_specific_accuracy,
    mistakes_corrected,
)
from ih_interp.batch import Batch
from ih_interp.types import Head


def heads_of(model):
    return [head for head in HEADS if Head.parse(head).layer < model.cfg.n_layers] + ["L0H1"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_subset_equals_its_own_pass_on_every_architecture(name):
    model = architecture(name)
    batch, heads = asked_here_and_there(n_outputs=model.cfg.d_vocab_out), heads_of(model)
    found = coalitions(model, batch, heads, metric=SCALES, per_sequence=True)
    expected = by_brute_force(model, batch, heads)
    assert_allclose(found.per_sequence, expected, atol=1e-5, rtol=1e-5)
    assert_allclose(found.values, expected.mean(axis=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["attention only", "attention only, rms", "neox", "llama, grouped"]
)
def test_a_frozen_scale_is_that_of_each_position(name):
    model, batch = architecture(name), asked_here_and_there()
    scale = model.run_with_cache(batch.tokens)[1]["ln_final.hook_scale"].detach()
    found = coalitions(model, batch, HEADS, metric=SCALES, per_sequence=True, freeze_ln=True)
    expected = by_brute_force(model, batch, HEADS, scale=scale)
    assert_allclose(found.per_sequence, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["attention only", "gpt2"])
def test_a_mean_leaves_the_padding_out(name):
    model, batch, other = architecture(name), asked_here_and_there(), asked_here_and_there(seed=3)
    for reference in (None, other):
        source = batch if reference is None else reference
        z = clean_z(model, source.tokens, HEADS)
        mean = torch.zeros(1, *z.shape[1:])
        for p in range(z.shape[1]):
            mean[0, p] = torch.stack([z[i, p] for i in range(len(z)) if p < LENGTHS[i]]).mean(0)
        given = {"ablation": "mean", "reference": reference, "per_sequence": True}
        found = coalitions(model, batch, HEADS, metric=SCALES, **given)
        expected = by_brute_force(model, batch, HEADS, value=mean)
        assert_allclose(found.per_sequence, expected, atol=1e-5, rtol=1e-5)
    short = asked_here_and_there(lengths=torch.tensor([4, 5])).tokens
    short = Batch(torch.nn.functional.pad(short, (0, 5)), batch.targets[:2] * 0 - 100)
    short = short.replace(lengths=torch.tensor([4, 5]))
    with pytest.raises(ValueError, match="position 5"):
        coalitions(model, batch, HEADS, ablation="mean", reference=short)


@pytest.mark.parametrize("name", ["attention only", "gpt2"])
def test_a_sequence_is_resampled_from_one_of_its_length(name):
    model, lengths = architecture(name), torch.tensor([10, 7, 10, 7, 7, 10])
    batch = asked_here_and_there(lengths=lengths)
    take = torch.arange(6)
    for length in (10, 7):
        rows = (lengths == length).nonzero()[:, 0]
        take[rows] = rows[one_cycle(len(rows), 4)]
    assert (lengths[take] == lengths).all()
    assert (take != torch.arange(6)).all()
    z = clean_z(model, batch.tokens, HEADS)
    given = {"metric": SCALES, "per_sequence": True, "ablation": "resample"}
    found = coalitions(model, batch, HEADS, seed=4, **given)
    expected = by_brute_force(model, batch, HEADS, value=z[take])
    assert_allclose(found.per_sequence, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="length 5"):
        coalitions(model, asked_here_and_there(), HEADS, **given)
    with pytest.raises(ValueError, match="same lengths"):
        coalitions(model, batch, HEADS, reference=asked_here_and_there(), **given)


def test_targets_by_sequence_are_those_of_the_last_position():
    model, batch = (
        architecture("attention only"),
        asked_here_and_there(lengths=torch.tensor([9, 9])),
    )
    last = Batch(batch.tokens, batch.targets[:, -1], foils=batch.foils)
    asked = torch.full_like(batch.tokens, -100)
    asked[:, -1] = batch.targets[:, -1]
    one = coalitions(model, last, HEADS, metric=SCALES, per_sequence=True)
    other = coalitions(model, batch.replace(targets=asked), HEADS, metric=SCALES, per_sequence=True)
    assert_allclose(one.per_sequence, other.per_sequence, rtol=1e-6)


def test_an_own_metric_gets_the_asked_rows_and_chunks_do_not_matter(monkeypatch):
    model, batch = architecture("attention only"), asked_here_and_there()

    def entropy(logits, batch):
        assert len(logits) == int(batch.asked.sum())
        return -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)

    whole = coalitions(model, batch, HEADS, metric=[entropy, "loss"], per_sequence=True)
    subset_passes = "ih_interp.analysis.ablation._subset_passes"
    monkeypatch.setattr(f"{subset_passes}.MOST_LOGITS", 4 * 10 * 30 * 2)
    monkeypatch.setattr(f"{subset_passes}.BLOCK", 500)
    parts = coalitions(model, batch, HEADS, metric=[entropy, "loss"], per_sequence=True)
    assert_allclose(parts.per_sequence, whole.per_sequence, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["attention only", "llama, grouped"])
def test_half_precision_is_right_to_its_digits(name, dtype):
    model, batch = architecture(name, dtype=dtype), asked_here_and_there()
    found = coalitions(model, batch, HEADS, metric=SCALES, per_sequence=True, ablation="mean")
    z = clean_z(model, batch.tokens, HEADS)
    there = (torch.arange(10) < LENGTHS[:, None])[..., None, None]
    mean = (z.double() * there).sum(dim=0, keepdim=True) / there.sum(dim=0, keepdim=True)
    expected = by_brute_force(model, batch, HEADS, value=mean)
    assert_allclose(found.per_sequence, expected, atol=1e-5, rtol=1e-5)


def test_a_report_is_made_of_the_games_at_asked_positions():
    model, batch = architecture("gpt2"), asked_here_and_there()
    report = additivity_test(model, batch, HEADS, metrics="logit_difference", n_resamples=20)
    game = by_brute_force(model, batch, HEADS)[1].mean(axis=0)
    found = report.table("first_in").query("part == 'total'").value
    assert_allclose(found, [game[1] - game[0], game[2] - game[0], game[4] - game[0]], atol=1e-5)


def test_single_heads_are_measured_at_asked_positions():
    model, batch = architecture("gpt2"), asked_here_and_there()
    heads = [f"L2H{head}" for head in range(4)]
    on = [1, 2, 4, 8, 14, 13, 11, 7, 15, 0]
    expected = by_brute_force(model, batch, heads, on=on)[[0, 3]].mean(axis=1)
    table = ablate_each_head(model, batch, metrics=["loss", "accuracy"])
    assert_allclose(table.value, np.ravel(expected), atol=1e-5)
    assert table.strength.isna().all()
    table = add_back(model, batch, ["L2H3", "L2H0"])
    assert_allclose(
        table.query("metric == 'loss'").value,
        by_brute_force(model, batch, heads, on=[0, 8, 9])[0].mean(axis=0),
        atol=1e-5,
    )


def test_mistakes_are_of_the_one_token_that_is_asked():
    model, batch = architecture("gpt2", seed=1), asked_here_and_there(lengths=torch.full((60,), 6))
    with pytest.raises(ValueError, match="one asked position"):
        mistakes_corrected(model, batch, "L2H0")
    with pytest.raises(ValueError, match="one asked position"):
        label_specific_accuracy(model, batch, perfect_match=False)
    places = torch.arange(60) % 6
    targets = torch.full((60, 6), -100)
    targets[range(60), places] = torch.arange(60) % 3
    batch = Batch(batch.tokens, targets)
    foiled = batch.replace(foils=torch.zeros(60, 1, dtype=torch.long))
    right = by_brute_force(model, foiled, [f"L2H{n}" for n in range(4)], on=[1, 2, 4, 8])[3]
    assert 0 < right.mean() < 1
    table = label_specific_accuracy(model, batch, perfect_match=False).query(
        "quantity == 'accuracy'"
    )
    expected = [[right[np.arange(60) % 3 == t, head].mean() for t in range(3)] for head in range(4)]
    assert_allclose(table.value, np.ravel(expected))
    found = mistakes_corrected(model, batch, "L2H0")
    wrong = 1 - right[:, :1]
    assert_allclose(found.value, (wrong * right[:, 1:]).sum(axis=0) / wrong.sum())
