"""Edges of bridges: by plain hooks, and those of a HookedTransformer with the same weights."""

import numpy as np
import pytest
from bridges import BRIDGES, TWINS, bridge, needs_twins, twins
from edges_by_hand import CLEAN, CORRUPTED, by_hand, edges, run
from torch.testing import assert_close

from ih_interp.analysis.patching.edge_attribution import edge_attribution
from ih_interp.analysis.patching.path_patching import path_patch
from ih_interp.analysis.patching.self_repair import self_repair
from ih_interp.analysis.patching.wiring import wiring_map, wiring_maps

POST_NORM = ("gemma 2",)
SUMS = [name for name in BRIDGES if name not in POST_NORM]
TWINS = [name for name in TWINS if name not in POST_NORM]


@pytest.mark.parametrize("name", SUMS)
def test_edges_of_a_bridge_are_those_of_plain_hooks(name):
    model = bridge(name)
    scale = float(run(model, CLEAN).abs().max())
    maps = wiring_map(model, CLEAN, CORRUPTED, sender_layer=1, per_sequence=True)
    shared = 4 // (model.cfg.n_key_value_heads or 4)
    for sender, receiver, via in edges(model):
        found = path_patch(
            model, CLEAN, CORRUPTED, [sender], [receiver], via=via, per_sequence=True
        )
        expected = by_hand(model, sender, receiver, via)
        assert_close(found, expected, rtol=0, atol=1e-5 * scale)
        if (sender[0], receiver[0]) == (1, 2):
            effect = maps.through(via)[:, sender[1], receiver[1] // (1 if via == "q" else shared)]
            assert_close(-effect, expected, rtol=0, atol=1e-5 * scale)
        assert expected.abs().max() > 1e-4 * scale


@pytest.mark.parametrize("name", POST_NORM)
def test_norms_behind_attention_are_refused(name):
    with pytest.raises(ValueError, match="normalises what attention writes"):
        path_patch(bridge(name), CLEAN, CORRUPTED, ["L0H0"], "output")


@needs_twins
@pytest.mark.parametrize("name", TWINS)
def test_both_libraries_give_the_same_effects(name):
    hooked, bridge = twins(name)
    scale = float(run(hooked, CLEAN).abs().max())
    for sender, receiver, via in edges(hooked):
        options = {"via": via, "per_sequence": True}
        found, expected = (
            path_patch(model, CLEAN, CORRUPTED, [sender], [receiver], **options)
            for model in (bridge, hooked)
        )
        assert_close(found, expected, rtol=0, atol=1e-5 * scale)
    for options in ({"ablation": "mean"}, {"middle": [(1, 1)], "direction": "denoise"}):
        found, expected = (
            path_patch(model, CLEAN, CORRUPTED, [(0, 1)], [(2, 0), "output"], **options)
            for model in (bridge, hooked)
        )
        assert_close(found, expected, rtol=0, atol=1e-5 * scale)
    maps = [
        wiring_maps(model, CLEAN, CORRUPTED, layer_pairs=[(0, 2)])[0, 2].effects
        for model in (bridge, hooked)
    ]
    assert_close(*maps, rtol=0, atol=1e-5 * scale, equal_nan=True)


@needs_twins
@pytest.mark.parametrize("name", TWINS)
def test_self_repair_of_both_libraries(name):
    hooked, bridge = twins(name)
    found = [self_repair(model, CLEAN, ["L0H2"]) for model in (bridge, hooked)]
    for mine, theirs in zip(*found, strict=True):
        assert_close(mine, theirs, rtol=0, atol=1e-4)


@needs_twins
@pytest.mark.parametrize("name", TWINS)
def test_edge_attribution_of_both_libraries(name):
    tables = [
        edge_attribution(model, CLEAN, CORRUPTED, sample=2).wirings.table() for model in twins(name)
    ]
    largest = tables[0].effect.abs().max()
    assert np.allclose(tables[0].effect, tables[1].effect, rtol=0, atol=1e-4 * largest)
