"""No drawing is empty or partial in silence: every public one refuses a wrong table in words."""

import inspect
from functools import partial

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from ih_interp import plots

NOT_DRAWINGS = {"plot_add_back"}  # takes tables by name; has tests of its own below


def rows(**columns):
    """Every combination of the columns' values, with a `value` and its interval."""
    places = pd.MultiIndex.from_product(columns.values(), names=columns).to_frame(index=False)
    value = np.linspace(0.1, 0.9, len(places))
    return places.assign(value=value, low=value - 0.05, high=value + 0.05)


TIMES = {"sequences": [0, 50, 100]}
PARTS = {"metric": ["loss"], "part": ["total", "frozen"]}
HEADS = {"head": ["L1H0", "L1H3"]}
EDGES = {"via": ["k", "v"], "sender": ["L0H0", "L0H1"], "receiver": ["L1H0", "L1H1"]}

GOOD = {
    "plot_losses": rows(split=["train"], **TIMES).assign(loss=1.0),
    "plot_strengths": rows(name=["L0H0", "L1H0"], **TIMES),
    "plot_clamped_losses": rows(clamp=["none", "match"], **TIMES).assign(loss=1.0),
    "plot_toy": rows(clamped=["none", "c"], iteration=[0, 9]).assign(loss=1.0),
    "plot_emergence": rows(clamp=["none"], seed=[5, 6]).assign(time=9.0, observed=True),
    "plot_survival": rows(clamp=["none"], **TIMES).assign(share=1.0, censored=0),
    "plot_progress": rows(clamp=["none"], when=["training", "inference"], **TIMES).assign(loss=1.0),
    "plot_transition": rows(**TIMES).assign(loss=1.0),
    "plot_spectrum": rows(**PARTS, order=[1, 2]),
    "plot_first_last": rows(**PARTS, quantity=["first_in", "last_in"], **HEADS),
    "plot_interactions": rows(**PARTS, quantity=["interaction"], head=["L1H0"], other=["L1H3"])
    .assign(q=0.5),
    "plot_additive_fits": rows(**PARTS),
    "plot_composition": rows(source=["L0H0", "L0H1"], name=["L1H0", "L1H1"]),
    "plot_corrected": rows(**HEADS).assign(base="L1H1", mistakes=9, accuracy=0.5),
    "plot_head_scores": rows(score=["one"], name=["L1H0", "L1H3"]),
    "plot_matches": rows(match=["computed", "perfect"], **HEADS).assign(strength=0.5),
    "plot_label_accuracy": rows(quantity=["accuracy"], label=[0, 1], **HEADS),
    "plot_only_and_without": rows(metric=["accuracy"], kept=["only", "without"], **HEADS)
    .assign(strength=0.5),
    "plot_speeds": pd.DataFrame(
        {"name": ["one"], "processes": [1], "updates_per_second": [9.0], "ratio": [1.0]}
    ),
    "plot_preserving": rows(sender=["L0H0"], receiver=["L1H0"]).assign(accuracy_change=0.1),
    "plot_wiring": rows(**EDGES).assign(use=0.1),
    "plot_wiring_over_training": rows(**EDGES, **TIMES).assign(use=0.1),
    "plot_redundancy_over_training": rows(via=["k"], name=["many_to_many"], **TIMES),
}  # fmt: skip
"""A small table that each public drawing takes, without any column that it can do without."""

SETTINGS = {
    "plot_transition": {"marks": {}},
    "plot_first_last": {"metric": "loss"},
    "plot_interactions": {"metric": "loss"},
    "plot_composition": {"chance": 0.5},
    "plot_wiring_over_training": {"receiver": "L1H0"},
}


def draw(name, table):
    figure = Figure()
    axes = figure.subplots(1, 2) if name == "plot_progress" else figure.subplots()
    drawing = inspect.unwrap(getattr(plots, name))  # past the type checker, which only tests have
    return drawing(table, axes, **SETTINGS.get(name, {}))


def refusal(name, table):
    """What a drawing says against a table; nothing where it draws it."""
    try:
        draw(name, table)
    except ValueError as error:
        return str(error)
    return ""


def test_every_public_drawing_is_tested_here():
    public = {name for name in vars(plots) if name.startswith("plot_")}
    assert public - NOT_DRAWINGS == set(GOOD)


