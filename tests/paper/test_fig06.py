"""Figure 6: its claims on planted curves, its table against the runs, and its drawing."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from numpy.testing import assert_array_equal

from ih_interp.paper.figures import fig06
from ih_interp.paper.figures.fig06 import AMOUNT_LINES, of_row, plot_slowdown
from ih_interp.paper.recipes import EVOLUTIONS, Circuit, data_key
from ih_interp.paper.study import Study
from ih_interp.plots._style import Line
from ih_interp.runs import Run
from ih_interp.types import Head

CIRCUIT = Circuit(Head(1, 3), (Head(0, 2),), Head(0, 7))

PAPER = {
    ("normal", "classes"): (309e3, 385e3, 420e3),
    ("normal", "labels"): (309e3, 878e3, 1431e3),
    ("B alone", "classes"): (28e3, 32e3, 35e3),
    ("B alone", "labels"): (28e3, 28e3, 28e3),
    ("C alone", "classes"): (33e3, 34e3, 34e3),
    ("C alone", "labels"): (33e3, 82e3, 120e3),
    ("B and C", "classes"): (79e3, 93e3, 104e3),
    ("B and C", "labels"): (79e3, 123e3, 161e3),
}
"""Times of learning; the fewest classes and labels are one run."""


def planted(seeds=(5,), **changed):
    """Curves that fall exponentially from ln 2, so as to be learned at the time planted."""
    times = PAPER | {tuple(key.split("__")): value for key, value in changed.items()}
    times = {(e.replace("_", " "), v): t for (e, v), t in times.items()}
    parts = []
    for (evolution, varied), three in times.items():
        for n, time in enumerate(three):
            if varied == "labels" and n == 0:
                continue
            x = np.linspace(0, 2e6 if evolution == "normal" else 3e5, 2_001)
            parts.append(
                pd.DataFrame(
                    {
                        "evolution": evolution,
                        "classes": (50, 100, 200)[n] if varied == "classes" else 50,
                        "labels": (5, 10, 15)[n] if varied == "labels" else 5,
                        "sequences": x,
                        "loss": np.log(2) * 0.4 ** (x / time),
                    }
                )
            )
    table = pd.concat(parts, ignore_index=True)
    return pd.concat([table.assign(seed=seed, run=f"r-{seed}") for seed in seeds])


def verdicts(table):
    return [claim.holds for claim in fig06.data_claims(table)]


def test_the_papers_times_hold_and_are_read_back():
    table = planted((5, 6))
    assert all(verdicts(table))
    times = fig06.learning_times(table)
    normal = of_row(times[(times["evolution"] == "normal") & (times["seed"] == 6)], "labels")
    assert normal.sort_values("labels")["time"].tolist() == pytest.approx(
        PAPER["normal", "labels"], rel=1e-3
    )


@pytest.mark.parametrize(
    ("place", "changed"),
    [
        (0, {"normal__classes": (309e3, 385e3, 350e3)}),
        (1, {"normal__labels": (309e3, 878e3, 300e3)}),
        (2, {"normal__labels": (309e3, 500e3, 900e3)}),
        (3, {"normal__labels": (309e3, 1400e3, 878e3)}),
        (4, {"B_alone__classes": (28e3, 27e3, 35e3)}),
        (5, {"B_alone__labels": (28e3, 30e3, 28e3)}),
        (6, {"C_alone__labels": (33e3, 40e3, 60e3)}),
        (7, {"C_alone__classes": (33e3, 34e3, 50e3)}),
        (8, {"C_alone__labels": (33e3, 34e3, 33e3), "B_alone__labels": (28e3, 28e3, 40e3)}),
    ],
)
def test_each_claim_can_fail(place, changed):
    assert not verdicts(planted(**changed))[place]


@pytest.mark.parametrize(("place", "labels"), [(2, (500e3, 900e3)), (3, (1400e3, 878e3))])
def test_how_much_later_and_which_is_last_may_differ_in_some_networks(place, labels):
    other = planted((6,), normal__labels=(309e3, *labels))
    claim = fig06.data_claims(pd.concat([planted((5, 7)), other]))[place]
    assert (claim.held, claim.of, claim.varies, claim.holds) == (2, 3, True, True)


def cut(table, evolution, end, **more):
    """The table with its curves of an evolution and more labels or classes cut before they fall."""
    ((varied, amount),) = more.items()
    where = (table["evolution"] == evolution) & (table[varied] >= amount)
    table = table[~where | (table["sequences"] <= end)]
    return table.assign(loss=table["loss"].where(~where, 1.0))


def test_runs_cut_at_1_9_times_are_not_known_to_take_twice_as_long():
    for times, verdict in ((1.9, False), (2.1, True)):
        normal = verdicts(cut(planted(), "normal", times * 309e3, labels=10))
        assert normal[1:4] == [True, verdict, False]
        assert verdicts(cut(planted(), "C alone", times * 33e3, labels=15))[6] is False
        copy = planted(C_alone__labels=(33e3, 40e3, 120e3))
        assert verdicts(cut(copy, "C alone", times * 33e3, labels=15))[6] is verdict


def test_a_slowdown_of_which_the_end_was_not_seen_counts_with_what_was():
    most = {"classes": 200}
    assert verdicts(cut(planted(), "B alone", 33e3, **most))[8]  # of 28k, against 34k of 33k
    assert not verdicts(cut(planted(), "B alone", 28.5e3, **most))[8]
    assert not verdicts(cut(planted(), "C alone", 300e3, **most))[8]


def test_curves_that_share_no_evaluation_are_not_called_one():
    table = planted((5, 6))
    shifted = (table["evolution"] == "B alone") & (table["labels"] > 5)
    claims = fig06.data_claims(table.assign(sequences=table["sequences"] + 7 * shifted))
    assert (claims[5].held, claims[5].of, claims[5].ours) == (0, 2, "none")
    shifted &= table["seed"] == 6
    claims = fig06.data_claims(table.assign(sequences=table["sequences"] + 7 * shifted))
    assert (claims[5].held, claims[5].of) == (1, 2)
    assert claims[5].ours == "0.000; none in 1 of 2"


def test_what_was_never_learned_is_infinite_and_holds_nothing():
    table = planted()
    table["loss"] = 1.0
    claims = fig06.data_claims(table)
    assert sum(claim.holds for claim in claims) == 1  # B alone is still one curve
    assert claims[0].ours == "never; never; never"
    assert fig06.slowdowns(fig06.learning_times(table))["factor"].isna().all()


def test_slowdowns_are_ratios_of_the_most_to_the_fewest():
    found = fig06.slowdowns(fig06.learning_times(planted())).set_index(["evolution", "varied"])
    assert found.loc[("C alone", "labels"), "factor"] == pytest.approx(120 / 33, rel=1e-3)
    assert found.loc[("B alone", "classes"), "factor"] == pytest.approx(35 / 28, rel=1e-3)


def stand_in(run: Run, monkeypatch, *, name, classes, labels, sequences):
    """A run whose configuration says other data and another length; its metrics are the run's."""
    config = run.config.replace(
        name=name,
        task=run.config.task.replace(n_train_classes=classes, n_labels=labels),
        sequences=sequences,
    )
    other = Run(run.folder)
    other.config = config
    rows = run.rows(before=0)
    monkeypatch.setattr(other, "rows", lambda before: rows)
    return other


