"""Redundancy of wirings and sets whose answer is known, of planted circuits, and self-repair."""

import math

import numpy as np
import pytest
import torch
from made_models import made, state_of
from planted_models import planted
from torch.testing import assert_close

import ih_interp as ih
from ih_interp.analysis.ablation.coalitions import backup_heads, minimal_sufficient, set_redundancy
from ih_interp.analysis.patching import redundancy
from ih_interp.analysis.patching.corruptions import swap_exemplars
from ih_interp.analysis.patching.path_patching import path_patch
from ih_interp.analysis.patching.redundancy import (
    effective_receivers,
    effective_senders,
    fan_in,
    fan_out,
    many_to_many,
    redundancy_over_training,
)
from ih_interp.analysis.patching.self_repair import self_repair
from ih_interp.analysis.patching.wiring import wiring_map
from ih_interp.evaluation import measured

# Wirings with a known answer


@pytest.mark.parametrize("n", [2, 5, 8])
def test_one_to_one_is_0_whatever_the_strengths(n):
    rng = np.random.default_rng(n)
    wires = np.diag(rng.uniform(0.1, 9, n))[rng.permutation(n)]
    assert many_to_many(wires).value == 0
    assert fan_in(wires).value == fan_out(wires).value == 0
    assert effective_senders(wires).value == pytest.approx(1)
    assert effective_receivers(wires).value == pytest.approx(1)


@pytest.mark.parametrize("shape", [(2, 2), (8, 8), (3, 6)])
def test_all_to_all_is_1(shape):
    for scale in (1e-6, 1, 1e6):
        wires = np.full(shape, scale)
        assert many_to_many(wires).value == pytest.approx(1)
        assert fan_in(wires).value == pytest.approx(1)
        assert fan_out(wires).value == pytest.approx(1)
        assert effective_senders(wires).value == pytest.approx(np.full(shape[1], shape[0]))
        assert effective_receivers(wires).value == pytest.approx(np.full(shape[0], shape[1]))


def test_stars_and_blocks():
    star = np.zeros((6, 6))
    star[2] = 1.0  # one sender serves all
    assert many_to_many(star).value == pytest.approx(1 / 2)
    assert (fan_in(star).value, fan_out(star).value) == pytest.approx((0, 1))
    assert (fan_in(star.T).value, fan_out(star.T).value) == pytest.approx((1, 0))
    blocks = np.kron(np.eye(2), np.ones((4, 4)))
    assert many_to_many(blocks).value == pytest.approx(math.log(4) / math.log(8))
    assert effective_senders(blocks).value == pytest.approx(np.full(8, 4))


def test_the_effective_number_by_hand():
    wires = np.array([[3.0, 1.0, 0.0], [1.0, -5.0, 0.0]])
    entropy = -(3 / 4 * math.log(3 / 4) + 1 / 4 * math.log(1 / 4))
    found = effective_senders(wires).value
    assert found[:2] == pytest.approx([math.exp(entropy), 1])  # an edge against counts as none
    assert math.isnan(found[2])


def test_measures_are_scale_free_and_between_0_and_1():
    rng = np.random.default_rng(0)
    for _ in range(50):
        wires = rng.normal(size=(4, 5))
        found = many_to_many(wires).value
        assert 0 <= found <= 1
        assert many_to_many(37.5 * wires).value == pytest.approx(found)
        assert many_to_many(wires.T).value == pytest.approx(found)
        assert many_to_many(np.maximum(wires, 0)).value == pytest.approx(found)
        assert (
            (effective_senders(wires).value >= 1) | np.isnan(effective_senders(wires).value)
        ).all()


def test_no_wire_has_no_answer():
    for measure in (many_to_many, fan_in, fan_out):
        assert math.isnan(measure(-np.ones((3, 3))).value)
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        many_to_many(np.ones((1, 3)))
    with pytest.raises(ValueError, match=r"\(3,\)"):
        many_to_many(np.ones(3))


def test_intervals_are_over_sequences():
    rng = np.random.default_rng(0)
    use = np.eye(3) + 0.3 * rng.normal(size=(60, 3, 3))
    found = effective_senders(torch.from_numpy(use))
    assert found.value == pytest.approx(effective_senders(use.mean(axis=0)).value)
    assert (found.low < found.value).all()
    assert (found.value < found.high).all()
    assert np.isnan(effective_senders(use.mean(axis=0)).low).all()
    same = np.broadcast_to(np.eye(3), (10, 3, 3))
    assert many_to_many(same).low == many_to_many(same).high == 0


# Sets


