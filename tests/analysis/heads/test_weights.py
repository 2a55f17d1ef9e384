"""Scores of weights, against loops, TransformerLens, circuits built by hand, and a trained net."""

import copy
import json
import math

import pytest
import torch
from oracles import _rotated
from torch.testing import assert_close
from transformer_lens import HookedTransformer, HookedTransformerConfig

import ih_interp as ih
from ih_interp.analysis.heads.composition import (
    _gaussian,
    composition_chance,
    composition_scores,
    output_composition,
    output_composition_chance,
    pair_table,
)
from ih_interp.analysis.heads.copying import (
    copying_logit_chance,
    copying_score_diag,
    copying_score_eig,
    copying_score_logit,
    label_copying,
    label_copying_of_values,
    label_copying_score,
)
from ih_interp.analysis.heads.matching import induction_trace, qk_matching
from ih_interp.model import ModelConfig

N_TOKENS = 6


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def shuffled(model):
    """The model with gains, shifts and biases that are not 1 and 0, so that they show."""
    generator = seeded()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".w", ".b")) or ".b_" in name:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return model


def plain(**changes):
    """A HookedTransformer that this package did not build."""
    fields = {
        "n_layers": 2, "d_model": 12, "n_ctx": 8, "d_head": 4, "n_heads": 3, "d_vocab": N_TOKENS,
        "attn_only": True, "seed": 0, "device": "cpu", "act_fn": "relu",
    } | changes  # fmt: skip
    with torch.random.fork_rng():
        return HookedTransformer(HookedTransformerConfig(**fields), move_to_device=False)


@pytest.fixture
def language_model():
    return shuffled(plain(n_layers=3))


# Composition


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_composition_is_that_of_transformer_lens(kind, language_model):
    found, theirs = (
        composition_scores(language_model, kind),
        language_model.all_composition_scores(kind),
    )
    layers = torch.arange(3)
    composes = (layers[:, None] < layers).reshape(3, 1, 3, 1).expand(3, 3, 3, 3)
    assert_close(found[composes], theirs[composes])
    assert found[~composes].isnan().all()
    assert (theirs[~composes] == 0).all()


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
@pytest.mark.parametrize("normalization_type", ["LN", "RMS"])
def test_folded_composition_is_that_of_a_model_folded_by_transformer_lens(kind, normalization_type):
    model = shuffled(plain(normalization_type=normalization_type))
    theirs = copy.deepcopy(model)
    theirs.process_weights_(fold_ln=True, center_writing_weights=False, center_unembed=False)
    expected = theirs.all_composition_scores(kind)[0, :, 1]
    assert_close(composition_scores(model, kind, fold_ln=True)[0, :, 1], expected)
    # What is folded already stays as it is.
    assert_close(composition_scores(theirs, kind, fold_ln=True)[0, :, 1], expected)
    assert (composition_scores(model, kind)[0, :, 1] - expected).abs().max() > 0.01


def test_composition_worked_out_by_hand():
    """One dimension read, one written: the cosine between them, 0.6, for Q and V; K reads none."""
    model = plain(d_head=1, n_heads=1, d_model=2, normalization_type=None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        source, reader = (block.attn for block in model.blocks)
        source.W_V[0, :, 0] = torch.tensor([7.0, 1.0])
        source.W_O[0, 0] = torch.tensor([3.0, 4.0])
        reader.W_Q[0, :, 0] = torch.tensor([2.0, 0.0])
        reader.W_K[0, :, 0] = torch.tensor([-4.0, 3.0])
        reader.W_V[0, :, 0] = torch.tensor([1.0, 0.0])
        reader.W_O[0, 0] = torch.tensor([0.0, 5.0])
    for kind, expected in {"Q": 0.6, "K": 0.0, "V": 0.6}.items():
        assert composition_scores(model, kind)[0, 0, 1, 0] == pytest.approx(expected)
        assert output_composition(model, kind)[0, 0, 1, 0] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["Q", "K", "V"])
