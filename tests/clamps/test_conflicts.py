"""Which clamps refuse each other, in which words, and which must act together."""

import itertools
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformer_lens.hook_points import HookPoint

from ih_interp.clamps import (
    AblateEmbedding,
    AblateHeads,
    AbstractClamp,
    AttendLabelsOnly,
    AttentionTemperature,
    CopyFromAttention,
    ForbidPreviousToken,
    GraftIn,
    GraftOut,
    InductionAttention,
    PerfectLayerOne,
    PerfectMatchAndCopy,
    Preserve,
    PreviousTokenAttention,
    Setting,
    Shape,
    SimilarityAttention,
    Site,
    clamped,
    during,
    keep_only,
)
from ih_interp.clamps._active import active
from ih_interp.clamps.context import refuse_conflicts
from ih_interp.model import ModelConfig, build_model

SHAPE = Shape(n_layers=3, n_heads=8)


def graft_in(layer: int) -> GraftIn:
    return GraftIn(run="run", step=1, layer=layer)


def graft_out(layer: int) -> GraftOut:
    return GraftOut(run="run", step=1, layer=layer)


REFUSED: list[tuple[AbstractClamp, AbstractClamp, str]] = [
    # the same thing set twice
    (AblateHeads(heads=["L0H1", "L1H3"]), AblateHeads(heads=["L1H3"]), "v of L1H3"),
    (
        InductionAttention(heads=["L1H3"]),
        SimilarityAttention(heads=["L1H3"]),
        "pattern of L1H3, asked rows",
    ),
    (
        InductionAttention(heads=["L1H3"]),
        PreviousTokenAttention(heads=["L1H3"]),
        "pattern of L1H3, asked rows",
    ),
    (
        PreviousTokenAttention(heads=["L0H2"]),
        PreviousTokenAttention(heads=["L0H2"], queries="labels", strength=0.5),
        "pattern of L0H2, labels rows",
    ),
    (
        AttentionTemperature(heads=["L1H3"], temperature=2.0),
        AttentionTemperature(heads=["L1H3"], temperature=0.5),
        "scores:temperature of L1H3",
    ),
    (
        Preserve(what=["patterns", "values"]),
        Preserve(what=["values", "keys"]),
        "preserved v of layer 0",
    ),
    (PerfectLayerOne(), Preserve(what=["queries"]), "preserved q of layer 1"),
    (CopyFromAttention(head="L1H3"), CopyFromAttention(head="L1H4"), "logits of layer 3"),
    (CopyFromAttention(head="L1H3"), PerfectMatchAndCopy(), "logits of layer 3"),
    (graft_out(1), PerfectMatchAndCopy(), "logits of layer 3"),
    (graft_in(0), PerfectLayerOne(), "resid_pre of layer 1"),
    # scores that no longer reach the pattern
    (
        ForbidPreviousToken(heads=["L0H2"]),
        PreviousTokenAttention(heads=["L0H2"]),
        "forbid_previous_token.* is void.* of L0H2",
    ),
    (
        AttendLabelsOnly(heads=["L1H3"]),
        SimilarityAttention(heads=["L1H3"]),
        "attend_labels_only.* is void.* of L1H3, asked rows",
    ),
    (
        AttentionTemperature(heads=["L1H3"], temperature=2.0),
        Preserve(what=["patterns"]),
        "attention_temperature.* is void.* of L1H3",
    ),
    (PerfectLayerOne(), Preserve(what=["patterns"]), "perfect_layer_one.* is void.* of layer 1"),
    # patterns that come after the scores that are read
    (
        InductionAttention(heads=["L1H3"]),
        CopyFromAttention(head="L1H3"),
        "induction_attention.* is void.* of L1H3, asked rows",
    ),
    (
        SimilarityAttention(heads=["L1H2"]),
        CopyFromAttention(head="L1H3"),
        "match_attention.* is void.* of L1H2",
    ),
    # layers that nothing of which reaches the output
    (AblateHeads(heads=["L0H1"]), PerfectLayerOne(), "ablate_heads.* is void at layer 0"),
    (
        PreviousTokenAttention(heads=["L0H1", "L1H1"]),
        PerfectLayerOne(),
        "previous_token_attention.* is void at layer 0",
    ),
    (AblateEmbedding(), PerfectLayerOne(), "ablate_embedding.* is void at the embedding"),
    (AblateEmbedding(), graft_in(0), "ablate_embedding.* is void at the embedding"),
    (PerfectLayerOne(), graft_in(1), "perfect_layer_one.* is void at layer 1"),
    (graft_in(0), graft_in(1), "graft_in.*layer=0.* is void at layer 1"),
    (AblateHeads(heads=["L0H1"]), graft_in(0), "ablate_heads.* is void at layer 0"),
    (AblateHeads(heads=["L2H1"]), graft_out(0), "is void at layer 2"),
    (AblateHeads(heads=["L2H1"]), CopyFromAttention(head="L1H3"), "is void at layer 2"),
    (CopyFromAttention(head="L0H3"), PerfectLayerOne(), "is void at layer [01]"),
    (InductionAttention(heads=["L1H3"]), PerfectMatchAndCopy(), "is void at layer 1"),
    (PerfectLayerOne(), PerfectMatchAndCopy(), "perfect_layer_one.* is void at layer 1"),
]