def test_redundancy_of_a_set():
    assert set_redundancy(np.array([1.0, 2.0]), np.array(3.0)).value == pytest.approx(0)
    assert set_redundancy(np.zeros(4), np.array(2.0)).value == pytest.approx(1)
    assert set_redundancy(np.full(4, 2.0), np.array(2.0)).value == pytest.approx(1 - 4)
    assert math.isnan(set_redundancy(np.ones(2), np.array(0.0)).value)
    # Damage may as well be negative: only the ratio counts.
    assert set_redundancy(np.array([-1.0, 0.0]), np.array(-4.0)).value == pytest.approx(3 / 4)
    many = set_redundancy(np.tile([1.0, 0.0], (20, 1)), np.full(20, 4.0))
    assert (many.value, many.low, many.high) == pytest.approx((3 / 4, 3 / 4, 3 / 4))
    with pytest.raises(ValueError, match="single has shape"):
        set_redundancy(np.ones(3), np.ones(3))


def game(n, value):
    return np.array([value({i for i in range(n) if s >> i & 1}) for s in range(2**n)], dtype=float)


EITHER = game(3, lambda on: bool(on & {0, 1}))
BOTH = game(3, lambda on: on >= {0, 2})
SUM = game(3, len)
TWO_OF_FOUR = game(4, lambda on: len(on & {0, 1, 2}) >= 2)


def test_minimal_sufficient_sets():
    assert minimal_sufficient(EITHER) == [(0,), (1,)]
    assert minimal_sufficient(BOTH) == [(0, 2)]
    assert minimal_sufficient(SUM) == [(0, 1, 2)]
    assert minimal_sufficient(SUM, share=2 / 3) == [(0, 1), (0, 2), (1, 2)]
    assert minimal_sufficient(TWO_OF_FOUR) == [(0, 1), (0, 2), (1, 2)]
    # A loss falls: the same sets.
    assert minimal_sufficient(1 - EITHER) == [(0,), (1,)]
    assert minimal_sufficient(np.stack([EITHER, EITHER])) == [(0,), (1,)]


def test_minimal_sufficient_sets_against_every_set():
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = np.sort(rng.uniform(size=16))[rng.permutation(16)]
        values[0], values[-1] = 0, 1
        sets = [{i for i in range(4) if s >> i & 1} for s in range(16)]
        enough = [s for s, v in zip(sets, values, strict=True) if v >= 0.7]
        expected = {tuple(sorted(s)) for s in enough if not any(t < s for t in enough)}
        assert set(minimal_sufficient(values, share=0.7)) == expected


def test_backup_heads():
    # Head 0 does all; head 1 sleeps beside it and does half as much without it.
    sleeper = game(3, lambda on: 1 if 0 in on else 0.5 * (1 in on))
    assert backup_heads(sleeper) == {0: (1,), 1: (), 2: ()}
    assert backup_heads(EITHER) == {0: (1,), 1: (0,), 2: ()}
    assert backup_heads(SUM) == {0: (), 1: (), 2: ()}


def test_values_that_are_no_lattice_are_refused():
    with pytest.raises(ValueError, match="3 values"):
        minimal_sufficient(np.ones(3))
    with pytest.raises(ValueError, match="do nothing"):
        minimal_sufficient(np.ones(4))
    with pytest.raises(ValueError, match="share"):
        minimal_sufficient(EITHER, share=1.5)


# Planted circuits


