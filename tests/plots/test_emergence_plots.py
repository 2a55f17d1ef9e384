"""The plots of emergence show every run, what is censored, and both panels on one scale."""

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from ih_interp.analysis.dynamics.emergence import Crossing
from ih_interp.analysis.dynamics.survival import emergence_summary, survival_table
from ih_interp.plots._style import CLAMP_LINES, condition_lines
from ih_interp.plots.emergence import (
    WHEN,
    plot_emergence,
    plot_progress,
    plot_survival,
    plot_transition,
)

RUNS = {
    "match": [Crossing(100.0, True), Crossing(120.0, True), Crossing(90.0, True)],
    "none": [Crossing(400.0, True), Crossing(500.0, False), Crossing(500.0, False)],
}
TIMES = pd.DataFrame(
    [
        {"clamp": clamp, "seed": seed, **crossing._asdict()}
        for clamp, crossings in RUNS.items()
        for seed, crossing in enumerate(crossings)
    ]
)


def axes(*shape):
    return Figure(layout="constrained").subplots(*shape)


def test_a_dot_a_seed_and_an_open_one_where_a_run_ended():
    ax = plot_emergence(TIMES, axes())
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    drawn = sorted(
        (float(dot.get_xdata()[0]), dot.get_markerfacecolor() != "white") for dot in dots
    )
    assert drawn == sorted((c.time, c.observed) for runs in RUNS.values() for c in runs)
    arrows = [text for text in ax.texts if text.arrow_patch is not None]
    assert len(arrows) == 2
    assert [label.get_text() for label in ax.get_yticklabels()] == list(RUNS)
    heights = [float(dot.get_ydata()[0]) for dot in dots]
    assert all(-0.5 < height - row < 0 for height, row in zip(heights, [0] * 3 + [1] * 3))  # noqa: B905


def test_the_median_is_marked_or_said_to_be_out_of_reach():
    summary = emergence_summary(TIMES, n_resamples=100)
    ax = plot_emergence(TIMES, axes(), summary=summary)
    ticks = [float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "|"]
    assert ticks == [100.0]
    assert [text.get_text() for text in ax.texts if text.get_text()] == ["median not reached"]
    intervals = [line for line in ax.lines if len(line.get_xdata()) == 2]
    assert list(intervals[0].get_xdata()) == [90, 120]
    assert intervals[1].get_xdata()[1] == ax.get_xlim()[1]  # open: up to the edge
    alone = TIMES[TIMES["seed"] == 0]
    ax = plot_emergence(alone, axes(), summary=emergence_summary(alone))
    assert not [line for line in ax.lines if line.get_marker() == "|"]


def test_survival_falls_in_steps_with_a_tick_where_runs_ended():
    table = survival_table(TIMES)
    ax = plot_survival(table, axes())
    steps = {line.get_label(): line for line in ax.lines if line.get_drawstyle() == "steps-post"}
    assert set(steps) == set(RUNS)
    assert steps["match"].get_ydata().tolist() == pytest.approx([1, 2 / 3, 1 / 3, 0])
    assert steps["none"].get_xdata().tolist() == [0, 400, 500]
    ticks = [line.get_xdata().tolist() for line in ax.lines if line.get_marker() == "|"]
    assert ticks == [[500], []]  # the paper's conditions come in its order
    assert len(ax.collections) == 2
    assert len(plot_survival(table, axes(), band=False).collections) == 0


def progress_table(seeds=(5,)):
    return pd.DataFrame(
        [
            {"sequences": s, "clamp": c, "when": when, "loss": 2 - s / 1_000 + seed, "seed": seed}
            for seed in seeds
            for c in ("none", "match")
            for when in WHEN
            for s in (0, 500, 1_000)
        ]
    )


