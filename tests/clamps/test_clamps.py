"""Laws that every clamp obeys, and what each of them does to values and gradients."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from clamp_laws import EVERY_CLAMP, every_clamp, gradients_under, hook_counts, logits_under
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.hook_points import HookPoint

from ih_interp import clamps, hooks, registry
from ih_interp.batch import Batch
from ih_interp.clamps import (
    AblateEmbedding,
    AblateHeads,
    AbstractClamp,
    ClampUnchangedWarning,
    CopyFromAttention,
    ForbidPreviousToken,
    Function,
    HeadClamp,
    InductionAttention,
    PerfectLayerOne,
    Preserve,
    PreviousTokenAttention,
    Shape,
    SimilarityAttention,
    always,
    clamped,
    during,
    from_level,
    in_order,
    keep_only,
    ramp,
)
from ih_interp.evaluation import evaluate
from ih_interp.model import ModelConfig, build_model
from ih_interp.tasks.exemplars import Exemplars
from ih_interp.tasks.few_shot import FewShotTask, TaskConfig
from ih_interp.types import Head

ORDER = [
    *("freeze", "preserve", "perfect_layer_one", "graft_in", "ablate_embedding", "ablate_heads"),
    *("previous_token_attention", "induction_attention", "match_attention"),
    *("attention_temperature", "forbid_previous_token", "attend_labels_only"),
    *("copy_from_attention", "perfect_match_and_copy", "graft_out"),
]
"""The order in which runs of before were trained."""
REST = keep_only("L1H3", n_heads=8)
ALL = frozenset(range(8))
NONE: frozenset[int] = frozenset()

every_head_clamp = pytest.mark.parametrize(
    "clamp", [clamp for clamp in EVERY_CLAMP if isinstance(clamp, HeadClamp)], ids=str
)


def patterns_under(
    model: HookedTransformer, given: Sequence[AbstractClamp], batch: Batch
) -> Tensor:
    """[layer, batch, head, query, key]."""
    with clamped(model, given, batch), torch.no_grad():
        _, cache = model.run_with_cache(batch.tokens)
    return torch.stack([cache["pattern", layer] for layer in range(model.cfg.n_layers)])


# Laws


def test_every_kind_of_clamp_stands_in_the_list():
    ours = registry.kinds(AbstractClamp).items()
    kinds = {kind for kind, one in ours if one.__module__.startswith("ih_interp.")}
    grafts = {"graft_in", "graft_out"}  # they need a run on disk: test_grafts.py
    missing = kinds - grafts - {clamp.kind for clamp in EVERY_CLAMP}
    assert not missing, "give each an example in clamp_laws.EVERY_CLAMP"


def test_stages_are_a_total_order_in_which_the_readers_come_first():
    kinds = [one for one in registry.kinds(AbstractClamp).values() if "ih_interp" in one.__module__]
    places = sorted((one.stage, one.model_fields["kind"].default) for one in kinds)
    assert len(set(places)) == len(kinds)
    assert [kind for _, kind in places if kind in ORDER] == ORDER
    assert max(kind.stage for kind in kinds) <= AbstractClamp.stage
    in_turn = [(clamp.stage, clamp.kind) for clamp in in_order(EVERY_CLAMP)]
    assert in_turn == sorted(in_turn)


@every_clamp
def test_sites_fit_the_model_and_are_not_empty(clamp):
    for shape in (Shape(2, 8), Shape(3, 8)):
        sites = clamp.sites(shape)
        assert sites
        assert all(-1 <= site.layer <= shape.n_layers for site in sites)
        assert all(site.head is None or site.head < shape.n_heads for site in sites)


def test_no_clamp_is_no_change(model, batch):
    free = model(batch.tokens)
    assert torch.equal(logits_under(model, [], batch), free)


@every_clamp
def test_leaving_restores_the_model_bit_for_bit(clamp, model, batch):
    free, before = model(batch.tokens), hook_counts(model)
    logits_under(model, [clamp], batch)
    assert hook_counts(model) == before
    assert torch.equal(model(batch.tokens), free)


@every_clamp
def test_an_exception_restores_the_model_too(clamp, model, batch):
    free, before = model(batch.tokens), hook_counts(model)

    def fail() -> None:
        with clamped(model, [clamp], batch):
            model(batch.tokens)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert hook_counts(model) == before
    assert torch.equal(model(batch.tokens), free)


@every_clamp
def test_hooks_of_others_survive(clamp, model, batch):
    seen: list[str] = []

    def before(activation, hook):
        del activation, hook
        seen.append("before")

    def inside(activation, hook):
        del activation, hook
        seen.append("inside")

    model.add_hook("ln_final.hook_scale", before)
    with clamped(model, [clamp], batch):
        model.add_hook("ln_final.hook_scale", inside)
        seen.clear()
        model(batch.tokens)
        assert seen == ["before", "inside"]
    model(batch.tokens)
    assert seen == ["before", "inside"] * 2


@every_clamp
def test_a_clamped_pass_twice_gives_the_same(clamp, model, batch):
    with clamped(model, [clamp], batch):
        first, second = model(batch.tokens), model(batch.tokens)
    assert torch.equal(first, second)
    assert torch.equal(first, logits_under(model, [clamp], batch))


@every_clamp
def test_a_clamp_is_data(clamp):
    if isinstance(clamp, Function):
        with pytest.raises(ValueError, match="no file"):
            clamps.dump([clamp])
        return
    (value,) = clamps.dump([clamp])
    assert clamps.parse([value]) == (clamp,)
    assert value["kind"] == clamp.kind
    assert str(clamp).startswith(f"{clamp.kind}(")
    with pytest.raises(ValueError, match="frozen"):
        clamp.kind = "another"


@every_clamp
def test_a_clamp_refuses_itself_twice(clamp, model, batch):
    with pytest.raises(ValueError, match="Two clamps"), clamped(model, [clamp, clamp], batch):
        pass


@every_clamp
def test_the_order_of_sequences_does_not_matter(clamp, model, batch):
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    logits = logits_under(model, [clamp], batch)
    assert_close(logits_under(model, [clamp], batch[order]), logits[order])


@every_clamp
def test_rows_of_patterns_stay_causal_distributions(clamp, model, batch):
    pattern = patterns_under(model, [clamp], batch)
    assert pattern.min() >= 0
    assert not pattern.triu(diagonal=1).any()
    assert_close(pattern.sum(dim=-1), torch.ones(pattern.shape[:-1]))


@every_clamp
def test_gate_zero_is_the_free_model(clamp, model, batch):
    off = clamp.model_copy(update={"schedule": during(5)})
    assert torch.equal(logits_under(model, [off], batch, step=4), model(batch.tokens))
    assert_close(gradients_under(model, [off], batch, step=4), gradients_under(model, [], batch))


@every_clamp
def test_gate_one_is_the_clamp(clamp, model, batch):
    on = clamp.model_copy(update={"schedule": during(5)})
    clamped_logits = logits_under(model, [clamp], batch)
    assert torch.equal(logits_under(model, [on], batch, step=5), clamped_logits)


def under_ramp(
    model: HookedTransformer, clamp: AbstractClamp, batch: Batch, low: float, high: float
) -> Tensor:
    """Probabilities of labels where the gate has gone all the way but for a hundred-thousandth."""
    given = clamp.model_copy(update={"schedule": ramp(0, 10**5, low=low, high=high)})
    return logits_under(model, [given], batch, step=10**5 - 1).softmax(dim=-1)


every_clamp_that_ramps = pytest.mark.parametrize(
    "clamp", [clamp for clamp in EVERY_CLAMP if clamp.kind != "freeze"], ids=str
)


@every_clamp_that_ramps
def test_a_gate_leaves_the_free_model_without_a_jump(clamp, model, batch):
    free = model(batch.tokens).softmax(dim=-1)
    assert_close(under_ramp(model, clamp, batch, 1.0, 0.0), free, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    # LayerNorm gives an embedding of any size its full length: only one of exactly 0 has none.
    "clamp",
    [clamp for clamp in EVERY_CLAMP if clamp.kind not in ("ablate_embedding", "freeze")],
    ids=str,
)
def test_a_gate_reaches_the_clamp_without_a_jump(clamp, model, batch):
    clamped_fully = logits_under(model, [clamp], batch).softmax(dim=-1)
    assert_close(under_ramp(model, clamp, batch, 0.0, 1.0), clamped_fully, rtol=0, atol=1e-3)


@every_clamp_that_ramps
@pytest.mark.parametrize("gate", [0.5, 1.0])
def test_gates_leave_gradients_finite(clamp, gate, model, batch):
    given = clamp.model_copy(update={"schedule": ramp(0, 1, low=gate, high=gate)})
    gradients = gradients_under(model, [given], batch, step=0)
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    assert any(gradient.any() for gradient in gradients.values())


@every_head_clamp
def test_other_heads_keep_their_pattern_bit_for_bit(clamp, model, batch):
    layer = min(head.layer for head in clamp.heads)
    others = [head for head in ALL if Head(layer, head) not in clamp.heads]
    free = patterns_under(model, [], batch)[layer][:, others]
    assert torch.equal(patterns_under(model, [clamp], batch)[layer][:, others], free)


@pytest.mark.parametrize("what", ["patterns", "values", "queries", "keys"])
def test_preserving_alone_changes_nothing_and_says_so(what, model, batch):
    with pytest.warns(ClampUnchangedWarning, match=r"preserve\(what="):
        logits = logits_under(model, [Preserve(what=[what])], batch)
    assert torch.equal(logits, model(batch.tokens))


@pytest.mark.parametrize("step", [None, 3])
@every_clamp
def test_every_clamp_changes_something_or_warns(clamp, step, model, batch):
    given = clamp if step is None else clamp.model_copy(update={"schedule": during(stop=9)})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ClampUnchangedWarning)
        logits = logits_under(model, [given], batch, step=step)
    unchanged = torch.equal(logits, model(batch.tokens))
    assert unchanged == (clamp.kind in ("preserve", "freeze"))
    # a schedule may well be off, and Freeze changes gradients alone
    assert len(caught) == (clamp.kind == "preserve" and step is None)


# Worlds other than the paper's


class World(NamedTuple):
    task: TaskConfig = TaskConfig(n_train_classes=12)
    model: ModelConfig = ModelConfig()


WORLDS = {
    "three pairs": World(TaskConfig(n_train_classes=12, n_pairs=3)),
    "two copies": World(TaskConfig(n_train_classes=12, n_pairs=3, n_copies=2)),
    "four pairs": World(TaskConfig(n_train_classes=12, n_pairs=4)),
    "three layers": World(model=ModelConfig(n_layers=3)),
    "learned positions": World(model=ModelConfig(positional_embedding_type="standard")),
    "no LayerNorm": World(model=ModelConfig(normalization_type=None)),
    "MLPs": World(model=ModelConfig(attn_only=False)),
}


def made(world: World, exemplars: Exemplars) -> tuple[HookedTransformer, Batch]:
    task = FewShotTask(exemplars, world.task)
    model = build_model(task, world.model, seed=5)
    return model, task.sample("train", 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
def test_every_clamp_serves_other_worlds(world, exemplars):
    model, batch = made(world, exemplars)
    for clamp in EVERY_CLAMP:
        pattern = patterns_under(model, [clamp], batch)
        assert_close(pattern.sum(dim=-1), torch.ones(pattern.shape[:-1]))
        gradients = gradients_under(model, [clamp], batch)
        assert all(gradient.isfinite().all() for gradient in gradients.values()), clamp


@pytest.mark.parametrize("world", ["three pairs", "two copies", "four pairs"])
def test_induction_shares_its_strength_among_correct_labels(world, exemplars):
    model, batch = made(WORLDS[world], exemplars)
    clamp = InductionAttention(heads=["L1H3"], strength=0.7)
    row = patterns_under(model, [clamp], batch)[1, :, 3, -1]
    at_labels = row[:, list(batch.layout.labels)]
    assert_close((at_labels * batch.correct).sum(dim=1), torch.full((16,), 0.7))
    assert_close(at_labels.sum(dim=1), torch.ones(16))
    n_correct = batch.correct.sum(dim=1, keepdim=True)
    assert_close(at_labels[batch.correct], (0.7 / n_correct).expand_as(at_labels)[batch.correct])


def test_a_hard_match_splits_its_attention_between_ties(exemplars):
    model, batch = made(WORLDS["two copies"], exemplars)
    row = patterns_under(model, [SimilarityAttention(heads=["L1H3"])], batch)[1, :, 3, -1]
    # a class has one drawing in training: both copies are the query itself
    expected = hooks.at_labels(batch.correct / 2, batch.layout.n_positions)
    assert torch.equal(row, expected)


def test_copy_adds_up_the_labels_shown_twice(exemplars):
    model, batch = made(WORLDS["two copies"], exemplars)
    with clamped(model, [CopyFromAttention(head="L1H3")], batch):
        logits, cache = model.run_with_cache(batch.tokens)
    scores = cache["attn_scores", 1][:, 3, -1]
    for row, own, tokens, target in zip(
        logits[:, -1], scores, batch.tokens, batch.target, strict=True
    ):
        shown = [int(tokens[position]) for position in batch.layout.labels]
        assert shown.count(int(target)) == 2
        for label in range(5):
            odds = sum(
                own[position].exp()
                for position in batch.layout.labels
                if int(tokens[position]) == label
            )
            expected = odds.log() if label in shown else torch.tensor(0.0)
            assert_close(row[label] if label in shown else row.softmax(dim=0)[label], expected)


# Values


def test_copy_reads_the_scores_as_they_are(model, batch):
    with clamped(model, [CopyFromAttention(head="L1H3")], batch):
        logits, cache = model.run_with_cache(batch.tokens)
    at_labels = cache["attn_scores", 1][:, 3, -1, [1, 3]]
    assert torch.equal(logits[:, -1].gather(1, batch.context_labels), at_labels)
    others = logits[:, -1].softmax(dim=-1).scatter(1, batch.context_labels, 0.0)
    assert not others.any()
    assert torch.equal(logits[:, :-1], model(batch.tokens)[:, :-1])


def test_a_soft_match_is_a_softmax_of_cosines_of_raw_features(model, batch, exemplars):
    clamp = SimilarityAttention(heads=["L1H2"], temperature=0.5)
    row = patterns_under(model, [clamp], batch)[1, :, 2, -1]
    table = exemplars.features.flatten(end_dim=1)
    for tokens, weights in zip(batch.tokens - 5, row, strict=True):
        query = table[tokens[4]]
        odds = [
            torch.exp(table[tokens[i]] @ query / table[tokens[i]].norm() / query.norm() / 0.5)
            for i in (0, 2)
        ]
        expected = torch.stack([odds[0], odds[1]]) / sum(odds)
        assert_close(weights[[1, 3]], expected)
        assert not weights[[0, 2, 4]].any()


def test_ablating_every_head_leaves_the_embedding_and_the_output_biases(model, batch):
    everything = AblateHeads(heads=[(layer, head) for layer in range(2) for head in range(8)])
    with torch.no_grad():
        model.blocks[1].attn.b_O.fill_(0.25)
    with clamped(model, [everything], batch):
        _, cache = model.run_with_cache(batch.tokens)
    assert torch.equal(cache["resid_post", 0], model.embed(batch.tokens))
    assert torch.equal(cache["resid_post", 1], model.embed(batch.tokens) + 0.25)


def test_an_ablated_embedding_leaves_what_is_preserved(model, batch):
    preserved = Preserve(what=["patterns", "values"])
    _, free = model.run_with_cache(batch.tokens)
    with clamped(model, [preserved, AblateEmbedding()], batch):
        _, cache = model.run_with_cache(batch.tokens)
    assert torch.equal(cache["attn_out", 1], free["attn_out", 1])
    assert_close(cache["resid_post", 1], free["resid_post", 1] - free["embed"])


def literal_layer_one(model: HookedTransformer, batch: Batch, ablated: Sequence[Head]) -> Tensor:
    """The published code's passes: patterns from shifted inputs, then all else from raw ones."""
    position = model.pos_embed(batch.tokens) if hasattr(model, "pos_embed") else 0.0
    embedding = model.embed(batch.tokens)
    raw = embedding + position
    shifted = torch.stack([raw[:, i] for i in (0, 0, 1, 2, 4)], dim=1)
    seen: dict[str, Tensor] = {}

    def keep(pattern: Tensor, hook: HookPoint) -> None:
        seen[str(hook.name)] = pattern

    def silence(v: Tensor, hook: HookPoint) -> Tensor:
        kept = [Head(hook.layer(), head) not in ablated for head in range(8)]
        return v * torch.tensor(kept)[:, None]

    def set_to(value: Tensor) -> Callable[..., Tensor]:
        return lambda *_, **__: value

    place, pattern = "blocks.0.hook_resid_post", "blocks.1.attn.hook_pattern"
    model.run_with_hooks(batch.tokens, fwd_hooks=[(place, set_to(shifted)), (pattern, keep)])
    second = [(place, set_to(raw)), (pattern, set_to(seen[pattern]))]
    return model.run_with_hooks(
        batch.tokens, fwd_hooks=[*second, ("blocks.1.attn.hook_v", silence)]
    )


