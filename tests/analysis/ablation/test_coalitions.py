"""Coalitions against one full pass a subset, whatever the model, the ablation and the hooks."""

import itertools
import sys

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from transformer_lens import HookedTransformer, HookedTransformerConfig

import ih_interp as ih
from ih_interp.analysis.ablation import interactions
from ih_interp.analysis.ablation._replacements import one_cycle
from ih_interp.analysis.ablation._subset_passes import is_linear, subset_values
from ih_interp.analysis.ablation.coalitions import coalitions
from ih_interp.batch import Batch, Layout
from ih_interp.evaluation import SCALES, measured
from ih_interp.types import Head

LAST = ["L1H0", "L1H2", "L1H5"]
MIXED = ["L1H2", "L0H1", "L1H5", "L0H4"]


def spread_out(model, factor=4.0):
    """Weights so large that heads matter and the norms are not near one."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for name, value in model.named_parameters():
            if "ln" in name or name.endswith((".b_U", ".b_O")):
                value.add_(0.3 * torch.randn(value.shape, generator=generator))
            elif "W_" in name and "embed" not in name:
                value.mul_(factor)
    return model


@torch.no_grad()
def by_brute_force(model, batch, heads, metrics, *, value=None, scale=None):
    """[metric, batch, subset]: a whole pass with hooks for every subset, one by one.

    `value` is what stands in for z, [batch or 1, pos, head in order, d_head]; None is zero.
    """
    heads = [Head.parse(head) for head in heads]
    columns = []
    for subset in range(2 ** len(heads)):

        def ablate(z, hook, subset=subset):
            z = z.clone()
            for i, head in enumerate(heads):
                if head.layer == hook.layer() and not subset >> i & 1:
                    z[:, :, head.head] = 0 if value is None else value[:, :, i]
            return z

        hooks = [(f"blocks.{layer}.attn.hook_z", ablate) for layer in {h.layer for h in heads}]
        if scale is not None:
            hooks.append(("ln_final.hook_scale", lambda _, hook: scale))
        logits = model.run_with_hooks(batch.tokens, fwd_hooks=hooks)[:, -1].double()
        columns.append(torch.stack([measured(metric, logits, batch) for metric in metrics]))
    return torch.stack(columns, dim=-1).numpy()


def assert_same(found, expected):
    assert_allclose(found.values, expected.mean(axis=-2), atol=1e-5)
    if found.per_sequence is not None:
        assert_allclose(found.per_sequence, expected, atol=1e-5)


def clean_z(model, tokens, heads):
    _, cache = model.run_with_cache(tokens)
    return torch.stack(
        [cache["z", head.layer][:, :, head.head] for head in map(Head.parse, heads)], dim=2
    ).detach()


def few_shot(task, factor=4.0, **shape):
    return spread_out(ih.build_model(task, ih.ModelConfig(**shape)), factor)


def plain(norm):
    """Someone's HookedTransformer, which `build_model` did not make; its norm has no weights."""
    config = HookedTransformerConfig(
        n_layers=2,
        d_model=16,
        n_heads=6,
        d_head=4,
        n_ctx=5,
        d_vocab=95,
        d_vocab_out=5,
        attn_only=True,
        normalization_type=norm,
        seed=0,
    )
    return spread_out(HookedTransformer(config), factor=8.0)


MODELS = {
    "LN": lambda task: few_shot(task),
    "RMS": lambda task: few_shot(task, normalization_type="RMS"),
    # Without a norm, weights as large give logits so large that float32 lacks the fifth digit.
    "no norm": lambda task: few_shot(task, factor=0.7, normalization_type=None),
    "LNPre": lambda _: plain("LNPre"),
    "RMSPre": lambda _: plain("RMSPre"),
    "learned positions": lambda task: few_shot(task, positional_embedding_type="standard"),
    "three layers": lambda task: few_shot(task, factor=3.0, n_layers=3),
    "MLPs": lambda task: few_shot(task, attn_only=False),
}


