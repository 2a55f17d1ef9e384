"""Clamps by answers and candidates, and parameters that are frozen, on a task of plain tokens."""

import pytest
import torch
from clamp_laws import EVERY_CLAMP, logits_under
from small_runs import SMALL
from torch.testing import assert_close

import ih_interp as ih
from ih_interp.clamps import (
    AbstractClamp,
    AttendLabelsOnly,
    CopyFromAttention,
    Freeze,
    InductionAttention,
    PerfectLayerOne,
    PerfectMatchAndCopy,
    PreviousTokenAttention,
    SimilarityAttention,
    clamped,
    during,
    ramp,
)
from ih_interp.clamps.base import Setting, Shape, flat_tensors
from ih_interp.engine.compiled_forward import ClampedModel, Sequences
from ih_interp.engine.update import FleetInputs, FleetState, eager_step, trace_update
from ih_interp.hooks import previous_token_input
from ih_interp.model import build_model, trained_parameters

REPEATED = ih.tasks.RepeatedTokens(n_tokens=12, length=14, min_period=3, max_period=5)
LAYER_1 = [(1, head) for head in range(8)]


@pytest.fixture
def repeated():
    return build_model(REPEATED, seed=5)


@pytest.fixture
def tokens():
    return REPEATED.sample("train", 12, seed=0)


def cached(model, clamps, batch):
    with clamped(model, clamps, batch), torch.no_grad():
        return model.run_with_cache(batch.tokens)


@pytest.mark.parametrize("strength", [0.7, 1.0])
def test_induction_attends_to_answers_at_every_query_that_has_one(strength, repeated, tokens):
    clamp = InductionAttention(heads=LAYER_1, strength=strength)
    pattern = cached(repeated, [clamp], tokens)[1]["pattern", 1]
    free = cached(repeated, [], tokens)[1]["pattern", 1]
    answers, others = tokens.answers, tokens.candidates & ~tokens.answers
    set_ = answers.any(-1) & (others.any(-1) | (strength == 1))
    assert set_.sum() > 50
    assert set_.any(dim=1).all()
    on_answers, on_others = ((pattern * m[:, None]).sum(-1) for m in (answers, others))
    chosen = set_[:, None].expand_as(on_answers)
    assert_close(on_answers[chosen], torch.full_like(on_answers[chosen], strength))
    assert_close(on_others[chosen], torch.full_like(on_answers[chosen], 1 - strength))
    assert torch.equal(pattern[~chosen], free[~chosen])


def test_a_query_without_another_candidate_stays_free_below_strength_one(repeated, tokens):
    alone = tokens.replace(candidates=tokens.answers)
    weak, strong = (InductionAttention(heads=LAYER_1, strength=s) for s in (0.9, 1.0))
    free = repeated(tokens.tokens)
    assert not torch.equal(logits_under(repeated, [strong], alone), free)
    with pytest.warns(ih.clamps.ClampUnchangedWarning):
        assert torch.equal(logits_under(repeated, [weak], alone), free)


@pytest.mark.parametrize("step", [None, 0, 5])
def test_copied_logits_are_scores_at_candidates(step, repeated, tokens):
    clamp = CopyFromAttention(head="L1H3", **({} if step is None else {"schedule": during(5)}))
    with clamped(repeated, [clamp], tokens, step=step), torch.no_grad():
        logits, cache = repeated.run_with_cache(tokens.tokens)
    free = repeated(tokens.tokens)
    scores = cache["attn_scores", 1][:, 3]
    for row, query in tokens.asked.nonzero().tolist():
        keys = tokens.candidates[row, query]
        for token in range(12):
            holding = keys & (tokens.tokens[row] == token)
            found = logits[row, query, token]
            if step == 0:
                assert found == free[row, query, token]
            elif holding.any():
                assert_close(found, scores[row, query, holding].logsumexp(0))
            else:
                assert found < -1e8
    assert torch.equal(logits[~tokens.asked], free[~tokens.asked])


def test_match_and_copy_are_cosines_at_candidates(repeated, tokens):
    logits, cache = cached(repeated, [PerfectMatchAndCopy(temperature=0.5)], tokens)
    written, query = cache["attn_out", 0], cache["resid_pre", 0]
    for row, place in tokens.asked.nonzero()[:40].tolist():
        keys = tokens.candidates[row, place]
        alike = torch.cosine_similarity(written[row], query[row, place], dim=-1) / 0.5
        for token in tokens.tokens[row, keys].unique():
            holding = keys & (tokens.tokens[row] == token)
            assert_close(logits[row, place, token], alike[holding].logsumexp(0))


