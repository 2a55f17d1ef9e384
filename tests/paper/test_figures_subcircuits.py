"""Figures 5 and 7 to 10 and 15: tables against the runs, claims on planted curves, drawings."""

import math

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure as Canvas

import ih_interp as ih
from ih_interp.config import run_folder
from ih_interp.evaluation import evaluate
from ih_interp.paper.figures import fig05_09_10 as fig05, fig07_08_15 as fig07
from ih_interp.paper.figures.fig07_08_15 import DONOR_LINES, PREVIOUS_TOKEN_LINES, SIDES
from ih_interp.paper.presets import PRESETS
from ih_interp.paper.recipes import RECIPES, Circuit, Context
from ih_interp.paper.study import Study
from ih_interp.types import Head

FIGURES = {figure.name: figure for module in (fig05, fig07) for figure in module.FIGURES}
CIRCUIT = Circuit(Head(1, 3), (Head(0, 2), Head(0, 5)), Head(0, 6))
ENDS = {
    "none": 300_000, "previous token": 200_000, "layer 1": 80_000, "copy": 40_000,
    "match": 22_000, "layer 1 + copy": 20_000,
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two updates of every kind of run, of one network."""
    root = tmp_path_factory.mktemp("runs")
    grid = ih.Grid(every=32)
    preset = PRESETS["smoke"].replace(
        main_sequences=64, clamped_sequences=64, branch_sequences=64,
        evaluations=grid, dense_evaluations=grid, checkpoints=grid,
    )  # fmt: skip
    donors = {seed: str(root / f"main-{seed}") for seed in (5, 6, 7)}
    context = Context(preset, preset.exemplars, 5, CIRCUIT, donors)
    mains = [RECIPES["main"](context._replace(seed=seed))["main"] for seed in donors]
    ih.train(mains, root, engine="eager", progress=False)
    kept = {
        "single": ["L1H0", "L1H3"], "clamped": ["none", "previous token", "match"],
        "grafts": ["5", "6", "7"], "previous_token": ["best", "unlike", "like", "all"],
        "strengths": ["1", "0.5", "0.1"],
    }  # fmt: skip
    configs = {
        name: {key: RECIPES[name](context)[key] for key in keys} for name, keys in kept.items()
    }
    flat = [config for runs in configs.values() for config in runs.values()]
    ih.train(flat, root, engine="eager", progress=False)
    runs = {
        name: {5: {key: ih.Run(run_folder(root, config)) for key, config in of_set.items()}}
        for name, of_set in configs.items()
    }
    runs["main"] = {seed: {"main": ih.Run(donors[seed])} for seed in donors}
    return Study(runs, {5: CIRCUIT}, 40)


def recorded(run, split="train"):
    return run.metrics.query("split == @split")["loss"].to_numpy()


@pytest.mark.parametrize("name", ["7", "8", "10", "15"])
def test_every_row_names_its_run(study, name):
    table = FIGURES[name].table(study)
    assert list(table.columns[:2]) == ["seed", "run"]
    names = {
        run.config.name
        for by_seed in study.runs.values()
        for runs in by_seed.values()
        for run in runs.values()
    }
    assert set(table["run"]) <= names
    assert not table.isna().any().any()


def test_grafts_stand_beside_the_run_without(study):
    table = fig07.graft_table(study)
    whose = dict(zip(table["whose"], table["donor"], strict=True))
    assert whose == {"none": "none", "own": "5", "another's": "6", "a third's": "7"}
    for key, run in {**study.runs["grafts"][5], "none": study.main[5]}.items():
        np.testing.assert_array_equal(table[table["donor"] == key]["loss"], recorded(run))
    assert set(table["whose"]) == set(DONOR_LINES)


def test_a_grafted_run_starts_as_the_donors_first_layer_under_its_own_second(study):
    """The first loss is that of a fresh network on what the donor's layer 0 writes."""
    run = study.runs["grafts"][5]["6"]
    batch = run.task.sample("train", 20, generator=torch.Generator().manual_seed(0))
    fresh, donor = run.model(0), study.runs["main"][6]["main"].model()
    with ih.clamped(fresh, run.clamps, batch):
        grafted = fresh(batch.tokens)
    written = donor(batch.tokens, stop_at_layer=1)
    torch.testing.assert_close(grafted, fresh(written, start_at_layer=1))


def test_previous_token_runs_stand_beside_the_induction_heads_own(study):
    table = fig07.previous_table(study)
    first = table.groupby("condition").first()
    assert set(first.index) == set(PREVIOUS_TOKEN_LINES)
    assert first["run"]["none"] == "single-L1H3-5"
    assert first["heads"].to_dict() == {
        "none": "", "best": "L0H2", "unlike": "L0H6", "like": "L0H2, L0H5",
        "all": ", ".join(f"L0H{head}" for head in range(8)),
    }  # fmt: skip
    loss = table[table["condition"] == "like"]["loss"]
    np.testing.assert_array_equal(loss, recorded(study.runs["previous_token"][5]["like"]))


def test_strengths_hold_three_splits(study):
    table = fig07.strength_table(study)
    assert set(table["strength"]) == {1.0, 0.5, 0.1}
    assert set(table["split"]) == {"train", "test_relabel", "test_exemplars"}
    one = table[(table["strength"] == 0.1) & (table["split"] == "test_relabel")]["loss"]
    run = study.runs["strengths"][5]["0.1"]
    np.testing.assert_array_equal(one, recorded(run, "test_relabel"))


def test_progress_measures_are_checkpoints_of_the_free_run_under_clamps(study):
    table = fig05.progress_table(study)
    free, match = (study.runs["clamped"][5][name] for name in ("none", "match"))
    batch = study.batch(free)
    by_hand = []
    for step in free.steps:
        model = free.model(step)
        with ih.clamped(model, match.clamps, batch):
            by_hand.append(float(evaluate(model, batch).loss.mean()))
    perfected = table[(table["when"] == "inference") & (table["clamp"] == "match")]
    np.testing.assert_allclose(perfected["loss"], by_hand, rtol=1e-4)
    assert set(perfected["run"]) == {free.config.name}
    trained = table[(table["when"] == "training") & (table["clamp"] == "match")]
    np.testing.assert_array_equal(trained["loss"], recorded(match))
    assert set(trained["run"]) == {match.config.name}


@pytest.mark.parametrize("name", ["7", "8", "10", "15"])
@pytest.mark.parametrize("n_seeds", [1, 3])
def test_one_network_and_several_are_drawn_and_judged(study, name, n_seeds):
    table = FIGURES[name].table(study)
    table = pd.concat([table.assign(seed=5 + more) for more in range(n_seeds)])
    if name == "7":  # the same donors, to whom others are the network itself
        table["donor"] = table["donor"].where(table["whose"] != "own", table["seed"].astype(str))
    canvas = Canvas(layout="constrained")
    FIGURES[name].draw(table, canvas)
    canvas.draw_without_rendering()
    assert canvas.axes
    if name != "15":  # whose claims are about strengths that are not all here
        assert {claim.of for claim in FIGURES[name].claims(table)} == {n_seeds}


def curve(until, *, fall=5_000, pause=0.7, end=800_001, **columns):
    """A loss that waits at `pause` until `until` sequences and then falls over `fall` of them."""
    sequences = np.arange(0, end, 5_000.0)
    early = np.maximum(pause, 2 - 1.3 * sequences / 20_000)
    late = pause * np.exp(-np.maximum(sequences - until, 0) / fall)
    loss = np.where(sequences < until, early, late)
    return pd.DataFrame({"sequences": sequences, "loss": loss, "seed": 5, **columns})


def planted(times, by, **columns):
    return pd.concat([curve(t, **{by: name}, **columns) for name, t in times.items()])


def verdicts(claims):
    return [claim.holds for claim in claims]


def test_planted_orders_hold_and_swapped_ones_do_not():
    def of(times):
        return verdicts(fig05.clamped_claims(planted(times, "clamp")))

    assert of(ENDS) == [True, True, True]
    assert of({**ENDS, "layer 1": ENDS["copy"], "copy": ENDS["layer 1"]}) == [False, True, True]
    assert of({**ENDS, "match": 150_000}) == [False, False, True]
    assert of({**ENDS, "previous token": 400_000}) == [True, True, False]


def with_cut(table, by, name, end, **columns):
    """A planted table whose curve `name` never falls and ends at `end` sequences."""
    return pd.concat([table[table[by] != name], curve(1e9, end=end + 1, **{by: name}, **columns)])


def test_a_plateau_that_the_run_ends_on_counts_with_what_was_seen_of_it():
    """Under match it lasts 3,100 sequences, of which eight are 25,000; none enters it at 18,500."""
    ends = {name: time for name, time in ENDS.items() if name not in ("none", "previous token")}
    table = planted({**ends, "none": 0, "previous token": 82_000}, "clamp")
    for end, verdict in ((40_000, False), (60_000, True)):
        claim = fig05.clamped_claims(with_cut(table, "clamp", "none", end))[1]
        assert claim.holds is verdict
        assert claim.ours.endswith("none never")


def test_a_donor_that_is_no_better_than_others_is_not_the_papers():
    def of(**times):
        times = {"none": 270_000, "another's": 240_000, "a third's": 210_000, **times}
        return verdicts(fig07.graft_claims(planted(times, "whose")))

    assert of(own=20_000) == [True, True]
    assert of(own=150_000) == [False, False]
    assert of(**{"own": 20_000, "another's": 30_000, "a third's": 40_000}) == [True, False]
    assert of(own=1e9) == [False, False]


def test_a_run_without_a_graft_cut_at_1_9_times_is_not_known_to_take_three_times_as_long():
    table = planted({"none": 0, "own": 20_000, "another's": 30_000, "a third's": 40_000}, "whose")
    own = 24_800  # when it learns
    for times, verdict in ((1.9, False), (3.2, True)):
        for name, place in (("none", 0), ("another's", 1)):
            cut = with_cut(table, "whose", name, round(times * own, -3) + 2_000)
            assert fig07.graft_claims(cut)[place].holds is verdict


def test_previous_token_heads_are_much_the_same_but_for_all_of_them():
    def of(**times):
        times = {"none": 310_000, "best": 216_000, "unlike": 280_000, "like": 187_000, **times}
        return verdicts(fig07.previous_claims(planted(times, "condition")))

    assert of(all=560_000) == [True, True, True]
    assert of(all=290_000) == [True, True, False]  # the clamps' slowest, and still faster than none
    assert of(all=1e9) == [True, True, True]  # later than the run's end is late
    assert of(all=150_000) == [True, False, False]
    assert of(all=560_000, unlike=500_000) == [False, True, True]
    assert of(all=1e9, best=1e9, unlike=1e9, like=1e9) == [False, False, True]
    assert of(all=1e9, like=1e9) == [False, False, True]


def test_a_run_that_ends_before_another_learns_is_not_known_to_be_slower():
    times = {"none": 700_000, "best": 216_000, "unlike": 280_000, "like": 187_000, "all": 0}
    table = planted(times, "condition")
    cut = with_cut(table, "condition", "all", 600_000)
    assert verdicts(fig07.previous_claims(cut)) == [True, True, False]


def strengths(relabel_of_wrong=1.5, **times):
    ends = {1.0: 20_000, 0.75: 45_000, 0.9: 30_000, 0.6: 120_000, 0.5: 290_000, 0.2: 70_000}
    ends |= {float(name): time for name, time in times.items()}
    train = planted(ends, "strength", split="train")
    relabel = train.assign(split="test_relabel")
    wrong = relabel["strength"] < 0.5
    return pd.concat([train, relabel.assign(loss=relabel["loss"].where(~wrong, relabel_of_wrong))])


def test_strength_is_monotone_and_the_wrong_way_does_not_transfer():
    of = fig07.strength_claims
    assert verdicts(of(strengths())) == [True, True]
    assert verdicts(of(strengths(**{"0.9": 60_000}))) == [False, True]
    assert verdicts(of(strengths(relabel_of_wrong=0.1))) == [True, False]
    assert verdicts(of(strengths(**{"0.2": 1e9}))) == [True, False]
    assert verdicts(of(strengths(**{"0.5": 1e9}))) == [True, False]  # the right way has to end well
    train = strengths().query("split == 'train'")
    assert verdicts(of(train)) == [True]  # no label pairs are held out


def test_times_and_ends_of_the_wrong_way_are_those_of_one_network():
    def held(*tables):  # the later seed stands first
        seeds = [table.assign(seed=seed) for seed, table in zip((7, 6), tables, strict=True)]
        return [(claim.held, claim.of) for claim in fig07.strength_claims(pd.concat(seeds))]

    slow, transfers = strengths(**{"0.2": 1e9}), strengths(relabel_of_wrong=0.1)
    assert held(strengths(), strengths()) == [(2, 2), (2, 2)]
    assert held(slow, transfers) == [(2, 2), (0, 2)]
    both = pd.concat([slow[slow["split"] == "train"], transfers[transfers["split"] != "train"]])
    assert held(strengths(), both) == [(2, 2), (1, 2)]


def test_a_progress_measure_that_falls_as_under_the_clamp_is_not_the_papers():
    def of(match, previous):
        training = {"none": 300_000, "previous token": 200_000, "match": 30_000}
        inference = {"none": 300_000, "previous token": previous, "match": match}
        table = [
            planted(times, "clamp", when=when)
            for when, times in (("training", training), ("inference", inference))
        ]
        return verdicts(fig05.progress_claims(pd.concat(table)))

    assert of(240_000, 340_000) == [True, True]
    assert of(40_000, 340_000) == [False, True]
    assert of(240_000, 150_000) == [True, False]
    assert of(240_000, 1e9) == [True, False]
    assert of(1e9, 340_000) == [True, True]  # never is over half as long


@pytest.fixture(scope="module")
def toy():
    return fig05.toy_table(Study({}, {}, None))


def test_the_toys_claims_are_the_papers_numbers(toy):
    progress = toy[toy["clamped"] != "c"]
    for claims in (fig05.toy_claims(toy), fig05.toy_progress_claims(progress)):
        assert all(claim.holds and claim.ours == claim.paper for claim in claims)


def test_figure_9_leaves_out_c_alone(toy):
    table = fig05.toy_progress_table(Study({}, {}, None))
    expected = toy[toy["clamped"] != "c"].reset_index(drop=True)
    pd.testing.assert_frame_equal(table, expected)


def test_a_toy_without_a_plateau_is_not_the_papers(toy):
    slide = np.exp(-toy["iteration"] / 150)
    free = toy["clamped"] == "none"
    columns = {m: toy[m].where(~free, slide) for m in ("loss", "progress_1", "progress_2")}
    assert verdicts(fig05.toy_progress_claims(toy.assign(**columns))) == [False, True]
    faster = toy["loss"].where(~free, slide**2)
    assert verdicts(fig05.toy_claims(toy.assign(loss=faster))) == [False]
    other = toy["progress_2"].where(free, 2 * toy["loss"])
    assert verdicts(fig05.toy_progress_claims(toy.assign(progress_2=other))) == [True, False]


def test_the_toys_plateau_is_drawn_where_it_is(toy):
    canvas = Canvas()
    FIGURES["5a"].draw(toy, canvas)
    (level,) = {line.get_ydata()[0] for line in canvas.axes[0].lines if line.get_linestyle() == ":"}
    norms = 4.487 * 3.235 * 4.087  # of the three true vectors, as the published code draws them
    assert level == pytest.approx(norms**2 / (2 * 20**3), rel=1e-3)
    waiting = toy.query("clamped == 'none' and iteration == 200")["loss"].item()
    assert waiting == pytest.approx(level, rel=1e-3)


def test_the_toys_progress_has_a_panel_per_measure(toy):
    canvas = Canvas(layout="constrained")
    FIGURES["9"].draw(toy[toy["clamped"] != "c"], canvas)
    canvas.draw_without_rendering()
    assert [len(ax.lines) for ax in canvas.axes] == [2, 2, 2]


def test_figure_5b_says_what_is_left_to_learn_and_stops_at_two_thirds():
    table = planted(ENDS, "clamp", end=600_001)
    canvas = Canvas()
    FIGURES["5b"].draw(table, canvas)
    (ax,) = canvas.axes
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "match: C" in texts
    assert "layer 1 + copy: B" in texts
    assert ax.get_xlim() == pytest.approx((0, 400_000))


def test_darker_is_further_from_even_attention_on_both_sides():
    for side in (1, -1):
        leads = side * np.linspace(0, 1, 9)
        grey = [np.dot(SIDES((lead + 1) / 2)[:3], (0.299, 0.587, 0.114)) for lead in leads]
        assert (np.diff(grey) < -0.01).all()


@pytest.mark.parametrize("lines", [DONOR_LINES, PREVIOUS_TOKEN_LINES])
def test_conditions_can_be_told_apart_without_colour(lines):
    grey = {
        name: (line.dash, np.dot(mpl.colors.to_rgb(line.colour), (0.299, 0.587, 0.114)))
        for name, (_, line) in lines.items()
    }
    for one, (dash, light) in grey.items():
        for other, (other_dash, other_light) in grey.items():
            assert one == other or dash != other_dash or math.fabs(light - other_light) > 0.2