ONE = Site("pattern", 0, 3, "asked")


@pytest.mark.parametrize(
    ("other", "together"),
    [
        (ONE, True),
        (Site("pattern", 0, 3), True),
        (Site("pattern", 0), True),
        (Site("pattern", 0, None, "asked"), True),
        (Site("pattern", 0, 3, "labels"), False),
        (Site("pattern", 0, 2), False),
        (Site("pattern", 1), False),
        (Site("patterns", 0), False),
    ],
)
def test_none_stands_for_every_head_or_row(other, together):
    assert ONE.overlaps(other) == other.overlaps(ONE) == together


def test_all_changes_of_scores_are_changes_of_scores():
    assert Site("scores", 0).overlaps(Site("scores:temperature", 0, 3))
    assert not Site("scores:previous", 0).overlaps(Site("scores:temperature", 0, 3))
    assert not Site("scores", 0).overlaps(Site("scores read", 0, 3))


class Sink(AbstractClamp):
    """A pattern that a user sets."""

    kind: str = "sink"
    site: Site

    def sites(self, shape):
        return frozenset({self.site})

    def hooks(self, setting):
        return []


@pytest.mark.parametrize("site", [Site("pattern", 0, 3), Site("pattern", 0), Site("scores", 0, 3)])
def test_ones_own_clamp_conflicts_by_its_sites(site):
    with pytest.raises(ValueError, match="of L0H3"):
        refuse_conflicts([Sink(site=site), PreviousTokenAttention(heads=["L0H3"])], SHAPE)
    refuse_conflicts([Sink(site=site), PreviousTokenAttention(heads=["L1H3"])], SHAPE)


@pytest.mark.parametrize(("one", "other", "words"), REFUSED, ids=str)
def test_what_cannot_act_together_is_refused_in_any_order(one, other, words):
    for pair in ((one, other), (other, one)):
        with pytest.raises(ValueError, match=words):
            refuse_conflicts(pair, SHAPE)


def test_a_refusal_names_both_clamps():
    one, other = InductionAttention(heads=["L1H3"]), SimilarityAttention(heads=["L1H3"])
    with pytest.raises(ValueError, match="Two clamps") as refusal:
        refuse_conflicts([one, other], SHAPE)
    assert str(one) in str(refusal.value)
    assert str(other) in str(refusal.value)


def test_a_refusal_comes_before_anything_runs(model, batch):
    seen: list[str] = []

    def note(activation: torch.Tensor, hook: HookPoint) -> None:
        del activation
        seen.append(str(hook.name))

    model.add_hook("hook_embed", note)
    given = [Preserve(what=["patterns"]), AttentionTemperature(heads=["L1H3"], temperature=2.0)]
    with pytest.raises(ValueError, match="is void"), clamped(model, given, batch):
        pass
    assert seen == []


REST = AblateHeads(heads=keep_only("L1H3", n_heads=8))
TOGETHER: dict[str, list[AbstractClamp]] = {
    "the direct path removed": [
        Preserve(what=["patterns", "values"]),
        AblateHeads(heads=[(0, head) for head in range(8)]),
    ],
    "preserved patterns, one head's set": [
        Preserve(what=["patterns"]),
        PreviousTokenAttention(heads=["L0H2"]),
        InductionAttention(heads=["L1H3"]),
    ],
    "preserved twice, different things": [Preserve(what=["values"]), Preserve(what=["keys"])],
    "preserved queries, other scores": [
        Preserve(what=["queries"]),
        ForbidPreviousToken(heads=["L0H2"]),
    ],
    "two masks on one head": [
        ForbidPreviousToken(heads=["L1H3"]),
        AttendLabelsOnly(heads=["L1H3"]),
    ],
    "two heads, two temperatures": [
        AttentionTemperature(heads=["L1H3"], temperature=0.5),
        AttentionTemperature(heads=["L1H4"], temperature=2.0),
    ],
    "temperature and mask": [
        AttentionTemperature(heads=["L0H2"], temperature=0.5),
        ForbidPreviousToken(heads=["L0H2"]),
    ],
    "teachers in both layers": [
        PreviousTokenAttention(heads=["L0H2"]),
        InductionAttention(heads=["L1H3"], strength=0.9),
    ],
    "previous token in label rows, match in the query's": [
        PreviousTokenAttention(heads=["L1H3"], queries="labels"),
        SimilarityAttention(heads=["L1H3"]),
    ],
    "copy and ablation below": [CopyFromAttention(head="L1H3"), AblateHeads(heads=["L0H2"])],
    "copy and a teacher below": [
        CopyFromAttention(head="L1H3"),
        PreviousTokenAttention(heads=["L0H2"]),
    ],
    "layer one, one head": [PerfectLayerOne(), REST],
    "layer one and copy": [PerfectLayerOne(), CopyFromAttention(head="L1H3")],
    "layer one and match": [PerfectLayerOne(), InductionAttention(heads=["L1H3"])],
    "A alone, one head": [PerfectMatchAndCopy(), AblateHeads(heads=keep_only("L0H2", n_heads=8))],
    "an embedding only for patterns": [
        Preserve(what=["patterns", "values"]),
        AblateEmbedding(),
        REST,
    ],
}


