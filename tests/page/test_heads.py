"""The table of heads finds what was planted: roles, times, edges, and their order."""

import numpy as np
import pandas as pd
import pytest

from ih_interp.page import _figures as figures
from ih_interp.page.ablation import Ablations
from ih_interp.page.heads import MOST_ROWS, edges, heads_that_matter, since

CHANCES = {"previous token": 0.5, "induction": 0.0}


def scores_of(values, score="previous token", name="L0H0", every=100):
    """A head's score at checkpoints so many sequences apart."""
    steps = [every * place for place in range(len(values))]
    columns = {"step": steps, "sequences": steps, "name": name, "score": score, "value": values}
    return pd.DataFrame({**columns, "chance": CHANCES[score]})


def wiring_of(*edges):
    """Edges at one checkpoint, as (input, sender, receiver, use)."""
    table = pd.DataFrame(edges, columns=["via", "sender", "receiver", "use"])
    return table.assign(step=200, sequences=200)


def costs_of(whole, **costs):
    rows = pd.DataFrame({"head": list(costs), "cost": list(costs.values())})
    return Ablations(rows, everything=0.0, nothing=whole)


def planted_scores():
    """One head of each role; the induction head rises between 100 and 200 sequences."""
    return pd.concat(
        [
            scores_of([0.5, 0.5, 0.9]),
            scores_of([0.5, 0.5, 0.5], name="L1H0"),
            scores_of([0.0, 0.0, 0.4], "induction"),
            scores_of([0.0, 0.0, 0.8], "induction", "L1H0"),
        ]
    )


def test_the_heads_that_matter_are_those_that_were_planted():
    wiring = wiring_of(("k", "L0H0", "L1H0", 2.0), ("v", "L0H1", "L1H0", 0.05))
    clamped = {"L0H0": ["ablate_heads (off at the end)"]}
    table = heads_that_matter(planted_scores(), wiring, None, clamped).set_index("head")
    assert table["role"].to_dict() == {"L0H0": "previous token", "L1H0": "induction"}
    assert table["since"].to_list() == pytest.approx([150, 150])
    assert table.loc["L1H0", "fed_by"] == "L0H0 keys 2.0"
    assert table.loc["L0H0", "feeds"] == "L1H0 keys 2.0"
    assert table["clamped"].to_list() == ["ablate_heads (off at the end)", ""]
    assert edges(wiring, "L1H1", "receiver") == ""


@pytest.mark.parametrize(
    ("values", "time"),
    [
        ([0.9, 0.5, 0.5, 0.9], 250),  # it fell, and rose again
        ([0.5, 0.9, 0.6, 0.8, 0.9], 250),  # it rose twice
        ([0.5, 0.7, 0.9], 100),  # a checkpoint at the level itself
        ([0.9, 0.8, 0.9], 0),  # always there
        ([1.0, 0.8, 0.7], 0),  # it fell, and never below half of its end
        ([1.0, 0.55, 0.64], 100 + 100 * 0.02 / 0.09),  # a role that is near to chance
    ],
    ids=["back", "twice", "at the level", "always", "weaker", "near chance"],
)
def test_since_is_the_last_time_at_which_a_score_rose(values, time):
    assert since(scores_of(values), "L0H0", "previous token") == pytest.approx(time)


def test_a_head_without_a_role_has_no_score():
    scores = pd.concat([scores_of([0.5, 0.55]), scores_of([0.0, -0.02], "induction")])
    (row,) = heads_that_matter(scores, None, costs_of(1.0, L0H0=0.4), {}).to_dict("records")
    assert (row["head"], row["role"], row["cost"]) == ("L0H0", "", 0.4)
    assert np.isnan([row["score"], row["chance"], row["since"]]).all()


def test_edges_have_two_digits_that_count_and_noise_has_none():
    noise = [("v", f"L0H{head}", "L1H0", use) for head, use in enumerate([-3e-3, 3.1e-3, 4e-3])]
    strong = [("q", "L0H0", "L1H3", 0.0257), ("q", "L0H0", "L1H7", 0.01)]
    wiring = wiring_of(*noise, *strong)
    assert edges(wiring, "L0H0", "sender") == "L1H3 queries 0.026, L1H7 queries 0.010"
    assert edges(wiring, "L1H0", "receiver") == ""


def test_heads_stand_by_layer_and_the_best_wired_first():
    heads = ["L1H5", "L0H4", "L0H0", "L1H2"]
    scores = pd.concat([scores_of([0.5, 0.9], name=name) for name in heads])
    costs = costs_of(1.0, L1H5=0.05, L0H4=0.3, L0H0=0.02, L1H2=0.01)
    wiring = wiring_of(
        ("k", "L0H0", "L1H2", 3.3), ("k", "L0H4", "L1H5", 0.3), ("v", "L0H0", "L1H5", -9.0)
    )
    wired = heads_that_matter(scores, wiring, costs, {})
    assert wired["head"].to_list() == ["L0H0", "L0H4", "L1H2", "L1H5"]
    unwired = heads_that_matter(scores, None, costs, {})
    assert unwired["head"].to_list() == ["L0H4", "L0H0", "L1H5", "L1H2"]


def test_of_many_heads_those_are_kept_that_matter_most():
    heads = [f"L0H{head}" for head in range(MOST_ROWS + 3)]
    scores = pd.concat([scores_of([0.5, 0.7 + head / 100], name=n) for head, n in enumerate(heads)])
    wiring = wiring_of(("k", "L0H0", "L1H0", 1.0))  # the lowest score, and the best wired
    costs = costs_of(1.0, **{name: 0.9 if name == "L0H1" else 0.01 for name in heads})
    kept = heads_that_matter(scores, wiring, costs, {})["head"].to_list()
    assert len(kept) == MOST_ROWS
    assert kept[0] == "L0H0"
    assert set(heads) - set(kept) == {"L0H2", "L0H3", "L0H4"}


def test_heads_that_matter_have_colours_and_others_are_grey():
    def colours(matter):
        data = figures.scores_figure(planted_scores(), matter)["data"]
        return {
            curve["name"]: curve["line"]["color"] for curve in data if curve["meta"] == "induction"
        }

    found = colours(["L1H0"])
    assert found["L1H0"] == figures.COLOURS[0] != figures.GREY
    assert found["L0H0"] == figures.GREY
    assert figures.GREY not in {colours([])[name] for name in ("L0H0", "L1H0")}
