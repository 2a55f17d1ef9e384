"""Additivity against planted heads whose answer is known, and against the games it is made of."""

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.testing import assert_allclose

import ih_interp as ih
from ih_interp.analysis.ablation import interactions
from ih_interp.analysis.ablation.additivity import additivity_test
from ih_interp.analysis.ablation.coalitions import coalitions

FEW = {"n_resamples": 50, "n_permutations": 199}


def planted(task, written, rival, normalization_type=None):
    """A model whose heads of layer 1 write given logits of the target, and nothing else is there.

    Head 7 writes the logit `rival` of the context's other label. The logits are so the sum of the
    heads that are on, times one.
    """
    model = ih.build_model(task, ih.ModelConfig(normalization_type=normalization_type))
    with torch.no_grad():
        for head in range(8):
            model.blocks[1].attn.W_O[head] = 0
            model.blocks[1].attn.W_O[head, :5] = torch.linalg.pinv(model.unembed.W_U)

    def hooks(batch):
        other = torch.where(batch.correct, -1, batch.context_labels).amax(dim=1)

        def write(z, hook):
            z = torch.zeros_like(z)
            for head, strength in enumerate(written):
                z[:, -1, head, :5] = strength * torch.eye(5)[batch.target]
            z[:, -1, 7, :5] = rival * torch.eye(5)[other]
            return z

        return [
            ("blocks.1.hook_resid_pre", lambda resid, hook: torch.zeros_like(resid)),
            ("blocks.1.attn.hook_z", write),
        ]

    return model, hooks


def report_of(task, batch, written, rival, **given):
    model, hooks = planted(task, written, rival)
    heads = [(1, head) for head in range(len(written))]
    with model.hooks(fwd_hooks=hooks(batch)):
        return additivity_test(model, batch, heads, **FEW, **given)


def only(table, **where):
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def test_two_heads_of_which_either_does_are_redundant(task, batch):
    report = report_of(task, batch, [1.0, 1.0], 0.5, metrics=["accuracy", "loss", "logit"])
    pair = only(report.table("interaction"), part="total").set_index("metric")
    assert pair.loc["accuracy", "value"] == -1  # OR: 0, 1, 1, 1
    assert pair.loc["loss", "value"] > 0  # lower is better
    assert pair.loc["logit", "value"] == pytest.approx(0, abs=1e-6)
    redundancy = only(report.table("redundancy"), part="total")
    assert (only(redundancy, metric="accuracy")["value"] == 1).all()
    assert (only(redundancy, metric="loss")["value"] > 0).all()
    fit = only(report.table("r_squared"), metric="accuracy", part="total")
    assert fit["value"].item() == pytest.approx(2 / 3)


def test_two_heads_of_which_both_are_needed_are_complementary(task, batch):
    report = report_of(task, batch, [1.0, 1.0], 1.5, metrics=["accuracy", "probability"])
    pair = only(report.table("interaction"), part="total").set_index("metric")
    assert pair.loc["accuracy", "value"] == 1  # AND: 0, 0, 0, 1
    assert pair.loc["probability", "value"] > 0  # the lower, convex end of the sigmoid
    redundancy = only(report.table("redundancy"), part="total", metric="accuracy")
    assert (redundancy["value"] == -1).all()


def test_saturation_makes_the_same_heads_redundant_in_loss_and_not_in_logits(task, batch):
    report = report_of(task, batch, [6.0, 6.0, 6.0], 0.0, metrics=["loss", "logit_difference"])
    fit = only(report.table("r_squared"), part="total").set_index("metric")["value"]
    assert fit["logit_difference"] == pytest.approx(1, abs=1e-9)
    assert fit["loss"] < 0.9
    total = only(report.table("interaction"), part="total")
    assert (only(total, metric="loss")["value"] > 0.1).all()
    assert (only(total, metric="loss")["q"] < 0.05).all()
    logits = only(total, metric="logit_difference")
    assert (logits[["value", "low", "high"]] == 0).all(axis=None)  # rounding is no effect
    assert (logits["p"] == 1).all()


@pytest.fixture(scope="module")
def spread(exemplars):
    """A network with weights so large that its heads and its norm matter."""
    task = ih.FewShotTask(exemplars, ih.TaskConfig(n_train_classes=12))
    model = ih.build_model(task, seed=5)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "W_" in name and "embed" not in name:
                value.mul_(4)
    batch = task.sample("train", 200, generator=torch.Generator().manual_seed(0))
    heads = [(1, 0), (1, 2), (0, 3), (1, 5)]
    metrics = ("logit_difference", "loss")
    return model, batch, heads, additivity_test(model, batch, heads, metrics=metrics, **FEW)