@pytest.mark.parametrize("ablated", [(), REST], ids=["all heads", "one head"])
@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(),
        ModelConfig(n_layers=3),
        ModelConfig(positional_embedding_type="standard"),
        ModelConfig(normalization_type=None),
    ],
    ids=["paper's", "three layers", "learned positions", "no LayerNorm"],
)
def test_layer_one_is_what_two_passes_of_the_published_code_give(config, ablated, task, batch):
    model = build_model(task, config, seed=5)
    given = [PerfectLayerOne(), *([AblateHeads(heads=ablated)] if ablated else [])]
    literal = literal_layer_one(model, batch, ablated)
    assert_close(logits_under(model, given, batch), literal)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    loss = cross_entropy(literal[:, -1], batch.target)
    slow = torch.autograd.grad(loss, list(trained.values()), materialize_grads=True)
    fast = gradients_under(model, given, batch)
    assert_close(fast, dict(zip(trained, slow, strict=True)))


# Gradients


class Trained(NamedTuple):
    """What gets gradient: heads of both layers, and the rest; paper.md D4, layers from zero."""

    qk0: frozenset[int] = ALL
    vo0: frozenset[int] = ALL
    ln0: bool = True
    qk1: frozenset[int] = ALL
    vo1: frozenset[int] = ALL
    output: bool = True
    exemplars: bool = True
    labels: bool = True


