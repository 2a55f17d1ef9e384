import inspect

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from ih_interp.plots import plot_clamped_losses, plot_losses, plot_strengths, plot_toy, save, style
from ih_interp.plots._style import CLAMP_LINES, CLAMPED_VECTORS, SPLIT_LINES, name_heads


def table_of(column, names, seeds=(5,)):
    return pd.DataFrame(
        [
            {
                "seed": seed,
                column: name,
                "sequences": s,
                "loss": 2 - s / 100 + seed,
                "value": s / 100,
            }
            for seed in seeds
            for name in names
            for s in (0, 50, 100)
        ]
    )


def lines_of(ax):
    """The conditions drawn; in the legend they may be told in more words."""
    return [name for line in ax.lines if not (name := line.get_label()).startswith("_")]


def labels_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_losses_are_named_as_the_paper_names_them():
    ax = plot_losses(table_of("split", SPLIT_LINES), Figure().subplots())
    assert labels_of(ax) == ["train", "test (exemplars)", "test (relabel)"]


def test_one_seed_is_one_thick_line_and_several_have_a_median():
    one = plot_losses(table_of("split", ["train"]), Figure().subplots())
    assert len(one.lines) == 2  # and the line at ln 2; splits that are not there leave no name
    assert labels_of(one) == ["train"]
    several = plot_losses(table_of("split", ["train"], seeds=(1, 2, 9)), Figure().subplots())
    thin = [line for line in several.lines if line.get_linewidth() < 0.7]
    assert len(thin) == 3
    (thick,) = (line for line in several.lines if line.get_label() == "train")
    assert np.asarray(thick.get_ydata())[0] == pytest.approx(2 + 2)  # the median seed


def test_only_heads_of_the_layer_are_drawn():
    table = table_of("name", ["L0H0", "L1H10", "L1H7"])
    ax = plot_strengths(table, Figure().subplots(), layer=1)
    assert labels_of(ax) == ["L1H7", "L1H10"]


def test_clamps_and_the_toy_keep_their_order():
    ax = plot_clamped_losses(table_of("clamp", CLAMP_LINES), Figure().subplots())
    assert lines_of(ax) == list(CLAMP_LINES)
    toy = table_of("clamped", CLAMPED_VECTORS).rename(columns={"sequences": "iteration"})
    assert lines_of(plot_toy(toy, Figure().subplots())) == list(CLAMPED_VECTORS)


def test_a_runs_metrics_are_one_networks_losses_and_any_split_is_drawn():
    table = table_of("split", ["mine", "train"]).drop(columns="seed")
    assert labels_of(plot_losses(table, Figure().subplots())) == ["train", "mine"]


def test_only_the_layer_asked_for_is_drawn_and_one_network():
    table = table_of("name", ["L0H0", "L1H7"])
    assert labels_of(plot_strengths(table, Figure().subplots(), layer=0)) == ["L0H0"]
    with pytest.raises(ValueError, match="sequences=0, name='L0H0'; give the rows of one network"):
        plot_strengths(pd.concat([table, table]), Figure().subplots())


def test_clamps_of_any_name_are_drawn_and_no_other_is_in_the_legend():
    table = table_of("clamp", ["mine", "other", "match", "none"])
    ax = plot_clamped_losses(table, Figure().subplots())
    assert lines_of(ax) == ["none", "match", "mine", "other"]
    assert labels_of(ax) == ["none: A, B, C", "match: C", "mine", "other"]
    colours = [line.get_color() for line in ax.lines[:4]]
    assert colours[:2] == [CLAMP_LINES["none"].colour, CLAMP_LINES["match"].colour]
    assert len(set(colours)) == 4
    alone = plot_clamped_losses(table_of("clamp", ["none", "mine"]), Figure().subplots())
    assert labels_of(alone) == ["none", "mine"]  # letters of subcircuits would say nothing
    assert not [text for text in alone.texts if text.get_text().startswith("A ")]
    toy = table_of("clamped", ["mine", "c"]).rename(columns={"sequences": "iteration"})
    assert labels_of(plot_toy(toy, Figure().subplots())) == ["c: waits less", "mine"]


def test_clamped_losses_end_where_they_are_told_to():
    table = table_of("clamp", ["none"])
    assert plot_clamped_losses(table, Figure().subplots()).get_xlim()[1] == 100
    assert plot_clamped_losses(table, Figure().subplots(), end=40).get_xlim()[1] == 40


def test_a_legend_stands_beside_axes_whose_corner_has_curves():
    def beside(losses):
        curve = pd.DataFrame({"sequences": [0, 50, 100], "clamp": "none", "loss": losses})
        ax = plot_clamped_losses(curve, Figure(figsize=(6, 4)).subplots(), end=100)
        left = ax.get_legend().get_window_extent().x0
        return left >= ax.get_window_extent().x1

    assert not beside([2.0, 0.1, 0.1])
    assert beside([2.0, 1.9, 1.9])


