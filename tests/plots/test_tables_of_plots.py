"""No plot is empty or partial in silence: every public one refuses a wrong table in words."""

import inspect
import math
from functools import partial

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_hex, to_rgba_array
from matplotlib.figure import Figure

from ih_interp import plots

plt.switch_backend("Agg")

NOT_TABLES = {"plot_add_back"}  # takes tables by name; has tests of its own below


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
    "plot_ablate_each_head": rows(metric=["accuracy"], kept=["only", "without"], **HEADS)
    .assign(strength=0.5),
    "plot_speeds": pd.DataFrame(
        {"name": ["one"], "processes": [1], "updates_per_second": [9.0], "ratio": [1.0]}
    ),
    "plot_preserving": rows(sender=["L0H0"], receiver=["L1H0"]).assign(accuracy_change=0.1),
    "plot_wiring": rows(**EDGES).assign(use=0.1),
    "plot_wiring_over_training": rows(**EDGES, **TIMES).assign(use=0.1),
    "plot_redundancy_over_training": rows(via=["k"], name=["many_to_many"], **TIMES),
}  # fmt: skip
"""A small table that each public plot takes, without any column that it can do without."""

SETTINGS = {
    "plot_transition": {"marks": {}},
    "plot_first_last": {"metric": "loss"},
    "plot_interactions": {"metric": "loss"},
    "plot_composition": {"chance": 0.5},
    "plot_wiring_over_training": {"receiver": "L1H0"},
}


def draw(name, table, **look):
    figure = Figure()
    axes = figure.subplots(1, 2) if name == "plot_progress" else figure.subplots()
    plot = inspect.unwrap(getattr(plots, name))  # past the type checker, which only tests have
    return plot(table, axes, **SETTINGS.get(name, {}), **look)


def refusal(name, table):
    """What a plot says against a table; nothing where it draws it."""
    try:
        draw(name, table)
    except ValueError as error:
        return str(error)
    return ""


def test_every_public_plot_is_tested_here():
    public = {name for name in dir(plots) if name.startswith("plot_")}
    assert public - NOT_TABLES == set(GOOD)
    assert all(f"    {name}: " in plots.__doc__ for name in public)


@pytest.mark.parametrize("name", GOOD)
def test_wrong_tables_are_refused_in_words(name):
    draw(name, GOOD[name])
    lacking = [refusal(name, GOOD[name].drop(columns=column)) for column in GOOD[name]]
    refusals = [words for words in lacking if words]
    assert len(refusals) >= 2
    assert all("lacks the columns ['" in words for words in refusals)
    with pytest.raises(ValueError, match="0 rows"):
        draw(name, GOOD[name].iloc[:0])
    with pytest.raises(ValueError, match=r"lacks the columns .*'nothing'"):
        draw(name, pd.DataFrame({"nothing": [1]}))
    for wrong in ({"a": 1}, None, [1, 2]):
        with pytest.raises(TypeError, match=f"expected a DataFrame, got {type(wrong).__name__}"):
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
        ("plot_ablate_each_head", "metric", "metric"),
        ("plot_label_accuracy", "quantity", "quantity"),
        ("plot_wiring", "via", "via"),
        ("plot_wiring_over_training", "receiver", "receiver"),
        ("plot_redundancy_over_training", "name", "name"),
    ],
)
def test_what_no_row_has_is_refused_with_what_there_is(name, column, setting):
    plot = partial(getattr(plots, name), GOOD[name], Figure().subplots())
    known = GOOD[name][column].iloc[0]
    with pytest.raises(ValueError, match=rf"{column}='nosuch' is not in the table.*'{known}'"):
        plot(**{**SETTINGS.get(name, {}), setting: "nosuch"})


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("plot_first_last", "quantity"),
        ("plot_spectrum", "part"),
        ("plot_additive_fits", "part"),
        ("plot_matches", "match"),
        ("plot_ablate_each_head", "kept"),
        ("plot_progress", "when"),
    ],
)
def test_half_a_picture_is_refused(name, column):
    table = GOOD[name]
    for value in table[column].unique():
        with pytest.raises(ValueError, match=f"{column}='{value}' is not in the table"):
            draw(name, table[table[column] != value])


def test_a_layer_without_heads_is_refused():
    with pytest.raises(ValueError, match=r"layer=5.*\[0, 1\]"):
        plots.plot_strengths(GOOD["plot_strengths"], Figure().subplots(), layer=5)