PLANTED = {
    "one to one": ({0: [0], 1: [1], 2: [2]}, np.eye(3, dtype=bool)),
    "two redundant senders": ({0: [0, 1]}, np.array([[1, 0, 0], [1, 0, 0], [0, 0, 0]], bool)),
    "one sender, two receivers": (
        {0: [2], 1: [2]},
        np.array([[0, 0, 0], [0, 0, 0], [1, 1, 0]], bool),
    ),
    "all to all": ({0: [0, 1, 2], 1: [0, 1, 2], 2: [0, 1, 2]}, np.ones((3, 3), bool)),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_wiring_is_recovered(name):
    reads, expected = PLANTED[name]
    model, batch, clamp = planted(reads)
    with ih.clamped(model, [clamp], batch):
        found = wiring_map(model, batch, swap_exemplars(batch), per_sequence=True)
    assert found.through("q").abs().max() == found.through("v").abs().max() == 0
    use = found.through("k").numpy()
    assert (use[:, ~expected] == 0).all()
    assert (use.mean(axis=0)[expected] > 0.1).all()
    n_senders, n_receivers = expected.sum(axis=0), expected.sum(axis=1)
    senders, receivers = effective_senders(use).value, effective_receivers(use).value
    assert senders[n_senders > 0] == pytest.approx(n_senders[n_senders > 0])
    assert receivers[n_receivers > 0] == pytest.approx(n_receivers[n_receivers > 0])
    assert np.isnan(senders[n_senders == 0]).all()
    shares = {
        "one to one": 0.0,
        "two redundant senders": math.log(2) / math.log(9),
        "one sender, two receivers": math.log(2) / math.log(9),
        "all to all": 1.0,
    }
    assert many_to_many(use).value == pytest.approx(shares[name], abs=1e-6)


def test_redundant_senders_hide_each_other_on_the_accuracy_scale():
    """Keys of both senders add: with one swapped, the two labels tie; with both, all is lost."""
    model, batch, clamp = planted({0: [0, 1, 2]})
    options = {"via": "k", "metric": "accuracy", "per_sequence": True}
    with ih.clamped(model, [clamp], batch):
        other = swap_exemplars(batch)
        single = torch.stack(
            [path_patch(model, batch, other, [(0, s)], [(1, 0)], **options) for s in range(3)],
            dim=1,
        )
        joint = path_patch(model, batch, other, [(0, s) for s in range(3)], [(1, 0)], **options)
    assert single.abs().max() == 0  # two right keys outvote one wrong
    assert (joint == -1).all()
    assert set_redundancy(single, joint).value == 1


# Self-repair


def literal_repair(model, batch, heads, scale):
    """From caches of two passes, with the final norm written out."""

    def silence(z, hook):
        z = z.clone()
        z[:, :, [head for layer, head in heads if layer == hook.layer()]] = 0
        return z

    layers = range(model.cfg.n_layers)
    _, whole = model.run_with_cache(batch.tokens)
    with model.hooks(fwd_hooks=[(f"blocks.{layer}.attn.hook_z", silence) for layer in layers]):
        logits, ablated = model.run_with_cache(batch.tokens)

    def value(resid, kept):
        read = resid
        if model.cfg.normalization_type == "LN":
            read = (read - read.mean(-1, keepdim=True)) / kept["ln_final.hook_scale"][:, -1]
            read = read * model.ln_final.w + model.ln_final.b
        return measured(scale, read @ model.unembed.W_U + model.unembed.b_U, batch)

    top = f"blocks.{layers[-1]}.hook_resid_post"
    resid = whole[top][:, -1]
    own, others = torch.zeros_like(resid), torch.zeros_like(resid)
    for layer in layers:
        point = f"blocks.{layer}.attn.hook_z"
        for head in range(model.cfg.n_heads):
            change = (ablated[point] - whole[point])[:, -1, head] @ model.blocks[layer].attn.W_O[
                head
            ]
            if (layer, head) in heads:
                own += change
            else:
                others += change
    start = value(resid, whole)
    end = ablated[top][:, -1]
    return {
        "total": measured(scale, logits[:, -1], batch) - start,
        "direct": value(resid + own, whole) - start,
        "heads": value(resid + others, whole) - start,
        "mlps": value(end - own - others, whole) - start,
        "norm": value(end, ablated) - value(end, whole),
    }


@pytest.fixture(scope="module")
def few(task):
    return task.sample("train", 12, generator=torch.Generator().manual_seed(3))


REPAIRED = {
    "LN MLP": ({"attn_only": False}, [(0, 1)]),
    "LN": ({}, [(0, 0), (1, 2)]),
    "none": ({"normalization_type": None}, [(0, 1)]),
    "three layers": ({"n_layers": 3, "attn_only": False}, [(1, 0), (1, 1)]),
}


@pytest.mark.parametrize("name", REPAIRED)
@pytest.mark.parametrize("scale", ["logit", "logit_difference"])
def test_self_repair_by_hand_sums_exactly(name, scale, task, few):
    shape, heads = REPAIRED[name]
    model = made(task, **shape)
    before = state_of(model)
    found = self_repair(model, few, heads, scale=scale)
    assert state_of(model) == before
    for part, expected in literal_repair(model, few, heads, scale).items():
        assert_close(getattr(found, part), expected, rtol=0, atol=1e-9)
    parts = found.direct + found.heads + found.mlps + found.norm
    assert_close(parts, found.total, rtol=0, atol=1e-9)
    assert_close(found.repair, found.total - found.direct)
    assert found.heads.abs().max() > 1e-4


def test_the_last_layer_is_repaired_by_the_norm_alone(task, few):
    with_norm = self_repair(made(task), few, [(1, 0)])
    without = self_repair(made(task, normalization_type=None), few, [(1, 0)])
    for found in (with_norm, without):
        assert found.heads.abs().max() < 1e-12
        assert found.mlps.abs().max() < 1e-12
    assert with_norm.norm.abs().max() > 1e-3
    assert_close(without.norm, torch.zeros_like(without.norm), rtol=0, atol=1e-9)
    assert_close(without.total, without.direct, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ablation", ["mean", "resample"])
def test_other_ablations_change_what_the_heads_write_to_what_is_said(ablation, task, few):
    model, other = made(task), swap_exemplars(few)
    found = self_repair(model, few, [(1, 0)], ablation=ablation, corrupted=other)
    z = model.run_with_cache(other.tokens)[1]["z", 1][:, :, 0]
    value = z if ablation == "resample" else z.mean(dim=0)

    def replace(z, hook):
        z = z.clone()
        z[:, :, 0] = value
        return z

    logits = model.run_with_hooks(few.tokens, fwd_hooks=[("blocks.1.attn.hook_z", replace)])
    total = measured("logit", logits[:, -1], few) - measured("logit", model(few.tokens)[:, -1], few)
    assert_close(found.total, total, rtol=0, atol=1e-9)
    assert_close(found.direct + found.norm, total, rtol=0, atol=1e-9)


def test_what_cannot_be_repaired_is_refused(task, few):
    model = made(task)
    with pytest.raises(ValueError, match="heads"):
        self_repair(model, few, [])
    with pytest.raises(ValueError, match="scale='loss'"):
        self_repair(model, few, ["L1H0"], scale="loss")
    with (
        pytest.raises(ValueError, match="logits"),
        ih.clamped(model, [ih.clamps.CopyFromAttention(head="L1H0")], few),
    ):
        self_repair(model, few, ["L1H0"])


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("backup_heads", 3, r"takes \(values, \*, idle, .*many .*coalitions\(.*\)\.values"),
        ("minimal_sufficient", 2, r"takes \(values, \*, share\): .*coalitions\("),
        ("set_redundancy", 3, r"takes \(single, joint, options\): too many .*path_patch"),
        ("many_to_many", 2, r"takes \(use, options\): too many .*wiring_map\(.*through\('k'\)"),
        ("effective_senders", 0, r"missing a required argument: 'use'; give effects of edges"),
        ("prefix_matching_score", 2, r"takes \(model, \*, generator, .*too many positional"),
        ("induction_score", 1, r"missing a required argument: 'generator'; it draws its own"),
    ],
)
def test_a_call_that_does_not_fit_is_told_with_what_the_function_takes(name, given, words, model):
    folder = next(f for f in (ih.ablation, ih.patching, ih.heads) if name in dir(f))
    with pytest.raises(TypeError, match=f"{name} {words}" if words[0] == "t" else words):
        getattr(folder, name)(*[model, "L1H3", "L1H4"][:given])


