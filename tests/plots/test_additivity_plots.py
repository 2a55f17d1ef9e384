import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

from ih_interp.plots import plot_first_last, plot_interactions, plot_spectrum

HEADS = ["L1H0", "L1H3", "L1H6"]


def with_interval(rows):
    return pd.DataFrame([{"low": r["value"] - 0.1, "high": r["value"] + 0.1, **r} for r in rows])


def test_bars_of_the_spectrum_sum_to_all():
    shares = {"total": [0.6, 0.2, 0.1, 0.06, 0.04], "frozen": [1.0, 0, 0, 0, 0]}
    table = pd.DataFrame(
        [
            {"metric": metric, "part": part, "order": k + 1, "value": share}
            for metric in ("loss", "logit_difference")
            for part, values in shares.items()
            for k, share in enumerate(values)
        ]
    )
    ax = plot_spectrum(table, Figure().subplots())
    heights = np.array([bar.get_height() for bar in ax.patches]).reshape(4, 4).T
    assert_allclose(heights[0], [0.6, 0.2, 0.1, 0.1])  # order 4 and above together
    assert_allclose(heights.sum(axis=1), 1)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["loss", "logit\ndifference"]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["1 (additive)", "2 (pairs)", "3", "4 and more"]


def test_first_and_last_in_stand_on_their_heads_line():
    rows = [
        {"metric": "loss", "part": part, "quantity": q, "head": head, "value": shift + n}
        for part, shift in (("total", 0.0), ("frozen", 50.0))
        for q, n in (("first_in", 1.0), ("last_in", 2.0))
        for head in HEADS
    ]
    ax = plot_first_last(with_interval(rows), Figure().subplots(), metric="loss")
    drawn = {bars.get_label(): bars.lines[0].get_xdata(orig=False) for bars in ax.containers}
    assert_allclose(drawn["first in: alone"], 1)
    assert_allclose(drawn["last in: beside all others"], 2)
    assert [label.get_text() for label in ax.get_yticklabels()] == HEADS
    assert ax.get_ylim()[0] > ax.get_ylim()[1]  # the first head on top


def test_interactions_are_symmetric_and_marked_where_not_told_from_none():
    pairs = [("L1H0", "L1H3", -0.5, 0.01), ("L1H0", "L1H6", -0.001, 0.01), ("L1H3", "L1H6", 0.2, 1)]
    table = pd.DataFrame(
        [
            {"metric": "loss", "part": "total", "head": a, "other": b, "value": v, "q": q}
            for a, b, v, q in pairs
        ]
    ).assign(quantity="interaction")
    others = pd.DataFrame({"metric": ["loss"], "part": ["total"], "quantity": ["r_squared"]})
    table = pd.concat([table, others])  # as in a whole report
    ax = plot_interactions(table, Figure().subplots(), metric="loss")
    image = ax.images[0]
    matrix = image.get_array().filled(np.nan)
    assert_allclose(matrix, [[np.nan, -0.5, -0.001], [-0.5, np.nan, 0.2], [-0.001, 0.2, np.nan]])
    assert image.get_clim() == (-0.5, 0.5)  # no interaction is white
    assert [text.get_text() for text in ax.texts][:2] == ["-.50", ".00"]
    (dots,) = ax.lines  # one pair, on both sides, each dot within its own cell
    cells = np.round(np.transpose([dots.get_xdata(), dots.get_ydata()]))
    assert cells.tolist() == [[1, 2], [2, 1]]
    assert ax.get_xlabel() == "dot: not told from none (q > 0.05)"


def test_no_interaction_at_all_can_be_drawn():
    table = pd.DataFrame(
        [{"metric": "m", "part": "total", "head": "L1H0", "other": "L1H1", "value": 0.0, "q": 1.0}]
    ).assign(quantity="interaction")
    ax = plot_interactions(table, Figure().subplots(), metric="m")
    assert ax.images[0].get_clim() == (-1, 1)
