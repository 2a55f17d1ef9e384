"""A set's effect beside those of matched random sets, against passes and where it is planted."""

import itertools

import numpy as np
import pytest
import torch
from architectures import architecture
from brute_force import asked_here_and_there, by_brute_force

import ih_interp as ih
from ih_interp.analysis.ablation.matched_sets import (
    MatchedSets,
    _others,
    _sets,
    matched_random_sets,
)
from ih_interp.batch import Batch
from ih_interp.types import Head


def effect_of(model, batch, off, metric=0):
    """The metric without these heads minus with them, by two plain passes."""
    values = by_brute_force(model, batch, off, on=[0, 2 ** len(off) - 1])[metric].mean(axis=0)
    return values[0] - values[1]


@pytest.mark.parametrize("name", ["attention only", "llama, grouped"])
def test_all_matched_sets_equal_their_own_passes(name):
    model, batch = architecture(name), asked_here_and_there()
    heads = ["L0H1", "L2H0", "L2H3"]
    found = matched_random_sets(model, batch, heads)
    expected = effect_of(model, batch, heads)
    others = [
        effect_of(model, batch, [f"L0H{n}", "L2H1", "L2H2"]) for n in (0, 2, 3)
    ]  # one pair is left in layer 2
    assert found.n_sets == 3
    assert found.effect == pytest.approx(expected, abs=1e-5)
    assert found.random == pytest.approx(np.mean(others), abs=1e-5)
    assert found.share == (1 + sum(other >= expected for other in others)) / 4
    ends = np.quantile(others, [0.025, 0.975])
    assert (found.low, found.high) == pytest.approx(tuple(ends), abs=1e-5)
    one = matched_random_sets(model, batch, ["L1H0"], metric="logit_difference", ablation="mean")
    assert one.n_sets == 3
    assert one.share in (0.25, 0.5, 0.75, 1.0)


def test_where_lower_is_worse_the_sign_turns():
    model, batch = architecture("attention only"), asked_here_and_there()
    loss = matched_random_sets(model, batch, ["L2H1"])
    opposite = matched_random_sets(model, batch, ["L2H1"], metric=lambda x, b: -_loss(x, b))
    assert opposite.effect == pytest.approx(-loss.effect)
    assert opposite.share == loss.share


def _loss(logits, batch):
    target = batch.targets[batch.asked]
    return -logits.log_softmax(-1).gather(-1, target[:, None])[:, 0]


def test_random_sets_are_matched_even_and_those_of_the_seed():
    chosen = [Head(0, 0), Head(0, 5), Head(2, 1)]
    others = [_others(chosen, layer, 8) for layer in (0, 2)]
    every = [Head(layer, n) for layer in (0, 2) for n in range(8)]
    sets = _sets(others, every, 90, np.random.default_rng(0))
    assert sets.shape == (90, 16)
    assert (sets[:, :8].sum(axis=1) == 2).all()
    assert (sets[:, 8:].sum(axis=1) == 1).all()
    assert not sets[:, [0, 5, 9]].any()
    many = _sets(others, every, 104, np.random.default_rng(0))  # of 105
    shares = many[:, [1, 2, 3, 4, 6, 7]].mean(axis=0)
    assert np.abs(shares - 1 / 3).max() < 0.15
    assert (sets == _sets(others, every, 90, np.random.default_rng(0))).all()
    assert (sets != _sets(others, every, 90, np.random.default_rng(1))).any()
    whole = _sets(others, every, 105, np.random.default_rng(0))
    assert len(np.unique(whole, axis=0)) == len(whole) == 105


def test_heads_that_do_everything_hurt_more_than_all_matched_sets():
    """Heads of a model of eight write nothing, but for one, which writes the answer's direction."""
    model = architecture("attention only, no norm", n_heads=8, n_layers=2, d_vocab=9)
    tokens = torch.randint(9, (12, 5), generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, torch.zeros(12, dtype=torch.long))
    with torch.no_grad():
        attn = model.blocks[1].attn
        attn.W_O[torch.arange(8) != 3] *= 1e-3
        attn.b_V[3], attn.W_V[3] = 1.0, 0.0
        attn.W_O[3] = model.unembed.W_U[:, 0]
    found = matched_random_sets(model, batch, ["L1H3"])
    assert found.share == 1 / 8
    assert found.effect > 1 > found.high
    idle = matched_random_sets(model, batch, ["L1H2"])
    assert idle.share >= 2 / 8


def test_blind_picks_have_even_shares():
    """Over every set of one head in turn, the shares are those of ranks."""
    model, batch = architecture("attention only", n_heads=8), asked_here_and_there()
    shares = [matched_random_sets(model, batch, [(1, n)]).share for n in range(8)]
    assert sorted(shares) == [rank / 8 for rank in range(1, 9)]


def test_it_is_traced_and_refuses_what_cannot_be_matched(small_run, model, batch):
    own = small_run.task.sample("train", 24, seed=0)
    table = ih.trace(
        small_run, lambda m, b: matched_random_sets(m, b, ["L1H3"], n_sets=5), batch=own
    )
    assert list(table.name.unique()) == list(MatchedSets._fields)
    for heads, word in (([], "at least one"), ([(1, n) for n in range(5)], "layer 1")):
        with pytest.raises(ValueError, match=word):
            matched_random_sets(model, batch, heads)
    four = list(itertools.product([1], range(4)))
    assert matched_random_sets(model, batch, four).n_sets == 1