def test_progress_stands_beside_training_on_one_scale():
    table = progress_table()
    table.loc[table["when"] == "inference", "loss"] *= 2
    left, right = plot_progress(table, axes(1, 2))
    assert [left.get_title(loc="center"), right.get_title(loc="center")] == list(WHEN.values())
    assert left.get_ylim() == right.get_ylim()
    assert left.get_xlim() == right.get_xlim() == (0, 1_000)
    for ax, factor in ((left, 1), (right, 2)):
        (match,) = (line for line in ax.lines if line.get_label() == "match")
        assert match.get_ydata().tolist() == pytest.approx([7 * factor, 6.5 * factor, 6 * factor])
    several = plot_progress(progress_table(seeds=(1, 2, 9)), axes(1, 2))
    thin = [line for line in several[0].lines if line.get_linewidth() < 0.7]
    assert len(thin) == 2 * 3
    assert len(several[0].collections) == 2  # bands


def test_a_transition_is_marked_on_its_curve():
    x = np.arange(0, 1_001, 100)
    curve = pd.DataFrame({"sequences": x, "loss": 1 - x / 1_000}).sample(frac=1, random_state=0)
    marks = {"learned": 250.0, "perfect": math.inf}
    ax = plot_transition(curve, axes(), marks=marks, plateau=(100.0, math.inf))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["plateau, not left", "learned: 250", "perfect: never"]
    (learned,) = (line for line in ax.lines if line.get_label().startswith("learned"))
    assert list(learned.get_xdata()) == [250, 250]
    assert list(learned.get_ydata()) == pytest.approx([0, 0.75])
    assert list(ax.lines[0].get_xdata()) == list(x)


def test_conditions_are_told_apart_and_known_ones_keep_their_line():
    lines = condition_lines(["match", *range(5, 13)])
    assert lines["match"] == CLAMP_LINES["match"]
    others = [lines[number] for number in range(5, 13)]
    assert len(set(others)) == 8


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA], ids=repr)
def test_a_condition_that_is_missing_is_drawn_as_none(gap):
    times = TIMES.assign(
        clamp=pd.Series([gap if c == "none" else c for c in TIMES["clamp"]], dtype=object)
    )
    ax = plot_emergence(times, axes(), summary=emergence_summary(times, n_resamples=20))
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert len(dots) == 6
    assert [label.get_text() for label in ax.get_yticklabels()] == list(RUNS)
    ax = plot_survival(survival_table(times), axes())
    steps = {line.get_label(): line for line in ax.lines if line.get_drawstyle() == "steps-post"}
    assert set(steps) == set(RUNS)
    assert steps["none"].get_xdata().tolist() == [0, 400, 500]


def test_times_and_flags_of_a_plot_are_those_of_a_table():
    for bad in (math.nan, math.inf, -1.0):
        with pytest.raises(ValueError, match=f"The column 'time' holds {bad:g}"):
            plot_emergence(TIMES.assign(time=bad), axes())
    with pytest.raises(ValueError, match="The column 'observed' holds 'False'"):
        plot_emergence(TIMES.assign(observed="False"), axes())
    ax = plot_emergence(TIMES.assign(observed=TIMES["observed"].astype(int)), axes())
    assert len([text for text in ax.texts if text.arrow_patch is not None]) == 2
    assert plot_emergence(TIMES.assign(time=0.0), axes()).get_xlim() == (0, 1)


def test_summaries_of_two_studies_are_refused():
    summary = emergence_summary(TIMES, n_resamples=20)
    with pytest.raises(ValueError, match="More than one row"):
        plot_emergence(TIMES, axes(), summary=pd.concat([summary, summary]))


def test_marks_of_a_transition_are_seen():
    curve = pd.DataFrame({"sequences": [0, 100], "loss": [1.0, 0.0]})
    ax = plot_transition(curve, axes(), marks={"late": 250.0})
    assert ax.get_xlim()[1] == 250
    for marks in ({"a": math.nan}, {"a": -1.0}):
        with pytest.raises(ValueError, match="The mark 'a' is at"):
            plot_transition(curve, axes(), marks=marks)
    with pytest.raises(ValueError, match="plateau="):
        plot_transition(curve, axes(), marks={}, plateau=(math.inf, math.inf))
