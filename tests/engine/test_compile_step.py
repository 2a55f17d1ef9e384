"""The compiled update of a user's own loop is the one that torch's optimiser makes."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformer_lens import HookedTransformer, HookedTransformerConfig

import ih_interp as ih
from ih_interp.engine.compiled_forward import compiler_found

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not compiler_found(), reason="needs a C++ compiler"),
]


@pytest.fixture
def plain():
    """A model of TransformerLens's own, with biases that train, and the same again."""
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=16, n_heads=2, d_head=8, n_ctx=10, d_vocab=11, attn_only=True, seed=3
    )
    return HookedTransformer(cfg), HookedTransformer(cfg)


def tokens_of(seed):
    return torch.randint(11, (6, 10), generator=torch.Generator().manual_seed(seed))


def second_half(logits, batch):
    """A loss of somebody's own: the next token in the second half, the last token squared."""
    predicted = logits[:, 5:-1].flatten(end_dim=1)
    own = cross_entropy(predicted, batch.tokens[:, 6:].flatten())
    return own + 0.01 * logits[:, -1].square().mean()


@pytest.mark.parametrize("loss", [None, second_half], ids=["asked positions", "own"])
def test_it_is_the_update_of_torchs_optimiser_under_the_clamps(loss, plain):
    model, eager = plain
    clamps = [
        ih.clamps.PreviousTokenAttention(heads=["L0H1"], schedule=ih.clamps.during(2, 5)),
        ih.clamps.AblateHeads(heads=["L1H0"]),
    ]
    step = ih.compile_step(model, loss, clamps, optimiser=ih.Adam(learning_rate=1e-2, eps=1e-3))
    # A larger eps: the gradients of keys' biases are zero but for rounding, which Adam amplifies.
    adam = torch.optim.Adam(eager.parameters(), lr=1e-2, eps=1e-3)
    for number in range(8):
        tokens = tokens_of(number)
        batch = ih.Batch(tokens, torch.where(tokens.roll(-1, 1) > 3, tokens.roll(-1, 1), -100))
        with ih.clamped(eager, clamps, step=number):
            logits = eager(tokens)
        asked = cross_entropy(logits.flatten(end_dim=1), batch.targets.flatten())
        expected = asked if loss is None else loss(logits, batch)
        adam.zero_grad()
        expected.backward()
        adam.step()
        assert float(step(batch)) == pytest.approx(expected.item(), abs=1e-5)
    assert step.updates == 8
    for one, other in zip(model.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_what_requires_no_gradient_stays_and_is_read_as_it_is_now(plain):
    model, _ = plain
    model.W_E.requires_grad_(False)
    step = ih.compile_step(model)
    batch = ih.Batch(tokens_of(0), tokens_of(1)[:, 0])
    before = model.W_E.clone()
    step(batch)
    assert torch.equal(model.W_E, before)
    with torch.no_grad():
        model.W_E.mul_(2)
        expected = cross_entropy(model(batch.tokens)[:, -1], batch.target)
    assert float(step(batch)) == pytest.approx(expected.item(), abs=1e-5)
    model.W_E.requires_grad_(True)
    with pytest.raises(ValueError, match="gradients"):
        step(batch)


def test_what_cannot_be_a_step_is_refused(plain):
    model, _ = plain
    with pytest.raises(ValueError, match="L5H0"):
        ih.compile_step(model, clamps=[ih.clamps.AblateHeads(heads=["L5H0"])])
    with pytest.raises(TypeError, match="Hooked"):
        ih.compile_step(torch.nn.Linear(2, 2))
    step = ih.compile_step(model)
    with pytest.raises(ValueError, match=r"\[0, 11\)"):
        step(ih.Batch(tokens_of(0) + 3, tokens_of(0)))
    with pytest.raises(TypeError, match="Batch"):
        step(tokens_of(0))
