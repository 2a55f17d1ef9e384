import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from numpy.testing import assert_allclose

from ih_interp.plots import plot_ablate_each_head, plot_add_back, plot_label_accuracy

HEADS = ["L1H0", "L1H3", "L1H6"]


def with_interval(rows):
    return pd.DataFrame([{"low": r["value"] - 0.1, "high": r["value"] + 0.1, **r} for r in rows])


@pytest.fixture
def only():
    rows = [
        {"head": head, "strength": s, "kept": kept, "metric": metric, "value": s + shift}
        for metric, shift in (("accuracy", 0.2), ("loss", 1.0))
        for kept in ("only", "without")
        for head, s in zip(HEADS, (0.4, 0.8, 0.1), strict=True)
    ]
    rows += [
        {"head": None, "strength": np.nan, "kept": kept, "metric": "accuracy", "value": value}
        for kept, value in (("all", 0.99), ("none", 0.3))
    ]
    return with_interval(rows)


def points(ax):
    return [
        np.asarray(c.get_offsets())
        for c in ax.collections
        if isinstance(c, PathCollection) and len(c.get_offsets())
    ]


def test_points_stand_at_strength_and_metric(only):
    ax = plot_ablate_each_head(only, Figure().subplots())
    alone, missing = points(ax)
    assert_allclose(alone, [[0.1, 0.3], [0.4, 0.6], [0.8, 1.0]])
    assert_allclose(missing, alone)
    assert [text.get_text() for text in ax.texts] == ["H6", "H0", "H3"]
    levels = {line.get_label(): line.get_ydata()[0] for line in ax.lines}
    assert levels == {"none ablated": 0.99, "all ablated": 0.3}
    assert ax.get_ylabel() == "accuracy"
    loss = plot_ablate_each_head(only, Figure().subplots(), metric="loss")
    assert_allclose(points(loss)[0][:, 1], [1.1, 1.4, 1.8])


def test_heads_added_back_are_named_and_loss_is_logarithmic():
    rows = [
        {"n_heads": n, "head": head, "metric": "loss", "value": 1.5 / 4**n}
        for n, head in enumerate([None, *HEADS])
    ]
    table = pd.DataFrame(rows).assign(low=lambda t: t["value"] / 2, high=lambda t: t["value"] * 2)
    ax = plot_add_back({"by strength": table, "reversed": table}, Figure().subplots())
    assert ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.texts] == ["H0", "H3", "H6"] * 2
    assert_allclose(ax.lines[0].get_ydata(), table["value"])
    assert ax.get_legend() is not None
    assert plot_add_back({"one": table}, Figure().subplots()).get_legend() is None
    level = plot_add_back({"one": table}, Figure().subplots(), none_ablated=0.02).lines[0]
    assert (level.get_label(), level.get_ydata()[0]) == ("none ablated", 0.02)


def test_labels_keep_the_order_of_heads_and_what_is_missing_stays_empty():
    values = {"L1H3": [1.0, 0.25], "L1H0": [0.5, np.nan]}
    table = pd.DataFrame(
        [
            {
                "head": head,
                "label": float(label),
                "quantity": quantity,
                "value": value,
                "mistakes": 700.0,
            }
            for quantity in ("accuracy", "mistake_share")
            for head, row in values.items()
            for label, value in enumerate(row)
        ]
    )
    for quantity in ("accuracy", "mistake_share"):
        ax = plot_label_accuracy(table, Figure().subplots(), quantity=quantity)
        assert_allclose(ax.images[0].get_array().filled(np.nan), [[1.0, 0.25], [0.5, np.nan]])
        names = ["L1H3", "L1H0"] if quantity == "accuracy" else ["L1H3 (1,400)", "L1H0 (1,400)"]
        assert [label.get_text() for label in ax.get_yticklabels()] == names
        assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1"]
        assert [text.get_text() for text in ax.texts] == ["1.00", ".25", ".50"]