def trained_under(
    model: HookedTransformer, given: Sequence[AbstractClamp], batch: Batch
) -> Trained:
    gradients = gradients_under(model, given, batch)

    def heads(layer: int, names: str) -> frozenset[int]:
        """Those with gradient in both matrices; with gradient in one alone the test fails."""
        one, other = (gradients[f"blocks.{layer}.attn.W_{name}"] for name in names)
        reached = one.flatten(start_dim=1).any(dim=1)
        assert torch.equal(reached, other.flatten(start_dim=1).any(dim=1))
        return frozenset(reached.nonzero().flatten().tolist())

    def any_of(*names: str) -> bool:
        reached = {bool(gradients[name].any()) for name in names}
        assert len(reached) == 1
        return reached.pop()

    return Trained(
        qk0=heads(0, "QK"),
        vo0=heads(0, "VO"),
        ln0=any_of("blocks.0.ln1.w", "blocks.0.ln1.b"),
        qk1=heads(1, "QK"),
        vo1=heads(1, "VO"),
        output=any_of("ln_final.w", "ln_final.b", "unembed.W_U", "unembed.b_U"),
        exemplars=any_of("embed.W_in", "embed.b_in"),
        labels=any_of("embed.W_label"),
    )


H3 = frozenset({3})
ONLY_H3 = AblateHeads(heads=REST)
NO_LAYER_0 = Trained(qk0=NONE, vo0=NONE, ln0=False)
GRADIENTS: dict[str, tuple[list[AbstractClamp], Trained]] = {
    "none": ([ONLY_H3], Trained(qk1=H3, vo1=H3)),
    "previous token": (
        [PreviousTokenAttention(heads=["L0H2"]), ONLY_H3],
        Trained(qk0=ALL - {2}, qk1=H3, vo1=H3),
    ),
    "previous token, all heads": (
        [PreviousTokenAttention(heads=[(0, head) for head in ALL]), ONLY_H3],
        Trained(qk0=NONE, qk1=H3, vo1=H3),
    ),
    "layer one": ([PerfectLayerOne(), ONLY_H3], NO_LAYER_0._replace(qk1=H3, vo1=H3)),
    "match": ([clamps.match("L1H3"), ONLY_H3], Trained(qk1=NONE, vo1=H3)),
    "match by features": (
        [SimilarityAttention(heads=["L1H3"], temperature=0.5), ONLY_H3],
        Trained(qk1=NONE, vo1=H3),
    ),
    "match, others active": ([clamps.match("L1H3")], Trained(qk1=ALL - {3})),
    "copy": ([clamps.copy("L1H3")], Trained(qk1=H3, vo1=NONE, output=False)),
    "layer one and copy": (
        [*clamps.b_alone("L1H3")],
        NO_LAYER_0._replace(qk1=H3, vo1=NONE, output=False, labels=False),
    ),
    "match and copy": ([*clamps.a_alone()], Trained(qk1=NONE, vo1=NONE, output=False)),
    "direct path removed": (
        [Preserve(what=["patterns", "values"]), AblateHeads(heads=[(0, head) for head in ALL])],
        Trained(),
    ),
}


