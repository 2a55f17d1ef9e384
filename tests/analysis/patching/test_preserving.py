"""The preserving ablations against the clamps, one evaluation a cell, and against loops by hand."""

import pytest
import torch
from made_models import made, state_of
from torch.testing import assert_close

import ih_interp as ih
from ih_interp.analysis.patching import preserving
from ih_interp.analysis.patching.preserving import (
    direct_path_removed,
    preserving_ablation,
    preserving_map,
)
from ih_interp.clamps import AblateHeads, Preserve


@pytest.fixture(scope="module")
def few(task):
    return task.sample("train", 40, generator=torch.Generator().manual_seed(2))


def cell_by_cell(model, batch, preserve, keep):
    """Accuracy and loss, `[batch, receiver, sender]`: the clamps, one evaluation a cell."""
    heads = range(model.cfg.n_heads)
    found = torch.zeros(2, len(batch), len(heads), len(heads), dtype=torch.float64)
    for receiver in heads:
        for sender in heads:
            silent = [(1, h) for h in heads if h != receiver]
            silent += [(0, h) for h in heads if (h == sender) == (keep == "all_but_one")]
            clamps = [Preserve(what=[preserve]), AblateHeads(heads=silent)]
            values = ih.evaluate(model, batch, clamps)
            found[:, :, receiver, sender] = torch.stack([values.accuracy, values.loss])
    return found


