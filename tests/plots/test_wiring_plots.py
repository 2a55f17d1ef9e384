import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from ih_interp.plots import (
    plot_preserving,
    plot_redundancy_over_training,
    plot_wiring,
    plot_wiring_over_training,
)
from ih_interp.plots.curves import VIA_LINES


def edges(n=2, **columns):
    rows = [
        {"via": via, "sender": f"L0H{s}", "receiver": f"L1H{r}", "use": value + 10 * s + r}
        for via, value in (("k", 100.0), ("v", -100.0))
        for s in range(n)
        for r in range(n)
    ]
    return pd.DataFrame(rows).assign(**columns)


def written(ax):
    """Texts of a map, by (receiver, sender) as its axes name them."""
    senders = [label.get_text() for label in ax.get_xticklabels()]
    receivers = [label.get_text() for label in ax.get_yticklabels()]
    return {
        (receivers[int(text.get_position()[1])], senders[int(text.get_position()[0])]): (
            text.get_text()
        )
        for text in ax.texts
    }


def test_every_edge_is_written_where_it_belongs():
    ax = plot_wiring(edges(), Figure().subplots(), via="k")
    assert written(ax) == {
        ("L1H0", "L0H0"): "100.0", ("L1H1", "L0H0"): "101.0",
        ("L1H0", "L0H1"): "110.0", ("L1H1", "L0H1"): "111.0",
    }  # fmt: skip
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("sender", "receiver")


def test_heads_are_in_the_order_of_their_numbers():
    ax = plot_wiring(edges(11), Figure().subplots())
    assert [label.get_text() for label in ax.get_xticklabels()] == [f"L0H{h}" for h in range(11)]


def test_white_is_zero_and_colours_reach_as_far_on_both_sides():
    for via in ("k", "v"):
        (image,) = plot_wiring(edges(), Figure().subplots(), via=via).images
        assert image.norm.vmin == -image.norm.vmax
        red, green, blue, _ = image.cmap(image.norm(0.0))
        assert min(red, green, blue) > 0.95
    (image,) = plot_wiring(edges(), Figure().subplots(), reach=500.0).images
    assert image.norm.vmax == 500


def test_a_wiring_without_effects_can_be_drawn():
    ax = plot_wiring(edges(use=0.0), Figure().subplots())
    assert set(written(ax).values()) == {".00"}


def test_preserving_maps_of_changes_and_of_accuracies():
    table = edges().query("via == 'k'").drop(columns="via")
    table = table.assign(accuracy=[0.2, 0.4, 0.6, 0.9], accuracy_change=[-0.3, 0, 0.1, -0.2])
    change = plot_preserving(table, Figure().subplots())
    assert change.images[0].norm.vmax == 0.3
    accuracy = plot_preserving(table, Figure().subplots(), column="accuracy", title="one left")
    assert accuracy.images[0].norm.vmin == 0.2
    assert accuracy.get_title(loc="left") == "one left" or accuracy.get_title() == "one left"
    assert written(accuracy)["L1H1", "L0H1"] == ".90"
    # Dark cells carry white text.
    colours = {text.get_text(): text.get_color() for text in accuracy.texts}
    assert (colours[".90"], colours[".20"]) == ("white", "black")


def over_training():
    return pd.concat([edges(3, sequences=s, step=s // 8) for s in (0, 80, 160)])


def test_edges_over_training_are_those_of_one_receiver_and_input():
    ax = plot_wiring_over_training(over_training(), Figure().subplots(), receiver="L1H2", via="v")
    lines = {line.get_label(): line for line in ax.lines if line.get_label().startswith("L")}
    assert list(lines) == ["L0H0", "L0H1", "L0H2"]
    assert np.asarray(lines["L0H1"].get_ydata()).tolist() == [-88.0] * 3
    assert np.asarray(lines["L0H1"].get_xdata()).tolist() == [0, 80, 160]
    assert len({line.get_marker() for line in lines.values()}) == 3


def redundancy():
    rows = [
        {"sequences": s, "via": via, "name": name, "value": v, "low": v - 0.1, "high": v + 0.1}
        for s, v in ((160, 0.4), (0, 0.2))
        for via in ("k", "v")
        for name in ("many_to_many", "effective_senders L1H3")
    ]
    return pd.DataFrame(rows)


def test_redundancy_has_a_line_and_an_interval_for_each_input():
    ax = plot_redundancy_over_training(redundancy(), Figure().subplots())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["keys", "values"]
    assert len(ax.collections) == 2
    assert np.asarray(ax.lines[0].get_ydata()).tolist() == [0.2, 0.4]  # in order of sequences
    assert ax.get_ylim() == (0, 1)
    of_head = plot_redundancy_over_training(
        redundancy(), Figure().subplots(), name="effective_senders L1H3"
    )
    assert of_head.get_ylabel() == "effective number of senders"


def test_what_is_not_in_the_table_is_refused():
    ax = Figure().subplots()
    with pytest.raises(ValueError, match=r"via='q'.*'k', 'v'"):
        plot_wiring(edges(), ax, via="q")
    with pytest.raises(ValueError, match="receiver='L1H9' is not in the table where via='k'"):
        plot_wiring_over_training(over_training(), ax, receiver="L1H9")
    with pytest.raises(ValueError, match="'fan' is not in the table"):
        plot_redundancy_over_training(redundancy(), ax, name="fan")
    with pytest.raises(ValueError, match="'head 3' is not a head"):
        plot_wiring(edges().replace("L0H0", "head 3"), ax)


def test_inputs_can_be_told_apart_without_colour():
    assert len({line.dash for line in VIA_LINES.values()}) == len(VIA_LINES)
    assert all(mpl.colors.is_color_like(line.colour) for line in VIA_LINES.values())


def test_key_value_heads_are_drawn_by_their_names():
    table = pd.DataFrame(
        {
            "via": "k",
            "sender": ["L0H0", "L0H1"] * 2,
            "receiver": ["L1KV1", "L1KV1", "L1KV0", "L1KV0"],
            "effect": [0.1, 0.2, 0.3, 0.4],
            "use": [0.1, 0.2, 0.3, 0.4],
        }
    )
    ax = plot_wiring(table)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["L1KV0", "L1KV1"]
