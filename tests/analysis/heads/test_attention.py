"""Scores against loops over patterns, and against heads whose answer is known."""

import math

import pytest
import torch
from torch.testing import assert_close

import ih_interp as ih
from ih_interp.analysis.heads.attention import (
    attention_entropy,
    current_token_chance,
    current_token_score,
    duplicate_token_chance,
    duplicate_token_score,
    entropy_chance,
    first_token_chance,
    first_token_score,
    induction_strength,
    previous_token_chance,
    previous_token_score,
)
from ih_interp.analysis.heads.pattern_scores import head_table, pattern_scores
from ih_interp.clamps._active import CHUNK


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
    nowhere = batch.replace(targets=(batch.context_labels.sum(dim=1) * 0 + 4))
    target = torch.where((batch.context_labels == 4).any(1), 3, nowhere.target)
    wrong = batch.replace(targets=target)
    with pytest.raises(ValueError, match="every context"):
        induction_strength(model, wrong)


def test_chunks_do_not_matter(model, task):

    batch = task.enumerate("train")
    assert len(batch) > CHUNK
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
            found = current_token_score(model, batch, rows=rows)[0]
            assert_close(found, torch.full((8,), current_token_chance(5, rows)))
        assert_close(attention_entropy(model, batch)[0], torch.full((8,), entropy_chance(5)))
        found = duplicate_token_score(model, batch)[0]
        assert_close(found, torch.full((8,), duplicate_token_chance(batch)))
        assert_close(induction_strength(model, batch)[0], torch.zeros(8))


def test_entropy_of_attention_shared_by_two_labels_is_ln_2(model, batch):
    teacher = ih.clamps.InductionAttention(heads=["L1H3"], strength=0.5)
    with ih.clamped(model, [teacher], batch):
        assert_close(float(attention_entropy(model, batch)[1, 3]), math.log(2))


def test_rows_are_named_and_labels_need_pairs(model, batch):
    with pytest.raises(ValueError, match="rows='label'"):
        previous_token_score(model, batch, rows="label")
    with pytest.raises(ValueError, match="4 positions"):
        previous_token_score(model, batch.tokens[:, :4], rows="labels")


def test_nothing_cannot_be_scored(model, batch):
    with pytest.raises(ValueError, match="batch"):
        attention_entropy(model, batch[:0])


def test_measures_leave_hooks_alone(model, batch):
    seen = []
    model.add_hook("hook_embed", lambda value, hook: seen.append(hook.name))
    before = {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()}
    induction_strength(model, batch)
    attention_entropy(model, batch)
    assert {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()} == before
    assert len(seen) == 2


def test_hooks_are_left_alone_after_an_error_too(model, batch):
    def broken(pattern, rows):
        raise RuntimeError("broken score")

    before = {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()}
    with pytest.raises(RuntimeError, match="broken score"):
        pattern_scores(model, batch.tokens, broken)
    assert {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()} == before


def test_current_token_score_equals_the_loop(model, batch):
    pattern = patterns(model, batch.tokens)
    every = sum(pattern[..., i, i] for i in (1, 2, 3, 4)) / 4
    labels = sum(pattern[..., i, i] for i in (1, 3)) / 2
    assert_close(current_token_score(model, batch, per_sequence=True), every)
    assert_close(current_token_score(model, batch, rows="labels", per_sequence=True), labels)


def literal_duplicates(model, tokens):
    """One sequence at a time: attention to earlier copies, over the queries that have one."""
    pattern = patterns(model, tokens)
    values = []
    for n, said in enumerate(tokens.tolist()):
        of_queries = []
        for query in range(len(said)):
            copies = [key for key in range(query) if said[key] == said[query]]
            if copies:
                of_queries.append(pattern[n, :, :, query, copies].sum(-1))
        values.append(sum(of_queries) / len(of_queries))
    return torch.stack(values)


def test_duplicate_token_score_equals_the_loop(model):
    # One, two and three queries with copies; the last token of the second has two.
    tokens = torch.tensor([[5, 6, 7, 8, 5], [5, 5, 6, 7, 5], [3, 3, 3, 3, 9], [4, 6, 4, 6, 6]])
    expected = literal_duplicates(model, tokens)
    assert_close(duplicate_token_score(model, tokens, per_sequence=True), expected)
    assert_close(duplicate_token_score(model, tokens), expected.mean(dim=0))


