"""Figures 11 and 12, Table 1, composition before training: claims, tables, drawings."""

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from numpy.testing import assert_allclose
from pandas.testing import assert_series_equal

import ih_interp as ih
from ih_interp.paper.figures import fig11, fig12_table1 as fig12
from ih_interp.paper.recipes import Circuit
from ih_interp.paper.study import Study
from ih_interp.types import Head

CIRCUIT = Circuit(Head(1, 3), (Head(0, 2), Head(0, 1)), Head(0, 7))
FIGURES = {figure.name: figure for module in (fig11, fig12) for figure in module.FIGURES}


@pytest.fixture(scope="module")
def study(small_run):
    return Study({"main": {5: {"main": small_run}}}, {5: CIRCUIT}, 40)


@pytest.fixture(scope="module")
def tables(study):
    return {name: figure.table(study) for name, figure in FIGURES.items()}


def test_without_the_last_layer_only_the_first_writes_to_the_output(small_run, study):
    model, batch = small_run.model(), study.batch(small_run)
    found = fig12.last_layer_removed(model, batch)
    with torch.no_grad():
        model.blocks[1].attn.W_O.zero_()
    bare = ih.evaluate(model, batch)
    torch.testing.assert_close(found["loss"], bare.loss)
    whole = ih.evaluate(small_run.model(), batch).loss
    torch.testing.assert_close(found["loss_change"], bare.loss - whole)


def test_figure_12_has_changes_against_the_same_checkpoint(tables, small_run, study):
    table = tables["12"]
    assert sorted(set(table["sequences"])) == [8 * step for step in small_run.steps]
    whole = ih.evaluate(small_run.model(), study.batch(small_run)).loss.mean()
    last = table[table["sequences"] == table["sequences"].max()]
    assert (last["loss"] - last["loss_change"]).to_numpy() == pytest.approx(float(whole), abs=1e-5)


def test_the_end_of_figure_12_is_of_every_sequence_and_the_curve_of_a_sample(small_run):
    study = Study({"main": {5: {"main": small_run}}}, {5: CIRCUIT}, None)
    table = fig12.removed_table(study)
    assert not table.duplicated(["sequences", "removed"]).any()
    for step in small_run.steps:
        last = step == small_run.steps[-1]
        batch = study.batch(small_run) if last else study.curve_batch(small_run)
        rows = table[table["sequences"] == 8 * step]
        whole = ih.evaluate(small_run.model(step), batch)
        for name in ("loss", "accuracy"):
            expected = float(getattr(whole, name).mean())
            assert (rows[name] - rows[f"{name}_change"]).to_numpy() == pytest.approx(
                expected, abs=1e-5
            )


def test_figure_11_is_the_preserving_maps_and_compositions(tables, small_run, study):
    table, model = tables["11"], small_run.model()
    assert len(table) == 6 * 64
    assert set(table.loc[table["previous_token"], "sender"]) == {"L0H1", "L0H2"}

    def shown(name, through):
        rows = table[(table["map"] == name) & (table["through"] == through)]
        return rows.pivot(index="receiver", columns="sender", values="value").to_numpy()

    batch = study.batch(small_run)
    for through, kept, kind in (("patterns", "values", "K"), ("values", "patterns", "V")):
        left = ih.patching.preserving_map(model, batch, preserve=kept, keep="one").accuracy
        change = ih.patching.preserving_map(model, batch, preserve=kept).accuracy_change
        composed = ih.heads.output_composition(model, kind)[0, :, 1].T
        for name, found in (("one left", left), ("one ablated", change), ("composition", composed)):
            assert_allclose(shown(name, through), found.numpy(), atol=1e-6)
    for name in ("one left", "one ablated"):
        assert (shown(name, "patterns") != shown(name, "values")).any()  # else nothing is told
    assert table.loc[table["map"] == "one left", "neutral"].unique().tolist() == [0.2]


def test_table_1_is_preserving_ablation_of_both_groups(tables, small_run, study):
    table = tables["table 1"].set_index(["group", "preserved"])
    assert table.loc[("previous-token", "values"), "ablated"] == "L0H1 L0H2"
    for group, heads in (("previous-token", (1, 2)), ("others", (0, 3, 4, 5, 6, 7))):
        for kept in ("patterns", "values"):
            found = ih.patching.preserving_ablation(
                small_run.model(),
                study.batch(small_run),
                [f"L0H{head}" for head in heads],
                preserve=kept,
            )
            assert table.loc[(group, kept), "accuracy"] == pytest.approx(
                float(found.accuracy.mean())
            )


def test_composition_starts_at_step_0_and_ends_at_the_last(tables, small_run):
    table = tables["11 init"]
    for through, kind in (("patterns", "K"), ("values", "V")):
        rows = table[table["through"] == through]
        for column, step in (("start", 0), ("end", small_run.steps[-1])):
            scores = ih.heads.output_composition(small_run.model(step), kind)[0, :, 1].T
            shown = rows.pivot(index="receiver", columns="sender", values=column).to_numpy()
            assert (shown == scores.numpy()).all()  # four updates change the sixth digit


def test_pairs_of_heads_have_the_accuracy_of_figure_11(tables):
    pairs = ["through", "sender", "receiver"]
    alone = tables["11"][tables["11"]["map"] == "one left"].set_index(pairs)["value"]
    shown = tables["11 init"].set_index(pairs)["accuracy"]
    assert_series_equal(shown.sort_index(), alone.sort_index(), check_names=False)


