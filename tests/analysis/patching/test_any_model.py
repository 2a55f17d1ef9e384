"""Edges of every architecture, of both TransformerLenses, and at any position, by plain hooks."""

import pytest
import torch
from architectures import ARCHITECTURES, architecture
from edges_by_hand import CLEAN, CORRUPTED, LENGTHS, by_hand, edges, recorded, run, score
from torch.testing import assert_close

import ih_interp as ih
from ih_interp.analysis.patching import _upper_layers
from ih_interp.analysis.patching._upper_layers import run_alone
from ih_interp.analysis.patching.path_patching import path_patch
from ih_interp.analysis.patching.preserving import preserving_ablation, preserving_map
from ih_interp.analysis.patching.self_repair import self_repair
from ih_interp.analysis.patching.wiring import wiring_maps

POST_NORM = ("gemma 2",)
SUMS = [name for name in ARCHITECTURES if name not in POST_NORM]


@pytest.mark.parametrize("name", SUMS)
def test_edges_are_those_of_plain_hooks(name):
    model = architecture(name)
    largest, scale = 0.0, float(run(model, CLEAN).abs().max())
    for sender, receiver, via in edges(model):
        found = path_patch(
            model, CLEAN, CORRUPTED, [sender], [receiver], via=via, per_sequence=True
        )
        expected = by_hand(model, sender, receiver, via)
        assert_close(found, expected, rtol=0, atol=1e-5 * scale)
        largest = max(largest, float(expected.abs().max()))
    assert largest > 1e-3 * scale


@pytest.mark.parametrize("name", POST_NORM)
def test_norms_behind_attention_are_refused(name):
    with pytest.raises(ValueError, match="normalises what attention writes"):
        path_patch(architecture(name), CLEAN, CORRUPTED, ["L0H0"], "output")


PASSES = (  # of which the upper layers do not run by themselves
    *("attention only, shortformer", "gpt neo", "mistral", "gemma 2, caps", "split inputs"),
)


