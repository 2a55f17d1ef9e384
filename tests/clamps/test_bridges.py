"""Clamps on TransformerBridges: the same as on HookedTransformers, and as plain hooks give.

Both environments run this file: TransformerLens 3.9, and 4.3, which has no HookedTransformer.
"""

import copy
from functools import partial

import pytest
import torch
from bridges import BRIDGES, TWINS, bridge, needs_twins, tokens_for, twins
from plain_clamps import by_plain_hooks, sequences
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from ih_interp._stock import not_plain
from ih_interp.clamps import (
    AblateEmbedding,
    AblateHeads,
    AttendLabelsOnly,
    AttentionTemperature,
    CopyFromAttention,
    ForbidPreviousToken,
    Freeze,
    Function,
    InductionAttention,
    PerfectLayerOne,
    PerfectMatchAndCopy,
    Preserve,
    PreviousTokenAttention,
    SimilarityAttention,
    clamped,
    during,
    ramp,
)
from ih_interp.engine.compile_step import compile_step
from ih_interp.evaluation import evaluate


def halve(activation, hook):
    return 0.5 * activation


def reversed_keys(activation, hook):
    return activation.flip(-1)


CLAMPS = [
    [AblateHeads(heads=["L0H1", "L1H3"])],
    [AblateEmbedding()],
    [PreviousTokenAttention(heads=["L0H2", "L0H3"], strength=0.9)],
    [ForbidPreviousToken(heads=["L0H2", "L1H0"])],
    [InductionAttention(heads=["L1H3", "L2H0"], strength=0.9)],
    [AttentionTemperature(heads=["L1H3"], temperature=0.5)],
    [AttentionTemperature(heads=["L1H0"], temperature=3.0)],
    [AttendLabelsOnly(heads=["L1H1"])],
    [CopyFromAttention(head="L1H3")],
    [PerfectLayerOne()],
    [PerfectLayerOne(gradient="block"), CopyFromAttention(head="L1H3", gradient="block")],
    [PerfectMatchAndCopy()],
    [Preserve(what=["patterns"]), AblateHeads(heads=["L0H1", "L0H2"])],
    [Preserve(what=["queries", "keys"]), AblateEmbedding()],
    [Preserve(what=["values"], gradient="block"), AblateHeads(heads=["L0H1"])],
    [Function(point="blocks.*.attn.hook_z", function=halve)],
    [AblateHeads(heads=["L0H1"], schedule=ramp(0, 10))],
    [ForbidPreviousToken(heads=["L0H2"], schedule=ramp(0, 10))],
    [CopyFromAttention(head="L1H3", schedule=ramp(0, 10))],
]
ON_PATTERNS = (PreviousTokenAttention, InductionAttention, Preserve)
ON_SCORES = (ForbidPreviousToken, AttentionTemperature, AttendLabelsOnly, CopyFromAttention)
every_clamp = pytest.mark.parametrize(
    "clamps", CLAMPS, ids=lambda clamps: "+".join(map(str, clamps))
)


def clamps_for(name):
    """All clamps, but for those that act where this bridge only shows what it computes."""
    refused = (*ON_PATTERNS, *ON_SCORES) if name == "opt" else ()
    return [clamps for clamps in CLAMPS if not any(isinstance(c, refused) for c in clamps)]


def logits_under(model, clamps, batch):
    with clamped(model, clamps, batch, step=4):
        return model(batch.tokens)


def named(clamps, message):
    return f"{clamps}: {message}"


def n_hooks(model):
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


