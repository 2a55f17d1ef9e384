"""Scores of heads on a `TransformerBridge`: those of a HookedTransformer with the same weights."""

import pytest
import torch
from bridges import BRIDGES, TWINS, bridge, needs_twins, twins
from torch.testing import assert_close

import ih_interp as ih
from ih_interp.analysis.heads.attention import (
    attention_entropy,
    current_token_score,
    duplicate_token_score,
    previous_token_score,
)
from ih_interp.analysis.heads.composition import composition_scores, output_composition
from ih_interp.analysis.heads.copying import (
    copying_score_diag,
    copying_score_eig,
    copying_score_logit,
    label_copying,
)
from ih_interp.analysis.heads.matching import induction_trace, qk_matching
from ih_interp.analysis.heads.pattern_scores import pattern_scores
from ih_interp.analysis.heads.repeated_tokens import induction_score, prefix_matching_score

TOKENS = torch.tensor([[1, 5, 1, 7, 5, 1], [3, 3, 2, 8, 9, 2]])
CHOSEN = torch.tensor([2, 4, 9, 11, 17])
SCORES = {
    "previous": lambda m: previous_token_score(m, TOKENS, per_sequence=True),
    "current": lambda m: current_token_score(m, TOKENS),
    "duplicate": lambda m: duplicate_token_score(m, TOKENS),
    "entropy": lambda m: attention_entropy(m, TOKENS),
    "first": lambda m: pattern_scores(m, TOKENS, lambda a, _: a[..., 0].mean(-1)),
    "induction": lambda m: induction_score(m, generator=torch.Generator().manual_seed(0), period=5),
    "prefix": lambda m: prefix_matching_score(
        m, generator=torch.Generator().manual_seed(0), period=5
    ),
}
OF_WEIGHTS = {
    "copying logit": lambda m: copying_score_logit(m, TOKENS),
    "eig": copying_score_eig,
    "bare eig": lambda m: copying_score_eig(m, full=False, layer_norm=False),
    "top": lambda m: copying_score_diag(m).top,
    "rank": lambda m: copying_score_diag(m).rank,
    "label copying": lambda m: label_copying(m, tokens=CHOSEN),
    "matching": lambda m: qk_matching(m, CHOSEN),
    "bare matching": lambda m: qk_matching(m, CHOSEN, layer_norm=False),
    "trace": lambda m: induction_trace(m, CHOSEN, torch.ones(3, 4)),
    **{
        f"composition {kind}": lambda m, kind=kind: composition_scores(m, kind, fold_ln=True)
        for kind in "QKV"
    },
    "output": lambda m: output_composition(m, "K"),
}


REFUSED = {"gemma 2": "W_E", "bloom": "W_E"}
"""The stream of these bridges begins with embeddings that are scaled, or normed."""
MATCHES = ("matching", "bare matching", "trace")


@needs_twins
@pytest.mark.parametrize("name", TWINS)
def test_both_transformer_lenses_give_the_same_scores(name):
    hooked, bridged = twins(name)
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            copying_score_eig(bridged)
    of_weights = {} if name in REFUSED else OF_WEIGHTS
    for score, of in (SCORES | of_weights).items():
        if name == "qwen3" and score in MATCHES:
            with pytest.raises(ValueError, match="use_qk_norm"):
                of(bridged)
            continue
        found, expected = of(bridged), of(hooked)
        assert_close(found, expected, atol=1e-5, rtol=1e-4, equal_nan=True, msg=score)


@needs_twins
def test_weights_see_no_clamps():
    hooked, bridged = twins("gpt2")
    with ih.clamped(bridged, [ih.clamps.AblateHeads(heads=["L1H2"])]):
        bridged(TOKENS)
        assert_close(copying_score_eig(bridged), copying_score_eig(hooked), atol=1e-5, rtol=1e-4)


def test_what_a_bridge_does_with_its_weights_is_looked_at(monkeypatch):
    model = bridge("gpt2")
    twice = [("blocks.1.attn.hook_v", lambda v, hook: 2 * v)]
    with model.hooks(twice), pytest.raises(ValueError, match="layer 1"):
        copying_score_eig(model)
    model = bridge("gpt2")
    shown = {name: point for name, point in model.hook_dict.items() if "2.attn.hook_q" not in name}
    monkeypatch.setattr(type(model), "hook_dict", property(lambda _: shown))
    with pytest.raises(ValueError, match=r"no blocks.2.attn.hook_q"):
        copying_score_eig(model)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="distance"):
        qk_matching(bridge("neox"), CHOSEN, distance=1)


@pytest.mark.parametrize("name", BRIDGES)
def test_every_bridge_has_scores(name):
    model = bridge(name)
    _, cache = model.run_with_cache(TOKENS)
    expected = sum(cache["blocks.1.attn.hook_pattern"][..., i, i - 1] for i in range(1, 6)) / 5
    assert_close(previous_token_score(model, TOKENS, per_sequence=True)[:, 1], expected)
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            copying_score_eig(model)
        return
    assert copying_score_eig(model).abs().max() <= 1
    if name != "qwen3":
        assert qk_matching(model, CHOSEN)[0, :, 1:].mean() == pytest.approx(0.5, abs=0.2)
