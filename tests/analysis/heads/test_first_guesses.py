"""First guesses at a call are right, or the TypeError says the fitting one."""

import pytest
import torch
from architectures import architecture

import ih_interp as ih

H = ih.heads
TOKENS = torch.randint(30, (4, 10), generator=torch.Generator().manual_seed(0))
BATCH = ih.Batch(TOKENS[:, :-1], TOKENS[:, 1:])

RIGHT = [
    lambda m: H.previous_token_score(m, BATCH),
    lambda m: H.previous_token_score(m, TOKENS),
    lambda m: H.first_token_chance(BATCH),
    lambda m: H.copying_score_eig(m, torch.arange(5)),
    lambda m: H.copying_score_diag(m, torch.arange(5)),
    lambda m: H.label_copying(m, torch.arange(5)),
    lambda m: H.qk_matching(m, torch.arange(5)),
    lambda m: H.pattern_scores(m, BATCH, lambda a, _: a[..., 0].mean(-1)),
    lambda m: H.repeated_tokens(m, torch.Generator()),
    lambda m: H.loss_by_position(m, TOKENS),
]
WRONG = {
    "generator=": lambda m: H.induction_score(m, BATCH),
    "generator=torch": lambda m: H.composition_chance(m),
    "repeated_tokens": lambda m: H.previous_token_score(m),
    "torch.arange": lambda m: H.copying_score_eig(m, BATCH),
    "arange": lambda m: H.qk_matching(m, BATCH),
    '"Q", "K" or "V"': lambda m: H.composition_scores(m),
    "previous_token_score": lambda m: H.induction_trace(m, torch.arange(5)),
    "label_copying": lambda m: H.label_copying_score(m),
    "by name": lambda m: H.head_table(H.previous_token_score(m, TOKENS)),
    "pattern, rows": lambda m: H.pattern_scores(m, BATCH),
    "tokens[:, 1:]": lambda m: H.loss_by_position(m),
    "without the model": lambda m: H.entropy_chance(m, TOKENS, 1),
    "rest by name": lambda m: ih.coalitions(m, BATCH, ["L0H1"], "loss"),
    '"L0H1"': lambda m: ih.ablation.matched_random_sets(m, BATCH),
}


@pytest.mark.untyped
@pytest.mark.parametrize("call", RIGHT)
def test_a_first_guess_is_right(call):
    assert call(architecture("gpt2")) is not None


@pytest.mark.untyped
@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_guess_is_told_the_fitting_call(said):
    with pytest.raises(TypeError) as refusal:
        WRONG[said](architecture("gpt2"))
    assert said in str(refusal.value)
