"""Scores of heads on every architecture, padded sequences, half precision, and on bridges."""

import itertools

import pytest
import torch
from architectures import ARCHITECTURES, architecture
from torch.testing import assert_close

from ih_interp.analysis.ablation.coalitions import coalitions
from ih_interp.analysis.heads._weights import Weights
from ih_interp.analysis.heads.attention import (
    attention_entropy,
    current_token_score,
    duplicate_token_chance,
    duplicate_token_score,
    induction_strength,
    previous_token_score,
)
from ih_interp.analysis.heads.composition import composition_scores, output_composition
from ih_interp.analysis.heads.copying import (
    copying_score_diag,
    copying_score_eig,
    copying_score_logit,
    label_copying,
)
from ih_interp.analysis.heads.matching import _queries, induction_trace, qk_matching
from ih_interp.analysis.heads.repeated_tokens import induction_score, repeated_tokens
from ih_interp.batch import Batch

LENGTHS = torch.tensor([10, 7, 5, 7])
# What weights alone do not say is refused.
POST_NORMS = ("gemma 2",)
CAPPED = ("gemma 2, caps", "gemma 2")
NORMED_QUERIES = ("qwen3",)


def padded(model, lengths=LENGTHS, seed=0):
    """Few different tokens, so that some repeat; padding is one token again and again."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(6, (len(lengths), int(lengths.max())), generator=generator)
    tokens[:, :2] = 5  # every sequence repeats a token
    tokens[torch.arange(tokens.shape[1]) >= lengths[:, None]] = 7
    targets = torch.full_like(tokens, -100)
    targets[range(len(lengths)), lengths - 1] = 0
    answers = torch.rand(len(tokens), 10, 10, generator=generator) < 0.3
    answers[:, 4, 0], answers[:, 4, 1] = True, False
    answers = answers.tril()
    candidates = torch.ones_like(answers).tril()
    given = {"answers": answers, "candidates": candidates}
    return Batch(tokens, targets, lengths=lengths, **given)


def of_patterns(batch):
    """Each score of a single pattern [query, key] of sequence `n`, by its definition."""

    def copies(a, n, length):
        said = batch.tokens[n].tolist()
        earlier = {i: [j for j in range(i) if said[j] == said[i]] for i in range(length)}
        rows = [sum(float(a[i, j]) for j in keys) for i, keys in earlier.items() if keys]
        return sum(rows) / len(rows)

    def strength(a, n, length):
        rows = []
        for i in range(length):
            right = [j for j in range(10) if batch.answers[n, i, j]]
            wrong = [j for j in range(i + 1) if not batch.answers[n, i, j]]
            if right and wrong:
                rows.append(a[i, right].mean() - a[i, wrong].mean())
        return float(sum(rows) / len(rows))

    return {
        previous_token_score: lambda a, _, m: (
            sum(float(a[i, i - 1]) for i in range(1, m)) / (m - 1)
        ),
        current_token_score: lambda a, _, m: sum(float(a[i, i]) for i in range(1, m)) / (m - 1),
        duplicate_token_score: copies,
        attention_entropy: lambda a, _, m: (
            -sum(float(p) * float(p.log()) for p in a[m - 1, :m] if p > 0)
        ),
        induction_strength: strength,
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_of_patterns_leave_out_the_padding(name):
    model = architecture(name)
    batch = padded(model)
    _, cache = model.run_with_cache(batch.tokens)
    for score, literal in of_patterns(batch).items():
        found = score(model, batch, per_sequence=True)
        for n, layer, head in itertools.product(range(4), range(model.cfg.n_layers), (0, 3)):
            a = cache["pattern", layer][n, head]
            assert float(found[n, layer, head]) == pytest.approx(
                literal(a, n, int(LENGTHS[n])), abs=1e-5
            ), score
        assert_close(score(model, batch), found.mean(dim=0))


def test_padded_sequences_score_as_they_do_alone():
    model = architecture("neox")
    batch = padded(model)
    copying = (copying_score_logit, previous_token_score, duplicate_token_score)
    for score in (*copying, attention_entropy, induction_strength):
        found = score(model, batch, per_sequence=True)
        for n, length in enumerate(LENGTHS.tolist()):
            alone = Batch(
                batch.tokens[n : n + 1, :length],
                batch.targets[n : n + 1, :length],
                answers=batch.answers[n : n + 1, :length, :length],
                candidates=batch.candidates[n : n + 1, :length, :length],
            )
            assert_close(found[n], score(model, alone), atol=1e-5, rtol=1e-4)
    alone = [duplicate_token_chance(batch.tokens[n : n + 1, :m]) for n, m in enumerate(LENGTHS)]
    assert duplicate_token_chance(batch) == pytest.approx(sum(alone) / 4)


def test_a_sequence_too_short_for_a_query_is_refused():
    model = architecture("gpt2")
    batch = padded(model, torch.tensor([10, 1]))
    with pytest.raises(ValueError, match="sequence 1"):
        previous_token_score(model, batch)


def alone_at(model, layer, vectors):
    """What heads of a layer have where the stream is these vectors, each a sequence of one token.

    z [vector, head, d_head]; the attention of one token to itself is 1, and z is its value.
    """
    kept = {}
    with torch.no_grad():
        model.run_with_hooks(
            torch.zeros(len(vectors), 1, dtype=torch.long),
            fwd_hooks=[
                (f"blocks.{layer}.hook_resid_pre", lambda x, hook: vectors[:, None].to(x)),
                *(
                    (
                        f"blocks.{layer}.attn.hook_{n}",
                        lambda x, hook, n=n: kept.update({n: x[:, 0]}),
                    )
                    for n in "zqk"
                ),
            ],
        )
    return kept


def differences(values):
    """Biases and shifts are the same for every vector."""
    return values - values[:1]


@pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n not in POST_NORMS])
@torch.no_grad()
def test_weights_are_what_heads_read_and_write(name):
    model, tokens = architecture(name), torch.tensor([3, 9, 4, 20])
    weights = Weights(model)
    stream = model.embed(tokens[None])[0]
    for layer in range(model.cfg.n_layers):
        kept = alone_at(model, layer, stream)
        wrote = torch.einsum("thk,hkd->htd", kept["z"], model.blocks[layer].attn.W_O)
        found = weights.written(tokens, layer)
        assert_close(
            found - found[:, :1], wrote - wrote[:, :1], atol=1e-5, rtol=1e-4, msg=str(layer)
        )
        if name not in NORMED_QUERIES:
            queries = _queries(weights, tokens, layer, 0)
            assert_close(
                differences(queries.transpose(0, 1)), differences(kept["q"]), atol=1e-5, rtol=1e-4
            )
        # Keys of any vectors, but for the scale by which their norm divides.
        vectors = torch.randn(3, model.cfg.d_model, generator=torch.Generator().manual_seed(1))
        keys = alone_at(model, layer, vectors)["k"]
        keys = keys.repeat_interleave(model.cfg.n_heads // keys.shape[1], dim=1)
        centred = vectors - vectors.mean(-1, keepdim=True) if weights.centred else vectors
        scale = (centred.square().mean(-1) + model.cfg.eps).sqrt()
        scale = scale if weights.normed else torch.ones(3)
        read = torch.einsum("td,hdk->thk", vectors / scale[:, None], weights.inputs("W_K", layer))
        assert_close(differences(read), differences(keys), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_of_weights_are_right_or_refused(name):
    model, tokens = architecture(name), torch.arange(5)
    scores = {
        "copying_score_eig": lambda: copying_score_eig(model, tokens=tokens),
        "copying_score_diag": lambda: copying_score_diag(model, tokens=tokens).rank,
        "label_copying": lambda: label_copying(model, tokens=tokens),
        "qk_matching": lambda: qk_matching(model, tokens),
        "induction_trace": lambda: induction_trace(
            model, tokens, torch.ones(model.cfg.n_layers, 4)
        ),
        "composition_scores": lambda: composition_scores(model, "K"),
        "output_composition": lambda: output_composition(model, "V"),
    }
    capped = {"copying_score_eig", "copying_score_diag", "label_copying"}
    for score, call in scores.items():
        matches = score in ("qk_matching", "induction_trace")
        if name in POST_NORMS or (name in CAPPED and score in capped):
            refused = "before_and_after" if name in POST_NORMS else "output_logits_soft_cap"
            with pytest.raises(ValueError, match=refused):
                call()
        elif name in NORMED_QUERIES and matches:
            with pytest.raises(ValueError, match="use_qk_norm"):
                call()
        else:
            found = call()
            assert found[..., -1, :].isfinite().any() or model.cfg.n_layers == 1
            assert found.dtype == torch.float32


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
@pytest.mark.parametrize("name", ["llama, grouped", "llama, one key-value head", "gpt2"])
def test_composition_of_grouped_heads_is_that_of_transformer_lens(name, kind):
    model = architecture(name)
    found, theirs = composition_scores(model, kind), model.all_composition_scores(kind)
    composes = ~found.isnan()
    assert_close(found[composes], theirs[composes])


def test_local_heads_match_nothing_beyond_their_window():
    model, tokens = architecture("mistral"), torch.arange(5)
    assert qk_matching(model, tokens, distance=3).shape == (3, 4, 3, 4)
    with pytest.raises(ValueError, match="window_size"):
        qk_matching(model, tokens, distance=4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "llama, grouped"])
def test_half_precision_costs_its_digits_only(name, dtype):
    """The same rounded weights in single precision; patterns are the half-precision pass's."""
    half = architecture(name, dtype=dtype)
    model = architecture(name)
    model.load_state_dict({k: v.to(torch.float32) for k, v in half.state_dict().items()})
    tokens = torch.arange(12)
    for score in (copying_score_eig, label_copying, qk_matching):
        assert_close(
            score(half, tokens=tokens),
            score(model, tokens=tokens),
            atol=1e-5,
            rtol=1e-4,
            equal_nan=True,
        )
    for kind in "QKV":
        whole = composition_scores(model, kind, fold_ln=True)
        assert_close(composition_scores(half, kind, fold_ln=True), whole, equal_nan=True)
    batch = padded(half)
    _, cache = half.run_with_cache(batch.tokens)
    for score, literal in of_patterns(batch).items():
        found = score(half, batch, per_sequence=True)
        expected = literal(cache["pattern", 1][0, 2].float(), 0, 10)
        assert float(found[0, 1, 2]) == pytest.approx(expected, abs=1e-5)