@pytest.mark.parametrize("name", GOOD)
def test_wrong_tables_are_refused_in_words(name):
    draw(name, GOOD[name])
    lacking = [refusal(name, GOOD[name].drop(columns=column)) for column in GOOD[name]]
    refusals = [words for words in lacking if words]
    assert len(refusals) >= 2
    assert all(words.startswith("The table has no column ['") for words in refusals)
    with pytest.raises(ValueError, match="The table has no rows"):
        draw(name, GOOD[name].iloc[:0])
    with pytest.raises(ValueError, match=r"The table has no column .* it has "):
        draw(name, pd.DataFrame({"nothing": [1]}))
    for wrong in ({"a": 1}, None, [1, 2]):
        with pytest.raises(TypeError, match=f"a {type(wrong).__name__} came"):
            draw(name, wrong)


DRAWN_TWICE = sorted(GOOD.keys() - {"plot_emergence", "plot_survival", "plot_speeds"})


@pytest.mark.parametrize("name", DRAWN_TWICE)
def test_two_networks_in_one_table_are_refused(name):
    with pytest.raises(ValueError, match=r"More than one row has .*; give"):
        draw(name, pd.concat([GOOD[name], GOOD[name]]))


@pytest.mark.parametrize(
    ("name", "column", "setting"),
    [
        ("plot_interactions", "metric", "metric"),
        ("plot_interactions", "part", "part"),
        ("plot_first_last", "metric", "metric"),
        ("plot_only_and_without", "metric", "metric"),
        ("plot_label_accuracy", "quantity", "quantity"),
        ("plot_wiring", "via", "via"),
        ("plot_wiring_over_training", "receiver", "receiver"),
        ("plot_redundancy_over_training", "name", "name"),
    ],
)
def test_what_no_row_has_is_refused_with_what_there_is(name, column, setting):
    drawing = partial(getattr(plots, name), GOOD[name], Figure().subplots())
    known = GOOD[name][column].iloc[0]
    with pytest.raises(ValueError, match=rf"{column}='nosuch' is not in the table.*'{known}'"):
        drawing(**{**SETTINGS.get(name, {}), setting: "nosuch"})


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("plot_first_last", "quantity"),
        ("plot_spectrum", "part"),
        ("plot_additive_fits", "part"),
        ("plot_matches", "match"),
        ("plot_only_and_without", "kept"),
        ("plot_progress", "when"),
    ],
)
def test_half_a_picture_is_refused(name, column):
    table = GOOD[name]
    for value in table[column].unique():
        with pytest.raises(ValueError, match=f"{column}='{value}' is not in the table"):
            draw(name, table[table[column] != value])


def test_a_layer_without_heads_is_refused():
    with pytest.raises(ValueError, match=r"No head of layer 5 is in the table; it has layers \[0"):
        plots.plot_strengths(GOOD["plot_strengths"], Figure().subplots(), layer=5)


def test_a_wiring_is_told_to_give_its_table():
    class Wiring:
        def table(self):
            return GOOD["plot_wiring"]

    with pytest.raises(TypeError, match=r"a Wiring came: give its \.table\(\)"):
        draw("plot_wiring", Wiring())


def test_medians_of_other_conditions_are_refused():
    summary = pd.DataFrame({"clamp": ["copy"], "median": 1.0, "median_low": 1.0, "median_high": 1})
    with pytest.raises(ValueError, match="clamp='none' is not in the table; it has"):
        plots.plot_emergence(GOOD["plot_emergence"], Figure().subplots(), summary=summary)


def test_progress_is_drawn_on_two_axes():
    with pytest.raises(ValueError, match="Two axes are drawn on"):
        inspect.unwrap(plots.plot_progress)(GOOD["plot_progress"], Figure().subplots())


def test_maps_without_any_value_are_refused():
    for name, column in (("plot_wiring", "use"), ("plot_composition", "value")):
        with pytest.raises(ValueError, match="The table has no rows"):
            draw(name, GOOD[name].assign(**{column: np.nan}))


def test_orders_of_heads_added_back_are_tables_by_name():
    ax = Figure().subplots()
    order = rows(metric=["loss"], n_heads=[1, 2]).assign(head="L1H0")
    with pytest.raises(TypeError, match=r"Tables by name are drawn.* a DataFrame came"):
        inspect.unwrap(plots.plot_add_back)(order, ax)
    for tables in ({}, dict.fromkeys("abcde", order)):
        with pytest.raises(ValueError, match=f"{len(tables)} orders in one drawing; give 1 to 4"):
            plots.plot_add_back(tables, ax)
    with pytest.raises(ValueError, match="metric='accuracy' is not in the table; it has"):
        plots.plot_add_back({"one": order}, ax, metric="accuracy")
    for wrong in (order.iloc[:0], order.drop(columns="low"), pd.concat([order, order])):
        with pytest.raises(ValueError, match=r"no rows|no column|More than one row"):
            plots.plot_add_back({"one": wrong}, ax)