def test_only_candidates_are_attended_to(repeated, tokens):
    few = tokens.replace(candidates=tokens.answers)
    pattern = cached(repeated, [AttendLabelsOnly(heads=["L1H3"])], few)[1]["pattern", 1]
    free = cached(repeated, [], few)[1]["pattern", 1]
    rows = few.candidates.any(-1)
    assert not (pattern[:, 3] * ~few.candidates)[rows].any()
    assert_close(pattern[:, 3][rows].sum(-1), torch.ones(int(rows.sum())))
    assert torch.equal(pattern[:, 3][~rows], free[:, 3][~rows])
    assert torch.equal(pattern[:, [0, 1, 2, 4]], free[:, [0, 1, 2, 4]])


def test_layer_one_matches_a_query_with_what_followed_its_token(repeated, tokens):
    cache = cached(repeated, [PerfectLayerOne()], tokens)[1]
    norm, attention = repeated.blocks[1].ln1, repeated.blocks[1].attn
    raw = repeated.embed(tokens.tokens)
    for row, place in tokens.asked.nonzero()[:30].tolist():
        q = norm(raw[row, place]) @ attention.W_Q[3]
        assert_close(attention.hook_rot_q(q), q)
        unturned = cache["q", 1][row, place, 3]
        assert_close(unturned, q)
    never = tokens.asked & ~tokens.candidates.any(dim=1)
    shifted = torch.where(never[..., None], raw, torch.cat([raw[:, :1], raw[:, :-1]], dim=1))
    k = torch.einsum("bpm,md->bpd", norm(shifted), attention.W_K[3])
    assert_close(cache["k", 1][:, :, 3], k)


def test_few_shot_sequences_shift_as_the_rule_for_any_task_says(batch):
    resid = torch.randn(len(batch), 5, 3)
    keys = batch.asked & ~batch.candidates.any(dim=1)
    assert torch.equal(previous_token_input(resid), previous_token_input(resid, batch.asked))
    assert torch.equal(previous_token_input(resid), previous_token_input(resid, keys))


@pytest.mark.parametrize(
    "clamp",
    [SimilarityAttention(heads=["L1H3"]), PreviousTokenAttention(heads=["L0H3"], queries="labels")],
    ids=str,
)
def test_what_has_a_meaning_for_few_shot_sequences_alone_says_so(clamp, repeated, tokens):
    with pytest.raises(ValueError, match="few-shot"), clamped(repeated, [clamp], tokens):
        pass


@pytest.mark.parametrize("clamp", [c for c in EVERY_CLAMP if c.roles], ids=str)
def test_plain_tokens_have_no_answers(clamp, repeated, tokens):
    plain = ih.Batch(tokens.tokens, tokens.targets)
    with pytest.raises(ValueError, match=r"answers|candidates"), clamped(repeated, [clamp], plain):
        pass


# Training


class Noticing(AbstractClamp):
    """A clamp of a user's own that knows of no gate and reads answers without saying so."""

    kind: str = "noticing"

    def sites(self, shape):
        return frozenset({ih.clamps.Site("resid_post", 0)})

    def hooks(self, setting: Setting):
        n_answers = setting.sequences.answers.sum(-1)
        return [("blocks.0.hook_resid_post", lambda r, hook: r * (1 + n_answers[..., None]))]


ON_ANY_TASK = [
    clamp
    for clamp in EVERY_CLAMP
    if clamp.kind not in ("match_attention", "function")
    and getattr(clamp, "queries", "all") == "all"
]


def trained(clamp, task, step_of, n=6):
    """The weights after some updates, with the gate going up."""
    model = build_model(task, ih.ModelConfig(n_heads=8), seed=5)
    weights = {name: p.detach()[None].clone() for name, p in trained_parameters(model).items()}
    zeros = tuple({n: torch.zeros_like(w) for n, w in weights.items()} for _ in range(2))
    state = FleetState(weights, zeros, torch.zeros(1))
    drawn = task.sample("train", 8 * n, seed=1)
    shape = Shape.of(model)
    step = None
    for number, part in enumerate(drawn.split(8)):
        sequences = Sequences.of(part, task, [clamp])
        gates = [torch.tensor([clamp.gate(number)])] if clamp.is_scheduled else []
        inputs = FleetInputs(
            sequences=torch.utils._pytree.tree_map(lambda t: t[None], sequences),
            learning_rate=torch.tensor([1e-2]),
            clamps=[t[None] for t in flat_tensors([clamp], shape)],
            gates=gates,
            buffers={},
        )
        adam = ih.Adam(eps=1e-2)  # rounding of gradients of 0 would count in full
        given = (ClampedModel(model, [clamp], task), adam, state, inputs)
        step = step_of(*given) if step is None else step
        step(state, inputs)
    return {name: tensor[0] for name, tensor in state.parameters.items()}