@pytest.mark.parametrize("case", TOGETHER)
def test_what_must_act_together_does_in_any_order(case, model, batch):
    free = model(batch.tokens)
    results = []
    for given in itertools.permutations(TOGETHER[case]):
        with clamped(model, given, batch):
            results.append(model(batch.tokens))
    assert all(torch.equal(result, results[0]) for result in results)
    assert case.startswith("preserved twice") or not torch.equal(results[0], free)


VOID_WHILE_ON: list[tuple[AbstractClamp, AbstractClamp]] = [
    (InductionAttention(heads=["L1H3"]), CopyFromAttention(head="L1H3")),
    (AblateHeads(heads=["L0H1"]), PerfectLayerOne()),
    (AblateEmbedding(), PerfectLayerOne()),
    (InductionAttention(heads=["L1H3"]), PerfectMatchAndCopy()),
    (PerfectLayerOne(), PerfectMatchAndCopy()),
    (ForbidPreviousToken(heads=["L0H2"]), PreviousTokenAttention(heads=["L0H2"])),
    (AttentionTemperature(heads=["L1H3"], temperature=2.0), Preserve(what=["patterns"])),
]


@pytest.mark.parametrize(("void", "by"), VOID_WHILE_ON, ids=str)
def test_what_makes_another_void_for_a_while_leaves_it_the_rest(void, by, model, batch):
    """While it is on, it acts as if alone; while it is off, the other does."""
    for_a_while = by.model_copy(update={"schedule": during(0, 1)})

    def logits(*given: AbstractClamp, step: int | None = None) -> torch.Tensor:
        with clamped(model, given, batch, step=step):
            return model(batch.tokens)[:, -1]

    with pytest.raises(ValueError, match="is void"):
        logits(void, by)
    assert not torch.allclose(logits(void), logits(by))
    for pair in ((void, for_a_while), (for_a_while, void)):
        assert_close(logits(*pair, step=0), logits(by))
        assert_close(logits(*pair, step=1), logits(void))


def test_patterns_set_by_hand_come_on_top_of_preserved_ones(model, batch):
    _, free = model.run_with_cache(batch.tokens)
    given = [PreviousTokenAttention(heads=["L0H2"]), Preserve(what=["patterns"])]
    with clamped(model, given, batch):
        _, cache = model.run_with_cache(batch.tokens)
    others = [head for head in range(8) if head != 2]
    assert torch.equal(cache["pattern", 1], free["pattern", 1])
    assert torch.equal(cache["pattern", 0][:, others], free["pattern", 0][:, others])
    assert cache["pattern", 0][:, 2, 1:].diagonal(dim1=-2, dim2=-1).eq(1).all()


def test_two_masks_leave_the_query_one_label(model, batch):
    with clamped(model, TOGETHER["two masks on one head"], batch):
        _, cache = model.run_with_cache(batch.tokens)
    expected = torch.tensor([0.0, 1, 0, 0, 0]).expand(len(batch), 5)
    assert torch.equal(cache["pattern", 1][:, 3, -1], expected)


def test_an_ablated_head_is_ablated_though_values_are_preserved(model, batch):
    given = [AblateHeads(heads=["L0H2"]), Preserve(what=["values"])]
    _, free = model.run_with_cache(batch.tokens)
    with clamped(model, given, batch):
        _, cache = model.run_with_cache(batch.tokens)
    assert not cache["v", 0][:, :, 2].any()
    assert torch.equal(cache["v", 1], free["v", 1])


def test_layer_one_changes_what_copy_reads(model, batch):
    """The published code needed a function of its own for this pair."""
    with clamped(model, [PerfectLayerOne()], batch):
        _, cache = model.run_with_cache(batch.tokens)
    with clamped(model, TOGETHER["layer one and copy"], batch):
        logits = model(batch.tokens)[:, -1]
    at_labels = cache["attn_scores", 1][:, 3, -1, [1, 3]]
    assert_close(logits.gather(1, batch.context_labels), at_labels)