@needs_twins
@pytest.mark.parametrize("name", TWINS)
def test_clamps_give_what_they_give_on_a_hooked_transformer(name):
    hooked, model = twins(name)
    batch = sequences(model)
    assert_close(hooked(batch.tokens), model(batch.tokens), rtol=0, atol=1e-5)
    for clamps in clamps_for(name):
        before = n_hooks(model)
        expected, found = (logits_under(each, clamps, batch) for each in (hooked, model))
        if name == "bloom" and isinstance(clamps[-1], CopyFromAttention):
            # Hugging Face counts ALiBi from the first key: scores differ by a constant per query.
            if clamps[-1].is_scheduled:
                continue
            expected, found = expected.log_softmax(-1), found.log_softmax(-1)
        assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=partial(named, clamps))
        assert n_hooks(model) == before


@needs_twins
@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "llama, grouped"])
def test_gradients_are_those_of_a_hooked_transformer(name):
    hooked, model = twins(name, dtype=torch.float64)
    batch = sequences(model)
    for clamps in CLAMPS:
        gradients = []
        for each, weight in ((hooked, hooked.W_E), (model, model.embed.weight)):
            logits = logits_under(each, clamps, batch).flatten(0, 1)
            loss = cross_entropy(logits, batch.targets.flatten())
            gradients.append(torch.autograd.grad(loss, weight, materialize_grads=True)[0])
        assert_close(*gradients, rtol=1e-4, atol=1e-4, msg=partial(named, clamps))


@pytest.mark.parametrize("name", [name for name in TWINS if name != "opt"])
def test_clamps_give_what_plain_hooks_give(name):
    model = bridge(name)
    batch = sequences(model)
    for clamp, point, function in by_plain_hooks(batch):
        with model.hooks(fwd_hooks=[(point, function)]):
            expected = model(batch.tokens)
        found = logits_under(model, [clamp], batch)
        assert_close(found, expected, rtol=0, atol=1e-5, msg=partial(named, clamp))
        assert float((found - model(batch.tokens)).detach().abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "llama, grouped"])
def test_clamps_give_the_same_predictions_with_processed_weights(name):
    model, processed = bridge(name), bridge(name)
    processed.enable_compatibility_mode(disable_warnings=True)
    batch = sequences(model)
    for clamp, _, _ in by_plain_hooks(batch):
        if not isinstance(clamp, AblateHeads):  # what a head writes then lacks its values' biases
            expected, found = (
                logits_under(each, [clamp], batch).log_softmax(-1) for each in (model, processed)
            )
            assert_close(found, expected, rtol=0, atol=1e-4, msg=partial(named, clamp))


@pytest.mark.parametrize("name", BRIDGES)
def test_what_a_clamp_sets_is_what_hooks_of_others_see(name):
    model = bridge(name)
    batch = sequences(model)
    seen = {}
    point = "blocks.0.attn.hook_z"
    with clamped(model, [AblateHeads(heads=["L0H1"])], batch):
        with model.hooks(fwd_hooks=[(point, lambda z, hook: seen.update(z=z))]):
            model(batch.tokens)
        cache = model.run_with_cache(batch.tokens)[1]
    assert seen["z"].shape == (3, 9, 4, 6)
    assert not seen["z"][:, :, 1].any()
    assert not cache[point][:, :, 1].any()
    assert seen["z"][:, :, 0].any()


@pytest.mark.parametrize("clamp", [c for c in CLAMPS if type(c[0]) in ON_SCORES], ids=str)
def test_scores_that_a_bridge_only_shows_are_refused(clamp):
    model = bridge("native")
    model(tokens_for(model))  # the first pass puts hooks of its own
    before = n_hooks(model)
    with pytest.raises(ValueError, match="only shows"):
        logits_under(model, clamp, sequences(model))
    assert n_hooks(model) == before


@pytest.mark.filterwarnings("ignore:A hook on .*attn")  # of TransformerLens 4, on what acts nowhere
@pytest.mark.parametrize("point", ["hook_attn_scores", "hook_pattern"])
@pytest.mark.parametrize("name", BRIDGES)
def test_a_function_on_attention_acts_or_is_refused(name, point):
    model = bridge(name)
    tokens, name = tokens_for(model), f"blocks.1.attn.{point}"
    free = model(tokens)
    with model.hooks(fwd_hooks=[(name, reversed_keys)]):
        expected = model(tokens)
    clamp = Function(point=name, function=reversed_keys)
    if torch.equal(expected, free):
        with pytest.raises(ValueError, match="only shows"), clamped(model, [clamp]):
            model(tokens)
        return
    with clamped(model, [clamp]):
        assert_close(model(tokens), expected, rtol=0, atol=1e-5)


