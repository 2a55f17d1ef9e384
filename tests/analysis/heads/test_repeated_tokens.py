"""Scores on repeated tokens, against loops, hand-built circuits, TransformerLens's detector."""

import pytest
import torch
from torch.testing import assert_close
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.head_detector import (
    compute_head_attention_similarity_score,
    get_induction_head_detection_pattern,
)

from ih_interp.analysis.heads.attention import (
    duplicate_token_chance,
    duplicate_token_score,
    previous_token_score,
)
from ih_interp.analysis.heads.repeated_tokens import (
    induction_chance,
    induction_score,
    prefix_matching_chance,
    prefix_matching_score,
    repeated_tokens,
)

N_TOKENS, N_CTX = 9, 17
SURE = 200.0  # a score after which the softmax is exactly 0 and 1


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def plain(n_layers, n_heads, d_model, d_head, **rest):
    """A HookedTransformer that this package did not build, with weights of zero."""
    cfg = HookedTransformerConfig(
        n_layers=n_layers, n_heads=n_heads, d_model=d_model, d_head=d_head, attn_only=True, seed=0,
        device="cpu", act_fn="relu", **rest,
    )  # fmt: skip
    with torch.random.fork_rng():
        model = HookedTransformer(cfg, move_to_device=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


@pytest.fixture
def circuit():
    """An induction circuit by hand: one-hot tokens, what a head copied, and positions.

    L0H0 attends to the previous token and copies it; L0H1 attends to the token's earlier copy, not
    to itself; L1H0 attends where its own token was copied to, the successor; L0H2, L1H1 and L1H2
    attend evenly. Position 0 has only itself to copy, so L1H0's keys subtract it.
    """
    d_model = 2 * N_TOKENS + N_CTX
    model = plain(
        2, 3, d_model, N_TOKENS + N_CTX, n_ctx=N_CTX, d_vocab=N_TOKENS, normalization_type=None
    )
    token, copied, place = (
        torch.arange(start, stop)
        for start, stop in (
            (0, N_TOKENS), (N_TOKENS, 2 * N_TOKENS), (2 * N_TOKENS, d_model)
        )
    )  # fmt: skip
    scale = SURE * model.blocks[0].attn.attn_scale
    with torch.no_grad():
        model.embed.W_E[:, token] = torch.eye(N_TOKENS)
        model.pos_embed.W_pos[:, place] = torch.eye(N_CTX)
        zero, one = (block.attn for block in model.blocks)
        zero.W_Q[0, place[1:], range(N_CTX - 1)] = scale  # position i asks for i - 1
        zero.W_K[0, place, range(N_CTX)] = 1.0
        zero.W_V[0, token, range(N_TOKENS)] = 1.0
        zero.W_O[0, range(N_TOKENS), copied] = 1.0
        zero.W_Q[1, token, range(N_TOKENS)] = scale
        zero.W_K[1, token, range(N_TOKENS)] = 1.0
        zero.W_Q[1, place, range(N_TOKENS, N_TOKENS + N_CTX)] = -scale / 2
        zero.W_K[1, place, range(N_TOKENS, N_TOKENS + N_CTX)] = 1.0
        one.W_Q[0, token, range(N_TOKENS)] = scale
        one.W_K[0, copied, range(N_TOKENS)] = 1.0
        one.W_K[0, place[0], :N_TOKENS] = -2.0
    return model


@pytest.fixture
def language_model():
    """A plain HookedTransformer that this package did not build."""
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


@pytest.mark.parametrize(("period", "bos"), [(5, None), (8, None), (8, 3)])
def test_the_circuit_scores_exactly_one_and_even_heads_chance(circuit, period, bos):
    options = {"n_sequences": 7, "period": period, "bos": bos}
    score = induction_score(circuit, generator=seeded(), **options)
    chance = induction_chance(period, bos=bos is not None)
    assert score[1, 0] == 1
    assert_close(score[0, 2].item(), chance)
    assert_close(score[1, 1:], torch.full((2,), chance))
    for offset, reached in {-1: 0, 0: 0, 1: 1, 2: 0}.items():
        found = prefix_matching_score(circuit, generator=seeded(), offset=offset, **options)
        assert found[1, 0] == pytest.approx(reached, abs=1e-6)
        even = prefix_matching_chance(period, offset=offset, bos=bos is not None)
        assert_close(found[1, 1].item(), even)
    own = prefix_matching_score(circuit, generator=seeded(), offset=0, **options)
    assert own[0, 1] == pytest.approx(1)
    tokens = repeated_tokens(circuit, generator=seeded(), **options)
    assert previous_token_score(circuit, tokens)[0, 0] == 1
    duplicates = duplicate_token_score(circuit, tokens)
    assert duplicates[0, 1] == pytest.approx(1)
    assert_close(duplicates[0, 2].item(), duplicate_token_chance(tokens))


def resting_on_the_first(model, period, bos):
    """Makes L1H0 a perfect induction head whose queries without a copy rest on position 0."""

    def attend(pattern, hook):
        made = pattern.clone()
        made[:, 0] = 0
        made[:, 0, : period + bos, 0] = 1
        for query in range(period + bos, 2 * period + bos):
            made[:, 0, query, query - period + 1] = 1
        return made

    return model.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", attend)])


@pytest.mark.parametrize("period", [2, 5, 8])
@pytest.mark.parametrize("bos", [None, 0])
def test_what_a_perfect_head_reaches_under_each_convention(circuit, period, bos):
    reached = {
        "matched": 1,
        "diagonal": 1 if bos is None else (period + 1) / (period + 2),
        "mul": 1 / 2 if bos is None else period / (2 * period + 1),
    }
    with resting_on_the_first(circuit, period, bos is not None):
        for convention, expected in reached.items():
            found = induction_score(
                circuit, generator=seeded(), period=period, bos=bos, convention=convention
            )
            assert found[1, 0] == pytest.approx(expected)


@pytest.mark.parametrize("bos", [None, 0])
def test_conventions_are_those_of_others(language_model, bos):
    """ARENA's diagonal, and TransformerLens's detector, on random weights."""
    for parameter in language_model.parameters():
        parameter.data *= 10  # attention far from even
    options = {"n_sequences": 3, "period": 6, "bos": bos}
    tokens = repeated_tokens(language_model, generator=seeded(), **options)
    diagonal, mul, matched = (
        induction_score(
            language_model, generator=seeded(), convention=name, per_sequence=True, **options
        )[:, 0]
        for name in ("diagonal", "mul", "matched")
    )
    _, cache = language_model.run_with_cache(tokens)
    pattern = cache["pattern", 0]
    assert_close(diagonal, pattern.diagonal(offset=-5, dim1=-2, dim2=-1).mean(dim=-1))
    second = range(6 + len(tokens[0]) % 2, len(tokens[0]))
    assert_close(matched, sum(pattern[:, :, i, i - 5] for i in second) / 6)
    for n, said in enumerate(tokens):
        detected = get_induction_head_detection_pattern(said[None])
        for head in range(2):
            expected = compute_head_attention_similarity_score(
                pattern[n, head], detection_pattern=detected, exclude_bos=False,
                exclude_current_token=False, error_measure="mul",
            )  # fmt: skip
            assert mul[n, head] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("bos", [None, 0])
@pytest.mark.parametrize("convention", ["matched", "diagonal", "mul"])
def test_even_attention_scores_the_chance_of_every_convention(circuit, convention, bos):
    found = induction_score(
        circuit, generator=seeded(), period=7, bos=bos, convention=convention, n_sequences=2
    )
    chance = induction_chance(7, bos=bos is not None, convention=convention)
    assert_close(found[1, 1].item(), chance)


def test_matched_is_prefix_matching_of_two_sayings(language_model):
    options = {"period": 9, "bos": 4, "n_sequences": 5}
    assert_close(
        induction_score(language_model, generator=seeded(), **options),
        prefix_matching_score(language_model, generator=seeded(), **options),
    )


def test_repeated_tokens_are_random_different_and_said_again(language_model):
    vocabulary = torch.tensor([2, 3, 5, 7, 11, 13, 17])
    tokens = repeated_tokens(
        language_model, generator=seeded(), n_sequences=200, period=6, repeats=3, bos=7,
        vocabulary=vocabulary,
    )  # fmt: skip
    assert tokens.shape == (200, 19)
    assert (tokens[:, 0] == 7).all()
    said = tokens[:, 1:].unflatten(1, (3, 6))
    assert (said == said[:, :1]).all()
    assert all(len(set(row)) == 6 for row in said[:, 0].tolist())
    assert set(said.flatten().tolist()) == {2, 3, 5, 11, 13, 17}
    # Each of the six stands first in about a sixth of the 200 sequences.
    counts = torch.stack([(said[:, 0, 0] == token).sum() for token in (2, 3, 5, 11, 13, 17)])
    assert counts.min() > 15
    assert torch.equal(tokens, repeated_tokens(
        language_model, generator=seeded(), n_sequences=200, period=6, repeats=3, bos=7,
        vocabulary=vocabulary,
    ))  # fmt: skip


def test_few_shot_models_have_room_for_two_by_two(model):
    score = induction_score(model, generator=seeded(), per_sequence=True, n_sequences=3)
    assert score.shape == (3, 2, 8)
    assert not score.isnan().any()
    assert repeated_tokens(model, generator=seeded()).shape == (64, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"period": 11}, "at most 20 tokens"),
        ({"period": 1}, "period=1"),
        ({"period": 5, "offset": 5}, "offset=5"),
        ({"period": 10, "bos": 0}, "at most 19 tokens"),
        ({"n_sequences": 0}, "n_sequences=0"),
        ({"vocabulary": torch.tensor([1, 30])}, "vocabulary"),
    ],
)
def test_prefix_matching_refuses_what_does_not_fit(language_model, options, words):
    with pytest.raises(ValueError, match=words):
        prefix_matching_score(language_model, generator=torch.Generator(), **options)


def test_prefix_matching_needs_as_many_tokens_as_a_period(language_model):
    language_model.cfg.d_vocab = 4
    with pytest.raises(ValueError, match="period=5: expected at most 4"):
        prefix_matching_score(language_model, generator=torch.Generator(), period=5)


def test_a_vocabulary_without_the_bos_token_can_be_too_small(circuit):
    with pytest.raises(ValueError, match="at most 7"):
        induction_score(
            circuit, generator=seeded(), period=8, bos=1, vocabulary=torch.arange(1, N_TOKENS)
        )


def test_conventions_are_named():
    with pytest.raises(ValueError, match="convention='abs'"):
        induction_chance(5, convention="abs")