@pytest.mark.parametrize("case", GRADIENTS)
def test_which_parameters_get_gradient(case, model, batch):
    given, expected = GRADIENTS[case]
    assert trained_under(model, given, batch) == expected


QK1 = ("blocks.1.attn.W_Q", "blocks.1.attn.W_K")
BLOCKED: list[tuple[AbstractClamp, tuple[str, ...]]] = [
    (Preserve(what=["patterns"]), ("blocks.0.attn.W_Q", "blocks.0.attn.W_K", *QK1)),
    (Preserve(what=["values"]), ("blocks.0.attn.W_V", "blocks.1.attn.W_V")),
    (Preserve(what=["queries"]), ("blocks.0.attn.W_Q", "blocks.1.attn.W_Q")),
    (PerfectLayerOne(), ("embed.W_in", "embed.b_in", "embed.W_label", *QK1)),
    (CopyFromAttention(head="L1H3"), ("embed.W_in", "embed.W_label", "blocks.0.attn.W_V", *QK1)),
]


@pytest.mark.parametrize(("clamp", "names"), BLOCKED, ids=lambda value: str(value)[:24])
def test_a_blocked_gradient_is_exactly_zero_and_values_stay(clamp, names, model, batch):
    blocked = clamp.model_copy(update={"gradient": "block"})
    flows = gradients_under(model, [clamp], batch)
    stops = gradients_under(model, [blocked], batch)
    assert all(flows[name].any() for name in names)
    assert not any(stops[name].any() for name in names)
    assert torch.equal(logits_under(model, [blocked], batch), logits_under(model, [clamp], batch))