def test_clamps_on_queries_keys_values_and_z_act_on_every_bridge():
    model = bridge("native")
    batch = sequences(model)
    given = [Preserve(what=["queries", "keys", "values"]), AblateEmbedding()]
    kept = {}
    with clamped(model, given, batch):
        for part in "qkv":
            point = f"blocks.2.attn.hook_{part}"
            with model.hooks(fwd_hooks=[(point, lambda a, hook, p=part: kept.update({p: a}))]):
                model(batch.tokens)
    cache = model.run_with_cache(batch.tokens)[1]
    for part, value in kept.items():
        assert_close(value, cache[f"blocks.2.attn.hook_{part}"])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Function(point="blocks.0.attn.hook_z", function=halve), "blocks.0.attn.o.hook_in"),
        (Function(point="blocks.*.hook_resid_pre", function=halve), "blocks.1.hook_in"),
        (AblateHeads(heads=["L0H1"]), "blocks.0.attn.v.hook_out"),
        (AblateEmbedding(), "embed.hook_out"),
        (CopyFromAttention(head="L1H3"), "unembed.hook_out"),
        (CopyFromAttention(head="L1H3"), "hook_unembed"),
    ],
    ids=str,
)
def test_conflicts_are_found_by_any_name_of_a_point(one, other):
    model = bridge("gpt2")
    with (
        pytest.raises(ValueError, match="Two clamps set"),
        clamped(model, [one, Function(point=other, function=halve)], sequences(model)),
    ):
        pass


def test_different_points_of_a_bridge_are_no_conflict():
    model = bridge("llama, grouped")
    batch = sequences(model)
    points = ("attn.q.hook_out", "attn.k.hook_out", "attn.o.hook_out", "mlp.gate.hook_out")
    given = [Function(point=f"blocks.1.{point}", function=halve) for point in points]
    assert not torch.equal(logits_under(model, given, batch), model(batch.tokens))


@pytest.mark.parametrize("name", BRIDGES)
def test_a_pattern_of_points_acts_once_at_each(name):
    model = bridge(name)
    batch = sequences(model)
    calls = []

    def count(activation, hook):
        calls.append(hook.name)
        return activation + 1

    with clamped(model, [Function(point="blocks.?.hook_[ir]*[ne]", function=count)], batch):
        model(batch.tokens)
    assert calls == [f"blocks.{n}.hook_in" for n in range(3)]


def test_the_middle_of_the_residual_stream_is_refused_where_only_the_mlp_reads_it():
    model = bridge("gpt2")
    with pytest.raises(ValueError, match="resid_mid"):
        logits_under(model, [Function(point="blocks.1.hook_resid_mid", function=halve)], None)


def test_nested_blocks_and_hooks_of_others_stay():
    model = bridge("gpt2")
    batch = sequences(model)
    model.add_hook("blocks.2.hook_resid_post", halve)
    with torch.no_grad():  # bridges keep patterns, which cannot be copied with their graph
        free = model(batch.tokens)
    both = [AblateHeads(heads=["L0H1"]), ForbidPreviousToken(heads=["L1H1"])]
    together = logits_under(model, both, batch)
    with torch.no_grad(), clamped(model, both[:1], batch), clamped(model, both[1:], batch):
        assert_close(model(batch.tokens), together)
        copied = copy.deepcopy(model)
        assert_close(copied(batch.tokens), free)
        assert_close(evaluate(model, batch)["loss"], evaluate(model, batch, [])["loss"])
    assert_close(model(batch.tokens), free)