def test_the_table_is_the_runs_metrics_cut_at_one_length(small_run, monkeypatch):
    def made(name, classes, labels, sequences=16):
        return stand_in(
            small_run, monkeypatch, name=name, classes=classes, labels=labels, sequences=sequences
        )

    runs = {
        data_key(evolution, *size): made(f"{evolution.replace(' ', '')}-{size[0]}-{size[1]}", *size)
        for evolution in EVOLUTIONS
        for size in [(8, 5), (9, 5), (10, 5), (8, 6), (8, 7)]
        if evolution == "normal" or size != (8, 5)
    }
    clamped = {
        name: made(f"clamp-{name.replace(' ', '')}", 8, 5, 32) for name in EVOLUTIONS.values()
    }
    study = Study({"data": {5: runs}, "clamped": {5: clamped}}, {5: CIRCUIT}, None)
    table = fig06.data_table(study)
    fewest = table[(table["classes"] == 8) & (table["labels"] == 5)]
    named = {e: set(rows["run"]) for e, rows in fewest.groupby("evolution")}
    assert named == {
        "normal": {"normal-8-5"},
        "B alone": {"clamp-layer1+copy"},
        "C alone": {"clamp-match"},
        "B and C": {"clamp-layer1"},
    }
    first = small_run.metrics.query("split == 'train' and sequences == 0")["loss"].iloc[0]
    assert (table.loc[table["sequences"] == 0, "loss"] == first).all()
    of_clamped = table[table["run"].str.startswith("clamp")]
    assert of_clamped["sequences"].max() <= 16 < small_run.metrics["sequences"].max()


@pytest.mark.parametrize("seeds", [(5,), (5, 6, 7)])
def test_eight_panels_with_three_curves_each(seeds):
    canvas = Figure(figsize=(11, 5))
    (figure,) = fig06.FIGURES
    figure.draw(planted(seeds), canvas)
    assert len(canvas.axes) == 8
    for ax in canvas.axes:
        labelled = [line for line in ax.lines if not line.get_label().startswith("_")]
        assert len(labelled) == 3
        assert ax.get_ylim() == (0, 1.5)
    legends = [ax.get_legend() for ax in canvas.axes]
    assert [legend.get_title().get_text() for legend in legends if legend] == ["classes", "labels"]
    canvas.draw_without_rendering()


def test_amounts_are_told_apart_without_colour():
    assert len({line.dash for line in AMOUNT_LINES}) == len(AMOUNT_LINES)


def test_a_seed_that_never_learned_is_late_in_the_median():
    times = pd.DataFrame(
        [
            {"evolution": "normal", "classes": 50, "labels": labels, "seed": seed, "time": time}
            for labels, three in ((5, (1e5, 2e5, 3e5)), (10, (3e5, 9e5, np.inf)))
            for seed, time in enumerate(three)
        ]
    )
    ax = Figure().subplots()
    plot_slowdown(times, {"labels": ax}, lines={"normal": Line("#000000")})
    *seeds, median = (line.get_ydata().tolist() for line in ax.lines)
    assert median == [2e5, 9e5]
    assert_array_equal(seeds, [[1e5, 3e5], [2e5, 9e5], [3e5, np.nan]])  # no dot for never
    times.loc[times["time"] == 9e5, "time"] = np.inf  # two of three: nor is there a median
    ax = Figure().subplots()
    plot_slowdown(times, {"labels": ax}, lines={"normal": Line("#000000")})
    assert_array_equal(ax.lines[-1].get_ydata(), [2e5, np.nan])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["5", "10"]


def test_slowdown_leaves_out_what_was_never_learned():
    times = fig06.learning_times(planted())
    times.loc[times["evolution"] == "C alone", "time"] = np.inf
    axes = dict(zip(("classes", "labels"), Figure().subplots(1, 2), strict=True))
    lines = {"B alone": Line("#000000"), "C alone": Line("#D55E00", (0, (5, 1)))}
    plot_slowdown(times, axes, lines=lines)
    texts = [text.get_text() for text in axes["labels"].get_legend().get_texts()]
    assert texts == ["B alone"]
