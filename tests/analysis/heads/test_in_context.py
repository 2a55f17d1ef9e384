"""Loss by position and the in-context-learning score, against loops and where they are known."""

import math

import pytest
import torch
from architectures import architecture
from brute_force import asked_here_and_there
from numpy.testing import assert_allclose

import ih_interp as ih
from ih_interp.analysis.heads.in_context import in_context_score, loss_by_position
from ih_interp.batch import Batch


@torch.no_grad()
def literal_losses(model, batch):
    """The losses of each position, sequence by sequence."""
    logits, found = model(batch.tokens).double(), {}
    for n, p in batch.asked.nonzero().tolist():
        log_p = logits[n, p].log_softmax(-1)[int(batch.targets[n, p])]
        found.setdefault(p, []).append(-float(log_p))
    return dict(sorted(found.items()))


@pytest.mark.parametrize("name", ["gpt2", "llama, grouped", "gpt2, other outputs"])
def test_losses_equal_the_loop(name, monkeypatch):
    model = architecture(name)
    batch = asked_here_and_there(n_outputs=model.cfg.d_vocab_out)
    expected = {p: sum(v) / len(v) for p, v in literal_losses(model, batch).items()}
    found = loss_by_position(model, batch)
    assert list(found) == list(expected)
    assert_allclose(list(found.values()), list(expected.values()), rtol=1e-5)
    monkeypatch.setattr("ih_interp.analysis.heads.in_context.rows_per_pass", lambda *_: 4)
    parts = loss_by_position(model, batch)
    assert_allclose(list(parts.values()), list(expected.values()), rtol=1e-5)


def test_the_score_is_the_late_loss_minus_the_early_one():
    model, tokens = architecture("neox"), torch.randint(30, (6, 12))
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    losses = literal_losses(model, batch)
    expected = sum(losses[9]) / 6 - sum(losses[3]) / 6
    assert in_context_score(model, batch, early=3, late=9) == pytest.approx(expected, abs=1e-5)
    assert in_context_score(model, tokens, early=3, late=9) == pytest.approx(expected, abs=1e-5)
    assert loss_by_position(model, tokens) == pytest.approx(loss_by_position(model, batch))
    theirs = model.loss_fn(model(tokens), tokens, per_token=True).mean(dim=0)
    assert_allclose(list(loss_by_position(model, tokens).values()), theirs.detach(), rtol=1e-4)


def test_a_model_that_guesses_has_chance_everywhere():
    model, tokens = architecture("gpt2"), torch.randint(30, (6, 12))
    with torch.no_grad():
        model.unembed.W_U.zero_()
        model.unembed.b_U.zero_()
    assert list(loss_by_position(model, tokens).values()) == pytest.approx([math.log(30)] * 11)
    assert in_context_score(model, tokens, early=0, late=10) == pytest.approx(0)


def test_a_planted_gain_is_measured():
    """A hook raises the right logit by 5 from the sixth position on: loss ln(1 + 29 / e^5)."""
    model, tokens = architecture("gpt2"), torch.randint(30, (6, 12))

    def know(logits, hook):
        known = torch.zeros_like(logits)
        known[:, 5:].scatter_(-1, tokens[:, 6:, None], 5.0)
        return known

    with model.hooks([("unembed.hook_out", know)]):
        score = in_context_score(model, tokens, early=2, late=8)
    assert score == pytest.approx(math.log(1 + 29 / math.exp(5)) - math.log(30), abs=1e-5)


def test_what_is_not_asked_is_refused(model, batch):
    with pytest.raises(ValueError, match="late=500"):
        in_context_score(model, batch)
    with pytest.raises(ValueError, match="0 of 24"):
        in_context_score(model, batch, early=1, late=4)
    with pytest.raises(ValueError, match="early=4"):
        in_context_score(model, batch, early=4, late=4)
    with pytest.raises(ValueError, match="outputs"):
        loss_by_position(model, batch.tokens)
    with pytest.raises(ValueError, match="next token"):
        loss_by_position(model, batch.tokens[:, :1])
    nothing = batch.replace(targets=torch.full_like(batch.tokens, -100))
    with pytest.raises(ValueError, match="nothing is asked"):
        loss_by_position(model, nothing)


def test_they_are_traced(small_run):
    tokens = small_run.task.sample("train", 8, seed=0).tokens % 5
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    table = ih.trace(small_run, loss_by_position, batch=batch)
    assert list(table.name.unique()) == ["0", "1", "2", "3"]
    table = ih.trace(small_run, lambda m, b: in_context_score(m, b, early=0, late=3), batch=batch)
    assert len(table) == len(small_run.steps)