def test_repeated_tokens_are_scored_on_a_large_vocabulary():
    model = architecture("llama, grouped", d_vocab=50_257)
    generator = torch.Generator().manual_seed(0)
    tokens = repeated_tokens(model, generator, n_sequences=8)
    _, cache = model.run_with_cache(tokens)
    generator = torch.Generator().manual_seed(0)
    found = induction_score(model, generator=generator, n_sequences=8)
    expected = sum(cache["pattern", 1][:, :, i, i - 5] for i in range(6, 12)).mean(dim=0) / 6
    assert_close(found[1], expected)


@pytest.mark.parametrize("n_tokens", [3, 30])
@torch.no_grad()
def test_ranks_are_those_of_the_whole_circuit(n_tokens):
    model, tokens = architecture("llama, grouped"), torch.arange(30)[-n_tokens:]
    weights = Weights(model)
    found = copying_score_diag(model, tokens=tokens)
    for layer, head in itertools.product(range(3), range(4)):
        circuit = weights.written(tokens, layer)[head] @ weights.unembedding()
        own = circuit[range(n_tokens), tokens]
        rank = float((circuit < own[:, None]).sum()) / 29 / n_tokens
        assert float(found.rank[layer, head]) == pytest.approx(rank)
        top = float((circuit.argmax(dim=1) == tokens).float().mean())
        assert float(found.top[layer, head]) == pytest.approx(top)


