import re

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from ih_interp.plots import (
    plot_additive_fits,
    plot_composition,
    plot_corrected,
    plot_head_scores,
    plot_matches,
)
from ih_interp.plots._style import head_colour, head_marker, head_place, short_head
from ih_interp.plots.single_heads import HATCHES

HEADS = ["L0H0", "L0H1", "L1H0", "L1H1"]


def scores(*names):
    rows = [
        {"score": score, "name": head, "value": 0.1 * (10 * n + i), "chance": 0.2 + n}
        for n, score in enumerate(names)
        for i, head in enumerate(reversed(HEADS))
    ]
    return pd.DataFrame(rows)


def pairs(values):
    """`values[reader][source]`, two layers of two heads."""
    return pd.DataFrame(
        [
            {"source": f"L0H{source}", "name": f"L1H{reader}", "value": value}
            for reader, row in enumerate(values)
            for source, value in enumerate(row)
        ]
    )


def test_heads_stand_in_order_with_their_values():
    ax = plot_head_scores(scores("one"), Figure().subplots())
    assert [tick.get_text() for tick in ax.get_xticklabels()] == HEADS
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == pytest.approx([0.3, 0.2, 0.1, 0.0])
    places = np.array([bar.get_x() for bar in ax.patches])
    gaps = np.diff(places)
    assert gaps[1] > gaps[0] == pytest.approx(gaps[2])  # between layers


def test_heads_beyond_nine_are_sorted_as_numbers():
    names = [f"L0H{n}" for n in range(12)]
    table = pd.DataFrame({"score": "one", "name": names[::-1], "value": 0.0})
    ax = plot_head_scores(table, Figure().subplots())
    assert [tick.get_text() for tick in ax.get_xticklabels()] == names


def test_each_score_has_its_chance_line_in_its_colour():
    ax = plot_head_scores(scores("one", "two"), Figure().subplots())
    dashed = {line.get_ydata()[0]: line.get_color() for line in ax.lines[:-1]}
    assert list(dashed) == pytest.approx([0.2, 1.2])
    first, second = ax.patches[0], ax.patches[4]
    assert [to_rgb(colour) for colour in dashed.values()] == [
        first.get_facecolor()[:3],
        second.get_facecolor()[:3],
    ]
    assert first.get_hatch() != second.get_hatch()  # told apart in grey
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["one", "two"]


def test_scores_without_chance_have_no_line():
    for table in (scores("one").drop(columns="chance"), scores("one").assign(chance=np.nan)):
        ax = plot_head_scores(table, Figure().subplots())
        assert len(ax.lines) == 1  # that at 0


def test_a_heads_name_tells_its_place_order_and_look():
    names = ["L1H0", "L0H10", "L0H2"]
    assert [head_place(name) for name in names] == [(1, 0), (0, 10), (0, 2)]
    assert sorted(names, key=head_place) == names[::-1]
    assert [short_head(name) for name in names] == ["H0", "H10", "H2"]
    assert head_colour("L0H10") == head_colour("L1H2") != head_colour("L1H3")
    assert head_marker("L0H10") == head_marker("L1H2") != head_marker("L1H3")
    for name in ("H3", "L1H3 + L1H0", "L1H"):
        with pytest.raises(ValueError, match=f"{re.escape(name)}' is not a head"):
            head_place(name)


def test_too_many_scores_and_other_names_are_refused():
    with pytest.raises(ValueError, match="5 scores"):
        plot_head_scores(scores(*(str(n) for n in range(len(HATCHES) + 1))), Figure().subplots())
    with pytest.raises(ValueError, match="'H3' is not a head"):
        plot_head_scores(scores("one").iloc[:1].assign(name="H3"), Figure().subplots())