# Over training


def test_redundancy_of_every_checkpoint(small_run):
    batch = small_run.task.sample("train", 20, generator=torch.Generator().manual_seed(0))
    table = redundancy_over_training(small_run, swap_exemplars, batch=batch, via="kv")
    assert list(table.columns) == ["step", "sequences", "via", "name", "value", "low", "high"]
    assert len(table) == len(small_run.steps) * 2 * (3 + 8 + 8)
    wiring = wiring_map(
        small_run.model(2), batch, swap_exemplars(batch), via="v", per_sequence=True
    )
    row = table.query("step == 2 and via == 'v' and name == 'effective_senders L1H3'")
    expected = effective_senders(wiring.through("v"), n_resamples=200)
    assert row["value"].item() == pytest.approx(expected.value[3])
    assert row["high"].item() == pytest.approx(expected.high[3])


def test_intervals_are_not_averaged_over_passes(small_run, monkeypatch):
    monkeypatch.setattr(redundancy, "CHUNK", 10)
    batch = small_run.task.sample("train", 20, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="20"):
        redundancy_over_training(small_run, swap_exemplars, batch=batch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int8, torch.bool])
def test_use_of_any_type_is_that_of_double_precision(dtype):
    use = torch.tensor([[1, 0, 1], [0, 1, 1]]).to(dtype)
    assert many_to_many(use).value == many_to_many(use.double()).value


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_sets_and_backups_are_not_read_from_what_is_no_number(bad):
    for place in range(8):
        values = EITHER.astype(float).copy()
        values[place] = bad
        for function in (minimal_sufficient, backup_heads):
            with pytest.raises(ValueError, match=f"values holds {bad:g}"):
                function(values)


def test_heads_that_do_nothing_have_no_backups():
    with pytest.raises(ValueError, match="do nothing"):
        backup_heads(np.ones(4))