def test_several_runs_are_led_to_the_plot_that_takes_them():
    class Run:
        metrics = GOOD["plot_losses"]

    with pytest.raises(TypeError, match=r"got list: .*plot_clamped_losses draws several"):
        draw("plot_losses", [Run(), Run()])
    with pytest.raises(TypeError, match=r"got list\.$"):
        draw("plot_losses", [])
    tables = [Run.metrics.query("split == 'train'").assign(clamp=name) for name in "ab"]
    draw("plot_clamped_losses", pd.concat(tables))  # as the message says


def test_axes_are_shown_as_optional():
    for name in NOT_TABLES | set(GOOD):
        axes = [*inspect.signature(getattr(plots, name)).parameters.values()][1]
        assert axes.default is None
        assert "None" in str(axes.annotation), name


def test_a_wiring_is_told_to_give_its_table():
    class Wiring:
        def table(self):
            return GOOD["plot_wiring"]

    with pytest.raises(TypeError, match=r"got Wiring: give its \.table\(\)"):
        draw("plot_wiring", Wiring())


def test_medians_of_other_conditions_are_refused():
    summary = pd.DataFrame({"clamp": ["copy"], "median": 1.0, "median_low": 1.0, "median_high": 1})
    with pytest.raises(ValueError, match="clamp='none' is not in the table; it has"):
        plots.plot_emergence(GOOD["plot_emergence"], Figure().subplots(), summary=summary)


def test_progress_is_drawn_on_two_axes():
    with pytest.raises(ValueError, match="axes"):
        inspect.unwrap(plots.plot_progress)(GOOD["plot_progress"], Figure().subplots())


def test_maps_without_any_value_are_refused():
    for name, column in (("plot_wiring", "use"), ("plot_composition", "value")):
        with pytest.raises(ValueError, match="0 rows"):
            draw(name, GOOD[name].assign(**{column: np.nan}))


def test_orders_of_heads_added_back_are_tables_by_name():
    ax = Figure().subplots()
    order = rows(metric=["loss"], n_heads=[1, 2]).assign(head="L1H0")
    with pytest.raises(TypeError, match=r"tables.*DataFrame"):
        inspect.unwrap(plots.plot_add_back)(order, ax)
    for tables in ({}, dict.fromkeys("abcde", order)):
        with pytest.raises(ValueError, match=f"{len(tables)} orders"):
            plots.plot_add_back(tables, ax)
    with pytest.raises(ValueError, match="metric='accuracy' is not in the table; it has"):
        plots.plot_add_back({"one": order}, ax, metric="accuracy")
    for wrong in (order.iloc[:0], order.drop(columns="low"), pd.concat([order, order])):
        with pytest.raises(ValueError, match=r"0 rows|lacks the columns|More than one row"):
            plots.plot_add_back({"one": wrong}, ax)


MAPS = {"plot_interactions", "plot_composition", "plot_label_accuracy", "plot_preserving"}
MAPS |= {"plot_wiring"}
NUMBER = {"plot_emergence": "time", "plot_survival": "share", "plot_speeds": "ratio"}
NUMBER |= dict.fromkeys(("plot_preserving",), "accuracy_change")
NUMBER |= dict.fromkeys(("plot_wiring", "plot_wiring_over_training"), "use")
LOSSES = ("plot_losses", "plot_clamped_losses", "plot_toy", "plot_progress", "plot_transition")
NUMBER |= dict.fromkeys(LOSSES, "loss")


def artists(axes):
    """What is drawn of data: lines, marks, bars and maps."""
    found = []
    for ax in np.ravel(axes):
        found += [*ax.lines, *ax.collections, *ax.patches, *ax.images]
    return found


@pytest.mark.parametrize("name", GOOD)
def test_a_plot_makes_its_own_axes_in_the_package_style(name):
    plot = getattr(plots, name)
    parameter = list(inspect.signature(plot).parameters.values())[1]
    assert parameter.name in ("ax", "axes")
    assert parameter.default is None
    for axes in (
        plot(GOOD[name], **SETTINGS.get(name, {})),
        plot(GOOD[name], None, **SETTINGS.get(name, {})),
        plot(GOOD[name], **{parameter.name: None}, **SETTINGS.get(name, {})),
    ):
        first = np.ravel(axes)[0]
        assert first.figure.number in plt.get_fignums()  # so that a notebook shows it
        assert name in MAPS or not first.spines["top"].get_visible()
        plt.close(first.figure)
    with pytest.raises(ValueError, match="0 rows"):
        plot(GOOD[name].iloc[:0], **SETTINGS.get(name, {}))
    assert not plt.get_fignums()


