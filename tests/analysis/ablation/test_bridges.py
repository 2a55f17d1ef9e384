"""Ablation on a `TransformerBridge`: a pass per subset, with plain hooks, and its twin."""

import pytest
import torch
from bridges import BRIDGES, TWINS, bridge, needs_twins, twins
from brute_force import HEADS, SCALES, asked_here_and_there, by_brute_force, clean_z
from numpy.testing import assert_allclose

from ih_interp.analysis.ablation.additivity import additivity_test
from ih_interp.analysis.ablation.coalitions import coalitions
from ih_interp.analysis.ablation.single_heads import ablate_each_head, add_back


@pytest.mark.parametrize("name", BRIDGES)
def test_every_subset_equals_its_own_pass_on_a_bridge(name):
    model, batch = bridge(name), asked_here_and_there()
    given = {"metric": SCALES, "per_sequence": True}
    found = coalitions(model, batch, HEADS, **given)
    assert_allclose(found.per_sequence, by_brute_force(model, batch, HEADS), atol=1e-5, rtol=1e-5)
    found = coalitions(model, batch, HEADS, ablation="mean", **given)
    z, there = clean_z(model, batch.tokens, HEADS), batch.present[..., None, None]
    mean = (z * there).sum(dim=0, keepdim=True) / there.sum(dim=0, keepdim=True)
    expected = by_brute_force(model, batch, HEADS, value=mean)
    assert_allclose(found.per_sequence, expected, atol=1e-5, rtol=1e-5)


@needs_twins
@pytest.mark.parametrize("name", TWINS)
def test_both_transformer_lenses_give_the_same_games(name):
    hooked, bridged = twins(name)
    batch = asked_here_and_there(lengths=torch.tensor([9, 9, 7, 7]))
    for options in ({"freeze_ln": True}, {"ablation": "mean"}, {"ablation": "resample", "seed": 3}):
        found, expected = (
            coalitions(m, batch, HEADS, metric=SCALES, per_sequence=True, **options)
            for m in (bridged, hooked)
        )
        assert_allclose(found.per_sequence, expected.per_sequence, atol=1e-5, rtol=1e-5)
    given = {"metrics": ["loss", "logit_difference"]}
    for measure in (
        lambda m: (
            additivity_test(m, batch, HEADS, n_resamples=20, n_permutations=20, **given).numbers
        ),
        lambda m: ablate_each_head(m, batch, **given),
        lambda m: add_back(m, batch, ["L2H1", "L2H0"], **given),
    ):
        found, expected = measure(bridged), measure(hooked)
        assert_allclose(found.value, expected.value, atol=1e-4, rtol=1e-4)