def test_reset_hooks_leaves_clamps_on():
    model = bridge("llama")
    batch = sequences(model)
    given = [AblateHeads(heads=["L0H1"])]
    expected = logits_under(model, given, batch)
    with clamped(model, given, batch):
        model.add_hook("blocks.2.hook_resid_post", halve)
        model.reset_hooks()
        assert_close(model(batch.tokens), expected)


def test_other_sequences_and_changed_weights_are_refused():
    model = bridge("neox")
    batch = sequences(model)
    with (
        pytest.raises(ValueError, match="another batch"),
        clamped(model, [InductionAttention(heads=["L1H3"])], batch),
    ):
        model(batch.tokens.flip(0))
    with clamped(model, [Preserve(what=["values"]), AblateHeads(heads=["L0H1"])], batch):
        model(batch.tokens)
        with torch.no_grad():
            model.embed.weight.mul_(1.5)
        with pytest.raises(ValueError, match="weights"):
            model(batch.tokens)


@pytest.mark.parametrize(
    ("clamp", "why"),
    [
        (Freeze(parameters=["embed.*"]), "HookedTransformer"),
        (Freeze(heads=["L0H1"]), "HookedTransformer"),
        (SimilarityAttention(heads=["L1H1"]), "few-shot"),
        (AblateHeads(heads=["L3H0"]), "There is no head"),
        (Function(point="blocks.0.attn.hook_y", function=halve), "no hook point"),
        (Function(point="blocks.0.attn.hook_result", function=halve), "never fired"),
    ],
    ids=str,
)
def test_what_a_bridge_cannot_take_is_refused(clamp, why):
    model = bridge("gpt2")
    with pytest.raises(ValueError, match=why):
        logits_under(model, [clamp], sequences(model))


def test_schedules_are_at_their_step():
    model = bridge("gpt2")
    batch = sequences(model)
    clamp = AblateHeads(heads=["L0H1"], schedule=during(5, 9))
    assert_close(logits_under(model, [clamp], batch), model(batch.tokens))


@pytest.mark.parametrize("name", BRIDGES)
def test_a_bridge_is_not_plain(name):
    model = bridge(name)
    assert "TransformerBridge" in str(not_plain(model, [model.embed]))


@needs_twins
def test_a_bridge_cannot_be_trained():
    with pytest.raises(TypeError, match="HookedTransformer"):
        compile_step(bridge("gpt2"))


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", TWINS)
def test_half_precision_is_as_exact_under_clamps_as_without(name, dtype):
    model, exact = bridge(name, dtype=dtype), bridge(name, dtype=dtype).to(torch.float64)
    batch = sequences(model)
    without = float((model(batch.tokens) - exact(batch.tokens)).detach().abs().max())
    for clamps in clamps_for(name):
        found = logits_under(model, clamps, batch)
        assert found.dtype == dtype
        expected = logits_under(exact, clamps, batch)
        shown = expected > -1e4  # others are masked
        assert bool(
            (found[~shown] <= torch.finfo(dtype).min / 2).all() | (found[~shown] < -1e8).all()
        )
        difference = float((found.double() - expected)[shown].abs().max())
        assert difference < 4 * without, (clamps, difference, without)


@pytest.mark.parametrize("temperature", [1e-20, 1e-3, 1e3, 1e20])
def test_no_temperature_shows_what_the_mask_hides(temperature):
    model = bridge("gpt2", dtype=torch.float16)
    batch = sequences(model)
    clamp = AttentionTemperature(heads=["L1H0"], temperature=temperature)
    with clamped(model, [clamp], batch):
        pattern = model.run_with_cache(batch.tokens)[1]["blocks.1.attn.hook_pattern"][:, 0]
    assert not pattern.triu(1).any()
    assert_close(pattern.sum(-1), torch.ones(3, 9, dtype=torch.float16), rtol=0, atol=2e-3)