@pytest.mark.parametrize(
    ("kind", "heads"),
    [
        *itertools.product(MODELS, [LAST, MIXED, ["L0H1", "L0H4"]]),
        ("three layers", ["L2H1", "L0H3", "L2H0", "L1H2"]),
    ],
    ids=str,
)
def test_every_subset_equals_its_own_pass(kind, heads, task, batch):
    model = MODELS[kind](task)
    assert is_linear(model) == (kind != "MLPs")
    metrics = ["loss", "logit_difference", "probability", "in_context_loss", "logit"]
    found = coalitions(model, batch, heads, metric=metrics, per_sequence=True)
    assert found.values.shape == (5, 2 ** len(heads))
    assert found.values.dtype == np.float64
    assert_same(found, by_brute_force(model, batch, heads, metrics))


@pytest.mark.parametrize("heads", [LAST, MIXED], ids=["last", "mixed"])
@pytest.mark.parametrize("kind", ["LN", "RMS", "LNPre", "no norm", "MLPs"])
def test_a_frozen_scale_is_that_with_every_head_on(kind, heads, task, batch):
    model = MODELS[kind](task)
    scale = None
    if kind != "no norm":
        scale = model.run_with_cache(batch.tokens)[1]["ln_final.hook_scale"].detach()
    found = coalitions(model, batch, heads, freeze_ln=True, metric=["loss"], per_sequence=True)
    assert_same(found, by_brute_force(model, batch, heads, ["loss"], scale=scale))


@pytest.mark.parametrize("kind", ["LN", "MLPs"])
def test_mean_ablation_puts_the_mean_of_each_position(kind, task, batch):
    model = MODELS[kind](task)
    for reference in (None, task.sample("train", 50, generator=torch.Generator().manual_seed(3))):
        source = batch if reference is None else reference
        mean = clean_z(model, source.tokens, MIXED).mean(dim=0, keepdim=True)
        found = coalitions(
            model, batch, MIXED, metric=["loss"], ablation="mean", reference=reference
        )
        assert_same(found, by_brute_force(model, batch, MIXED, ["loss"], value=mean))


@pytest.mark.parametrize("kind", ["LN", "MLPs"])
def test_resampling_puts_another_sequence(kind, task, batch):
    model = MODELS[kind](task)
    other = task.sample("train", len(batch), generator=torch.Generator().manual_seed(3))
    z = clean_z(model, other.tokens, MIXED)
    found = coalitions(
        model,
        batch,
        MIXED,
        metric=["loss"],
        ablation="resample",
        reference=other,
        per_sequence=True,
    )
    assert_same(found, by_brute_force(model, batch, MIXED, ["loss"], value=z))
    own = coalitions(
        model, batch, MIXED, metric=["loss"], ablation="resample", per_sequence=True, seed=4
    )
    z = clean_z(model, batch.tokens, MIXED)[one_cycle(len(batch), 4)]
    assert_same(own, by_brute_force(model, batch, MIXED, ["loss"], value=z))


def test_a_cycle_visits_everybody_and_never_itself():
    for n, seed in itertools.product((2, 3, 17), range(5)):
        donor = one_cycle(n, seed).tolist()
        place, visited = 0, []
        for _ in range(n):
            place = donor[place]
            visited.append(place)
        assert sorted(visited) == list(range(n))
    assert one_cycle(17, 0).tolist() != one_cycle(17, 1).tolist()


def test_chunks_of_sequences_and_subsets_do_not_matter(model, task, monkeypatch):
    batch = task.sample("train", 50, generator=torch.Generator().manual_seed(0))
    whole = coalitions(model, batch, MIXED, per_sequence=True, ablation="resample", freeze_ln=True)
    for name, size in (("clamps._active", 16), ("analysis.ablation._subset_passes", 7)):
        monkeypatch.setattr(sys.modules[f"ih_interp.{name}"], "CHUNK", size)
    monkeypatch.setattr("ih_interp.analysis.ablation._subset_passes.BLOCK", 100)
    parts = coalitions(model, batch, MIXED, per_sequence=True, ablation="resample", freeze_ln=True)
    assert_allclose(parts.values, whole.values, atol=1e-6)
    assert_allclose(parts.per_sequence, whole.per_sequence, atol=1e-5)


CLAMPS = {
    "values": (ih.clamps.AblateHeads(heads=["L1H2", "L0H3"]), True),
    "pattern": (ih.clamps.InductionAttention(heads=["L1H0", "L1H1"], strength=0.9), True),
    "layer one": (ih.clamps.layer_one(), True),
    "logits": (ih.clamps.copy("L1H0"), False),
}