@torch.no_grad()
def test_output_composition_equals_the_loop(kind, model):
    found = output_composition(model, kind)
    assert found[1].isnan().all()
    assert found[0, :, 0].isnan().all()
    for source in range(8):
        for head in range(8):
            w_o = model.blocks[0].attn.W_O[source].double()
            w_x = getattr(model.blocks[1].attn, f"W_{kind}")[head].double()
            expected = (w_o @ w_x).norm() / (w_o.norm() * w_x.norm())
            assert found[0, source, 1, head].item() == pytest.approx(float(expected), rel=1e-5)


def test_a_head_without_weights_composes_with_nothing(language_model):
    language_model.blocks[0].attn.W_O.data[1] = 0
    for found in (composition_scores(language_model, "K"), output_composition(language_model, "K")):
        assert (found[0, 1, 1:] == 0).all()
        assert (found[0, 0, 1:] > 0).all()


def test_chance_of_composition_is_that_of_gaussian_matrices(task):
    model = ih.build_model(task)
    chance = composition_chance(model, generator=seeded(), n_draws=400)
    w_v, w_q = _gaussian(seeded(), 2, 400, 64, 8)  # the same draws, multiplied out
    generator = seeded()
    _gaussian(generator, 2, 400, 64, 8)
    w_o, w_k = _gaussian(generator, 2, 400, 8, 64)
    ov, qk = w_v @ w_o, w_q @ w_k
    norm = lambda m: m.norm(dim=(-2, -1))  # noqa: E731
    literal = norm(ov @ qk) / (norm(ov) * norm(qk))
    assert chance == pytest.approx((float(literal.mean()), float(literal.std())))
    assert chance.mean == pytest.approx(1 / math.sqrt(64), rel=0.02)
    assert output_composition_chance(model, generator=seeded()).mean == pytest.approx(
        1 / 8, rel=0.02
    )


def test_initial_weights_compose_as_chance(model):
    """64 pairs of heads: their mean within four standard errors, and not those of the diagonal."""
    for scores, chance in (
        (composition_scores, composition_chance(model, generator=seeded())),
        (output_composition, output_composition_chance(model, generator=seeded())),
    ):
        for kind in ("Q", "K", "V"):
            mean = float(scores(model, kind)[0, :, 1].mean())
            assert abs(mean - chance.mean) < 4 * chance.std / math.sqrt(64)


def test_a_table_of_pairs_leaves_out_those_that_cannot_compose(model):
    scores = output_composition(model, "K")
    table = pair_table(scores)
    assert len(table) == 64
    row = table[(table["source"] == "L0H2") & (table["name"] == "L1H3")].iloc[0]
    assert row["value"] == pytest.approx(float(scores[0, 2, 1, 3]))
    assert pair_table(scores[1:, :, 1:]).empty


# Copying


def literal_embedding(model, token, layer, layer_norm):
    """What the layer's own norm makes of the token's embedding, less its shift."""
    row = model.W_E[token]
    if not layer_norm or model.cfg.normalization_type is None:
        return row
    norm = model.blocks[layer].ln1
    return norm(row[None, None])[0, 0] - getattr(norm, "b", 0)


def literal_unembedding(model, layer_norm):
    if not layer_norm or model.cfg.normalization_type is None:
        return model.W_U
    centring = torch.eye(model.cfg.d_model)
    if model.cfg.normalization_type == "LN":
        centring = centring - 1 / model.cfg.d_model
    return centring @ torch.diag(model.ln_final.w) @ model.W_U


def literal_circuit(model, tokens, layer, head, layer_norm):
    """[token, output]"""
    attention = model.blocks[layer].attn
    rows = torch.stack([literal_embedding(model, int(t), layer, layer_norm) for t in tokens])
    written = rows @ attention.W_V[head] @ attention.W_O[head]
    return written @ literal_unembedding(model, layer_norm)


each_norm = pytest.mark.parametrize("normalization_type", [None, "LN", "RMS"])
with_and_without = pytest.mark.parametrize("layer_norm", [True, False])