# Refusals


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"kind": "ablate_heads", "heads": []}, "heads="),
        ({"kind": "ablate_heads", "heads": "L1H3"}, "heads="),
        ({"kind": "preserve", "what": "patterns"}, "what="),
        ({"kind": "ablate_heads", "heads": ["H3"]}, "'H3'"),
        ({"kind": "ablate_heads", "heads": ["L0H1", [0, 1]]}, "L0H1, L0H1"),
        ({"kind": "ablate_heads"}, "heads: expected .*, got none"),
        ({"kind": "ablate_head", "heads": ["L0H1"]}, "'ablate_head'"),
        ({"kind": "ablate_embedding", "heads": ["L0H1"]}, "heads=.*no such field"),
        ({"kind": "induction_attention", "heads": ["L1H3"], "strength": 1.1}, r"strength=1\.1"),
        ({"kind": "induction_attention", "heads": ["L1H3"], "strength": -0.1}, "strength="),
        ({"kind": "previous_token_attention", "heads": ["L0H3"], "queries": "both"}, "queries="),
        ({"kind": "match_attention", "heads": ["L1H3"], "temperature": -1.0}, "temperature="),
        ({"kind": "attention_temperature", "heads": ["L1H3"], "temperature": 0}, "temperature="),
        (
            {"kind": "attention_temperature", "heads": ["L1H3"]},
            "temperature: expected .*, got none",
        ),
        ({"kind": "preserve", "what": ["patterns", "patterns"]}, "patterns, patterns"),
        ({"kind": "preserve", "what": ["scores"]}, "what.0="),
        ({"kind": "preserve", "what": []}, "what="),
    ],
    ids=str,
)
def test_what_is_no_clamp_is_refused_by_number_and_field(value, words):
    good = {"kind": "ablate_embedding"}
    with pytest.raises(ValueError, match=rf"Clamp number 1 cannot be read: .*{words}"):
        clamps.parse([good, value])


