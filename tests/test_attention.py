"""Scores against loops over patterns, and against heads whose answer is known."""

import math

import pytest
import torch
from torch.testing import assert_close

import ih_interp as ih
from ih_interp.analysis.attention import (
    _score_rows,
    attention_entropy,
    entropy_chance,
    induction_strength,
    prefix_matching_chance,
    prefix_matching_score,
    previous_token_chance,
    previous_token_score,
)


def patterns(model, tokens):
    _, cache = model.run_with_cache(tokens)
    return torch.stack([cache["pattern", layer] for layer in range(model.cfg.n_layers)], dim=1)


def literal_strength(model, batch):
    """One sequence, layer and head at a time."""
    pattern = patterns(model, batch.tokens)
    values = torch.zeros(pattern.shape[:3])
    for n in range(len(batch)):
        pairs = range(batch.layout.n_pairs)
        right = [2 * p + 1 for p in pairs if batch.tokens[n, 2 * p + 1] == batch.target[n]]
        wrong = [2 * p + 1 for p in pairs if batch.tokens[n, 2 * p + 1] != batch.target[n]]
        for layer in range(values.shape[1]):
            for head in range(values.shape[2]):
                row = pattern[n, layer, head, -1]
                values[n, layer, head] = row[right].mean() - row[wrong].mean()
    return values


def test_induction_strength_equals_the_loop(model, batch):
    expected = literal_strength(model, batch)
    assert_close(induction_strength(model, batch, per_sequence=True), expected)
    assert_close(induction_strength(model, batch), expected.mean(dim=0))


def test_induction_strength_with_several_copies(exemplars):
    config = ih.TaskConfig(n_train_classes=12, n_pairs=4, n_copies=2)
    task = ih.FewShotTask(exemplars, config)
    model = ih.build_model(task)
    batch = task.sample("train", 16, generator=torch.Generator().manual_seed(0))
    expected = literal_strength(model, batch)
    assert_close(induction_strength(model, batch, per_sequence=True), expected)


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_induction_strength_of_a_clamped_head_is_known(model, batch, strength):
    teacher = ih.clamps.InductionAttention(heads=["L1H3"], strength=strength)
    with ih.clamped(model, [teacher], batch):
        found = induction_strength(model, batch, per_sequence=True)
    assert_close(found[:, 1, 3], torch.full((len(batch),), 2 * strength - 1))


def test_induction_strength_needs_a_choice(model, batch):
    nowhere = ih.Batch(batch.tokens, (batch.context_labels.sum(dim=1) * 0 + 4))
    wrong = ih.Batch(
        batch.tokens, torch.where((batch.context_labels == 4).any(1), 3, nowhere.target)
    )
    with pytest.raises(ValueError, match="every context needs both"):
        induction_strength(model, wrong)


def test_chunks_do_not_matter(model, task):
    from ih_interp.analysis import attention

    batch = task.enumerate("train")
    assert len(batch) > attention.CHUNK
    few = batch[torch.arange(0, len(batch), 97)]
    whole = induction_strength(model, batch, per_sequence=True)
    assert_close(whole[::97], induction_strength(model, few, per_sequence=True))


def test_previous_token_score_of_a_clamped_head_is_known(model, batch):
    clamp = ih.clamps.PreviousTokenAttention(heads=["L0H2"], strength=0.75)
    with ih.clamped(model, [clamp], batch):
        for rows in ("all", "labels"):
            assert_close(float(previous_token_score(model, batch, rows=rows)[0, 2]), 0.75)


def test_previous_token_score_equals_the_loop(model, batch):
    pattern = patterns(model, batch.tokens)
    every = sum(pattern[..., i, i - 1] for i in (1, 2, 3, 4)) / 4
    labels = sum(pattern[..., i, i - 1] for i in (1, 3)) / 2
    assert_close(previous_token_score(model, batch, per_sequence=True), every)
    assert_close(previous_token_score(model, batch, rows="labels", per_sequence=True), labels)


def even_attention(model, batch):
    """Makes every head of layer 0 attend evenly, by scores of zero."""
    name = "blocks.0.attn.hook_attn_scores"
    return model.hooks(fwd_hooks=[(name, lambda s, hook: torch.where(s.isinf(), s, 0 * s))])


def test_even_attention_scores_chance(model, batch):
    with even_attention(model, batch):
        for rows in ("all", "labels"):
            found = previous_token_score(model, batch, rows=rows)[0]
            assert_close(found, torch.full((8,), previous_token_chance(5, rows)))
        assert_close(attention_entropy(model, batch)[0], torch.full((8,), entropy_chance(5)))
        generator = torch.Generator().manual_seed(0)
        found = prefix_matching_score(model, generator=generator, n_sequences=8)[0]
        assert_close(found, torch.full((8,), prefix_matching_chance(2)))
        assert_close(induction_strength(model, batch)[0], torch.zeros(8))