@each_norm
@with_and_without
@torch.no_grad()
def test_copying_by_eigenvalues_and_by_the_diagonal_equal_the_whole_matrix(
    normalization_type, layer_norm
):
    model = shuffled(plain(normalization_type=normalization_type))
    every = torch.arange(N_TOKENS)
    eig = copying_score_eig(model, layer_norm=layer_norm)
    diagonal = copying_score_diag(model, layer_norm=layer_norm)
    for layer in range(2):
        for head in range(3):
            circuit = literal_circuit(model, every, layer, head, layer_norm)
            values = torch.linalg.eigvals(circuit.double())
            ratio = float(values.real.sum() / values.abs().sum())
            assert eig[layer, head] == pytest.approx(ratio, abs=1e-4)
            own = circuit.diagonal()
            top = (circuit.argmax(dim=1) == every).float().mean()
            lower = sum(float((circuit[i] < own[i]).sum()) / (N_TOKENS - 1) for i in every)
            assert diagonal.top[layer, head] == pytest.approx(float(top))
            assert diagonal.rank[layer, head] == pytest.approx(lower / N_TOKENS)


@torch.no_grad()
def test_copying_by_eigenvalues_of_the_bare_circuit(language_model):
    found = copying_score_eig(language_model, full=False, layer_norm=False)
    for layer, block in enumerate(language_model.blocks):
        for head in range(3):
            ov = (block.attn.W_V[head] @ block.attn.W_O[head]).double()
            values = torch.linalg.eigvals(ov)
            ratio = float(values.real.sum() / values.abs().sum())
            assert found[layer, head] == pytest.approx(ratio, abs=1e-5)


@pytest.fixture
def copiers():
    """One-hot tokens; head 0 copies, head 1 lowers what it reads, head 2 says the next token."""
    model = plain(n_layers=1, d_model=N_TOKENS, d_head=N_TOKENS, normalization_type=None)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        one = torch.eye(N_TOKENS)
        model.embed.W_E[:] = one
        model.unembed.W_U[:] = one
        model.blocks[0].attn.W_V[:] = one
        model.blocks[0].attn.W_O[:] = torch.stack([one, -one, one.roll(1, dims=1)])
    return model


def test_copiers_score_as_they_must(copiers):
    # Eigenvalues of a cyclic shift are the six roots of 1: they add up to 0.
    assert_close(copying_score_eig(copiers)[0], torch.tensor([1.0, -1.0, 0.0]), atol=1e-6, rtol=0)
    assert_close(copying_score_eig(copiers, full=False)[0, :2], torch.tensor([1.0, -1.0]))
    diagonal = copying_score_diag(copiers)
    assert_close(diagonal.top[0], torch.tensor([1.0, 0.0, 0.0]))
    # The shift leaves 4 zeros tied with the token's own, and one output above them.
    assert_close(diagonal.rank[0], torch.tensor([1.0, 0.0, 4 / 2 / 5]))
    tokens = torch.tensor([[0, 2, 4, 4], [1, 3, 5, 1]])
    found = copying_score_logit(copiers, tokens)[0]
    # Lowering one raises the five others alike: none of the sample's raise is the token's own. The
    # shifted token is not in the sample, where none is raised: chance, 1/3.
    assert_close(found, torch.tensor([1.0, 0.0, 1 / 3]))
    assert copying_logit_chance(copiers, tokens) == pytest.approx(1 / 3)
    matrix = label_copying(copiers, tokens=torch.arange(N_TOKENS))
    assert_close(matrix[0, 0], torch.eye(N_TOKENS))
    assert_close(label_copying_score(matrix)[0], torch.tensor([1.0, -1.0, -1 / 5]))