@pytest.mark.parametrize("heads", [LAST, MIXED], ids=["last", "mixed"])
@pytest.mark.parametrize("name", CLAMPS)
def test_clamps_stay_and_are_seen(name, heads, task, batch):
    clamp, linear = CLAMPS[name]
    model = few_shot(task)
    with ih.clamped(model, [clamp], batch):
        assert is_linear(model) == linear
        before = model(batch.tokens)
        counts = {point: len(hook.fwd_hooks) for point, hook in model.hook_dict.items()}
        expected = by_brute_force(model, batch, heads, ["loss"])
        found = coalitions(model, batch, heads, metric=["loss"], per_sequence=True)
        assert {p: len(hook.fwd_hooks) for p, hook in model.hook_dict.items()} == counts
        assert torch.equal(model(batch.tokens), before)
    assert_same(found, expected)
    unclamped = coalitions(model, batch, heads, metric=["loss"])
    assert np.abs(unclamped.values - found.values).max() > 1e-2


def shifted(activation, hook):
    """Somebody's hook that no linear readout could know of."""
    return activation.tanh() * 3


@pytest.mark.parametrize(
    ("point", "linear"),
    [
        ("blocks.1.hook_resid_pre", True),
        ("blocks.1.attn.hook_z", True),
        ("blocks.0.hook_resid_post", True),
        ("blocks.0.hook_resid_pre", True),
        ("hook_embed", True),
        ("blocks.1.hook_attn_out", False),
        ("blocks.1.hook_resid_post", False),
        ("ln_final.hook_scale", False),
        ("ln_final.hook_normalized", False),
        ("unembed.hook_in", False),
        ("unembed.hook_logits", False),
    ],
)
@pytest.mark.parametrize("heads", [LAST, MIXED], ids=["last", "mixed"])
def test_other_peoples_hooks_are_seen(point, linear, heads, task, batch):
    model = few_shot(task)
    with model.hooks(fwd_hooks=[(point, shifted)]):
        assert is_linear(model) == linear
        expected = by_brute_force(model, batch, heads, ["loss"])
        found = coalitions(model, batch, heads, metric=["loss"], per_sequence=True)
    assert_same(found, expected)


def test_results_by_head_are_read_alike(task, batch):
    model = few_shot(task)
    before = coalitions(model, batch, MIXED, metric=["loss"])
    model.set_use_attn_result(True)
    assert is_linear(model)
    assert_allclose(coalitions(model, batch, MIXED, metric=["loss"]).values, before.values)
    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_result", shifted)]):
        assert not is_linear(model)
        expected = by_brute_force(model, batch, MIXED, ["loss"])
        assert_same(coalitions(model, batch, MIXED, metric=["loss"]), expected)


def test_a_hook_on_a_module_is_seen_too(task, batch):
    model = few_shot(task)
    handle = model.blocks[1].register_forward_hook(lambda module, given, out: out.tanh())
    assert not is_linear(model)
    expected = by_brute_force(model, batch, LAST, ["loss"])
    assert_same(coalitions(model, batch, LAST, metric=["loss"]), expected)
    handle.remove()
    assert is_linear(model)


def test_hooks_are_gone_after_an_error_too(model, batch):
    def fails(logits, batch):
        raise RuntimeError("a metric of somebody")

    with pytest.raises(RuntimeError, match="a metric of somebody"):
        coalitions(model, batch, MIXED, metric=fails)
    assert not any(hook.fwd_hooks for hook in model.hook_dict.values())


def test_every_scale_and_a_function_of_ones_own(model, batch):
    def entropy(logits, batch):
        return torch.distributions.Categorical(logits=logits).entropy()

    metrics = [*SCALES, entropy]
    found = coalitions(model, batch, LAST, metric=metrics)
    expected = by_brute_force(model, batch, LAST, metrics).mean(axis=1)
    assert_allclose(found.values, expected, atol=1e-5)
    assert found.metrics == tuple(metrics)


