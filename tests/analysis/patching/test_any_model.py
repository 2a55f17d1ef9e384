"""Edges of every architecture, of both TransformerLenses, and at any position, by plain hooks."""

import pytest
import torch
from architectures import ARCHITECTURES, architecture
from bridges import TWINS, twins
from torch.testing import assert_close

import ih_interp as ih
from ih_interp.analysis.patching import _upper_layers
from ih_interp.analysis.patching._upper_layers import run_alone
from ih_interp.analysis.patching.path_patching import path_patch
from ih_interp.analysis.patching.wiring import wiring_maps

POST_NORM = ("gemma 2",)
SUMS = [name for name in ARCHITECTURES if name not in POST_NORM]
LENGTHS = torch.tensor([9, 6, 7])


def prompts(seed=0, d_vocab=30):
    """Padded prompts of three lengths, asked at their last token and once before, with foils."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape, high=7):
        return torch.randint(0, high, shape, generator=generator)

    targets = torch.full((3, 9), -100)
    targets[range(3), LENGTHS - 1] = drawn(3)
    targets[range(3), [2, 0, 4]] = drawn(3)
    foils = torch.tensor([[1, 2], [3, -100], [0, 5]])
    return ih.Batch(drawn(3, 9, high=d_vocab), targets, lengths=LENGTHS, foils=foils)


CLEAN, CORRUPTED = prompts(0), prompts(1)


def score(logits, batch=CLEAN):
    """Each sequence's mean logit difference, position by position."""
    rows = []
    for i, row in enumerate(batch.targets):
        foils = [f for f in batch.foils[i].tolist() if f >= 0]
        places = [p for p, target in enumerate(row.tolist()) if target >= 0]
        each = [logits[i, p, row[p]] - logits[i, p, foils].mean() for p in places]
        rows.append(torch.stack(each).mean())
    return torch.stack(rows)


def run(model, batch, *hooks):
    with torch.no_grad(), model.hooks(fwd_hooks=list(hooks)):
        return model(batch.tokens)


def recorded(model, batch, name, *hooks):
    """One activation of a whole pass."""
    kept = []
    run(model, batch, *hooks, (name, lambda value, hook: kept.append(value.clone())))
    return kept[0]


def written(model, batch, head):
    layer, number = head
    z = recorded(model, batch, f"blocks.{layer}.attn.hook_z")[:, :, number]
    return z @ model.blocks[layer].attn.W_O[number]


def by_hand(model, sender, receiver, via):
    """The effect of one edge: three whole passes with hooks of TransformerLens."""
    change = written(model, CORRUPTED, sender) - written(model, CLEAN, sender)

    def added(value, hook):
        return value + change

    if receiver == "output":
        hooks = [(f"blocks.{model.cfg.n_layers - 1}.hook_resid_post", added)]
    else:
        layer, number = receiver
        point = f"blocks.{layer}.attn.hook_{via}"
        new = recorded(model, CLEAN, point, (f"blocks.{layer}.hook_resid_pre", added))
        number = number * new.shape[2] // model.cfg.n_heads

        def put(value, hook):
            value = value.clone()
            value[:, :, number] = new[:, :, number]
            return value

        hooks = [(point, put)]
    return score(run(model, CLEAN, *hooks)) - score(run(model, CLEAN))


def edges(model):
    if model.cfg.n_layers == 1:
        return [((0, 1), "output", "q")]
    letters = [((0, 1), (2, 3), via) for via in "qkv"]
    return [*letters, ((1, 0), (2, 1), "k"), ((0, 2), (1, 0), "v"), ((0, 1), "output", "q")]


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