def test_a_legend_beside_narrow_axes_is_off_the_words_at_a_guess():
    figure = Figure(figsize=(3, 2), layout="constrained")
    table = table_of("split", ["train", "test"]).assign(loss=[2.0, 1.9, 1.9] * 2)
    ax = plot_losses(table, figure.subplots(1, 2)[0], guess=1.5)
    figure.draw_without_rendering()
    (words,) = ax.texts
    assert ax.get_window_extent().x1 < words.get_window_extent().x1
    handle = ax.get_legend().legend_handles[0]
    assert words.get_window_extent().x1 < handle.get_window_extent().x0


def test_names_of_points_stay_within_the_axes():
    with style():
        figure = Figure(figsize=(3, 3), layout="constrained")
        ax = figure.subplots()
        ax.plot([0, 1, 2, 3], [0, 1, 2, 3], "o")
        name_heads(ax, ["L1H0", "L1H1", "L1H2", "L1H3"], range(4), range(4))
        figure.draw_without_rendering()
        inside = ax.get_window_extent()
        for text in ax.texts:
            assert inside.x0 < text.get_window_extent().x0
            assert text.get_window_extent().x1 < inside.x1


def test_lines_can_be_told_apart_without_colour():
    for lines in (CLAMP_LINES, CLAMPED_VECTORS):
        grey = {name: luminance(line.colour) for name, line in lines.items()}
        for one in lines:
            for other in lines:
                same_dash = lines[one].dash == lines[other].dash
                assert one == other or not same_dash or abs(grey[one] - grey[other]) > 0.05, (
                    one,
                    other,
                )