def test_heads_that_write_nothing_score_chance(copiers):
    copiers.blocks[0].attn.W_O.data.zero_()
    assert (copying_score_eig(copiers) == 0).all()
    assert (copying_score_eig(copiers, full=False) == 0).all()
    diagonal = copying_score_diag(copiers)
    assert_close(diagonal.top[0], torch.full((3,), 1 / N_TOKENS))
    assert_close(diagonal.rank[0], torch.full((3,), 0.5))
    found = copying_score_logit(copiers, torch.tensor([[0, 1, 2, 3]]))
    assert_close(found[0], torch.full((3,), 0.25))


@torch.no_grad()
def literal_copying_logit(model, tokens):
    """One sequence, head and position at a time."""
    _, cache = model.run_with_cache(tokens)
    n_outputs = model.cfg.d_vocab_out
    w_u = literal_unembedding(model, layer_norm=True)
    values = torch.zeros(len(tokens), model.cfg.n_layers, model.cfg.n_heads)
    for n, said in enumerate(tokens.tolist()):
        sample = {token for token in said if token < n_outputs}
        for layer in range(model.cfg.n_layers):
            for head in range(model.cfg.n_heads):
                shares = []
                for position, token in enumerate(said):
                    if token not in sample:
                        continue
                    value = cache["v", layer][n, position, head]
                    logits = value @ model.blocks[layer].attn.W_O[head] @ w_u
                    raised = (logits - logits.mean()).relu()
                    whole = sum(raised[other] for other in sample)
                    shares.append(raised[token] / whole if whole > 0 else 1 / len(sample))
                values[n, layer, head] = sum(shares) / len(shares)
    return values


def test_copying_by_logits_equals_the_loop(language_model, model, batch):
    tokens = torch.tensor([[0, 1, 2, 3, 1], [5, 5, 4, 5, 0]])
    for net, said in ((language_model, tokens), (shuffled(model), batch.tokens[:4])):
        found = copying_score_logit(net, said, per_sequence=True)
        assert_close(found, literal_copying_logit(net, said), atol=1e-5, rtol=0)
        assert_close(copying_score_logit(net, said), found.mean(dim=0))


def test_copying_by_logits_sees_clamps(model, batch):
    before = {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()}
    with ih.clamped(model, [ih.clamps.AblateHeads(heads=["L1H3"])], batch):
        found = copying_score_logit(model, batch)
    assert found[1, 3] == copying_logit_chance(model, batch) == 0.5
    assert {name: len(point.fwd_hooks) for name, point in model.hook_dict.items()} == before


@with_and_without
@torch.no_grad()
def test_label_copying_equals_the_loop(layer_norm, model):
    found = label_copying(shuffled(model), layer_norm=layer_norm)
    assert found.shape == (2, 8, 5, 5)
    labels = torch.arange(5)
    for layer in range(2):
        for head in (0, 5):
            expected = literal_circuit(model, labels, layer, head, layer_norm)
            assert_close(found[layer, head], expected)
    own = sum(found[1, 5, i, i] for i in labels) / 5
    other = sum(found[1, 5, i, j] for i in labels for j in labels if i != j) / 20
    assert_close(label_copying_score(found)[1, 5], own - other)
    assert_close(copying_score_eig(model).shape, torch.Size([2, 8]))


@torch.no_grad()
def test_label_copying_of_values_equals_the_loop(model, batch):
    shuffled(model)
    found = label_copying_of_values(model, batch)
    _, cache = model.run_with_cache(batch.tokens)
    w_u = literal_unembedding(model, layer_norm=True)
    for label in range(5):
        shown = [
            cache["v", 1][n, position]
            for n in range(len(batch))
            for position in (1, 3)
            if batch.tokens[n, position] == label
        ]
        mean = torch.stack(shown).mean(dim=0)
        for head in range(8):
            expected = mean[head] @ model.blocks[1].attn.W_O[head] @ w_u
            assert_close(found[1, head, label], expected, atol=1e-5, rtol=1e-4)


def test_label_copying_of_values_needs_every_label(model, batch):
    few = batch[:1]
    with pytest.raises(ValueError, match="no context shows"):
        label_copying_of_values(model, few)


# Matching