def maps(left, *, composition=None):
    """Planted maps: `left[through]` is `[receiver, sender]`; senders 0 and 1 are previous-token."""
    composition = left if composition is None else composition
    return pd.DataFrame(
        [
            {
                "seed": 5,
                "map": name,
                "through": through,
                "sender": f"L0H{s}",
                "receiver": f"L1H{r}",
                "previous_token": s < 2,
                "value": float(values[through][r][s]),
            }
            for name, values in (("one left", left), ("composition", composition))
            for through in ("patterns", "values")
            for r in range(4)
            for s in range(4)
        ]
    )


MANY = {
    "patterns": np.array([[0.9, 0.7, 0.3, 0.2], [0.8, 0.6, 0.2, 0.3], [0.3] * 4, [0.2] * 4]),
    "values": np.array([[0.2, 0.3, 0.8, 0.7], [0.2, 0.2, 0.6, 0.5], [0.2] * 4, [0.3] * 4]),
}
ONE = {  # one pair, and roles the other way round
    "patterns": np.array([[0.3, 0.3, 0.9, 0.3], [0.2] * 4, [0.3] * 4, [0.2] * 4]),
    "values": np.array([[0.9, 0.3, 0.2, 0.3], [0.2] * 4, [0.3] * 4, [0.2] * 4]),
}


def test_claims_of_figure_11_can_hold_and_fail():
    other = {name: values + 2 * values.T for name, values in MANY.items()}
    assert [c.holds for c in fig11.map_claims(maps(MANY, composition=other))] == [True] * 4
    assert [c.holds for c in fig11.map_claims(maps(ONE))] == [False] * 4
    assert fig11.map_claims(maps(MANY))[1].ours == "2, 2"


@pytest.mark.parametrize("sign", [1, -1])
def test_agreement_whole_or_reversed_is_not_in_part(sign):
    composition = {name: sign * values for name, values in MANY.items()}
    claims = fig11.map_claims(maps(MANY, composition=composition))
    assert [c.holds for c in claims] == [True, True, True, False]


def removed(cost, most, end, last, *, start=0.05):
    rows = [
        {"sequences": x, "removed": part, "loss_change": loss, "accuracy_change": -points}
        for part, x, loss, points in (
            ("direct path", 0, start, 0.2),
            ("direct path", 5, most, 0.2),
            ("direct path", 10, end, cost),
            ("last layer", 0, 0.3, 0.1),
            ("last layer", 10, last, 0.7),
        )
    ]
    return pd.DataFrame(rows).assign(seed=5)


def test_claims_of_figure_12_can_hold_and_fail():
    holds = [c.holds for c in fig12.direct_claims(removed(1.3e-4, 0.165, 1.6e-3, 1.89))]
    fails = [c.holds for c in fig12.direct_claims(removed(0.01, 0.165, 0.1, 0.5))]
    assert (holds, fails) == ([True] * 3, [False] * 3)


def test_what_an_untrained_network_loses_is_not_learning():
    only_at_the_start = removed(1.3e-4, 1.7e-3, 1.6e-3, 1.89, start=0.3)
    claims = fig12.direct_claims(only_at_the_start)
    assert [c.holds for c in claims] == [True, False, True]
    assert claims[1].ours == "0.002, 0.0016"


def groups(*accuracies, seed=5):
    keys = [(g, p) for g in ("previous-token", "others") for p in ("patterns", "values")]
    return pd.DataFrame(
        [
            {"seed": seed, "group": g, "preserved": p, "ablated": "L0H1", "accuracy": a}
            for (g, p), a in zip(keys, accuracies, strict=True)
        ]
    )


def test_claims_of_table_1_can_hold_and_fail():
    paper = groups(0.9985, 0.6987, 0.3427, 0.9932)
    other = groups(0.6987, 0.9985, 0.9932, 0.3427, seed=6)
    assert [c.held for c in fig12.preserving_claims(paper)] == [1, 1]
    both = fig12.preserving_claims(pd.concat([paper, other]))
    assert [(c.held, c.of) for c in both] == [(1, 2), (1, 2)]
    none = groups(0.9985, 0.6987, np.nan, np.nan)
    assert [c.held for c in fig12.preserving_claims(none)] == [1, 0]


def before(start, *, best=0.9):
    pairs = pd.DataFrame({"start": start, "accuracy": np.linspace(0.2, best, len(start))})
    pairs = pairs.assign(end=start, seed=5)
    return pd.concat([pairs.assign(through=through) for through in ("patterns", "values")])


def test_claims_about_composition_before_training_can_hold_and_fail():
    unrelated = np.tile([0.1, 0.15, 0.12, 0.11], 8)
    assert [c.holds for c in fig11.before_claims(before(unrelated))] == [True] * 3
    related = np.linspace(0.1, 0.16, 32)
    assert [c.holds for c in fig11.before_claims(before(related))] == [False] * 3
    constant = fig11.before_claims(before(np.full(32, 0.1)))
    assert not constant[0].holds  # a correlation of nothing is no number
    untrained = before(unrelated, best=0.4)
    assert [c.holds for c in fig11.before_claims(untrained)] == [False] * 3


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("n_seeds", [1, 3])
def test_every_figure_is_drawn_and_judged(name, n_seeds, tables):
    figure = FIGURES[name]
    table = pd.concat([tables[name].assign(seed=seed) for seed in range(5, 5 + n_seeds)])
    table = table.reset_index(drop=True)
    canvas = Figure(figsize=figure.size, layout="constrained")
    figure.draw(table, canvas)
    canvas.draw_without_rendering()
    assert {claim.of for claim in figure.claims(table)} == {n_seeds}
    if name == "11":
        axes = [ax for part in canvas.subfigs for ax in part.axes]
        assert len(axes) == 6 * n_seeds
        bold = {t.get_text() for t in axes[0].get_xticklabels() if t.get_fontweight() == "bold"}
        assert bold == {"L0H1", "L0H2"}
        assert len(axes[0].texts) == 64
