"""Figures 3, 4, 13, 17 and 18: claims on planted tables, tables against runs, drawings."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure as Canvas

import ih_interp as ih
from ih_interp.analysis.dynamics.emergence import Crossing
from ih_interp.paper.claims import by_seed, correlation, judge, outlasts, over_seeds, times_of
from ih_interp.paper.figures import fig03, fig04_13_17_18 as fig04
from ih_interp.paper.figures.fig04_13_17_18 import (
    ALL_HEADS,
    plot_learning_of_heads,
    plot_strength_against,
)
from ih_interp.paper.reproduce import draw, prepare
from ih_interp.paper.study import each_run
from ih_interp.plots._style import HEAD_MARKERS

FIGURES = {figure.name: figure for module in (fig03, fig04) for figure in module.FIGURES}
HEADS = [f"L1H{head}" for head in range(8)]
SEQUENCES = np.arange(0.0, 101.0, 5.0)


def fall(time):
    """A curve from 1 to below 0.277 at about `time`, of evaluations every 5 sequences."""
    return np.where(time > SEQUENCES, 1.0, 0.01)


def trained(times, seed=5):
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "seed": seed, "run": name, "heads": name,
                    "sequences": SEQUENCES, "loss": fall(time),
                }
            )
            for name, time in times.items()
        ]
    )  # fmt: skip


def ablations(alone, without, seed=5, metric="accuracy", every=1.0):
    """Head h has strength h / 8."""
    rows = [
        (seed, "main", HEADS[h], h / 8, kept, metric, value)
        for kept, values in (("only", alone), ("without", without))
        for h, value in enumerate(values)
    ]
    rows += [(seed, "main", None, np.nan, "all", metric, every)]
    columns = ["seed", "run", "head", "strength", "kept", "metric", "value"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(low=table["value"], high=table["value"])


def holds(claims):
    return [claim.holds for claim in claims]


# Claims


def test_linear_heads_of_which_none_is_needed_hold_and_others_do_not():
    line = [0.3 + 0.1 * h for h in range(8)]
    table = ablations(line, [1.0] * 8)
    claims = fig04.accuracy_claims(table)
    assert holds(claims) == [True] * 4
    assert claims[0].ours == "1.000"
    unlearned = ablations(line, [0.5] * 8, every=0.5)
    assert holds(fig04.accuracy_claims(unlearned))[2:] == [False, False]
    bent = ablations([0.9, 0.2] * 4, [0.5] + [1.0] * 6 + [0.97])
    assert holds(fig04.accuracy_claims(bent)) == [False] * 4


def test_verdicts_are_counted_network_by_network():
    line = [0.3 + 0.1 * h for h in range(8)]
    both = pd.concat(
        [ablations(line, [1.0] * 8), ablations(line, [1.0] * 7 + [0.9], seed=6)], ignore_index=True
    )
    needed = fig04.accuracy_claims(both)[2]
    assert (needed.held, needed.of, needed.holds) == (1, 2, False)


def test_loss_falls_with_strength():
    falling = ablations([2 - 0.2 * h for h in range(8)], [0.01] * 8, metric="loss", every=0.0)
    assert holds(fig04.loss_claims(falling)) == [True, True]
    rising = ablations([0.2 * h for h in range(8)], [2.0] * 8, metric="loss", every=0.0)
    assert holds(fig04.loss_claims(rising)) == [False, False]


def test_heads_trained_apart_are_enough_and_slower():
    times = {name: 50 + 5 * h for h, name in enumerate(HEADS)}
    claims = fig04.apart_claims(trained(times | {ALL_HEADS: 30}))
    assert holds(claims) == [True, True]
    slow = trained(times | {HEADS[2]: math.inf, HEADS[0]: 20, ALL_HEADS: 30})
    claims = fig04.apart_claims(slow)
    assert holds(claims) == [False, False]
    assert claims[0].ours.startswith("7; ")
    assert "never" in claims[0].ours


def test_times_are_those_of_the_curve_and_its_length_where_it_ended_before():
    table = pd.concat([trained({"L1H0": 50, ALL_HEADS: math.inf}), trained({"L1H0": 10}, seed=2)])
    first, second = (times_of(rows, "heads") for rows in by_seed(table))
    between = 45 + 5 * (1 - 0.4 * math.log(2)) / (1 - 0.01)  # interpolated between evaluations
    assert second == {"L1H0": (pytest.approx(between), True), ALL_HEADS: (100, False)}
    assert first == {"L1H0": (pytest.approx(between - 40), True)}  # of seed 2
    half = times_of(table[table["seed"] == 5], "heads", level=0.505)["L1H0"]
    assert half.time == pytest.approx(47.5)


def test_a_run_cut_at_1_9_times_another_is_not_known_to_take_twice_as_long():
    fast = Crossing(200_000, True)
    for slow, twice in ((380_000, False), (420_000, True)):
        assert outlasts(Crossing(slow, False), fast, factor=2) is twice
        assert outlasts(Crossing(slow, True), fast, factor=2) is twice
        assert outlasts(Crossing(slow, False), fast)
    assert not outlasts(Crossing(math.inf, False), Crossing(200_000, False))
    assert not outlasts(Crossing(150_000, False), fast)  # later or earlier: it ended before


@pytest.mark.parametrize("values", [[0.5, math.nan, 0.25], [math.nan, 0.25, 0.5]])
def test_networks_without_a_number_are_counted_apart_wherever_they_stand(values):
    assert over_seeds(values) == "0.375 (0.25 to 0.5); none in 1 of 3"
    assert over_seeds([math.nan] * 2) == "none"


def test_a_claim_about_no_network_is_refused():
    with pytest.raises(ValueError, match="4b"):
        judge("4b", [], {"all_learn": lambda n: True})


def test_a_second_head_helps_or_not():
    pairs = {f"L1H3 + {name}": 40 for name in HEADS if name != "L1H3"}
    table = trained({"L1H3": 60, **pairs, ALL_HEADS: 50})
    assert holds(fig04.pairs_claims(table)) == [True, True]
    table = trained({"L1H3": 30, **pairs, ALL_HEADS: 20})
    claims = fig04.pairs_claims(table)
    assert holds(claims) == [False, False]
    assert claims[0].ours == "0"


def strengths(accuracy, time, seed=5, *, observed=True):
    return pd.DataFrame(
        [
            (seed, name, HEADS[h], h / 8, name, values[h], observed or name != "learning_time")
            for name, values in {
                "accuracy": accuracy, "loss": [-value for value in accuracy], "learning_time": time
            }.items()
            for h in range(8)
        ],
        columns=["seed", "run", "head", "strength", "quantity", "value", "observed"],
    )  # fmt: skip


def test_strength_goes_with_accuracy_and_weakly_with_learning_time():
    line = [h / 10 for h in range(8)]
    weak = strengths(line, [9, 1, 8, 7, 2, 6, 3, 4])
    assert holds(fig04.strength_claims(weak)) == [True, True]
    strong = strengths(line[::-1], [*range(8)])
    assert holds(fig04.strength_claims(strong)) == [False, False]


def test_correlation_is_pearsons():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 30))
    centred = (x - x.mean(), y - y.mean())
    by_hand = (centred[0] @ centred[1]) / np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    assert correlation([*x], [*y]) == pytest.approx(by_hand)
    assert math.isnan(correlation([*x], [1.0] * 30))


def grown(last, half, seed=5):
    """Strengths that are nothing, then those at half time, then those of the end."""
    return pd.DataFrame(
        [
            (seed, "main", step, sequences, name, values[h])
            for step, (sequences, values) in enumerate(
                ((0, [0.0] * 8), (50, half), (100, last))
            )
            for h, name in enumerate(HEADS)
        ],
        columns=["seed", "run", "step", "sequences", "name", "value"],
    )  # fmt: skip


def test_order_kept_from_half_time_on():
    last = [0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    half = [value / 2 for value in last]
    assert holds(fig03.strength_claims(grown(last, half))) == [True] * 3
    turned = [0.45, *half[:0:-1]]  # the strongest stays, the others are reversed
    assert holds(fig03.strength_claims(grown(last, turned))) == [True, True, False]
    weak = [value / 100 for value in last]
    assert holds(fig03.strength_claims(grown(weak, weak))) == [False] * 3
    alike = [0.8] * 8
    assert not fig03.strength_claims(grown(alike, alike))[1].holds
    lone = [0.8, *[0.1] * 7]
    assert holds(fig03.strength_claims(grown(lone, lone))) == [False, True, True]


def test_a_curve_that_pauses_is_told_from_a_slide():
    sequences = np.arange(0.0, 1_000.0)
    slide = 2 * np.exp(-sequences / 150)
    pause = np.where(
        sequences < 300, np.maximum(slide, 0.69), 0.69 * np.exp(-(sequences - 300) / 50)
    )
    tables = [
        pd.DataFrame(
            {"seed": 5, "run": "main", "split": "train", "sequences": sequences, "loss": y}
        )
        for y in (pause, slide)
    ]
    assert [fig03.loss_claims(table)[0].holds for table in tables] == [True, False]


def test_the_end_generalises_or_not_split_by_split():
    def of(**ends):
        curves = [
            pd.DataFrame(
                {"seed": 5, "split": split, "sequences": SEQUENCES, "loss": fall(50) + end}
            )
            for split, end in {"train": 0.0, **ends}.items()
        ]
        return fig03.loss_claims(pd.concat(curves))[1:]

    assert holds(of(test_exemplars=0.1, test_relabel=0.02)) == [True, True]
    assert holds(of(test_exemplars=0.6, test_relabel=0.02)) == [False, True]
    assert holds(of(test_exemplars=0.1, test_relabel=0.6)) == [True, False]
    assert of() == []


# Tables


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    return prepare([*FIGURES], preset="smoke", runs=runs)


@pytest.fixture(scope="module")
def tables(study):
    return {name: figure.table(study) for name, figure in FIGURES.items()}


@pytest.mark.slow
def test_ablations_are_those_of_the_trained_network(study, tables):
    run = study.main[5]
    direct = ih.ablation.ablate_each_head(run.model(), study.batch(run))
    for name, metric in (("4a", "accuracy"), ("13", "loss")):
        expected = direct.loc[direct["metric"] == metric, "value"].to_numpy()
        assert tables[name]["value"].to_numpy() == pytest.approx(expected)
        assert set(tables[name]["run"]) == {"main-5"}


def test_rows_say_over_how_many_sequences_they_are(study, tables):
    for name in ("3b", "4a", "13"):
        assert set(tables[name]["n_sequences"]) == {len(study.batch(study.main[5]))}
    own = each_run(lambda *_: pd.DataFrame({"n_sequences": [7], "value": [0.5]}))
    assert own(study)["n_sequences"].tolist() == [7]


def test_every_curve_is_that_of_its_run(study, tables):
    runs = {
        run.config.name: run
        for by_seed in study.runs.values()
        for by_condition in by_seed.values()
        for run in by_condition.values()
    }
    for name, n_networks in (("4b", 9), ("17", 9)):
        groups = tables[name].groupby("run")
        assert len(groups) == n_networks
        for run, rows in groups:
            recorded = runs[run].metrics.query("split == 'train'")["loss"]
            assert rows["loss"].to_numpy() == pytest.approx(recorded.to_numpy())
            (heads,) = rows["heads"].unique()
            wanted = "main" if heads == ALL_HEADS else heads.split(" + ")[-1]
            assert wanted in run


def test_pairs_all_hold_the_strongest_head(study, tables):
    strongest = str(study.circuits[5].induction)
    names = set(tables["17"]["heads"])
    others = {f"{strongest} + {head}" for head in HEADS if head != strongest}
    assert names == others | {strongest, ALL_HEADS}


def test_strengths_stand_beside_what_heads_do_alone(study, tables):
    table = tables["18"]
    assert table.groupby("quantity").size().to_dict() == dict.fromkeys(fig04.QUANTITIES, 8)
    strength = ih.induction_strength(study.main[5].model(), study.batch(study.main[5]))[1]
    for quantity, rows in table.groupby("quantity"):
        assert list(rows["head"]) == HEADS, quantity
        assert rows["strength"].to_numpy() == pytest.approx(strength.numpy(), abs=1e-6)
    times = table[table["quantity"] == "learning_time"]
    assert list(times["run"]) == [f"single-{head}-5" for head in HEADS]
    assert not times["observed"].any()  # nothing is learned in 640 sequences
    assert (times["value"] == 640).all()


# Drawings


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("n_networks", [1, 3, 5])
def test_each_network_is_drawn(name, n_networks, tables):
    several = pd.concat(
        [tables[name].assign(seed=5 + n) for n in range(n_networks)], ignore_index=True
    )
    figure = FIGURES[name]
    canvas = draw(figure, several)
    panels = {"3a": 1, "18": 3}.get(name, n_networks)
    assert len(canvas.axes) == panels
    assert {claim.of for claim in figure.claims(several)} == {n_networks}
    canvas.draw_without_rendering()


def test_a_curve_looks_as_its_head_and_all_heads_are_dashed():
    table = trained({"L1H3": 60, "L1H3 + L1H0": 50, ALL_HEADS: 40})
    ax = plot_learning_of_heads(table, Canvas().subplots())
    alone, pair, every = ax.lines[:3]
    assert [line.get_label() for line in (alone, pair, every)] == [
        "L1H3 alone", "+ L1H0", "all heads",
    ]  # fmt: skip
    assert alone.get_linewidth() > pair.get_linewidth()
    assert (pair.get_marker(), alone.get_marker()) == (HEAD_MARKERS[0], HEAD_MARKERS[3])
    assert every.get_linestyle() == "--"


def test_sixteen_networks_all_look_different():
    table = pd.concat(strengths([0.1] * 8, [9.0] * 8, seed) for seed in range(16))
    table = table[table["quantity"] == "accuracy"]
    names = {seed: f"seed {seed}" for seed in range(16)}
    ax = plot_strength_against(table, Canvas().subplots(), names=names, ylabel="y")
    looks = {
        (tuple(points.get_edgecolor()[0]), points.get_paths()[0].vertices.tobytes())
        for points in ax.collections
    }
    assert len(looks) == 16


def test_what_is_not_observed_is_open_and_has_an_arrow():
    table = strengths([0.1] * 8, [9.0] * 8, observed=False)
    seen = table[table["quantity"] == "accuracy"]
    late = table[table["quantity"] == "learning_time"]
    for rows, n_filled, n_arrows in ((seen, 8, 0), (late, 0, 8)):
        ax = plot_strength_against(rows, Canvas().subplots(), names={5: "seed 5"}, ylabel="y")
        filled = ax.collections[0].get_facecolors()
        assert (filled[:, 3] > 0).sum() == n_filled if len(filled) else n_filled == 0
        assert len(ax.texts) == n_arrows