def test_missing_runs_are_refused_before_conflicts(model, batch, tmp_path: Path):
    graft = GraftIn(run=str(tmp_path / "gone"), step=0, layer=0)
    with pytest.raises(FileNotFoundError, match="gone"), clamped(model, [graft], batch):
        pass


# Blocks inside blocks


@pytest.mark.parametrize("case", TOGETHER)
def test_nested_blocks_are_one_block_or_refused(case, model, batch):
    with clamped(model, TOGETHER[case], batch):
        expected = model(batch.tokens)
    entered = 0
    for first, *others in itertools.permutations(TOGETHER[case]):
        with clamped(model, [first], batch):
            try:
                with clamped(model, others, batch):
                    entered += 1
                    assert torch.equal(model(batch.tokens), expected)
            except ValueError as refusal:
                assert "give both to one clamped()" in str(refusal)  # noqa: PT017
                with clamped(model, [], batch):
                    model(batch.tokens)
    assert entered


NESTED = [
    pytest.param(one, other, words, id=f"{one.kind}, {other.kind}")
    for one, other, words in REFUSED
    if not {"graft_in", "graft_out"} & {one.kind, other.kind}
]


@pytest.mark.parametrize(("one", "other", "words"), NESTED)
def test_an_inner_block_is_refused_in_the_same_words(one, other, words, task, batch):
    model = build_model(task, ModelConfig(n_layers=3))
    for outer, inner in ((one, other), (other, one)):
        with clamped(model, [outer], batch):
            before = model(batch.tokens)
            with pytest.raises(ValueError, match=words), clamped(model, [inner], batch):
                pytest.fail("entered")
            assert torch.equal(model(batch.tokens), before)


def test_an_inner_block_preserves_what_no_block_has_clamped(model, batch):
    _, free = model.run_with_cache(batch.tokens)
    ablate, preserve = AblateHeads(heads=["L0H2"]), Preserve(what=["patterns"])
    with clamped(model, [ablate], batch):
        _, ablated = model.run_with_cache(batch.tokens)
        with clamped(model, [preserve], batch):
            _, cache = model.run_with_cache(batch.tokens)
        _, after = model.run_with_cache(batch.tokens)
    assert torch.equal(cache["pattern", 1], free["pattern", 1])
    assert not torch.equal(cache["pattern", 1], ablated["pattern", 1])
    assert torch.equal(after["pattern", 1], ablated["pattern", 1])


def test_a_pass_that_an_inner_block_reads_does_not_count_as_one_of_the_outer(model, batch):
    def only_enter_inside() -> None:
        with clamped(model, [AblateHeads(heads=["L0H2"])], batch):
            Preserve(what=["patterns"]).hooks(Setting(model, batch))

    with pytest.raises(ValueError, match="never fired"):
        only_enter_inside()


def test_hooks_of_one_point_keep_their_order(model, batch):
    ablate, preserve = AblateHeads(heads=["L0H2"]), Preserve(what=["values"])
    words = r"preserve.* comes before ablate_heads.*blocks\.0\.attn\.hook_v"
    with clamped(model, [ablate], batch):
        with pytest.raises(ValueError, match=words), clamped(model, [preserve], batch):
            pytest.fail("entered")
        model(batch.tokens)


def test_leaving_by_an_error_forgets_the_clamps_of_that_block_only(model, batch):
    outer, inner = AblateHeads(heads=["L0H2"]), AblateHeads(heads=["L1H3"])

    def fail() -> None:
        with clamped(model, [inner], batch):
            raise ZeroDivisionError

    with clamped(model, [outer], batch):
        with pytest.raises(ZeroDivisionError):
            fail()
        with clamped(model, [inner], batch):
            model(batch.tokens)
        with pytest.raises(ValueError, match="v of L0H2"), clamped(model, [outer], batch):
            pytest.fail("entered")
    with clamped(model, [outer, inner], batch):
        model(batch.tokens)


def test_blocks_on_two_models_know_nothing_of_each_other(model, task, batch):
    ablate, other = AblateHeads(heads=["L0H2"]), build_model(task, seed=6)
    with clamped(other, [ablate], batch):
        alone = other(batch.tokens)
    with clamped(model, [ablate], batch), clamped(other, [ablate], batch):
        model(batch.tokens)
        assert torch.equal(other(batch.tokens), alone)


def test_blocks_without_clamps_may_be_nested_too(model, batch):
    ablate = AblateHeads(heads=["L1H0"])
    with clamped(model, [], batch), clamped(model, [], batch):
        assert active(model) == ()
    with clamped(model, [ablate], batch):
        with clamped(model, [], batch):
            assert [one.clamp for one in active(model)] == [ablate]
        model(batch.tokens)
    assert active(model) == ()