def luminance(colour):
    red, green, blue = mpl.colors.to_rgb(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_saving_writes_three_files_with_equal_bytes_each_time(tmp_path):
    table = table_of("split", SPLIT_LINES)

    def once(folder):
        with style():
            figure = Figure(layout="constrained")
            plot_losses(table, figure.subplots())
        return save(figure, folder, "fig3a", table)

    first, second = once(tmp_path / "a"), once(tmp_path / "b")
    assert [path.name for path in first] == ["fig3a.pdf", "fig3a.png", "fig3a.csv"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert pd.read_csv(first[2]).shape == table.shape


def test_style_leaves_the_users_settings_alone():
    before = mpl.rcParams["font.size"]
    with style():
        assert mpl.rcParams["axes.spines.top"] is False
    assert mpl.rcParams["font.size"] == before


def drawn(ax):
    """Points a curve has that are seen: ends of a segment, or dots."""
    seen = {}
    for line in ax.lines:
        there = np.isfinite(np.asarray(line.get_ydata(), float))
        beside = np.append(False, there[:-1]) | np.append(there[1:], False)
        dots = np.zeros(len(there), bool)
        if line.get_marker() not in ("None", None):
            every = line.get_markevery()
            dots[slice(None, None, every) if isinstance(every, int | None) else every] = True
        seen.setdefault(line.get_label(), []).append(int((there & (beside | dots)).sum()))
    return seen


def of_networks(*curves):
    return pd.concat(
        [
            pd.DataFrame({"sequences": x, "loss": y, "clamp": "match", "seed": seed})
            for seed, (x, y) in enumerate(curves)
        ]
    )


def median_of(ax, name="match"):
    (line,) = (line for line in ax.lines if line.get_label() == name)
    return np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)


def test_networks_on_other_grids_are_drawn_at_their_own_places_and_summed_up_where_all_are():
    """Falling from 3 and from 0.3 by 0.1 and 0.01 a sequence: by hand at 5, 10, 15 and 20."""
    table = of_networks(([0, 10, 20], [3.0, 2, 1]), ([5, 15, 25], [0.3, 0.2, 0.1]))
    for rows in (table, table.sample(frac=1, random_state=0)):
        ax = plot_clamped_losses(rows, Figure().subplots())
        x, y = median_of(ax)
        assert x.tolist() == [5, 10, 15, 20]
        assert y == pytest.approx([(2.5 + 0.3) / 2, (2 + 0.25) / 2, (1.5 + 0.2) / 2, 1.15 / 2])
        thin = [line.get_xydata().tolist() for line in ax.lines if line.get_linewidth() < 0.7]
        assert thin == [[[0, 3], [10, 2], [20, 1]], [[5, 0.3], [15, 0.2], [25, 0.1]]]


def test_a_network_that_ends_earlier_moves_no_median():
    table = of_networks(([0, 10, 20, 30], [3.0] * 4), ([0, 10], [1.0] * 2))
    x, y = median_of(plot_clamped_losses(table, Figure().subplots()))
    assert (x.tolist(), y.tolist()) == ([0, 10], [2, 2])
    gap = of_networks(([0, 10, 20, 30], [3.0] * 4), ([0, 10, 20, 30], [1.0, 1, np.nan, 1]))
    x, y = median_of(plot_clamped_losses(gap, Figure().subplots()))
    assert (x.tolist(), y.tolist()) == ([0, 10, 30], [2, 2, 2])


def test_networks_without_a_place_in_common_stand_alone():
    table = of_networks(([0, 10], [3.0, 2]), ([20, 30], [1.0, 0.5]))
    ax = plot_clamped_losses(table, Figure().subplots())
    assert labels_of(ax)[0].startswith("match")
    assert len([line for line in ax.lines if line.get_linewidth() < 0.7]) == 2
    assert drawn(ax)["match"] == [2]
    assert not ax.collections


@pytest.mark.parametrize("gap", [None, np.nan, pd.NA], ids=repr)
def test_a_condition_that_is_missing_is_none(gap):
    table = table_of("clamp", ["none", "match"], seeds=(1, 2))
    named = plot_clamped_losses(table, Figure().subplots())
    missing = pd.Series([gap if c == "none" else c for c in table["clamp"]], dtype=object)
    ax = plot_clamped_losses(table.assign(clamp=missing), Figure().subplots())
    assert labels_of(ax) == labels_of(named) == ["none: A, B, C", "match: C"]
    assert median_of(ax, "none")[1].tolist() == median_of(named, "none")[1].tolist()
    seeds = pd.Series([gap if s == 1 else s for s in table["seed"]], dtype=object)
    ax = plot_clamped_losses(table.assign(seed=seeds), Figure().subplots())
    assert median_of(ax)[1].tolist() == median_of(named)[1].tolist()
    splits = table.rename(columns={"clamp": "split"}).assign(split=missing)
    assert labels_of(plot_losses(splits, Figure().subplots())) == ["none", "match"]


def test_conditions_of_one_name_are_refused():
    for pair in ((None, "none"), (1, "1")):
        table = pd.concat(
            [
                table_of("clamp", [0]).assign(clamp=pd.Series([one] * 3, dtype=object))
                for one in pair
            ]
        )
        with pytest.raises(ValueError, match="one name"):
            plot_clamped_losses(table, Figure().subplots())


def test_a_curve_that_is_nan_is_refused_by_name_and_a_point_alone_is_a_dot():
    table = table_of("clamp", ["none", "match"])
    nan = table.assign(loss=table["loss"].where(table["clamp"] == "none"))
    with pytest.raises(ValueError, match="'loss' is NaN in all rows of the curve clamp='match'"):
        plot_clamped_losses(nan, Figure().subplots())
    one = plot_clamped_losses(table[table["sequences"] == 50], Figure().subplots())
    assert drawn(one)["none"] == drawn(one)["match"] == [1]
    alone = pd.DataFrame(
        {"sequences": range(5), "split": "train", "loss": [1, 1, np.nan, 1, np.nan]}
    )
    assert drawn(plot_losses(alone, Figure().subplots()))["train"] == [3]
    at_0 = plot_losses(table_of("split", ["train"]).head(1), Figure().subplots())
    assert drawn(at_0)["train"] == [1]
    heads = table_of("name", ["L1H7"]).assign(value=[0.1, np.nan, 0.2])
    assert drawn(plot_strengths(heads, Figure().subplots()))["L1H7"] == [2]


def test_losses_below_0_and_places_below_0_are_not_cut_off():
    low = table_of("split", ["train"]).assign(loss=[1.0, -2.0, 0.5])
    assert plot_losses(low, Figure().subplots()).get_ylim()[0] == -2
    with pytest.raises(ValueError, match="'sequences' holds -5"):
        plot_losses(low.assign(sequences=[-5, 0, 5]), Figure().subplots())


def test_strengths_are_named_by_the_table_or_by_the_call_and_have_the_chance_that_is_given():
    table = table_of("name", ["L0H0", "L1H3"])
    ax = plot_strengths(table, Figure().subplots(), layer=1)
    assert (ax.get_ylabel(), ax.get_title()) == ("score", "Heads of layer 1")
    assert len(ax.lines) == 1  # no level that a score of another chance would not have
    table.attrs["measure"] = "prefix matching"
    ax = plot_strengths(table, Figure().subplots(), layer=1, chance=1 / 12)
    assert (ax.get_ylabel(), ax.get_title()) == (
        "prefix matching",
        "Prefix matching, heads of layer 1",
    )
    assert labels_of(ax) == ["L1H3", "chance"]
    assert list(np.asarray(ax.lines[-1].get_ydata())) == [1 / 12] * 2
    assert plot_strengths(table, Figure().subplots(), measure="mine").get_ylabel() == "mine"
    with pytest.raises(ValueError, match="chance holds nan"):
        plot_strengths(table, Figure().subplots(), chance=np.nan)


def test_without_a_layer_all_heads_are_drawn_and_the_highest_of_each_layer_is_named():
    table = table_of("name", ["L0H0", "L0H1", "L1H3", "L1H10", "L2H1"])
    table.loc[table["name"].isin(["L0H1", "L1H3"]), "value"] += 1
    table.loc[(table["name"] == "L2H1") & (table["sequences"] == 100), "value"] = np.nan
    ax = plot_strengths(table, Figure().subplots())
    assert labels_of(ax) == ["0: L0H1", "1: L1H3", "2: L2H1"]
    curves = {line.get_label(): line for line in ax.lines if len(np.asarray(line.get_xdata()))}
    assert {*curves} == {"_L0H0", "_L0H1", "_L1H3", "_L1H10", "_L2H1"}
    colours = {name: tuple(line.get_color()) for name, line in curves.items()}
    assert colours["_L1H3"] == colours["_L1H10"] != colours["_L0H0"] == colours["_L0H1"]
    grey = [luminance(colours[name]) for name in ("_L0H0", "_L1H3", "_L2H1")]
    assert np.diff(grey).min() > 0.15  # told apart without colour
    assert "all layers" in ax.get_title()
    named = plot_strengths(table, Figure().subplots(), palette={"L1H10": "red", 0: "0.5"})
    assert labels_of(named) == ["0: L0H1", "1: L1H3", "2: L2H1", "L1H10"]
    found = {line.get_label(): line.get_color() for line in named.lines}
    assert (found["L1H10"], found["_L0H0"]) == ("red", "0.5")
    assert named.lines[-1].get_label() == "L1H10"  # over the others


def test_markers_at_the_ends_of_curves_are_whole_and_zooming_cuts_them():
    figure = Figure(figsize=(2, 2), dpi=100)
    ax = figure.subplots()
    plot_strengths(table_of("name", ["L1H3"]), ax, layer=1)
    clip, inside = ax.lines[0].get_clip_box(), ax.get_window_extent()
    for dpi in (100, 72):  # a pdf has 72
        figure.set_dpi(dpi)
        room = np.abs(clip.get_points() - inside.get_points()) * 72 / dpi  # points
        assert room.min() >= 3  # half a marker and half its edge
        assert room.max() < 6


def test_the_line_of_a_guess_is_at_its_loss_or_nowhere():
    for plot, column in ((plot_losses, "split"), (plot_clamped_losses, "clamp")):
        table = table_of(column, ["train"])
        levels = {
            guess: [
                line.get_ydata()[0]
                for line in plot(table, Figure().subplots(), guess=guess).lines[1:]
            ]
            for guess in (1.5, None)
        }
        assert levels == {1.5: [1.5], None: []}


def test_saving_takes_words_for_a_folder_and_a_name_without_one(tmp_path, monkeypatch):
    figure, table = Figure(), pd.DataFrame({"a": [1]})
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (str(tmp_path / "new" / "one"), "~/new/two"):
        assert len(save(figure, folder, "x", table)) == 3
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["one", "two"]
    for name in ("", "a/b", "..", "/x", "a/"):
        with pytest.raises(ValueError, match="name="):
            save(figure, tmp_path / "other", name, table)
    unchecked = inspect.unwrap(save)
    for args in ((Figure().subplots(), tmp_path, "x", table), (figure, tmp_path, "x", [1])):
        with pytest.raises(TypeError, match=r"Figure|DataFrame"):
            unchecked(*args)
    assert not (tmp_path / "other").exists()


def test_saved_numbers_keep_every_digit(tmp_path):
    numbers = [1234567.0, 1 / 3, 1e-300, 2**53 - 1.0, 123456.789012345, np.inf, -0.1]
    table = pd.DataFrame(
        {"time": numbers, "narrow": np.float32(1 / np.arange(1, 8)), "seed": range(7)}
    )
    save(Figure(), tmp_path, "x", table)
    back = pd.read_csv(tmp_path / "x.csv", converters={"time": float, "narrow": float})
    assert back["time"].tolist()[:5] == numbers[:5]
    pd.testing.assert_series_equal(back["time"], table["time"], check_exact=True)
    assert np.array_equal(np.float32(back["narrow"]), table["narrow"], equal_nan=True)
    assert "1234567.0," in (tmp_path / "x.csv").read_text()