@pytest.mark.parametrize("name", GOOD)
def test_settings_reach_the_artists(name):
    key = {"alpha": 0.123}
    assert 0.123 in [artist.get_alpha() for artist in artists(draw(name, GOOD[name], **key))]
    plot = partial(getattr(plots, name), GOOD[name], **SETTINGS.get(name, {}))
    figure = Figure()
    for axes in (None, figure.subplots(1, 2) if name == "plot_progress" else figure.subplots()):
        with pytest.raises(TypeError, match=rf"{name}: expected settings.*'figsize'"):
            plot(axes, figsize=(8, 4))
    assert not plt.get_fignums()


def colours_of(axes):
    found = []
    for artist in artists(axes):
        for part in ("get_color", "get_facecolor"):
            if hasattr(artist, part):
                found += [to_hex(one) for one in to_rgba_array(getattr(artist, part)())]
    return found


PALETTED = [
    name for name in GOOD if "palette" in inspect.signature(getattr(plots, name)).parameters
]


def test_all_but_maps_and_single_marks_take_a_palette():
    single = {"plot_corrected", "plot_additive_fits", "plot_speeds"}
    assert set(GOOD) - MAPS - single == set(PALETTED)


@pytest.mark.parametrize("name", PALETTED)
@pytest.mark.parametrize("palette", [["#123456", "#abcdef", "#fedcba", "#a1b2c3"], "Set2"])
def test_palettes_colour_what_is_drawn(name, palette):
    wanted = palette[0] if isinstance(palette, list) else to_hex(plt.get_cmap("Set2")(0))
    if name == "plot_transition":
        axes = plots.plot_transition(
            GOOD[name], Figure().subplots(), marks={"a": 50.0}, palette=palette
        )
    else:
        axes = draw(name, GOOD[name], palette=palette)
    assert wanted in colours_of(axes)


def test_a_palette_by_name_leaves_the_others_their_own():
    ax = draw("plot_clamped_losses", GOOD["plot_clamped_losses"], palette={"match": "red"})
    found = {line.get_label(): line.get_color() for line in ax.lines}
    assert (found["match"], found["none"]) == ("red", "#000000")
    ax = draw("plot_strengths", GOOD["plot_strengths"], layer=1, palette={"L1H0": "red"}, lw=5)
    assert (ax.lines[0].get_color(), ax.lines[0].get_linewidth()) == ("red", 5)
    ax = draw("plot_wiring", GOOD["plot_wiring"], cmap="viridis")
    assert ax.images[0].get_cmap().name == "viridis"


@pytest.mark.parametrize("bad", [np.inf, -np.inf])
@pytest.mark.parametrize("name", GOOD)
def test_infinity_has_no_place_in_a_picture(name, bad):
    column = NUMBER.get(name, "value")
    table = GOOD[name].astype({column: float})
    table.iloc[0, table.columns.get_loc(column)] = bad
    with pytest.raises(ValueError, match=rf"{column}'? holds {bad:g}"):
        draw(name, table)


@pytest.mark.parametrize("name", GOOD)
def test_what_is_nan_everywhere_is_refused(name):
    column = NUMBER.get(name, "value")
    table = GOOD[name].assign(**{column: np.nan})
    if name in ("plot_label_accuracy", "plot_corrected"):  # of heads without any mistake
        draw(name, table)
        return
    with pytest.raises(ValueError, match=rf"{column}'? (holds|is) (nan|NaN)|0 rows"):
        draw(name, table)


@pytest.mark.parametrize("name", GOOD)
def test_the_order_of_rows_does_not_show(name):
    """Conditions keep their order in the table, so each is turned round within itself."""
    keys = [c for c in GOOD[name] if not pd.api.types.is_numeric_dtype(GOOD[name][c])]
    if name in ("plot_transition",):
        turned = GOOD[name][::-1]
    elif "sequences" in GOOD[name] or "iteration" in GOOD[name]:
        parts = [rows[::-1] for _, rows in GOOD[name].groupby(keys, sort=False)]
        turned = pd.concat(parts)
    else:
        turned = GOOD[name].set_axis([3] * len(GOOD[name]))

    def places(axes):
        return [
            np.asarray(line.get_xydata(), float).tolist()
            for ax in np.ravel(axes)
            for line in ax.lines
        ]

    assert places(draw(name, turned)) == places(draw(name, GOOD[name]))


