"""Hook functions, against numbers worked out by hand."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.hook_points import HookPoint

from ih_interp import hooks

HOOK = HookPoint()
FIRST = hooks.mask([0], 2)  # of two heads
TWO_HEADS = (1, 2, 1, 1)
PATTERN = tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]).repeat(TWO_HEADS)
SCORES = PATTERN.log()  # minus infinity above the diagonal, as TransformerLens has them
VALUES = torch.arange(1.0, 13.0).reshape(1, 3, 2, 2)  # batch pos head d_head
LOGITS = torch.arange(15.0).reshape(1, 3, 5)
RESIDUAL = tensor([[[1.0], [2.0], [3.0], [4.0], [5.0]]])

EVERY_HOOK: dict[str, tuple[Tensor, Callable[..., Tensor]]] = {
    "replace": (VALUES, partial(hooks.replace, value=-VALUES)),
    "zero": (VALUES, hooks.zero),
    "zero_heads": (VALUES, partial(hooks.zero_heads, heads=FIRST)),
    "previous_token_attention": (
        PATTERN,
        partial(hooks.previous_token_attention, heads=FIRST, strength=0.75),
    ),
    "forbid_previous_token": (SCORES, partial(hooks.forbid_previous_token, heads=FIRST)),
    "attend_only": (SCORES, partial(hooks.attend_only, heads=FIRST, keys=[1])),
    "attention_temperature": (
        SCORES,
        partial(hooks.attention_temperature, heads=FIRST, temperature=0.5),
    ),
    "query_attention": (
        PATTERN,
        partial(hooks.query_attention, heads=FIRST, weights=tensor([[0.0, 1.0, 0.0]])),
    ),
    "query_logits": (LOGITS, partial(hooks.query_logits, value=tensor([[9.0, 8, 7, 6, 5]]))),
}
ON_SCORES = ("forbid_previous_token", "attend_only", "attention_temperature")

every_hook = pytest.mark.parametrize(
    ("activation", "function"), EVERY_HOOK.values(), ids=EVERY_HOOK.keys()
)
every_hook_on_scores = pytest.mark.parametrize(
    "function", [EVERY_HOOK[name][1] for name in ON_SCORES], ids=ON_SCORES
)


@every_hook
@pytest.mark.parametrize("gate", [None, 0.0, 0.3, 1.0])
def test_the_given_activation_is_never_written_into(activation, function, gate):
    before = activation.clone()
    result = function(activation, HOOK, gate=gate)
    assert torch.equal(activation, before)
    assert result.shape == activation.shape
    assert not torch.equal(result, activation) or gate == 0


@every_hook
def test_gate_zero_is_the_free_activation_bit_for_bit(activation, function):
    assert torch.equal(function(activation, HOOK, gate=0.0), activation)
    assert torch.equal(function(activation, HOOK, gate=tensor(0.0)), activation)


@every_hook
def test_gate_one_is_the_clamped_activation_bit_for_bit(activation, function):
    clamped, gated = function(activation, HOOK), function(activation, HOOK, gate=tensor(1.0))
    if activation is SCORES:  # masked scores may differ, the weights that they give may not
        clamped, gated = clamped.softmax(dim=-1), gated.softmax(dim=-1)
    assert torch.equal(gated, clamped)


@every_hook_on_scores
@pytest.mark.parametrize("gate", [None, 0.0, 0.5, 1.0])
def test_future_keys_give_no_nan_in_values_or_gradients(function, gate):
    scores = SCORES.clone().requires_grad_()
    pattern = function(scores, HOOK, gate=gate).softmax(dim=-1)
    pattern.square().sum().backward()
    assert_close(pattern.sum(dim=-1), torch.ones(1, 2, 3))
    assert not pattern.triu(diagonal=1).any()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()


def test_mask_names_the_heads():
    assert hooks.mask([0, 3], 4).tolist() == [True, False, False, True]
    assert not hooks.mask([], 4).any()


def test_blend_is_a_straight_line():
    free, clamped = tensor([0.0, 4.0]), tensor([1.0, 0.0])
    assert hooks.blend(free, clamped, 0.25).tolist() == [0.25, 3.0]
    assert hooks.blend(free, clamped, None) is clamped


def test_replace_and_zero():
    assert torch.equal(hooks.replace(VALUES, HOOK, value=-VALUES), -VALUES)
    assert torch.equal(hooks.zero(VALUES, HOOK, gate=0.75), VALUES / 4)


def test_zero_heads_silences_the_heads_at_every_position():
    assert hooks.zero_heads(VALUES, HOOK, heads=FIRST).tolist() == [
        [[[0, 0], [3, 4]], [[0, 0], [7, 8]], [[0, 0], [11, 12]]]
    ]


def test_previous_token_attention_sets_the_rows_of_its_heads():
    clamped = hooks.previous_token_attention(PATTERN, HOOK, heads=FIRST, strength=0.75)
    assert clamped[0, 0].tolist() == [[1, 0, 0], [0.75, 0.25, 0], [0, 0.75, 0.25]]
    assert torch.equal(clamped[0, 1], PATTERN[0, 1])


def test_previous_token_attention_leaves_other_rows_alone():
    clamped = hooks.previous_token_attention(
        PATTERN, HOOK, heads=FIRST, strength=tensor(1.0), rows=[1]
    )
    assert_close(clamped[0, 0], tensor([[1, 0, 0], [1, 0, 0], [0.2, 0.3, 0.5]]))


def test_previous_token_attention_goes_half_way():
    clamped = hooks.previous_token_attention(PATTERN, HOOK, heads=FIRST, gate=0.5)
    # row 1: half of (0.5, 0.5, 0) and half of (1, 0, 0); row 2: of (0.2, 0.3, 0.5) and (0, 1, 0)
    assert_close(clamped[0, 0], tensor([[1, 0, 0], [0.75, 0.25, 0], [0.1, 0.65, 0.25]]))


def test_forbid_previous_token_shares_the_weight_among_the_others():
    pattern = hooks.forbid_previous_token(SCORES, HOOK, heads=FIRST).softmax(dim=-1)
    # row 2 loses its 0.3 at position 1: 0.2 / 0.7 and 0.5 / 0.7 are left
    assert_close(pattern[0, 0], tensor([[1, 0, 0], [0, 1, 0], [2 / 7, 0, 5 / 7]]))
    assert_close(pattern[0, 1], PATTERN[0, 1])


def test_forbid_previous_token_in_some_rows_only():
    pattern = hooks.forbid_previous_token(SCORES, HOOK, heads=FIRST, rows=[1]).softmax(dim=-1)
    assert_close(pattern[0, 0], tensor([[1, 0, 0], [0, 1, 0], [0.2, 0.3, 0.5]]))


def test_a_gate_multiplies_the_odds_of_what_is_forbidden():
    pattern = hooks.forbid_previous_token(SCORES, HOOK, heads=FIRST, gate=0.5).softmax(dim=-1)
    # odds (0.2, 0.15, 0.5) of a total of 0.85
    assert_close(pattern[0, 0, 2], tensor([4 / 17, 3 / 17, 10 / 17]))


def test_attend_only_masks_the_last_row_alone():
    pattern = hooks.attend_only(SCORES, HOOK, heads=FIRST, keys=[0, 1]).softmax(dim=-1)
    assert_close(pattern[0, 0], tensor([[1, 0, 0], [0.5, 0.5, 0], [0.4, 0.6, 0]]))
    assert_close(pattern[0, 1], PATTERN[0, 1])


def test_temperature_sharpens_and_flattens():
    sharp = hooks.attention_temperature(SCORES, HOOK, heads=FIRST, temperature=0.5)
    # squared weights: 0.04, 0.09, 0.25 of a total of 0.38
    assert_close(sharp.softmax(dim=-1)[0, 0, 2], tensor([4 / 38, 9 / 38, 25 / 38]))
    assert torch.equal(sharp[0, 1], SCORES[0, 1])
    flat = hooks.attention_temperature(SCORES, HOOK, heads=FIRST, temperature=tensor(2.0))
    root = tensor([0.2, 0.3, 0.5]).sqrt()
    assert_close(flat.softmax(dim=-1)[0, 0, 2], root / root.sum())


def test_query_attention_sets_the_last_row():
    weights = tensor([[0.0, 0.9, 0.1]])
    clamped = hooks.query_attention(PATTERN, HOOK, heads=FIRST, weights=weights, gate=0.5)
    assert_close(clamped[0, 0], tensor([[1, 0, 0], [0.5, 0.5, 0], [0.1, 0.6, 0.3]]))
    assert torch.equal(clamped[0, 1], PATTERN[0, 1])


def test_induction_weights_share_strength_among_correct_labels():
    correct = tensor([[True, False], [False, True]])
    assert_close(hooks.induction_weights(correct, 0.9), tensor([[0.9, 0.1], [0.1, 0.9]]))
    three = tensor([[True, True, False]])
    assert_close(hooks.induction_weights(three, tensor(0.8)), tensor([[0.4, 0.4, 0.2]]))


def test_match_weights():
    similarity = tensor([[0.5, 0.5, -0.5]])
    hard = hooks.match_weights(similarity, 0.0, hard=True)
    assert hard.tolist() == [[0.5, 0.5, 0.0]]  # ties share
    soft = hooks.match_weights(similarity, 0.5, hard=False)
    total = 2 * math.e + 1 / math.e
    assert_close(soft, tensor([[math.e, math.e, 1 / math.e]]) / total)


def test_at_labels_lays_weights_out_between_the_exemplars():
    weights = tensor([[0.25, 0.75]])
    assert hooks.at_labels(weights, 5).tolist() == [[0, 0.25, 0, 0.75, 0]]


def test_copied_logits_are_the_scores_of_labels_in_the_context():
    scores, labels = tensor([[2.0, -1.5]]), tensor([[3, 0]])
    logits = hooks.copied_logits(scores, labels, 4)
    assert logits[0, [3, 0]].tolist() == [2.0, -1.5]
    assert logits.softmax(dim=-1)[0, [1, 2]].tolist() == [0.0, 0.0]


def test_copied_logits_of_a_label_shown_twice_add_up():
    scores, labels = tensor([[math.log(2), math.log(3), 0.5]]), tensor([[1, 1, 0]])
    assert_close(hooks.copied_logits(scores, labels, 3)[0, :2], tensor([0.5, math.log(5)]))


def test_query_logits_sets_the_last_row():
    logits = hooks.query_logits(LOGITS, HOOK, value=torch.zeros(1, 5), gate=0.5)
    assert torch.equal(logits[:, :-1], LOGITS[:, :-1])
    assert logits[0, -1].tolist() == [5, 5.5, 6, 6.5, 7]


MASKED_VALUE = tensor([[9.0, hooks.MASKED, 7.0, hooks.MASKED, 5.0]])


def test_a_gate_lowers_the_odds_of_masked_labels_and_blends_the_others():
    logits = hooks.query_logits(LOGITS, HOOK, value=MASKED_VALUE, gate=0.5)
    half = math.log(0.5)  # free are 10, 11, 12, 13, 14
    assert_close(logits[0, -1], tensor([9.5, 11 + half, 9.5, 13 + half, 9.5]))
    assert torch.equal(logits[:, :-1], LOGITS[:, :-1])


def test_masked_labels_are_masked_exactly_at_gate_one_and_free_at_zero():
    clamped = hooks.query_logits(LOGITS, HOOK, value=MASKED_VALUE, gate=tensor(1.0))
    assert torch.equal(clamped[:, -1], MASKED_VALUE)
    assert torch.equal(hooks.query_logits(LOGITS, HOOK, value=MASKED_VALUE, gate=0.0), LOGITS)


@pytest.mark.parametrize("at", [0.0, 0.5, 1.0])
def test_masked_labels_give_no_nan_in_gradients(at):
    gate, free, value = (t.clone().requires_grad_() for t in (tensor(at), LOGITS, MASKED_VALUE))
    hooks.query_logits(free, HOOK, value=value, gate=gate)[:, -1].softmax(dim=-1)[0, 0].backward()
    for gradient in (gate.grad, free.grad, value.grad):
        assert gradient is not None
        assert gradient.isfinite().all()


def test_a_gate_on_masked_labels_can_be_traced_and_mapped():
    def clamp(gate: Tensor) -> Tensor:
        return hooks.query_logits(LOGITS, HOOK, value=MASKED_VALUE, gate=gate)

    gates = tensor([0.0, 0.25, 1.0])
    expected = torch.stack([clamp(gate) for gate in gates])
    assert torch.equal(torch.func.vmap(clamp)(gates), expected)
    traced = make_fx(torch.func.vmap(clamp))(tensor([0.5, 0.5, 0.5]))
    assert torch.equal(traced(gates), expected)


def test_a_sequence_of_one_token_has_no_previous_one():
    assert hooks.previous_token_pattern(1, 0.75).tolist() == [[1.0]]
    one = PATTERN[:, :, :1, :1]
    assert torch.equal(hooks.previous_token_attention(one, HOOK, heads=FIRST, strength=0.75), one)
    assert torch.equal(hooks.forbid_previous_token(one, HOOK, heads=FIRST), one)


def test_the_previous_tokens_input_is_the_published_one():
    assert hooks.previous_token_input(RESIDUAL).flatten().tolist() == [1, 1, 2, 3, 5]


def test_constants_carry_no_gradient_and_given_values_theirs():
    values, given = VALUES.clone().requires_grad_(), (-VALUES).requires_grad_()
    hooks.replace(values, HOOK, value=given).sum().backward()
    assert given.grad is not None
    assert given.grad.eq(1).all()
    assert values.grad is None
    hooks.zero_heads(values, HOOK, heads=FIRST).sum().backward()
    assert values.grad is not None
    assert values.grad[0, :, :, 0].tolist() == [[0, 1], [0, 1], [0, 1]]


@pytest.fixture
def plain() -> HookedTransformer:
    """One that this package did not make."""
    with torch.random.fork_rng():
        return HookedTransformer(
            HookedTransformerConfig(
                n_layers=2, d_model=16, n_ctx=7, d_head=4, n_heads=4, d_vocab=10, attn_only=True
            )
        )


def test_a_hook_serves_a_plain_hooked_transformer(plain: HookedTransformer):
    tokens = torch.arange(7)[None]
    place = "blocks.0.attn.hook_pattern"
    seen: dict[str, Tensor] = {}

    def keep(pattern: Tensor, hook: HookPoint) -> None:
        seen[str(hook.name)] = pattern

    free = plain(tokens)
    hook = partial(hooks.previous_token_attention, heads=hooks.mask([2], 4), strength=1.0)
    logits = plain.run_with_hooks(tokens, fwd_hooks=[(place, hook), (place, keep)])
    assert torch.equal(seen[place][0, 2], hooks.previous_token_pattern(7, 1.0))
    assert not torch.equal(logits, free)
    assert torch.equal(plain(tokens), free)


def test_zeroing_every_head_leaves_the_direct_path_of_a_plain_model(plain: HookedTransformer):
    tokens = torch.arange(7)[None]
    silent = partial(hooks.zero_heads, heads=hooks.mask(range(4), 4))
    every_value = [(f"blocks.{layer}.attn.hook_v", silent) for layer in range(2)]
    embedding = plain.embed(tokens) + plain.pos_embed(tokens)
    direct = plain.unembed(plain.ln_final(embedding))
    assert_close(plain.run_with_hooks(tokens, fwd_hooks=every_value), direct)