def test_chance_of_duplicates_is_worked_out_by_hand():
    # 5 5 6 7 5: query 1 sees one copy among 2, query 4 two among 5; 5 6 7 8 5: one among 5.
    tokens = torch.tensor([[5, 5, 6, 7, 5], [5, 6, 7, 8, 5]])
    assert duplicate_token_chance(tokens) == pytest.approx(((1 / 2 + 2 / 5) / 2 + 1 / 5) / 2)


def test_duplicates_have_to_be_there(model, batch):
    tokens = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 8, 5]])
    with pytest.raises(ValueError, match="1 of 2"):
        duplicate_token_score(model, tokens)


SCORES = {
    "induction": induction_strength,
    "previous": previous_token_score,
    "current": current_token_score,
    "duplicate": duplicate_token_score,
    "entropy": attention_entropy,
}


@pytest.mark.parametrize("name", SCORES)
def test_per_sequence_values_are_numbers_and_average_to_the_score(name, model, batch):
    each = SCORES[name](model, batch, per_sequence=True)
    assert each.shape == (len(batch), 2, 8)
    assert not each.isnan().any()
    assert_close(SCORES[name](model, batch), each.mean(dim=0))


@pytest.mark.parametrize("name", SCORES)
def test_scores_see_clamps_and_let_those_on_logits_fire(name, model, batch):
    """L0H2 attends to the previous token, which every score but induction's knows exactly."""
    known = {"previous": 1.0, "current": 0.0, "duplicate": 0.0, "entropy": 0.0}
    clamps = [
        ih.clamps.CopyFromAttention(head="L1H3"),
        ih.clamps.PreviousTokenAttention(heads=["L0H2"], strength=1.0),
    ]
    free = SCORES[name](model, batch)
    with ih.clamped(model, clamps, batch):  # refuses, at its end, clamps that never fired
        seen = SCORES[name](model, batch)
    assert not torch.equal(seen, free)
    if name in known:
        assert seen[0, 2].item() == pytest.approx(known[name], abs=1e-6)


def test_without_clamps_nothing_after_the_last_layer_is_computed(model, batch):
    seen = []
    model.add_hook("unembed.hook_logits", lambda value, hook: seen.append("logits"))
    model.add_hook("blocks.1.hook_resid_post", lambda value, hook: seen.append("last"))
    previous_token_score(model, batch)
    assert seen == ["last"]


def test_a_table_of_scores_has_a_row_a_head(model, batch):
    table = head_table({"previous": previous_token_score(model, batch)}, {"previous": 0.25})
    assert list(table.columns) == ["score", "name", "value", "chance"]
    assert len(table) == 16
    row = table[table["name"] == "L1H3"].iloc[0]
    assert row["value"] == pytest.approx(float(previous_token_score(model, batch)[1, 3]))
    assert row["chance"] == 0.25


def test_what_a_score_gets_is_its_own_to_change(model, batch):
    def fair(pattern, rows):
        return pattern[:, :, -1, 1] + pattern[:, :, -1].amax(dim=-1)

    def careless(pattern, rows):
        value = pattern[:, :, -1, 1] + pattern[:, :, -1].amax(dim=-1)
        pattern[:] = 0
        return value

    expected = pattern_scores(model, batch.tokens, fair)
    assert torch.equal(pattern_scores(model, batch.tokens, careless), expected)


def test_attention_to_the_first_token_equals_the_loop(model, batch):
    pattern = patterns(model, batch.tokens)
    every = sum(pattern[..., i, 0] for i in (1, 2, 3, 4)) / 4
    assert_close(first_token_score(model, batch, per_sequence=True), every)
    with even_attention(model, batch):
        found = first_token_score(model, batch)[0]
    assert_close(found, torch.full((8,), first_token_chance(5)))
    sink = [("blocks.1.attn.hook_pattern", lambda a, hook: torch.eye(5)[0].expand_as(a))]
    with model.hooks(sink):
        assert_close(first_token_score(model, batch)[1], torch.ones(8))


def test_chance_of_sequences_is_the_mean_over_their_lengths():
    tokens = torch.zeros(3, 5, dtype=torch.long)
    batch = ih.Batch(tokens, tokens - 100, lengths=torch.tensor([5, 3, 5]))
    for chance in (previous_token_chance, first_token_chance, current_token_chance, entropy_chance):
        assert chance(batch) == pytest.approx((2 * chance(5) + chance(3)) / 3)
        assert chance(tokens) == pytest.approx(chance(5))
