import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from ih_interp.plots import (
    plot_clamped_losses,
    plot_losses,
    plot_strengths,
    plot_toy,
    save,
    style,
)
from ih_interp.plots.style import CLAMP_LINES, CLAMPED_VECTORS, SPLIT_LINES, name_points


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
    ax = plot_strengths(table, Figure().subplots())
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


def test_names_of_points_stay_within_the_axes():
    with style():
        figure = Figure(figsize=(3, 3), layout="constrained")
        ax = figure.subplots()
        ax.plot([0, 1, 2, 3], [0, 1, 2, 3], "o")
        name_points(ax, ["H0", "H1", "H2", "H3"], [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0])
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