@pytest.mark.parametrize("name", [name for name in SUMS if name != "gpt2, one layer"])
def test_all_edges_at_once_are_single_edges(name):
    model = architecture(name)
    assert run_alone(model, 1) == (name not in PASSES)
    scale = float(run(model, CLEAN).abs().max())
    found = wiring_maps(model, CLEAN, CORRUPTED, per_sequence=True)
    assert list(found) == [(0, 1), (0, 2), (1, 2)]
    n_keys = model.cfg.n_heads // (model.cfg.n_key_value_heads or model.cfg.n_heads)
    for sender, receiver, via in edges(model)[:-1]:
        if model.cfg.ungroup_grouped_query_attention or via == "q":
            n_keys = 1
        wiring = found[sender[0], receiver[0]]
        effect = wiring.effects[:, "qkv".index(via), sender[1], receiver[1] // n_keys]
        assert_close(effect, by_hand(model, sender, receiver, via), rtol=0, atol=1e-5 * scale)
        assert wiring.through(via).shape[1:] == (4, 4 // n_keys)
        n_keys = model.cfg.n_heads // (model.cfg.n_key_value_heads or model.cfg.n_heads)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama, grouped", "results kept"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ablation": "mean", "normalise": True},
        {"ablation": "zero", "direction": "denoise", "metric": "loss"},
        {"batch_size": 2, "direction": "denoise"},
    ],
    ids=str,
)
def test_upper_layers_are_passes(name, options, monkeypatch):
    model = architecture(name)
    pairs = [(1, 2), (0, 1)]
    with model.hooks(fwd_hooks=[("blocks.2.hook_attn_out", lambda value, hook: None)]):
        expected = wiring_maps(
            model, CLEAN, CORRUPTED, layer_pairs=pairs, per_sequence=True, **options
        )
    for positions in (2_048, 60):
        monkeypatch.setattr(_upper_layers, "POSITIONS", positions)
        found = wiring_maps(
            model, CLEAN, CORRUPTED, layer_pairs=pairs, per_sequence=True, **options
        )
        assert list(found) == pairs
        for ends in pairs:
            given = found[ends].effects, expected[ends].effects
            assert_close(*given, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_shared_keys_are_named_in_tables():
    model = architecture("llama, grouped")
    table = wiring_maps(model, CLEAN, CORRUPTED).table()
    assert len(table) == 3 * 4 * (4 + 2 + 2)
    assert set(table[table.via == "k"].receiver) == {"L1KV0", "L1KV1", "L2KV0", "L2KV1"}
    assert "L2H3" in set(table[table.via == "q"].receiver)
    assert table.notna().all(axis=None)
    with pytest.raises(ValueError, match="layer_pairs"):
        wiring_maps(model, CLEAN, CORRUPTED, layer_pairs=[(1, 1)])


HALVES = {torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["gpt2", "llama, grouped"])
def test_half_precision_is_near_to_the_same_weights_in_full(dtype, name):
    half = architecture(name, dtype=dtype)
    full = architecture(name)
    full.load_state_dict({k: v.float() for k, v in half.state_dict().items()})
    scale = float(run(full, CLEAN).abs().max())
    for sender, receiver, via in edges(full):
        found, expected = (
            path_patch(model, CLEAN, CORRUPTED, [sender], [receiver], via=via, per_sequence=True)
            for model in (half, full)
        )
        assert_close(found, expected, rtol=0, atol=HALVES[dtype] * scale)
    maps = [
        wiring_maps(model, CLEAN, CORRUPTED, layer_pairs=[(1, 2)])[1, 2].effects
        for model in (half, full)
    ]
    assert_close(*maps, rtol=0, atol=HALVES[dtype] * scale, equal_nan=True)
    with pytest.raises(ValueError, match=str(dtype)):
        self_repair(half, CLEAN, ["L0H1"])


def test_means_leave_padding_out():
    model, head = architecture("gpt2"), (0, 1)
    point = f"blocks.{head[0]}.attn.hook_z"
    z = recorded(model, CORRUPTED, point)[:, :, head[1]]
    mean = torch.stack([z[p < LENGTHS, p].mean(dim=0) for p in range(9)])

    def put(value, hook):
        value = value.clone()
        value[:, :, head[1]] = mean
        return value

    def added(value, hook):
        return value + (mean - clean_z) @ model.blocks[0].attn.W_O[1]

    clean_z = recorded(model, CLEAN, point)[:, :, head[1]]
    expected = score(run(model, CLEAN, ("blocks.2.hook_resid_post", added))) - score(
        run(model, CLEAN)
    )
    options = {"ablation": "mean", "per_sequence": True}
    found = path_patch(model, CLEAN, CORRUPTED, [head], "output", **options)
    assert_close(found, expected, rtol=0, atol=1e-4)
    assert expected.abs().max() > 1e-2
    repair = self_repair(model, CLEAN, [head], ablation="mean", corrupted=CORRUPTED)
    logits, changed = run(model, CLEAN), run(model, CLEAN, (point, put))
    assert_close(repair.total, target_logit(changed) - target_logit(logits), rtol=0, atol=1e-4)


def target_logit(logits):
    rows = [
        torch.stack([logits[i, p, t] for p, t in enumerate(row.tolist()) if t >= 0]).mean()
        for i, row in enumerate(CLEAN.targets)
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama, grouped", "attention only, rms"])
@pytest.mark.parametrize("scale", ["logit", "logit_difference"])
def test_self_repair_over_positions_is_the_mean_of_each(name, scale):
    model = architecture(name)
    found = self_repair(model, CLEAN, ["L1H2"], scale=scale)
    parts = found.direct + found.heads + found.mlps + found.norm
    assert_close(parts, found.total, rtol=0, atol=1e-5)
    each = []
    for which in (0, 1):  # the first and the second asked position of each sequence
        targets = torch.full_like(CLEAN.targets, -100)
        for i, row in enumerate(CLEAN.targets):
            place = [p for p, target in enumerate(row.tolist()) if target >= 0][which]
            targets[i, place] = row[place]
        one = CLEAN.replace(targets=targets)
        each.append(self_repair(model, one, ["L1H2"], scale=scale))
    for part in ("total", "direct", "heads", "mlps", "norm"):
        mean = sum(getattr(one, part) for one in each) / 2
        assert_close(getattr(found, part), mean, rtol=0, atol=1e-5)


def test_asking_at_the_last_position_is_the_same_in_both_forms():
    model = architecture("attention only", n_layers=2)
    target = torch.tensor([3, 1, 4])
    targets = torch.full((3, 9), -100)
    targets[:, -1] = target
    for tokens in (CLEAN.tokens, CORRUPTED.tokens):
        short, long = (ih.Batch(tokens, t, foils=CLEAN.foils) for t in (target, targets))
        maps = [
            wiring_maps(model, one, ih.Batch(CORRUPTED.tokens, target), per_sequence=True)
            for one in (short, long)
        ]
        assert_close(maps[0][0, 1].effects, maps[1][0, 1].effects, rtol=0, atol=1e-4)
        kept = [
            preserving_map(model, one, preserve="patterns", per_sequence=True).loss
            for one in (short, long)
        ]
        assert_close(*kept, rtol=0, atol=1e-4)
    whole = preserving_ablation(model, CLEAN, ["L0H1"], preserve="patterns")
    assert whole.loss.shape == (3,)