def test_a_large_vocabulary_needs_a_sample():
    model = architecture("gpt2", d_vocab=50_257)
    with pytest.raises(ValueError, match="expected some"):
        copying_score_diag(model)
    found = copying_score_diag(model, tokens=torch.arange(0, 50_257, 500))
    assert 0.3 < float(found.rank.mean()) < 0.7
    assert copying_score_eig(model).abs().max() <= 1


def test_grouped_heads_copy_as_the_same_heads_ungrouped():
    grouped, ungrouped = architecture("llama, grouped"), architecture("llama, ungrouped")
    tokens = repeated_tokens(grouped, torch.Generator().manual_seed(0), n_sequences=6)
    assert grouped.run_with_cache(tokens)[1]["v", 0].shape[2] == 2
    assert ungrouped.run_with_cache(tokens)[1]["v", 0].shape[2] == 4
    assert_close(copying_score_logit(grouped, tokens), copying_score_logit(ungrouped, tokens))


@pytest.mark.parametrize("name", ["gpt2", "neox", "llama, grouped"])
def test_weights_that_transformer_lens_has_processed_score_the_same(name):
    model, processed = architecture(name), architecture(name)
    processed.process_weights_(fold_ln=True, center_writing_weights=name != "llama, grouped")
    batch, tokens = padded(model), torch.arange(6)
    # Not `copying_score_logit`: biases of values have become those of the output.
    for score in (previous_token_score, attention_entropy, duplicate_token_score):
        assert_close(score(processed, batch), score(model, batch), atol=1e-5, rtol=1e-4)
    assert_close(qk_matching(processed, tokens), qk_matching(model, tokens), equal_nan=True)
    games = [coalitions(m, batch, ["L2H1", "L0H3"], ablation="mean") for m in (processed, model)]
    assert_close(games[0].values, games[1].values, atol=1e-5, rtol=1e-5)
