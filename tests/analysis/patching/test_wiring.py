"""The wiring map against one `path_patch` an edge, which is tested against whole passes."""

import pandas as pd
import pytest
import torch
from made_models import made as made_of_three, state_of, with_norm
from torch.testing import assert_close

import ih_interp as ih
from ih_interp.analysis.patching import _each_edge
from ih_interp.analysis.patching._last_layer import stands_alone
from ih_interp.analysis.patching._upper_layers import run_alone
from ih_interp.analysis.patching.corruptions import swap_exemplars
from ih_interp.analysis.patching.path_patching import path_patch
from ih_interp.analysis.patching.wiring import wiring_map, wiring_over_training

N = 5


def made(task, **fields):
    return made_of_three(task, n_heads=2, **fields)


@pytest.fixture(scope="module")
def clean(task):
    return task.sample("train", N, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def corrupted(clean):
    return swap_exemplars(clean)


def single(model):
    model.cfg.dtype = torch.float32
    return model.float()


def edge_by_edge(model, clean, corrupted, *, sender_layer=0, receiver_layer=None, **options):
    top = model.cfg.n_layers - 1 if receiver_layer is None else receiver_layer
    heads = range(model.cfg.n_heads)
    return torch.stack([
        torch.stack([
            torch.stack([
                path_patch(model, clean, corrupted, [(sender_layer, s)], [(top, r)], via=letter,
                           per_sequence=True, **options)
                for r in heads
            ], dim=-1)
            for s in heads
        ], dim=-2)
        for letter in "qkv"
    ], dim=1)  # fmt: skip


def run_on(model, layer):
    """A hook that changes nothing, so that the model itself has to run from this layer on."""
    return model.hooks(fwd_hooks=[(f"blocks.{layer}.hook_attn_out", lambda value, hook: None)])


OPTIONS = [
    {},
    {"direction": "denoise", "metric": "loss"},
    {"ablation": "zero"},
    {"ablation": "mean", "metric": "probability"},
    {"ablation": "zero", "direction": "denoise"},
    {"ablation": "mean", "direction": "denoise", "normalise": True},
    {"ablation": "zero", "normalise": True},
    {"normalise": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_map_is_what_single_edges_give(options, task, clean, corrupted):
    model = made(task)
    assert stands_alone(model, 1)
    expected = edge_by_edge(model, clean, corrupted, **options)
    assert expected.abs().max() > 1e-3
    found = wiring_map(model, clean, corrupted, per_sequence=True, **options)
    assert_close(found.effects, expected, rtol=0, atol=1e-9)
    with run_on(model, 1):
        assert not stands_alone(model, 1)
        again = wiring_map(model, clean, corrupted, per_sequence=True, **options)
    assert_close(again.effects, expected, rtol=0, atol=1e-9)
    means = wiring_map(model, clean, corrupted, **options)
    assert_close(means.effects, expected.mean(dim=0), rtol=0, atol=1e-9)


SHAPES = {
    "none standard": {"normalization_type": None, "positional_embedding_type": "standard"},
    "RMS": {"normalization_type": "RMS"},
    "MLP": {"attn_only": False},
    "three layers": {"n_layers": 3},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_other_shapes(shape, direction, task, clean, corrupted):
    model = made(task, **SHAPES[shape])
    assert stands_alone(model, model.cfg.n_layers - 1) == (shape != "MLP")
    expected = edge_by_edge(model, clean, corrupted, direction=direction)
    found = wiring_map(model, clean, corrupted, direction=direction, per_sequence=True)
    assert_close(found.effects, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("sender", "receiver"), [(0, 1), (1, 2), (0, 2), (1, 3)])
@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_any_two_layers_of_a_deep_model(sender, receiver, ablation, task, clean, corrupted):
    model = made(task, n_layers=4, attn_only=False, d_mlp=8)
    options = {"sender_layer": sender, "receiver_layer": receiver, "ablation": ablation}
    expected = edge_by_edge(model, clean, corrupted, direction="denoise", **options)
    found = wiring_map(model, clean, corrupted, direction="denoise", per_sequence=True, **options)
    assert_close(found.effects, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["LNPre", "shortformer"])
def test_what_the_task_does_not_make(kind, task, clean, corrupted):
    if kind == "shortformer":
        model = made(task, positional_embedding_type="standard")
        model.cfg.positional_embedding_type = kind
    else:
        model = with_norm(made(task), kind)
    expected = edge_by_edge(model, clean, corrupted)
    found = wiring_map(model, clean, corrupted, per_sequence=True)
    assert_close(found.effects, expected, rtol=0, atol=1e-9)


CLAMPS = {
    "below": [ih.clamps.PreviousTokenAttention(heads=["L0H1"])],
    "receivers": [ih.clamps.InductionAttention(heads=["L1H1"], strength=0.9)],
    "ablated": [ih.clamps.AblateHeads(heads=["L0H0", "L1H1"])],
    "preserved": [ih.clamps.Preserve(what=["patterns"])],
    "logits": [ih.clamps.CopyFromAttention(head="L1H0")],
}


@pytest.mark.parametrize("name", CLAMPS)
@pytest.mark.parametrize("direction", ["noise", "denoise"])
def test_under_clamps(name, direction, task, clean, corrupted):
    model = made(task)
    with ih.clamped(model, CLAMPS[name], clean):
        expected = edge_by_edge(model, clean, corrupted, direction=direction)
        found = wiring_map(model, clean, corrupted, direction=direction, per_sequence=True)
    free = wiring_map(model, clean, corrupted, direction=direction, per_sequence=True)
    assert_close(found.effects, expected, rtol=0, atol=1e-9)
    assert (found.effects - free.effects).abs().max() > 1e-4


@pytest.mark.parametrize("head", ["L0H1", "L1H0", "L2H1"])
def test_layers_above_a_clamp_run_by_themselves(head, task, clean, corrupted):
    model = made(task, n_layers=3, attn_only=False, d_mlp=8)
    clamp = ih.clamps.PreviousTokenAttention(heads=[head], strength=0.8)
    options = {"sender_layer": 0, "receiver_layer": 1, "ablation": "mean", "direction": "denoise"}
    free = wiring_map(model, clean, corrupted, per_sequence=True, **options)
    with ih.clamped(model, [clamp], clean):
        assert run_alone(model, 1) == (head == "L0H1")
        expected = edge_by_edge(model, clean, corrupted, **options)
        found = wiring_map(model, clean, corrupted, per_sequence=True, **options)
    assert_close(found.effects, expected, rtol=0, atol=1e-9)
    assert (found.effects - free.effects).abs().max() > 1e-5


def test_preserved_patterns_leave_values_alone(task, clean, corrupted):
    model = made(task)
    with ih.clamped(model, [ih.clamps.Preserve(what=["patterns"])], clean):
        found = wiring_map(model, clean, corrupted)
    assert found.through("q").abs().max() == 0
    assert found.through("k").abs().max() == 0
    assert found.through("v").abs().max() > 1e-4


def test_chunks_do_not_matter(task, clean, corrupted, monkeypatch):
    model = made(task)
    options = {"normalise": True, "ablation": "mean", "per_sequence": True}
    whole = wiring_map(model, clean, corrupted, **options)
    monkeypatch.setattr("ih_interp.clamps._active.CHUNK", 4)
    monkeypatch.setattr(_each_edge, "FAST_CHUNK", 3)
    assert_close(wiring_map(model, clean, corrupted, **options).effects, whole.effects)


def test_single_precision_is_near_enough(task, clean, corrupted):
    model = made(task)
    exact = wiring_map(model, clean, corrupted, per_sequence=True).effects
    found = wiring_map(single(model), clean, corrupted, per_sequence=True).effects
    assert_close(found.double(), exact, rtol=0, atol=1e-5)


def test_a_tidy_table_and_the_sign_of_use(task, clean, corrupted):
    model = made(task)
    found = wiring_map(model, clean, corrupted, via="kv", per_sequence=True)
    table = found.table()
    assert list(table.columns) == ["via", "sender", "receiver", "effect", "use"]
    assert len(table) == 2 * 4
    row = table[(table.via == "v") & (table.sender == "L0H0") & (table.receiver == "L1H1")]
    assert row["effect"].item() == pytest.approx(float(found.effects[:, 1, 0, 1].mean()))
    signs = {
        (direction, metric): wiring_map(
            model, clean, corrupted, direction=direction, metric=metric
        ).higher_is_used
        for direction in ("noise", "denoise")
        for metric in ("logit", "loss")
    }
    assert signs == {
        ("noise", "logit"): False, ("noise", "loss"): True,
        ("denoise", "logit"): True, ("denoise", "loss"): False,
    }  # fmt: skip
    assert_close(found.use, -found.effects)
    assert wiring_map(model, clean, corrupted, metric="logit", normalise=True).higher_is_used
    with pytest.raises(ValueError, match="via='q'"):
        found.through("q")


def test_hooks_are_left_alone(task, clean, corrupted):
    model = made(task, n_layers=3)
    model.add_hook("blocks.1.hook_resid_pre", lambda value, hook: None)
    before = state_of(model)
    for options in ({}, {"receiver_layer": 1, "ablation": "zero", "direction": "denoise"}):
        wiring_map(model, clean, corrupted, **options)
        assert state_of(model) == before


@pytest.mark.parametrize("layers", [(1, 1), (1, 0), (0, 2), (-1, 1)])
def test_layers_without_an_edge_are_refused(layers, task, clean, corrupted):
    with pytest.raises(ValueError, match="sender_layer"):
        wiring_map(made(task), clean, corrupted, sender_layer=layers[0], receiver_layer=layers[1])


def test_the_wiring_of_every_checkpoint_under_the_runs_clamps(clamped_run):
    batch = clamped_run.task.sample("train", 9, generator=torch.Generator().manual_seed(0))
    table = wiring_over_training(clamped_run, swap_exemplars, batch=batch, via="k", metric="loss")
    assert len(table) == len(clamped_run.steps) * 64
    model, step = clamped_run.model(clamped_run.steps[-1]), clamped_run.steps[-1]
    with ih.clamped(model, clamped_run.clamps, batch):
        expected = wiring_map(model, batch, swap_exemplars(batch), via="k", metric="loss").table()
    found = table[table["step"] == step].drop(columns=["step", "sequences"])
    pd.testing.assert_frame_equal(found.reset_index(drop=True), expected, atol=1e-7)
    assert (found.query("receiver == 'L1H3'")["effect"] == 0).all()  # its attention is clamped
    with pytest.raises(ValueError, match="normalise"):
        wiring_over_training(clamped_run, swap_exemplars, batch=batch, normalise=True)
