"""Clamps on every architecture of TransformerLens: as plain hooks give, or refused in words."""

from functools import partial
from typing import Literal

import pytest
import torch
from architectures import ARCHITECTURES, architecture
from plain_clamps import by_plain_hooks, sequences
from torch.testing import assert_close

from ih_interp.clamps import (
    AblateEmbedding,
    AblateHeads,
    CopyFromAttention,
    Freeze,
    HeadClamp,
    PerfectLayerOne,
    PerfectMatchAndCopy,
    Preserve,
    clamped,
)

every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def logits_under(model, clamps, batch):
    with clamped(model, clamps, batch):
        return model(batch.tokens)


def named(clamp, message):
    return f"{clamp}: {message}"


@every_architecture
def test_clamps_give_what_plain_hooks_give(name):
    model = architecture(name)
    batch = sequences(model)
    layer = min(1, model.cfg.n_layers - 1)
    for clamp, point, function in by_plain_hooks(batch, layer):
        expected = model.run_with_hooks(batch.tokens, fwd_hooks=[(point, function)])
        found = logits_under(model, [clamp], batch)
        scale = max(1.0, float(expected.detach().abs().max()))  # large without norms
        assert_close(found, expected, rtol=0, atol=1e-5 * scale, msg=partial(named, clamp))


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
# Without norms scores are in the hundreds, where half precision has no digits for a softmax.
@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if "no norm" not in name])
def test_half_precision_is_as_exact_under_clamps_as_without(name, dtype):
    model = architecture(name, dtype=dtype)
    exact = architecture(name, dtype=torch.float64)
    exact.load_state_dict(model.state_dict(), strict=False)
    batch = sequences(model)
    free = exact(batch.tokens)
    without = float((model(batch.tokens) - free).abs().max() / free.abs().max())
    layer = min(1, model.cfg.n_layers - 1)
    given = [[clamp] for clamp, _, _ in by_plain_hooks(batch, layer)]
    given += [[AblateEmbedding()], [Preserve(what=["patterns", "values"]), AblateEmbedding()]]
    if model.cfg.n_layers > 1 and model.cfg.d_vocab_out == model.cfg.d_vocab:
        given += [[PerfectLayerOne()], [CopyFromAttention(head="L1H3")], [PerfectMatchAndCopy()]]
    for clamps in given:
        found, expected = (logits_under(each, clamps, batch) for each in (model, exact))
        assert found.dtype == dtype
        shown = expected > -1e4  # others are masked
        largest = (found.double() - expected)[shown].abs().max()
        difference = float(largest / expected[shown].abs().max())
        assert difference < 6 * without, (clamps, difference, without)


class DoubledValues(HeadClamp):
    kind: Literal["doubled_values"] = "doubled_values"
    sets = "v"

    def hooks(self, setting):
        return self.at_each_layer(setting, "hook_v", doubled_values)


def doubled_values(v, hook, heads):
    return torch.where(heads[:, None], 2 * v, v)


@pytest.mark.parametrize("name", ["llama, grouped", "llama, one key-value head"])
@pytest.mark.parametrize("clamp", [DoubledValues(heads=["L1H3"]), Freeze(heads=["L1H3"])], ids=str)
def test_keys_and_values_of_single_heads_are_refused_where_heads_share_them(clamp, name):
    model = architecture(name)
    with (
        pytest.raises(ValueError, match="n_key_value_heads"),
        clamped(model, [clamp], sequences(model)),
    ):
        pass


@pytest.mark.parametrize("name", ["llama", "llama, ungrouped"])
def test_values_of_single_heads_are_set_where_each_has_its_own(name):
    model = architecture(name)
    batch = sequences(model)

    def by_hand(z, hook):
        z = z.clone()
        z[:, :, 3] *= 2
        return z

    expected = model.run_with_hooks(batch.tokens, fwd_hooks=[("blocks.1.attn.hook_z", by_hand)])
    found = logits_under(model, [DoubledValues(heads=["L1H3"])], batch)
    assert_close(found, expected, rtol=0, atol=1e-5)


def test_an_ablated_head_writes_nothing_where_values_are_shared():
    model = architecture("llama, grouped")
    batch = sequences(model)
    with clamped(model, [AblateHeads(heads=["L1H3"])], batch):
        _, cache = model.run_with_cache(batch.tokens)
    z = cache["blocks.1.attn.hook_z"]
    assert not z[:, :, 3].any()
    assert z[:, :, 2].abs().min() > 0