def by_graph(clamped_model, optimiser, state, inputs):
    graph = trace_update(clamped_model, optimiser, state, inputs)

    def step(state, inputs):
        with torch.no_grad():
            return graph(*state.flat, *inputs.flat)

    return step


@pytest.mark.slow
@pytest.mark.parametrize("clamp", [*ON_ANY_TASK, Noticing()], ids=str)
def test_graphs_train_under_every_clamp_as_the_plain_model_does(clamp):
    schedule = during(2, 5) if clamp.kind == "freeze" else ramp(0, 4)
    for given in (clamp, clamp.model_copy(update={"schedule": schedule})):
        plain = trained(given, REPEATED, lambda clamped, adam, *_: eager_step(clamped, adam, [0]))
        assert_close(trained(given, REPEATED, by_graph), plain, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_graph_traced_for_one_freeze_serves_another():
    one, other = Freeze(parameters=["blocks.1.attn.W_V"]), Freeze(heads=["L0H3"], parts="q")

    def traced(_, optimiser, state, inputs):
        model = build_model(REPEATED, ih.ModelConfig(n_heads=8), seed=5)
        return by_graph(ClampedModel(model, [one], REPEATED), optimiser, state, inputs)

    plain = trained(other, REPEATED, lambda clamped, adam, *_: eager_step(clamped, adam, [0]))
    assert_close(trained(other, REPEATED, traced), plain, rtol=0, atol=1e-5)


def frozen_run(root, clamps):
    config = SMALL.replace(clamps=clamps, optimiser=ih.Adam(learning_rate=1e-2, weight_decay=0.1))
    run = ih.train(config, root, progress=False, engine="eager")[0]
    return [run.read_weights(step)[0] for step in (0, 8, 16, 24)]


def test_frozen_parameters_stay_bit_for_bit_while_it_is_on(tmp_path):
    clamp = Freeze(parameters=["embed.*"], heads=["L0H3"], parts="qk", schedule=during(8, 16))
    weights = frozen_run(tmp_path, [clamp])
    query = "blocks.0.attn.W_Q"
    for number, on in enumerate((False, True, False)):
        before, after = weights[number : number + 2]
        assert torch.equal(before["embed.W_in"], after["embed.W_in"]) == on
        assert torch.equal(before[query][3], after[query][3]) == on
        assert not torch.equal(before[query][2], after[query][2])
        assert not torch.equal(before["blocks.0.attn.W_V"][3], after["blocks.0.attn.W_V"][3])


def test_frozen_parameters_get_no_gradient_inside_the_block(model, batch):
    clamp = Freeze(parameters=["unembed.*"], heads=["L0H3"], parts="q")
    free = torch.nn.functional.cross_entropy(model(batch.tokens)[:, -1], batch.target)
    names, parameters = zip(*trained_parameters(model).items(), strict=True)
    expected = dict(zip(names, torch.autograd.grad(free, parameters), strict=True))
    with clamped(model, [clamp], batch):
        loss = torch.nn.functional.cross_entropy(model(batch.tokens)[:, -1], batch.target)
        found = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    assert loss == free
    expected["unembed.W_U"] = torch.zeros_like(expected["unembed.W_U"])
    expected["unembed.b_U"] = torch.zeros_like(expected["unembed.b_U"])
    expected["blocks.0.attn.W_Q"][3] = 0
    assert_close(found, expected)
    again = torch.nn.functional.cross_entropy(model(batch.tokens)[:, -1], batch.target)
    assert torch.autograd.grad(again, model.unembed.W_U)[0].any()


@pytest.mark.parametrize(
    ("clamp", "word"),
    [
        (Freeze(parameters=["embd.*"]), "embd"),
        (Freeze(heads=["L0H9"]), "L0H9"),
        (Freeze(heads=["L0H1"], schedule=ramp(0, 10)), r"gate 0\.5"),
    ],
    ids=str,
)
def test_what_cannot_be_frozen_is_refused(clamp, word, model, batch):
    with pytest.raises(ValueError, match=word), clamped(model, [clamp], batch, step=5):
        pass


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({}, "parameters"),
        ({"heads": ["L0H1"], "parts": "xy"}, "parts"),
        ({"heads": ["L0H1", "L0H1"]}, "L0H1"),
    ],
)
def test_bad_freezes_are_refused(fields, word):
    with pytest.raises(ValueError, match=word):
        Freeze(**fields)