def test_entropy_of_attention_shared_by_two_labels_is_ln_2(model, batch):
    teacher = ih.clamps.InductionAttention(heads=["L1H3"], strength=0.5)
    with ih.clamped(model, [teacher], batch):
        assert_close(float(attention_entropy(model, batch)[1, 3]), math.log(2))


@pytest.fixture
def language_model():
    """A plain HookedTransformer that this package did not build."""
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    cfg = HookedTransformerConfig(
        n_layers=1, d_model=8, n_ctx=20, d_head=4, n_heads=2, d_vocab=30, attn_only=True, seed=0,
        device="cpu", act_fn="relu",
    )  # fmt: skip
    with torch.random.fork_rng():
        return HookedTransformer(cfg, move_to_device=False)


@pytest.mark.parametrize("offset", [-1, 0, 1])
def test_prefix_matching_tells_offsets_apart(language_model, offset):
    """Head 0 is made to attend from every second saying to one offset from the first."""

    def attend(pattern, hook):
        del hook
        made = pattern.clone()
        for query in range(5, 10):
            made[:, 0, query] = 0
            made[:, 0, query, query - 5 + offset] = 1
        return made

    with language_model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", attend)]):
        scores = {
            o: prefix_matching_score(
                language_model, generator=torch.Generator().manual_seed(0), period=5, offset=o
            )[0, 0].item()
            for o in (-1, 0, 1)
        }
    # At offset -1 the first token of the second saying is matched to the last of the first: j = -1.
    expected = {o: float(o == offset) for o in scores}
    for o in scores:
        assert scores[o] == pytest.approx(expected[o], abs=1e-6)


@pytest.mark.parametrize("offset", [-3, -1, 0, 1, 2, 3])
@pytest.mark.parametrize(("period", "repeats"), [(4, 2), (4, 5), (10, 2)])
def test_even_attention_scores_the_chance_of_every_offset(language_model, period, repeats, offset):
    """Against attention made even, and against every row tried one by one."""

    def even(scores, hook):
        del hook
        return torch.where(scores.isinf(), scores, 0 * scores)

    with language_model.hooks(fwd_hooks=[("blocks.0.attn.hook_attn_scores", even)]):
        scored = prefix_matching_score(
            language_model,
            generator=torch.Generator().manual_seed(0),
            period=period,
            repeats=repeats,
            offset=offset,
        )
    said = list(range(period)) * repeats
    shares = []
    for row in range(period, len(said)):
        earlier = [key for key in range(row) if said[key] == said[row]]
        if earlier[-1] + offset >= 0:
            shares.append(1 / len(said[: row + 1]))
    chance = prefix_matching_chance(period, repeats, offset)
    assert chance == pytest.approx(sum(shares) / len(shares))
    assert_close(scored[0], torch.full((2,), chance))


def test_rows_are_named_and_labels_need_pairs(model, batch):
    # Past the type checker, which only tests have.
    with pytest.raises(ValueError, match=r"rows='label'; choose from all, labels"):
        _score_rows.__wrapped__(5, "label")
    with pytest.raises(ValueError, match="Sequences of 4 tokens are not pairs and a query"):
        previous_token_score(model, batch.tokens[:, :4], rows="labels")


def test_nothing_cannot_be_scored(model, batch):
    with pytest.raises(ValueError, match="no sequences to score"):
        attention_entropy(model, batch[:0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"period": 11}, "at most 20 tokens"),
        ({"period": 1}, "at least 2 x 2"),
        ({"period": 5, "offset": 5}, "offset=5 must lie within one period"),
    ],
)
def test_prefix_matching_refuses_what_does_not_fit(language_model, options, words):
    with pytest.raises(ValueError, match=words):
        prefix_matching_score(language_model, generator=torch.Generator(), **options)


def test_prefix_matching_needs_as_many_tokens_as_a_period(language_model):
    language_model.cfg.d_vocab = 4
    with pytest.raises(ValueError, match="period=5 needs as many tokens"):
        prefix_matching_score(language_model, generator=torch.Generator(), period=5)


def test_measures_leave_hooks_alone(model, batch):
    seen = []
    model.add_hook("hook_embed", lambda value, hook: seen.append(hook.name))
    before = {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()}
    induction_strength(model, batch)
    attention_entropy(model, batch)
    assert {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()} == before
    assert len(seen) == 2