def test_the_numbers_are_those_of_the_game(spread):
    model, batch, heads, report = spread
    names = [f"L{layer}H{head}" for layer, head in heads]
    for freeze, part in ((False, "total"), (True, "frozen")):
        v = coalitions(model, batch, heads, metric="loss", freeze_ln=freeze).values
        here = only(report.numbers, metric="loss", part=part)
        expected = {
            "r_squared": [interactions.additive_fit(v).r_squared],
            "share": interactions.variance_shares(v),
            "moebius": interactions.spectrum_by_order(v).moebius,
            "first_in": interactions.first_in(v),
            "last_in": interactions.last_in(v),
            "redundancy": interactions.last_in(v) - interactions.first_in(v),  # of a loss
            "shapley": interactions.shapley(v),
            "interaction": interactions.shapley_interaction(v)[np.triu_indices(4, k=1)],
        }
        for quantity, values in expected.items():
            found = only(here, quantity=quantity)
            assert_allclose(found["value"], values, atol=1e-5)
        assert only(here, quantity="share")["order"].tolist() == [1, 2, 3, 4]
        assert only(here, quantity="first_in")["head"].tolist() == names
        pairs = only(here, quantity="interaction")[["head", "other"]].to_numpy().tolist()
        assert pairs == [[a, b] for i, a in enumerate(names) for b in names[i + 1 :]]


def test_total_is_frozen_and_rest(spread):
    report = spread[3]
    for quantity in ("interaction", "shapley", "first_in", "redundancy"):
        table = report.table(quantity)
        index = [name for name in ("metric", "head", "other") if name in table]
        wide = table.pivot_table(index=index, columns="part", values="value")
        assert_allclose(wide["total"], wide["frozen"] + wide["rest"], atol=1e-5)


def test_intervals_hold_their_numbers(spread):
    numbers = spread[3].numbers
    linear = numbers[numbers["quantity"].isin(["first_in", "last_in", "shapley", "interaction"])]
    assert (linear["low"] <= linear["value"] + 1e-9).all()
    assert (linear["value"] <= linear["high"] + 1e-9).all()
    shares = only(numbers, quantity="share").groupby(["metric", "part"])["value"].sum()
    assert_allclose(shares, 1)
    assert numbers["p"].dropna().between(1 / 200, 1).all()
    assert (numbers["q"].dropna() >= numbers["p"].dropna()).all()


def test_each_sequences_own_fit_is_pooled(spread):
    model, batch, heads, report = spread
    v = coalitions(model, batch, heads, metric="loss", per_sequence=True).per_sequence
    variance = interactions.spectrum_by_order(v).variance.sum(axis=0)
    found = only(report.table("r_squared_per_sequence"), metric="loss", part="total")
    assert found["value"].item() == pytest.approx(variance[0] / variance.sum(), abs=1e-5)


def test_last_layer_logits_add_up_but_for_the_norm(task, batch):
    heads = [(1, head) for head in range(5)]
    for norm in ("LN", None):
        model = ih.build_model(task, ih.ModelConfig(normalization_type=norm))
        report = additivity_test(model, batch, heads, metrics="logit_difference", **FEW)
        fit = report.table("r_squared").set_index("part")["value"]
        assert fit["frozen"] == pytest.approx(1, abs=1e-6)
        assert (fit["total"] < 1 - 1e-6) == (norm == "LN")
        pairs = report.table("interaction")
        assert (only(pairs, part="frozen")["value"].abs() < 1e-5).all()
        if norm is None:
            assert (pairs["value"].abs() < 1e-5).all()


def test_heads_that_do_nothing_have_no_fit_and_no_effect(task, batch):
    report = report_of(task, batch, [0.0, 0.0], 1.0, metrics=["accuracy", "loss"])
    assert report.table("interaction")["value"].eq(0).all()
    assert report.numbers.query("quantity == 'r_squared'")["value"].isna().all()
    assert report.table("interaction")["p"].eq(1).all()


def test_tables_are_tidy_and_named(spread):
    report = spread[3]
    table = report.table("interaction")
    assert list(table.columns) == [
        "metric",
        "part",
        "quantity",
        "head",
        "other",
        "value",
        "low",
        "high",
        "p",
        "q",
    ]
    assert len(report.table()) == len(report.numbers)
    with pytest.raises(ValueError, match="'interactions'"):
        report.table("interactions")


def test_the_same_seed_gives_the_same_table(model, batch):
    once, again = (
        additivity_test(model, batch, ["L1H0", "L1H1"], ablation="resample", seed=3, **FEW)
        for _ in range(2)
    )
    pd.testing.assert_frame_equal(once.numbers, again.numbers)


def test_one_head_is_refused(model, batch):
    with pytest.raises(ValueError, match="heads"):
        additivity_test(model, batch, ["L1H0"])


def test_one_sequence_is_refused(model, batch):
    with pytest.raises(ValueError, match="1 sequences"):
        additivity_test(model, batch[:1], ["L1H0", "L1H1"])