SHAPES = {
    "LN rotary": {},
    "none standard": {"normalization_type": None, "positional_embedding_type": "standard"},
    "RMS": {"normalization_type": "RMS"},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preserve", ["patterns", "values"])
@pytest.mark.parametrize("keep", ["one", "all_but_one"])
def test_the_map_is_the_clamps_cell_by_cell(shape, preserve, keep, task, few):
    model = made(task, **SHAPES[shape])
    accuracy, loss = cell_by_cell(model, few, preserve, keep)
    found = preserving_map(model, few, preserve=preserve, keep=keep, per_sequence=True)
    assert loss.std() > 1e-2
    assert_close(found.loss, loss, rtol=0, atol=1e-9)
    assert_close(found.accuracy, accuracy)
    mean = preserving_map(model, few, preserve=preserve, keep=keep)
    assert_close(mean.loss.double(), loss.mean(dim=0), rtol=0, atol=1e-6)


def test_what_column_1_subtracts_is_one_receiver_and_every_sender(task, few):
    model = made(task)
    found = preserving_map(model, few, preserve="values")
    for receiver in range(3):
        others = AblateHeads(heads=ih.clamps.keep_only((1, receiver), n_heads=3))
        values = ih.evaluate(model, few, [others])
        assert float(found.unablated_loss[receiver]) == pytest.approx(values.loss.mean().item())
        assert float(found.unablated_accuracy[receiver]) == pytest.approx(
            values.accuracy.mean().item()
        )
    assert_close(found.accuracy_change, found.accuracy - found.unablated_accuracy[:, None])


def test_under_clamps_every_cell_is_a_pass_under_them(task, few):
    model = made(task)
    clamps = [ih.clamps.PreviousTokenAttention(heads=["L0H1"], strength=0.8)]
    with ih.clamped(model, clamps, few):
        expected = cell_by_cell(model, few, "values", "one")
        found = preserving_map(model, few, preserve="values", keep="one", per_sequence=True)
        with pytest.raises(ValueError, match="comes before previous_token_attention"):
            preserving_map(model, few, preserve="patterns")
    free = preserving_map(model, few, preserve="values", keep="one", per_sequence=True)
    assert_close(found.loss, expected[1], rtol=0, atol=1e-9)
    assert (found.loss - free.loss).abs().max() > 1e-3


def test_hooks_are_seen_and_left_alone(task, few):
    model = made(task)
    free = preserving_map(model, few, preserve="patterns")
    model.add_hook("blocks.0.attn.hook_v", lambda value, hook: 2 * value)
    before = state_of(model)
    found = preserving_map(model, few, preserve="patterns")
    assert state_of(model) == before
    assert (found.loss - free.loss).abs().max() > 1e-3


def test_chunks_do_not_matter(task, few, monkeypatch):
    model = made(task)
    whole = preserving_map(model, few, preserve="values", per_sequence=True)
    monkeypatch.setattr(preserving, "FAST_CHUNK", 7)
    assert_close(preserving_map(model, few, preserve="values", per_sequence=True).loss, whole.loss)


def test_ablations_of_table_1_by_hand(task, few):
    """A pass with forced patterns or values and zeroed heads, written out."""
    model, heads = made(task), [0, 2]
    _, cache = model.run_with_cache(few.tokens)

    def silence(value, hook):
        value = value.clone()
        value[:, :, heads] = 0
        return value

    def forced(name):
        return [
            (f"blocks.{layer}.attn.hook_{name}", lambda value, hook: cache[hook.name])
            for layer in (0, 1)
        ]

    for preserve, name in (("patterns", "pattern"), ("values", "v")):
        hooks = [*forced(name), ("blocks.0.attn.hook_v", silence)]
        logits = model.run_with_hooks(few.tokens, fwd_hooks=hooks)[:, -1]
        found = preserving_ablation(model, few, ["L0H0", "L0H2"], preserve=preserve)
        expected = torch.nn.functional.cross_entropy(logits, few.target, reduction="none")
        assert_close(found.loss, expected)


def test_the_direct_path_is_what_layer_0_adds_to_the_final_stream(task, few):
    model = made(task)
    _, cache = model.run_with_cache(few.tokens)
    resid = cache["resid_post", 1] - cache["attn_out", 0] + model.blocks[0].attn.b_O
    logits = model.unembed(model.ln_final(resid))[:, -1]
    found = direct_path_removed(model, few)
    expected = torch.nn.functional.cross_entropy(logits, few.target, reduction="none")
    whole = ih.evaluate(model, few)
    assert_close(found["loss"], expected)
    assert_close(found["loss_change"], expected - whole.loss)
    assert_close(found["accuracy_change"], found["accuracy"] - whole.accuracy)


def test_a_tidy_table(task, few):
    found = preserving_map(made(task), few, preserve="values", keep="one", per_sequence=True)
    table = found.table()
    assert list(table.columns) == [
        "receiver", "sender", "accuracy", "loss", "accuracy_change", "loss_change",
    ]  # fmt: skip
    cell = table.query("receiver == 'L1H2' and sender == 'L0H1'")
    assert cell["loss"].item() == pytest.approx(float(found.loss[:, 2, 1].mean()))
    assert cell["loss_change"].item() == pytest.approx(
        float((found.loss[:, 2, 1] - found.unablated_loss[:, 2]).mean())
    )


def test_other_models_and_words_are_refused(task, few):
    with pytest.raises(ValueError, match="n_layers=3"):
        preserving_map(made(task, n_layers=3), few, preserve="values")
    with pytest.raises(ValueError, match="attn_only=False"):
        preserving_map(made(task, attn_only=False), few, preserve="values")
    with pytest.raises(ValueError, match="preserve='keys'"):
        preserving_map(made(task), few, preserve="keys")


@pytest.mark.parametrize("keep", ["one", "all_but_one"])
@pytest.mark.parametrize("preserve", ["patterns", "values"])
def test_the_trained_network_in_single_precision(keep, preserve, shared):
    folder = shared / "reference/icl_dynamics/trained"
    everything = ih.Exemplars.load(shared / "data/omniglot_features.h5")
    task = ih.FewShotTask(
        ih.Exemplars(everything.features[:50].clone()),
        ih.TaskConfig(n_train_classes=50, n_labels=5),
    )
    model = ih.load_icl_dynamics(folder / "checkpoint.eqx", folder / "config.json", task)
    batch = task.sample("train", 64, generator=torch.Generator().manual_seed(0))
    found = preserving_map(model, batch, preserve=preserve, keep=keep, per_sequence=True)
    for receiver, sender in ((3, 1), (1, 2), (4, 4), (7, 0)):
        others = [(1, h) for h in range(8) if h != receiver]
        below = [(0, h) for h in range(8) if (h == sender) == (keep == "all_but_one")]
        clamps = [Preserve(what=[preserve]), AblateHeads(heads=others + below)]
        expected = ih.evaluate(model, batch, clamps)
        assert_close(found.loss[:, receiver, sender], expected.loss, rtol=0, atol=1e-5)
        assert_close(found.accuracy[:, receiver, sender], expected.accuracy)