def test_numbers_are_finite():
    with pytest.raises(ValueError, match="finite"):
        InductionAttention(heads=["L1H3"], strength=float("nan"))


def refused(
    model: HookedTransformer, given: Sequence[AbstractClamp], batch: Batch | None, words: str
) -> None:
    """The refusal comes on entering, in these words, and leaves no hook behind."""
    before = hook_counts(model)
    with pytest.raises(ValueError, match=words), clamped(model, given, batch):
        pytest.fail("entered")
    assert hook_counts(model) == before


def test_unknown_heads_are_refused(model, batch):
    refused(model, [AblateHeads(heads=["L2H0"])], batch, "L2H0")
    refused(model, [clamps.match("L1H8")], batch, "L1H8")
    refused(model, [clamps.copy("L5H0")], batch, "L5H0")
    with pytest.raises(ValueError, match="L1H9"):
        keep_only("L1H9", n_heads=8)


@pytest.mark.parametrize("clamp", [c for c in EVERY_CLAMP if c.needs_batch], ids=str)
def test_a_clamp_on_sequences_needs_them(clamp, model):
    refused(model, [clamp], None, "pass the batch")


def test_clamps_that_need_no_batch_serve_any_sequences(model, batch):
    clamp = PreviousTokenAttention(heads=["L0H2"])
    expected = logits_under(model, [clamp], batch)
    with clamped(model, [clamp]):
        assert torch.equal(model(batch.tokens), expected)
        assert model(batch.tokens[:, :3]).shape == (24, 3, 5)


