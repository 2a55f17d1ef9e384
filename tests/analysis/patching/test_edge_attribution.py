"""Edge attribution against exact effects, where these are linear, and on planted wirings."""

import numpy as np
import pytest
import torch
from architectures import architecture
from planted_models import planted
from torch.testing import assert_close

import ih_interp as ih
from ih_interp.analysis.patching.edge_attribution import edge_attribution
from ih_interp.analysis.patching.wiring import wiring_maps

KINDS = ("attention only", "gpt2", "neox", "bloom", "llama, grouped", "gemma 2, caps", "qwen3")


def prompts(seed):
    """Padded prompts, asked at two positions, with foils."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 30, (3, 8), generator=generator)
    targets = torch.full((3, 8), -100)
    targets[:, [2, 5]] = torch.randint(0, 30, (3, 2), generator=generator)
    lengths = torch.tensor([8, 6, 7])
    return ih.Batch(tokens, targets, lengths=lengths, foils=(targets[:, 2:3] + 1) % 30)


CLEAN, CORRUPTED = prompts(0), prompts(1)


def writing_little(model, factor=1e-5):
    """The model, with heads that write almost nothing: all effects are then linear."""
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_O.mul_(factor)
    return model


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {"per_sequence": True},
        {"direction": "denoise", "metric": "loss"},
        {"ablation": "mean"},
        {"ablation": "zero", "metric": "probability", "batch_size": 2},
    ],
    ids=str,
)
def test_small_changes_have_the_effects_that_are_estimated(name, options):
    model = writing_little(architecture(name, dtype=torch.float64))
    exact = wiring_maps(model, CLEAN, CORRUPTED, **options)
    found = edge_attribution(model, CLEAN, CORRUPTED, sample=1, **options).wirings
    assert list(found) == list(exact)
    for ends, wiring in exact.items():
        effects, estimates = wiring.effects, found[ends].effects
        largest = float(effects.nan_to_num().abs().max())
        assert largest > 1e-13
        assert_close(estimates, effects, rtol=0, atol=1e-3 * largest, equal_nan=True)
        assert found[ends].higher_is_used == wiring.higher_is_used


def test_a_sample_of_edges_is_patched_exactly():
    model = architecture("llama, grouped")
    exact = wiring_maps(model, CLEAN, CORRUPTED).table()
    found = edge_attribution(model, CLEAN, CORRUPTED, sample=12, seed=3)
    table = found.sample.merge(exact, on=["via", "sender", "receiver"], suffixes=("", "_exact"))
    assert len(table) == 12
    assert any(name.startswith("L1KV") for name in table.receiver)
    assert np.allclose(table.effect, table.effect_exact, atol=1e-5)
    assert np.allclose(table.error, table.estimate - table.effect)
    again = edge_attribution(model, CLEAN, CORRUPTED, sample=12, seed=4).sample
    assert not again.equals(found.sample)


@pytest.mark.parametrize("reads", [{0: [0], 1: [1], 2: [2]}, {0: [0, 1], 1: [2]}], ids=str)
def test_a_planted_wiring_is_recovered(reads):
    model, batch, clamp = planted(reads)
    corrupted = ih.patching.swap_exemplars(batch)
    with ih.clamped(model, [clamp], batch):
        found = edge_attribution(model, batch, corrupted, sample=5)
        exact = wiring_maps(model, batch, corrupted)
    estimates, effects = (maps[0, 1].through("k") for maps in (found.wirings, exact))
    expected = torch.zeros(3, 3, dtype=torch.bool)
    for receiver, senders in reads.items():
        expected[senders, receiver] = True
    assert (estimates[~expected] == 0).all()
    assert (estimates[expected] > 0).all()
    both = torch.stack([estimates.flatten(), effects.flatten()])
    assert torch.corrcoef(both)[0, 1] > 0.8
    for letter in "qv":
        assert found.wirings[0, 1].through(letter).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(dtype):
    half, full = architecture("gpt2", dtype=dtype), architecture("gpt2")
    full.load_state_dict({k: v.float() for k, v in half.state_dict().items()})
    tables = [edge_attribution(m, CLEAN, CORRUPTED, sample=1).wirings.table() for m in (half, full)]
    assert np.corrcoef(tables[0].effect, tables[1].effect)[0, 1] > 0.99


def test_gradients_and_weights_are_left_alone():
    model = architecture("gpt2")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with torch.no_grad():
        edge_attribution(model, CLEAN, CORRUPTED, sample=1)
    model.requires_grad_(True)
    found = edge_attribution(model, CLEAN, CORRUPTED, sample=1)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not found.wirings[0, 1].effects.requires_grad


def test_what_has_no_gradient_is_refused():
    model = architecture("gpt2")
    with pytest.raises(ValueError, match="metric='accuracy'"):
        edge_attribution(model, CLEAN, CORRUPTED, metric="accuracy")
    with pytest.raises(ValueError, match="no gradient"):
        edge_attribution(model, CLEAN, CORRUPTED, metric=lambda logits, _: logits.detach()[:, 0])
    with pytest.raises(ValueError, match="denoise"):
        edge_attribution(model, CLEAN, CORRUPTED, direction="denoise", ablation="zero")