def test_a_map_reads_by_rows_and_writes_by_columns():
    ax = plot_composition(pairs([[0.1, 0.4], [0.25, 9.5]]), Figure().subplots(), chance=0.25)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["L1H0", "L1H1"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["L0H0", "L0H1"]
    written = {text.get_position(): text.get_text() for text in ax.texts}
    # Zeros before the point are left out, others are not.
    assert written == {(0, 0): ".10", (1, 0): ".40", (0, 1): ".25", (1, 1): "9.50"}


def test_white_is_chance_and_both_sides_reach_as_far():
    ax = plot_composition(pairs([[0.12, 0.11], [0.125, 0.135]]), Figure().subplots(), chance=0.125)
    (image,) = ax.images
    assert image.norm.vmin + image.norm.vmax == pytest.approx(2 * 0.125)
    assert image.norm.vmax == pytest.approx(0.14)
    assert min(image.cmap(image.norm(0.125))[:3]) > 0.95
    # So close together, a third digit is written.
    assert {text.get_text() for text in ax.texts} == {".120", ".110", ".125", ".135"}


def test_pairs_that_cannot_compose_are_left_out():
    table = pd.concat(
        [
            pairs([[0.1, 0.2], [0.3, 0.4]]),
            pd.DataFrame([{"source": "L1H0", "name": "L0H0", "value": np.nan}]),
        ]
    )
    ax = plot_composition(table, Figure().subplots(), chance=0.2)
    assert len(ax.get_xticklabels()) == len(ax.get_yticklabels()) == 2


def test_pairs_all_at_chance_can_be_drawn():
    ax = plot_composition(pairs([[0.5, 0.5], [0.5, 0.5]]), Figure().subplots(), chance=0.5)
    assert min(ax.images[0].cmap(ax.images[0].norm(0.5))[:3]) > 0.95


def corrected():
    rows = [("L1H0", 0.5, 0.25), ("L1H2", 0.75, 1.0)]
    table = pd.DataFrame(rows, columns=["head", "accuracy", "value"])
    return table.assign(
        base="L1H1", mistakes=1_553, low=table["value"] - 0.1, high=table["value"] + 0.1
    )


def test_every_head_has_its_line_and_the_base_tells_its_mistakes():
    ax = plot_corrected(corrected(), Figure().subplots())
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["L1H0", "L1H1", "L1H2"]
    drawn = {line.get_label(): line for line in ax.lines}
    shares = drawn["corrected (95% interval)"]
    assert shares.get_xdata().tolist() == [0.25, 1.0]
    assert list(shares.get_ydata()) == [0, 2]
    assert drawn["accuracy on all"].get_xdata().tolist() == [0.5, 0.75]
    texts = {text.get_text(): text.xy[1] for text in ax.texts}
    assert texts == {"25%": 0, "100%": 2, "L1H1 alone: 1,553 mistakes": 1}


def test_a_base_without_mistakes_can_be_drawn():
    table = corrected().assign(mistakes=0, value=np.nan, low=np.nan, high=np.nan)
    ax = plot_corrected(table, Figure().subplots())
    assert [text.get_text() for text in ax.texts] == ["L1H1 alone: 0 mistakes"]


def test_both_matches_stand_at_the_heads_strength_and_one_network_is_named():
    table = pd.DataFrame(
        [
            {"seed": seed, "head": head, "strength": s, "match": match, "value": s + more}
            for seed, shift in ((5, 0.0), (6, 0.01))
            for head, s in (("L1H0", 0.2 + shift), ("L1H3", 0.8 + shift))
            for match, more in (("computed", 0.0), ("perfect", 0.1))
        ]
    )
    ax = plot_matches(table, Figure().subplots())
    points = {
        (line.get_marker(), round(line.get_xdata()[0], 9), round(line.get_ydata()[0], 9))
        for line in ax.lines
        if line.get_marker() in "o^" and len(line.get_xdata())
    }
    assert points == {
        (marker, s, round(s + more, 9))
        for marker, more in (("o", 0.0), ("^", 0.1))
        for s in (0.2, 0.8, 0.21, 0.81)
    }
    assert [text.get_text() for text in ax.texts] == ["H0", "H3"]


def test_fits_stand_at_their_scale_filled_as_it_is_and_open_frozen():
    table = pd.DataFrame(
        [
            {"seed": seed, "metric": metric, "part": part, "value": value}
            for seed in (5, 6)
            for metric, values in {"logit": (0.9, 1.0), "loss": (0.6, 0.7)}.items()
            for part, value in zip(("total", "frozen"), values, strict=True)
        ]
    )
    ax = plot_additive_fits(table, Figure().subplots(), names=["the logit", "the loss"])
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["the logit", "the loss"]
    values = [line.get_xdata().tolist() for line in ax.lines]
    assert values == [[0.9, 0.6]] * 2 + [[1.0, 0.7]] * 2
    assert [line.get_markerfacecolor() == "white" for line in ax.lines] == [False] * 2 + [True] * 2