@pytest.mark.parametrize(
    "clamp",
    [
        PreviousTokenAttention(heads=["L0H2"], queries="labels"),
        ForbidPreviousToken(heads=["L0H2"], queries="labels"),
    ],
    ids=str,
)
@pytest.mark.parametrize("n_tokens", [7, 5, 4])
def test_label_rows_are_those_of_the_sequences_that_come(clamp, n_tokens, exemplars):
    model, longest = made(WORLDS["three pairs"], exemplars)
    tokens = longest.tokens[:, :n_tokens]
    _, free = model.run_with_cache(tokens)
    with clamped(model, [clamp]):
        _, cache = model.run_with_cache(tokens)
    changed = (cache["pattern", 0] != free["pattern", 0]).any(dim=-1).any(dim=0)[2]
    assert changed.nonzero().flatten().tolist() == list(range(1, n_tokens - n_tokens % 2, 2))


def test_other_sequences_than_the_batch_are_refused_inside(model, batch):
    with (
        pytest.raises(ValueError, match=r"batch\.tokens"),
        clamped(model, [clamps.match("L1H3")], batch),
    ):
        model(batch.tokens.flip(0))


def test_a_clamp_that_never_fired_is_an_error(model, batch):
    def with_pass(stop_at_layer: int) -> None:
        with clamped(model, [AblateHeads(heads=["L0H0", "L1H0"])], batch):
            model(batch.tokens, stop_at_layer=stop_at_layer)

    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.hook_v"):
        with_pass(stop_at_layer=1)
    with_pass(stop_at_layer=2)