def rotary_model(task, normalization_type):
    config = ModelConfig(normalization_type=normalization_type, n_layers=3)
    return shuffled(ih.build_model(task, config, seed=3))


@torch.no_grad()
def literal_matches(model, tokens, source, reader, distance, layer_norm):
    """M[x, y], one pair of tokens at a time."""
    (low, writer), (high, head) = source, reader
    one, two = model.blocks[low].attn, model.blocks[high].attn
    gain = torch.eye(model.cfg.d_model)
    if layer_norm and model.cfg.normalization_type is not None:
        if model.cfg.normalization_type == "LN":
            gain = gain - 1 / model.cfg.d_model
        gain = gain @ torch.diag(model.blocks[high].ln1.w)
    matches = torch.zeros(len(tokens), len(tokens))
    for i, x in enumerate(tokens.tolist()):
        query = literal_embedding(model, x, high, layer_norm) @ two.W_Q[head]
        if distance:
            query = _rotated(query, distance, model.cfg.rotary_base)
        for j, y in enumerate(tokens.tolist()):
            copied = literal_embedding(model, y, low, layer_norm) @ one.W_V[writer]
            matches[i, j] = query @ (copied @ one.W_O[writer] @ gain @ two.W_K[head])
    return matches


@each_norm
@with_and_without
@pytest.mark.parametrize("distance", [0, 3])
def test_matching_equals_the_loop(normalization_type, layer_norm, distance, task):
    model = rotary_model(task, normalization_type)
    tokens = torch.tensor([5, 8, 11, 14, 40])
    options = {"distance": distance, "layer_norm": layer_norm}
    found = qk_matching(model, tokens, **options)
    previous = torch.rand(3, 8, generator=seeded())
    traces = induction_trace(model, tokens, previous, normalise=False, **options)
    ratios = induction_trace(model, tokens, previous, **options)
    assert traces[0].isnan().all()
    assert found[1, :, 1].isnan().all()
    for layer, head in ((1, 0), (2, 7)):
        matrix = torch.zeros(5, 5)
        for low in range(layer):
            for writer in range(8):
                source = (low, writer)
                m = literal_matches(model, tokens, source, (layer, head), distance, layer_norm)
                matrix += previous[low, writer] * m
                higher = [m[i, i] > m[i, j] for i in range(5) for j in range(5) if i != j]
                share = sum(map(bool, higher)) / 20
                assert found[low, writer, layer, head] == pytest.approx(share)
        scale = float(matrix.abs().max())
        trace = float(matrix.trace())
        assert traces[layer, head] == pytest.approx(trace, abs=1e-4 * scale)
        values = torch.linalg.eigvals(matrix.double())
        ratio = float(values.real.sum() / values.abs().sum())
        assert ratios[layer, head] == pytest.approx(ratio, abs=1e-3)


@pytest.fixture
def matcher():
    """L0H0 copies one-hot tokens to six dimensions more, where L1H0 looks for its own token."""
    model = plain(d_model=2 * N_TOKENS, d_head=N_TOKENS, normalization_type=None)
    one, token, copied = torch.eye(N_TOKENS), slice(0, N_TOKENS), slice(N_TOKENS, 2 * N_TOKENS)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[:, token] = one
        model.blocks[0].attn.W_V[0, token] = one
        model.blocks[0].attn.W_O[0, :, copied] = one
        model.blocks[1].attn.W_Q[0, token] = 3 * one
        model.blocks[1].attn.W_K[0, copied] = one
        model.blocks[1].attn.W_Q[1, token] = one
        model.blocks[1].attn.W_K[1, copied] = -one
    return model


def test_a_matcher_matches_and_others_score_chance(matcher):
    tokens = torch.arange(N_TOKENS)
    expected = torch.full((3, 3), 0.5)  # ties: nothing is written, or nothing read
    expected[0, :2] = torch.tensor([1.0, 0.0])
    assert_close(qk_matching(matcher, tokens)[0, :, 1], expected)
    previous = torch.tensor([[0.5, 1.0, 1.0], [0.0, 0.0, 0.0]])
    ratio = induction_trace(matcher, tokens, previous)
    assert_close(ratio[1], torch.tensor([1.0, -1.0, 0.0]))
    trace = induction_trace(matcher, tokens, previous, normalise=False)
    assert_close(trace[1], torch.tensor([0.5 * 3 * 6, -0.5 * 6, 0.0]))