def test_values_of_named_subsets(model, batch):
    one = coalitions(model, batch, ["L1H5", "L0H1", (1, 0)])
    assert one.heads == (Head(1, 5), Head(0, 1), Head(1, 0))
    assert one.values.shape == (8,)
    assert one.per_sequence is None
    assert one.of(["L1H5", "L1H0"]) == one.values[0b101]
    assert one.of([]) == one.values[0]
    whole = float(ih.evaluate(model, batch).loss.double().mean())
    assert float(one.of(one.heads)) == pytest.approx(whole, abs=1e-6)
    with pytest.raises(ValueError, match="L1H7"):
        one.of(["L1H7"])


@torch.no_grad()
def test_chosen_subsets_equal_all_of_them(model, batch):
    heads = [Head.parse(head) for head in MIXED]
    whole = coalitions(model, batch, heads, metric=["loss", "accuracy"], per_sequence=True)
    rows = [3, 8, 0]
    on = interactions.members(4).astype(bool)[rows]
    some = subset_values(model, batch, heads, on, ["loss", "accuracy"])[1]
    assert_allclose(some, whole.per_sequence[:, :, rows], atol=1e-6)


def test_the_tautology(task, batch):
    """Without a norm, or with its scale frozen, logits of last-layer heads add up whatever is."""
    heads = [f"L1H{h}" for h in range(6)]
    for model, freeze in ((few_shot(task, normalization_type=None), False), (few_shot(task), True)):
        found = coalitions(model, batch, heads, metric="logit_difference", freeze_ln=freeze)
        assert interactions.additive_fit(found.values).r_squared == pytest.approx(1, abs=1e-9)
        assert np.abs(interactions.moebius(found.values)[interactions.sizes(6) > 1]).max() < 1e-5
        loss = coalitions(model, batch, heads, freeze_ln=freeze)
        assert interactions.additive_fit(loss.values).r_squared < 0.999
    free = coalitions(few_shot(task), batch, heads, metric="logit_difference")
    assert np.abs(interactions.moebius(free.values)[interactions.sizes(6) > 1]).max() > 1e-2
    frozen = coalitions(few_shot(task), batch, heads, metric="logit_difference", freeze_ln=True)
    assert frozen.values[-1] == pytest.approx(free.values[-1], abs=1e-9)


@torch.no_grad()
def test_many_heads_in_little_memory(model, task, monkeypatch):
    batch = task.sample("train", 40, generator=torch.Generator().manual_seed(0))
    heads = [Head(1, h) for h in range(8)] + [Head(0, 0), Head(0, 1)]
    found = coalitions(model, batch, heads)
    assert found.values.shape == (1024,)
    on = interactions.members(10).astype(bool)[[0, 37, 1000]]
    some = subset_values(model, batch, heads, on, ["loss"])[1]
    assert_allclose(found.values[[0, 37, 1000]], some[0].mean(axis=0), atol=1e-6)
    monkeypatch.setattr(sys.modules[subset_values.__module__], "MOST_BYTES", 2**17)
    with pytest.raises(ValueError, match="1,024 subsets"):
        coalitions(model, batch, heads, per_sequence=True)


REFUSED = {
    "no head": ({"heads": []}, "heads"),
    "one head that is no list": ({"heads": "L1H0"}, "heads=L1H0"),
    "a head twice": ({"heads": ["L1H0", (1, 0)]}, "L1H0, L1H0"),
    "a layer that is not there": ({"heads": ["L2H0"]}, "L2H0"),
    "too many heads": ({"heads": [(layer, h) for layer in (0, 1) for h in range(9)]}, "18"),
    "no metric": ({"metric": []}, "metric"),
    "an unknown ablation": ({"ablation": "nul"}, "ablation='nul'"),
    "no sequences": ({"batch": lambda b: b[:0]}, "batch"),
    "a reference for zero": ({"reference": lambda b: b}, "reference"),
    "a short reference": (
        {
            "reference": lambda b: Batch(b.tokens[:, 2:], b.target, layout=Layout(1)),
            "ablation": "mean",
        },
        "5 tokens",
    ),
    "a small reference": ({"reference": lambda b: b[:10], "ablation": "resample"}, "24"),
    "one sequence": ({"batch": lambda b: b[:1], "ablation": "resample"}, "batch"),
}


@pytest.mark.parametrize(("given", "token"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused(given, token, model, batch):
    given = {name: value(batch) if callable(value) else value for name, value in given.items()}
    with pytest.raises(ValueError, match=token):
        coalitions(model, **({"batch": batch, "heads": LAST} | given))