def test_a_clamp_that_changes_nothing_warns(model, batch):
    with torch.no_grad():
        model.blocks[0].attn.W_V[1] = 0.0
    with pytest.warns(ClampUnchangedWarning, match="L0H1"):
        logits_under(model, [AblateHeads(heads=["L0H1"])], batch)


def test_a_level_needs_the_metrics(model, batch):
    waiting = AblateHeads(heads=["L1H0"], schedule=from_level(below=0.5))
    words = "loss on train"
    with pytest.raises(ValueError, match=words), clamped(model, [waiting], batch, step=3):
        pytest.fail("entered")
    with pytest.raises(ValueError, match=words):
        evaluate(model, batch, [waiting], step=3)
    rows = [{"step": 2, "split": "train", "loss": 0.4}]
    ablated = evaluate(model, batch, [AblateHeads(heads=["L1H0"])]).loss
    assert torch.equal(evaluate(model, batch, [waiting], step=3, metrics=rows).loss, ablated)
    free = evaluate(model, batch).loss
    assert torch.equal(evaluate(model, batch, [waiting], step=2, metrics=rows).loss, free)


def test_only_clamps_that_are_not_always_on_are_scheduled():
    assert not AblateHeads(heads=["L0H0"]).is_scheduled
    assert not AblateHeads(heads=["L0H0"], schedule=always()).is_scheduled
    assert AblateHeads(heads=["L0H0"], schedule=during(0)).is_scheduled


def test_clamps_that_read_no_file_are_pinned_as_they_are():
    assert all(clamp.pinned() is clamp for clamp in EVERY_CLAMP)


def test_a_schedule_needs_the_step(model, batch):
    refused(model, [AblateHeads(heads=["L0H0"], schedule=during(5))], batch, "pass the step")


@pytest.mark.untyped
@pytest.mark.parametrize(
    "given",
    [[{"kind": "ablate_heads", "heads": ["L1H0"]}], AblateHeads(heads=["L1H0"])],
    ids=["json", "one clamp"],
)
def test_clamps_come_as_a_list(given, model, batch):
    with pytest.raises(TypeError, match="clamps"), clamped(model, given, batch):
        pass


@pytest.mark.untyped
def test_json_of_another_kind_is_no_clamp():
    with pytest.raises(ValueError, match="'preserve'"):
        clamps.parse(["preserve"])


@pytest.mark.untyped
def test_a_warning_points_to_the_users_line(model, batch):
    with pytest.warns(ClampUnchangedWarning) as caught:
        logits_under(model, [Preserve(what=["patterns"])], batch)
    assert [Path(warning.filename).name for warning in caught] == ["clamp_laws.py"]


def test_induction_needs_a_correct_label_and_another(model, task):
    class_index = torch.tensor([[0, 1, 0], [0, 0, 0]])
    label = torch.tensor([[0, 1, 0], [2, 2, 2]])
    batch = task.batch(class_index, torch.zeros_like(class_index), label)
    refused(model, [clamps.match("L1H3")], batch, "sequence 1")


def test_sequences_longer_than_the_model_takes_are_refused(model, exemplars):
    _, longer = made(WORLDS["three pairs"], exemplars)
    refused(model, [clamps.match("L1H3")], longer, "7 tokens")


def test_layer_one_needs_a_layer_one(task, batch):
    model = build_model(task, ModelConfig(n_layers=1))
    refused(model, [PerfectLayerOne()], batch, "layer 1")


@pytest.mark.parametrize("clamp", [SimilarityAttention(heads=["L1H3"])], ids=str)
def test_clamps_on_features_refuse_a_plain_model(clamp, batch):
    cfg = HookedTransformerConfig(
        n_layers=2, d_model=16, n_ctx=5, d_head=4, n_heads=4, d_vocab=95, attn_only=True
    )
    refused(HookedTransformer(cfg), [clamp], batch, "few-shot")