# What is refused


def test_only_models_whose_outputs_are_tokens_copy():
    model = plain(d_vocab_out=4)
    for score in (copying_score_eig, copying_score_diag):
        with pytest.raises(ValueError, match="6 tokens and 4 outputs"):
            score(model)
    with pytest.raises(ValueError, match="6 tokens and 4 outputs"):
        copying_score_logit(model, torch.tensor([[0, 1, 2]]))
    chosen = torch.tensor([1, 3])
    assert copying_score_eig(model, tokens=chosen).shape == (2, 3)
    assert label_copying(model, tokens=chosen).shape == (2, 3, 2, 2)
    with pytest.raises(ValueError, match="1 to 5"):
        copying_score_eig(model, tokens=torch.tensor([1, 5]))


def test_what_weights_cannot_tell_is_refused(model, language_model):
    with pytest.raises(ValueError, match="tokens=None"):
        label_copying(language_model)
    with pytest.raises(ValueError, match="2 different"):
        qk_matching(model, torch.tensor([5, 6, 6]))
    with pytest.raises(ValueError, match="distance=5"):
        qk_matching(model, torch.tensor([5, 6]), distance=5)
    with pytest.raises(ValueError, match="distance=1"):
        qk_matching(language_model, torch.tensor([2, 3]), distance=1)
    with pytest.raises(ValueError, match=r"\(2, 8\)"):
        induction_trace(model, torch.tensor([5, 6]), torch.zeros(8, 2))
    with pytest.raises(ValueError, match="1 of 1 sequences"):
        copying_score_logit(model, torch.tensor([[5, 1, 6, 1, 5]]))
    language_model.cfg.normalization_type = "SoLU"
    with pytest.raises(ValueError, match="normalization_type='SoLU'"):
        composition_scores(language_model, "Q")


# The paper's main run, trained by the published code


@pytest.fixture(scope="module")
def trained(shared):
    folder = shared / "reference/icl_dynamics/trained"
    everything = ih.Exemplars.load(shared / "data/omniglot_features.h5")
    task = ih.FewShotTask(
        ih.Exemplars(everything.features[:50].clone()),
        ih.TaskConfig(n_train_classes=50, n_labels=5),
    )
    model = ih.load_icl_dynamics(folder / "checkpoint.eqx", folder / "config.json", task)
    return model, task, json.loads((folder / "measured.json").read_text())


def test_heads_that_copy_labels_are_those_that_do_well_alone(trained):
    """Copying of the values at labels ranks the eight heads as their accuracy alone does."""
    model, task, measured = trained
    batch = task.sample("train", 1_000, generator=seeded())
    copying = label_copying_score(label_copying_of_values(model, batch))[1]
    accuracy = torch.tensor(measured["only_head"]["accuracy"])
    assert torch.equal(copying.argsort(), accuracy.argsort())


def test_induction_heads_match_what_previous_token_heads_copy(trained):
    model, task, measured = trained
    tokens = task.token(torch.arange(50), torch.zeros(50).long())
    matching = qk_matching(model, tokens, distance=1)[0, :, 1]
    # The two previous-token heads, and the strongest induction head.
    previous = torch.tensor(measured["previous_token_attention_label_rows"])
    assert previous[0].topk(2).indices.tolist() == [4, 0]
    assert matching[[4, 0]].mean() > matching.mean() + 0.1
    assert matching[[4, 0], 1].min() > 0.8
    trace = induction_trace(model, tokens, previous, distance=1)[1]
    strength = torch.tensor(measured["induction_strength"])[1]
    assert torch.corrcoef(torch.stack([trace, strength]))[0, 1] > 0.7