def test_two_columns_of_one_name_are_refused():
    for name, table in GOOD.items():
        column = NUMBER.get(name, "value")
        with pytest.raises(ValueError, match=rf"more than one column \['{column}'\]"):
            draw(name, pd.concat([table, table[column]], axis=1))


def test_a_run_on_several_splits_is_told_which_column_to_choose_by():
    """The remedy is not another seed."""
    splits = ["train", "test_relabel"]
    table = rows(split=splits, clamp=["match"], sequences=[0, 50]).assign(loss=1.0)
    with pytest.raises(
        ValueError, match=r"differ in `split`.*\.query\(\"split == 'train'\"\)"
    ) as told:
        draw("plot_clamped_losses", table)
    assert "seed`" not in str(told.value)
    draw("plot_clamped_losses", table.query("split == 'train'"))


def test_half_of_a_head_is_refused():
    table = GOOD["plot_first_last"]
    lacking = (table["quantity"] == "last_in") & (table["head"] == "L1H3")
    with pytest.raises(ValueError, match="head='L1H3' is not in the table"):
        draw("plot_first_last", table[~lacking])
    two = rows(metric=["a", "b"], part=["total", "frozen"])
    with pytest.raises(ValueError, match="metric='b' is not in the table"):
        draw("plot_additive_fits", two[(two["metric"] == "a") | (two["part"] == "total")])
    with pytest.raises(ValueError, match="order"):
        draw("plot_spectrum", GOOD["plot_spectrum"].query("order > 1"))
    table = GOOD["plot_progress"]
    two = pd.concat([table, table[table["when"] == "training"].assign(clamp="match")])
    with pytest.raises(ValueError, match="clamp='match' is not in the table"):
        draw("plot_progress", two)


def test_inputs_of_other_names_are_drawn():
    table = pd.concat(
        [GOOD["plot_redundancy_over_training"].assign(via=via) for via in ("k", "mine")]
    )
    ax = draw("plot_redundancy_over_training", table)
    assert {"keys", "mine"} <= {line.get_label() for line in ax.lines}


def test_a_map_leaves_out_no_head_without_a_name():
    table = GOOD["plot_preserving"]
    with pytest.raises(ValueError, match="is not a head"):
        draw("plot_preserving", pd.concat([table, table.assign(sender=None)]))


def test_bars_of_one_name_are_two():
    twice = pd.concat([GOOD["plot_speeds"]] * 2)
    assert len(draw("plot_speeds", twice).patches) == 2


def test_orders_of_heads_are_drawn_in_order_and_on_an_axis_that_holds_them():
    order = rows(metric=["loss"], n_heads=[2, 0, 1]).assign(head="L1H0")
    ax = plots.plot_add_back({"one": order})
    assert ax.lines[0].get_xdata().tolist() == [0, 1, 2]
    assert ax.get_yscale() == "log"
    ax = plots.plot_add_back({"one": order.assign(value=0.0)}, lw=4, palette={"one": "red"})
    assert ax.get_yscale() == "linear"
    assert (ax.lines[0].get_linewidth(), ax.lines[0].get_color()) == (4, "red")
    plt.close("all")


CURVE = pd.DataFrame({"sequences": [0, 1, 2], "clamp": "a", "seed": 0, "loss": [2.0, 1.0, 0.5]})


@pytest.mark.parametrize(
    ("look", "words"),
    [
        ({"end": math.nan}, "end"),
        ({"end": -5}, "end"),
        ({"end": "5"}, "end"),
        ({"palette": "nope"}, "colour map"),
        ({"palette": {"a": "notacolour"}}, "notacolour"),
        ({"palette": 3}, "palette"),
        ({"colour": "red"}, "expected settings.*'colour'"),
        ({"lw": 1, "linewidth": 2}, "linewidth"),
        ({"ax": Figure()}, "ax.*Axes"),
    ],
)
def test_looks_that_are_none_are_refused_in_words(look, words):
    with pytest.raises((ValueError, TypeError), match=words):
        plots.plot_clamped_losses(CURVE, **look)


def test_an_index_with_the_name_of_a_column_does_not_show():
    ax = plots.plot_transition(CURVE.set_index("sequences", drop=False), marks={})
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 1, 2])


def test_a_saved_table_keeps_its_named_index(tmp_path):
    table = pd.DataFrame({"value": [1.0]}, index=pd.Index(["a"], name="clamp"))
    plots.save(Figure(), tmp_path, "x", table)
    assert (tmp_path / "x.csv").read_text() == "clamp,value\na,1.0\n"
