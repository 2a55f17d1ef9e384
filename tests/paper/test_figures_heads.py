"""Figures 14 and 16, Tables 2 and 3, and additivity: tables of tiny runs, planted claims."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.testing import assert_close

import ih_interp as ih
from ih_interp.paper.figures import fig14_16_tables2_3 as figures
from ih_interp.paper.recipes import choose_circuit
from ih_interp.paper.reproduce import draw
from ih_interp.paper.study import Study

NAMES = [f"L1H{head}" for head in range(8)]
EVERY = {figure.name: figure for figure in figures.FIGURES}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    config = ih.RunConfig(
        name="main-5",
        task=ih.TaskConfig(
            exemplars=ih.Exemplars.gaussian(n_classes=16, n_exemplars=2, n_features=16),
            n_train_classes=8,
        ),
        optimiser=ih.Adam(learning_rate=1e-3),
        sequences=640,
        evaluation_size=32,
    )
    configs = [config.replace(name=f"main-{seed}", seeds=ih.Seeds(init=seed)) for seed in (5, 6, 7)]
    runs = ih.train(configs, tmp_path_factory.mktemp("runs"), progress=False)
    runs = dict(zip((5, 6, 7), runs, strict=True))
    return Study(
        runs={"main": {seed: {"main": run} for seed, run in runs.items()}},
        circuits={seed: choose_circuit(run) for seed, run in runs.items()},
        sequences=200,
    )


@pytest.fixture(scope="module")
def tables(study):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "RESAMPLES", 5)  # no interval is looked at here
        return {name: figure.table(study) for name, figure in EVERY.items()}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("seeds", [[5], [5, 6, 7]], ids=len)
def test_one_and_three_networks_are_drawn_and_judged(name, seeds, tables):
    table = tables[name]
    table = table[table["seed"].isin(seeds)]
    assert set(table["run"]) == {f"main-{seed}" for seed in seeds}
    draw(EVERY[name], table).canvas.draw()
    claims = EVERY[name].claims(table)
    assert {claim.figure for claim in claims} == {name}
    assert {claim.of for claim in claims} == {len(seeds)}


def test_losses_of_the_first_order_are_those_of_ablation(study, tables):
    run = study.main[5]
    model, batch = run.model(), study.batch(run)
    rows = tables["14"].query("seed == 5 and order == 'the strongest first'")
    order = rows["head"].dropna().tolist()
    assert order[0] == str(study.circuits[5].induction)
    for n in (0, 2, 8):
        expected = ih.coalitions(model, batch, NAMES, metric="loss").of(order[:n])
        assert rows["value"].iloc[n] == pytest.approx(float(expected), rel=1e-5)
    others = tables["14"].query("seed == 5 and order == 'without the strongest'")
    assert others["head"].dropna().tolist() == order[1:]


def test_panels_and_tables_agree_with_each_other(tables):
    by_label = tables["16"].query("quantity == 'accuracy'")
    pooled = (
        by_label.assign(right=by_label["value"] * by_label["sequences"])
        .groupby(["seed", "head"])[["right", "sequences"]]
        .sum()
    )
    whole = tables["16"].query("quantity == 'accuracy of all'").set_index(["seed", "head"])
    perfect = whole.loc[whole["match"] == "perfect", "value"].sort_index()
    assert (pooled["right"] / pooled["sequences"]).to_numpy() == pytest.approx(perfect.to_numpy())
    for name, match in (("table 2", "computed"), ("table 3", "perfect")):
        rows = tables[name].set_index(["seed", "head"])
        expected = whole.loc[whole["match"] == match, "value"]
        assert rows["accuracy"].to_numpy() == pytest.approx(expected[rows.index].to_numpy())


def test_log_odds_are_of_the_softmax(study):
    run = study.main[5]
    batch = study.batch(run)
    logits = torch.randn(len(batch), 5, generator=torch.Generator().manual_seed(0))
    p = logits.softmax(dim=1).gather(1, batch.target[:, None])[:, 0]
    assert_close(figures.log_odds(logits, batch), (p / (1 - p)).log())
    even = figures.log_odds(torch.zeros(len(batch), 5), batch)
    assert_close(even, torch.full_like(even, -math.log(4)))


def added(first, without):
    rows = [
        {"seed": 5, "order": order, "n_heads": n, "value": value}
        for order, losses in zip(figures.ORDERS, (first, without), strict=True)
        for n, value in enumerate(losses)
    ]
    return pd.DataFrame(rows)


def test_added_heads_hold_where_each_helps_less():
    def holds(*losses):
        return [claim.holds for claim in figures.added_claims(added(*losses))]

    paper = [1.9, 0.117, 0.044, 0.0099, 0.0048, 0.0026, 0.0019, 0.0017, 0.0016]
    assert holds(paper, [1.9, 0.656, 0.146, 0.088, 0.032]) == [True, True, True]
    assert holds([1.9, 0.1, 0.05, 0.06, 0.01], [1.9, 0.5]) == [False, True, False]
    assert holds([1.6, 1.2, 0.8, 0.4, 0.0], [1.6, 0.2]) == [True, False, True]


def test_additive_logits_hold_and_interacting_ones_do_not():
    def holds(logit, log_odds, probability, loss):
        values = {
            "logit_difference": logit,
            "log_odds": log_odds,
            "probability": probability,
            "loss": loss,
        }
        table = pd.DataFrame(
            {"seed": 5, "part": "total", "metric": [*values], "value": [*values.values()]}
        )
        return [claim.holds for claim in figures.additive_claims(table)]

    assert holds(0.97, 0.96, 0.7, 0.6) == [True, True]
    assert holds(0.97, 0.6, 0.5, 0.7) == [False, False]


def labelled(accuracies, gain):
    """One network whose heads have these accuracies by label."""
    rows = []
    for head, row in zip(NAMES, accuracies, strict=True):
        for label, value in enumerate(row):
            rows.append(
                {"quantity": "accuracy", "head": head, "label": label, "value": value,
                 "sequences": 400, "match": "perfect"}
            )  # fmt: skip
        for match, more in (("perfect", gain), ("computed", 0.0)):
            rows.append(
                {"quantity": "accuracy of all", "head": head, "match": match,
                 "value": np.mean(row) + more}
            )  # fmt: skip
    return pd.DataFrame(rows).assign(seed=5)


def test_labels_that_differ_hold_and_draws_from_one_accuracy_do_not():
    rng = np.random.default_rng(0)
    specific = rng.permuted(np.tile([0.2, 0.5, 0.8, 0.9, 1.0], (8, 1)), axis=1)
    alike = rng.binomial(400, 0.7, size=(8, 5)) / 400
    assert [c.holds for c in figures.label_claims(labelled(specific, 0.1))] == [True, True]
    assert [c.holds for c in figures.label_claims(labelled(alike, -0.1))] == [False, False]
    perfect = np.ones((8, 5))  # no spread, and none expected
    assert [c.holds for c in figures.label_claims(labelled(perfect, 0.1))] == [True, False]


def corrected(shares, accuracy=0.6, width=0.05, n_mistakes=300):
    table = pd.DataFrame({"head": NAMES[1:], "value": shares, "accuracy": accuracy})
    ends = {"low": table["value"] - width, "high": table["value"] + width}
    return table.assign(seed=5, base="L1H0", mistakes=n_mistakes, **ends)


def test_corrected_shares_are_judged_beside_accuracies():
    good = corrected([0.2, 0.3, 0.7, 0.1, 0.4, 0.5, 0.5])
    assert [c.holds for c in figures.corrected_claims(good)] == [True, True]
    assert [c.holds for c in figures.perfect_claims(good)] == [True]
    independent = corrected([0.61] * 7)
    assert [c.holds for c in figures.corrected_claims(independent)] == [True, False]
    assert [c.holds for c in figures.perfect_claims(independent)] == [False]
    never = corrected([0.0] * 7)
    assert [c.holds for c in figures.corrected_claims(never)] == [False, True]


def test_a_network_without_mistakes_says_nothing():
    nothing = corrected([np.nan] * 7, n_mistakes=0)
    assert figures.corrected_claims(nothing) == figures.perfect_claims(nothing) == []
    one = corrected([0.2] * 7).assign(seed=6)
    for judge in (figures.corrected_claims, figures.perfect_claims):
        alone, beside = judge(one), judge(pd.concat([nothing, one]))
        assert [c.of for c in beside] == [1] * len(alone)
        assert [c.ours for c in beside] == [f"{c.ours}; 1 network makes no mistake" for c in alone]
        more = judge(pd.concat([nothing, nothing.assign(seed=7), one]))
        assert more[0].ours == f"{alone[0].ours}; 2 networks make no mistake"
