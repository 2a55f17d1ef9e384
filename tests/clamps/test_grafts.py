"""Grafts: another, frozen model's lower or upper layers, against two explicit passes."""

import os
from pathlib import Path

import pytest
import torch
from clamp_laws import gradients_under, logits_under
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close
from transformer_lens import HookedTransformer, HookedTransformerConfig

from ih_interp import clamps
from ih_interp.batch import Batch
from ih_interp.clamps import (
    AblateHeads,
    AbstractClamp,
    GraftIn,
    GraftOut,
    Preserve,
    PreviousTokenAttention,
    clamped,
    during,
    from_level,
)
from ih_interp.config import RunConfig
from ih_interp.model import ModelConfig, build_model
from ih_interp.runs import create_run
from ih_interp.storage import run_files
from ih_interp.tasks.exemplars import Exemplars
from ih_interp.tasks.few_shot import FewShotTask, TaskConfig

STEP = 3
SOURCE_SEED = 9


def write_run(folder: Path, task: FewShotTask, config: RunConfig | None = None) -> str:
    """A run folder with one checkpoint, of a model from another seed than the fixture's."""
    config = config or RunConfig()
    source = task.exemplars.source
    assert source is not None
    config = config.replace(task=task.config.replace(exemplars=source))
    create_run(folder, config, task, engine="eager")
    weights = {
        name: parameter
        for name, parameter in build_model(task, config.model, seed=SOURCE_SEED).named_parameters()
        if parameter.requires_grad
    }
    facts = {"run": config.fingerprint, "step": STEP}
    run_files.save_tensors(run_files.checkpoint_path(folder, STEP), weights, facts)
    return str(folder)


@pytest.fixture
def run(tmp_path: Path, task: FewShotTask) -> str:
    return write_run(tmp_path / "run", task)


@pytest.fixture
def source(task: FewShotTask) -> HookedTransformer:
    """The model in that run."""
    return build_model(task, seed=SOURCE_SEED)


def residual(model: HookedTransformer, batch: Batch, layer: int) -> Tensor:
    return model(batch.tokens, stop_at_layer=layer + 1)


@pytest.mark.parametrize("layer", [0, 1])
def test_graft_in_is_the_source_below_and_the_model_above(layer, run, source, model, batch):
    expected = model(residual(source, batch, layer), start_at_layer=layer + 1)
    graft = GraftIn(run=run, step=STEP, layer=layer)
    assert torch.equal(logits_under(model, [graft], batch), expected)


@pytest.mark.parametrize("layer", [0, 1])
def test_graft_out_is_the_model_below_and_the_source_above(layer, run, source, model, batch):
    expected = source(residual(model, batch, layer), start_at_layer=layer + 1)
    graft = GraftOut(run=run, step=STEP, layer=layer)
    assert torch.equal(logits_under(model, [graft], batch), expected)


@pytest.mark.parametrize("kind", [GraftIn, GraftOut])
def test_a_graft_of_the_model_itself_changes_nothing(kind, run, source, batch):
    graft = kind(run=run, step=STEP, layer=0)
    with pytest.warns(clamps.ClampUnchangedWarning):
        logits = logits_under(source, [graft], batch)
    assert torch.equal(logits, source(batch.tokens))


@pytest.mark.parametrize("kind", [GraftIn, GraftOut])
def test_leaving_restores_the_model_and_the_source(kind, run, model, batch):
    graft = kind(run=run, step=STEP, layer=0)
    free = model(batch.tokens)
    first = logits_under(model, [graft], batch)
    assert torch.equal(model(batch.tokens), free)
    assert torch.equal(logits_under(model, [graft], batch), first)


@pytest.mark.parametrize("kind", [GraftIn, GraftOut])
def test_the_order_of_sequences_does_not_matter(kind, run, model, batch):
    graft = kind(run=run, step=STEP, layer=0)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    logits = logits_under(model, [graft], batch)
    assert_close(logits_under(model, [graft], batch[order]), logits[order])


@pytest.mark.parametrize("kind", [GraftIn, GraftOut])
def test_a_graft_is_data_and_refuses_itself_twice(kind, run, model, batch):
    graft = kind(run=run, step=STEP, layer=0)
    assert clamps.parse(clamps.dump([graft])) == (graft,)
    with pytest.raises(ValueError, match="Two clamps"):
        logits_under(model, [graft, graft], batch)


@pytest.mark.parametrize("kind", [GraftIn, GraftOut])
def test_gates_lead_from_the_free_model_to_the_graft(kind, run, model, batch):
    always = kind(run=run, step=STEP, layer=0)
    graft = always.model_copy(update={"schedule": during(5)})
    assert torch.equal(logits_under(model, [graft], batch, step=4), model(batch.tokens))
    assert torch.equal(
        logits_under(model, [graft], batch, step=5), logits_under(model, [always], batch)
    )


# The source's own clamps


def clamped_run(folder: Path, task: FewShotTask, *given: AbstractClamp) -> str:
    return write_run(folder, task, RunConfig(clamps=given))


def test_the_sources_own_clamps_act_below_a_graft_in(tmp_path, task, source, model, batch):
    own = (PreviousTokenAttention(heads=["L0H2"]), AblateHeads(heads=["L0H5", "L1H3"]))
    run = clamped_run(tmp_path / "run", task, *own)
    with clamped(source, own, batch):
        _, cache = source.run_with_cache(batch.tokens)
    expected = model(cache["resid_post", 0], start_at_layer=1)
    assert not torch.equal(expected, model(residual(source, batch, 0), start_at_layer=1))
    graft = GraftIn(run=run, step=STEP, layer=0)
    assert torch.equal(logits_under(model, [graft], batch), expected)


def test_the_sources_own_clamps_stop_at_a_graft_out(tmp_path, task, source, model, batch):
    run = clamped_run(tmp_path / "run", task, AblateHeads(heads=["L1H3"]))
    expected = source(residual(model, batch, 0), start_at_layer=1)
    graft = GraftOut(run=run, step=STEP, layer=0)
    assert torch.equal(logits_under(model, [graft], batch), expected)


def test_clamps_of_the_source_act_in_their_order_not_in_that_of_its_config(
    tmp_path, task, source, model, batch
):
    ablate, preserve = AblateHeads(heads=["L0H5"]), Preserve(what=["values"])
    run = clamped_run(tmp_path / "run", task, ablate, preserve)
    with clamped(source, [ablate, preserve], batch):
        _, cache = source.run_with_cache(batch.tokens)
    expected = model(cache["resid_post", 0], start_at_layer=1)
    graft = GraftIn(run=run, step=STEP, layer=0)
    assert torch.equal(logits_under(model, [graft], batch), expected)


def test_sequences_that_the_sources_clamps_refuse_are_refused(tmp_path, task, model):
    run = clamped_run(tmp_path / "run", task, clamps.match("L0H3"))
    class_index, label = torch.tensor([[0, 1, 0]]), torch.tensor([[2, 2, 2]])
    lonely = task.batch(class_index, torch.zeros_like(class_index), label)
    graft = GraftIn(run=run, step=STEP, layer=0)
    with pytest.raises(ValueError, match="sequence 0"):
        logits_under(model, [graft], lonely)


@pytest.mark.parametrize(("start", "on"), [(STEP, True), (STEP + 1, False)])
def test_schedules_of_the_source_stand_where_its_checkpoint_does(
    start, on, tmp_path, task, source, model, batch
):
    ablate = AblateHeads(heads=["L0H5"])
    run = clamped_run(tmp_path / "run", task, ablate.model_copy(update={"schedule": during(start)}))
    with clamped(source, [ablate] if on else [], batch):
        below = residual(source, batch, 0)
    graft = GraftIn(run=run, step=STEP, layer=0)
    assert torch.equal(logits_under(model, [graft], batch), model(below, start_at_layer=1))


def test_a_sources_from_level_reads_its_own_metrics(tmp_path, task, source, model, batch):
    ablate = AblateHeads(heads=["L0H5"])
    late = ablate.model_copy(update={"schedule": from_level(below=0.5)})
    run = clamped_run(tmp_path / "run", task, late)
    run_files.write_metrics(
        Path(run), [{"step": 2, "split": "train", "under": "clamped", "loss": 0.4}]
    )
    with clamped(source, [ablate], batch):
        below = residual(source, batch, 0)
    graft = GraftIn(run=run, step=STEP, layer=0)
    assert torch.equal(logits_under(model, [graft], batch), model(below, start_at_layer=1))


def test_a_sources_from_level_is_not_off_because_its_metrics_are_gone(tmp_path, task, model, batch):
    late = AblateHeads(heads=["L0H5"], schedule=from_level(below=0.5))
    run = clamped_run(tmp_path / "run", task, late)
    with pytest.raises(ValueError, match="loss on train"):
        logits_under(model, [GraftIn(run=run, step=STEP, layer=0)], batch)


def test_a_source_may_have_been_grafted_itself(tmp_path, task, source, model, batch):
    first = write_run(tmp_path / "first", task)
    own = GraftIn(run=first, step=STEP, layer=0)
    second = clamped_run(tmp_path / "second", task, own)
    with clamped(source, [own], batch):
        below = source(batch.tokens, stop_at_layer=2)
    graft = GraftIn(run=second, step=STEP, layer=1)
    assert torch.equal(logits_under(model, [graft], batch), model(below, start_at_layer=2))


def test_a_checkpoint_written_anew_is_read_anew(run, model, batch):
    graft = GraftIn(run=run, step=STEP, layer=0)
    before = logits_under(model, [graft], batch)
    path = run_files.checkpoint_path(Path(run), STEP)
    weights, facts = run_files.load_tensors(path)
    run_files.save_tensors(path, {name: 2 * tensor for name, tensor in weights.items()}, facts)
    assert not torch.allclose(logits_under(model, [graft], batch), before)


@pytest.mark.parametrize("kind", [GraftIn, GraftOut])
def test_a_source_goes_where_the_model_is(kind, run, model):
    graft = kind(run=run, step=STEP, layer=0)
    for device in ("cpu", "meta"):  # which stands for any other device
        there = graft.model_for(model.to(device, print_details=False))
        assert {t.device.type for t in [*there.parameters(), *there.buffers()]} == {device}


# Digests


@pytest.mark.parametrize("kind", [GraftIn, GraftOut])
class TestDigests:
    def test_a_pinned_graft_is_the_same_graft_and_says_of_which_weights(
        self, kind, run, model, batch
    ):
        graft = kind(run=run, step=STEP, layer=0)
        pinned = graft.pinned()
        weights, facts = run_files.load_tensors(run_files.checkpoint_path(Path(run), STEP))
        assert pinned.sha256 == run_files.digest_of(weights, facts)
        assert graft.sha256 is None
        assert pinned.pinned() == pinned
        assert clamps.parse(clamps.dump([pinned])) == (pinned,)
        expected = logits_under(model, [graft], batch)
        assert torch.equal(logits_under(model, [pinned], batch), expected)

    def test_other_weights_than_the_pinned_ones_are_refused(self, kind, run, model, batch):
        pinned = kind(run=run, step=STEP, layer=0).pinned()
        path = run_files.checkpoint_path(Path(run), STEP)
        weights, facts = run_files.load_tensors(path)
        run_files.save_tensors(path, {name: 2 * tensor for name, tensor in weights.items()}, facts)
        with pytest.raises(ValueError, match=pinned.sha256):
            logits_under(model, [pinned], batch)
        with pytest.raises(ValueError, match=pinned.sha256):
            pinned.pinned()

    def test_what_cannot_be_read_cannot_be_pinned(self, kind, run):
        with pytest.raises(FileNotFoundError, match="step 4"):
            kind(run=run, step=4, layer=0).pinned()


def test_a_source_that_was_grafted_itself_keeps_to_its_weights(tmp_path, task, model, batch):
    first = write_run(tmp_path / "first", task)
    own = GraftIn(run=first, step=STEP, layer=0).pinned()
    second = clamped_run(tmp_path / "second", task, own)
    path = run_files.checkpoint_path(Path(first), STEP)
    weights, facts = run_files.load_tensors(path)
    run_files.save_tensors(path, {name: 2 * tensor for name, tensor in weights.items()}, facts)
    with pytest.raises(ValueError, match=own.sha256):
        logits_under(model, [GraftIn(run=second, step=STEP, layer=1)], batch)


def test_a_graft_compares_the_features_that_the_model_has(run, model, batch, monkeypatch):
    """Not those that its exemplars have by now: a model keeps what it was made with."""
    graft = GraftIn(run=run, step=STEP, layer=0)
    expected = logits_under(model, [graft], batch)
    model.embed.exemplars = Exemplars(
        model.embed.exemplars.features.clone(), model.embed.exemplars.source
    )
    model.embed.exemplars.features.mul_(2)
    batch = batch.replace(task=None)
    assert torch.equal(logits_under(model, [graft], batch), expected)
    model.embed.features.mul_(2)
    with pytest.raises(ValueError, match="features"):
        logits_under(model, [graft], batch)


def test_a_deeper_source_lends_its_lower_layers(tmp_path, task, model, batch):
    config = RunConfig(model=ModelConfig(n_layers=3))
    run = write_run(tmp_path / "run", task, config)
    deep = build_model(task, config.model, seed=SOURCE_SEED)
    expected = model(residual(deep, batch, 1), start_at_layer=2)
    assert torch.equal(logits_under(model, [GraftIn(run=run, step=STEP, layer=1)], batch), expected)
    upper = deep(residual(model, batch, 0), start_at_layer=1)  # two layers of it
    assert torch.equal(logits_under(model, [GraftOut(run=run, step=STEP, layer=0)], batch), upper)


# Gradients


def test_below_a_graft_in_nothing_gets_gradient(run, model, batch):
    gradients = gradients_under(model, [GraftIn(run=run, step=STEP, layer=0)], batch)
    for name, gradient in gradients.items():
        below = name.startswith(("embed.", "blocks.0."))
        assert bool(gradient.any()) != below, name


def test_gradient_passes_through_a_graft_out(run, source, model, batch):
    gradients = gradients_under(model, [GraftOut(run=run, step=STEP, layer=0)], batch)
    for name, gradient in gradients.items():
        above = name.startswith(("blocks.1.", "ln_final.", "unembed."))
        assert bool(gradient.any()) != above, name
    loss = cross_entropy(source(residual(model, batch, 0), start_at_layer=1)[:, -1], batch.target)
    literal = torch.autograd.grad(loss, [model.embed.W_in, model.blocks[0].attn.W_Q])
    assert_close((gradients["embed.W_in"], gradients["blocks.0.attn.W_Q"]), literal)


@pytest.mark.parametrize("kind", [GraftIn, GraftOut])
def test_no_gradient_reaches_the_source(kind, run, source, model, batch):
    graft = kind(run=run, step=STEP, layer=0)
    cross_entropy(logits_under(model, [graft], batch)[:, -1], batch.target).backward()
    frozen = graft.model_for(model)
    assert not any(p.requires_grad or p.grad is not None for p in frozen.parameters())
    assert_close(frozen.blocks[1].attn.W_Q, source.blocks[1].attn.W_Q.detach(), rtol=0, atol=0)


# Refusals


@pytest.mark.parametrize("kind", [GraftIn, GraftOut])
class TestRefusals:
    def refused(self, graft: AbstractClamp, model, batch, words: str, error=ValueError) -> None:
        with pytest.raises(error, match=words):
            logits_under(model, [graft], batch)

    def test_no_run(self, kind, model, batch, tmp_path):
        graft = kind(run=str(tmp_path / "gone"), step=0, layer=0)
        self.refused(graft, model, batch, "gone", FileNotFoundError)

    def test_no_checkpoint(self, kind, model, batch, run):
        graft = kind(run=run, step=4, layer=0)
        self.refused(graft, model, batch, "step 4", FileNotFoundError)

    def test_a_damaged_checkpoint(self, kind, model, batch, run):
        path = run_files.checkpoint_path(Path(run), STEP)
        os.truncate(path, 1_000)
        self.refused(kind(run=run, step=STEP, layer=0), model, batch, "00000003")

    def test_a_checkpoint_of_another_run(self, kind, model, batch, run, task, tmp_path):
        other = write_run(tmp_path / "other", task, RunConfig(clamps=(Preserve(what=["keys"]),)))
        path = run_files.checkpoint_path(Path(run), STEP)
        path.write_bytes(run_files.checkpoint_path(Path(other), STEP).read_bytes())
        self.refused(kind(run=run, step=STEP, layer=0), model, batch, "belongs to run")

    def test_a_checkpoint_of_another_step(self, kind, model, batch, run):
        path = run_files.checkpoint_path(Path(run), STEP)
        path.rename(run_files.checkpoint_path(Path(run), 4))
        self.refused(kind(run=run, step=4, layer=0), model, batch, "step 3")

    @pytest.mark.parametrize("change", ["missing", "surplus"])
    def test_other_names(self, kind, model, batch, run, change):
        path = run_files.checkpoint_path(Path(run), STEP)
        weights, facts = run_files.load_tensors(path)
        if change == "missing":
            del weights["blocks.1.ln1.b"]
        else:
            weights["blocks.1.attn.b_Q"] = torch.ones(8, 8)
        run_files.save_tensors(path, weights, facts)
        name = "blocks.1.ln1.b" if change == "missing" else "blocks.1.attn.b_Q"
        self.refused(kind(run=run, step=STEP, layer=0), model, batch, name)

    def test_a_folder_of_another_format(self, kind, model, batch, run):
        path = Path(run) / run_files.CONFIG
        path.write_text(path.read_text().replace('"format": 2', '"format": 99'))
        self.refused(kind(run=run, step=STEP, layer=0), model, batch, "format 99")

    @pytest.mark.parametrize(
        ("old", "new"),
        [("1e-05", "1e-06"), ('"n_heads": 8', '"n_heads": 4'), ('"clamps": []', '"clamps": null')],
    )
    def test_a_changed_configuration(self, kind, model, batch, run, old, new):
        path = Path(run) / run_files.CONFIG
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
        self.refused(kind(run=run, step=STEP, layer=0), model, batch, r"config\.json")

    @pytest.mark.parametrize("field", ["fingerprint", "features_sha256", "run", "versions"])
    def test_a_configuration_without_a_field(self, kind, model, batch, run, field):
        path = Path(run) / run_files.CONFIG
        recorded = run_files.read_json(path)
        del recorded[field]
        run_files.write_json(path, run_files.sealed(recorded))
        self.refused(kind(run=run, step=STEP, layer=0), model, batch, field)

    def test_other_metrics(self, kind, model, batch, run):
        """A gate of the source's own clamps may depend on them."""
        row = {"step": 0, "split": "train", "loss": 0.1}
        run_files.write_metrics(Path(run), [row], "0123456789ab")
        self.refused(kind(run=run, step=STEP, layer=0), model, batch, "0123456789ab")

    def test_weights_of_another_shape(self, kind, model, batch, run):
        path = run_files.checkpoint_path(Path(run), STEP)
        weights, facts = run_files.load_tensors(path)
        weights["blocks.1.attn.W_Q"] = weights["blocks.1.attn.W_Q"][:4].clone()
        run_files.save_tensors(path, weights, facts)
        self.refused(kind(run=run, step=STEP, layer=0), model, batch, r"blocks\.1\.attn\.W_Q")

    def test_a_model_that_does_not_know_its_exemplars(self, kind, model, batch, run):
        model.embed.exemplars = None
        self.refused(kind(run=run, step=STEP, layer=0), model, batch, "exemplars")

    def test_no_such_layer(self, kind, model, batch, run):
        self.refused(kind(run=run, step=STEP, layer=2), model, batch, "layer=2")

    def test_a_layer_that_only_the_source_has(self, kind, model, batch, task, tmp_path):
        deep = write_run(tmp_path / "deep", task, RunConfig(model=ModelConfig(n_layers=3)))
        self.refused(kind(run=deep, step=STEP, layer=2), model, batch, "model to clamp")

    def test_other_exemplars(self, kind, model, batch, task, tmp_path):
        others = Exemplars.gaussian(n_classes=30, n_exemplars=3, n_features=16, seed=1)
        other = write_run(tmp_path / "other", FewShotTask(others, task.config))
        self.refused(kind(run=other, step=STEP, layer=0), model, batch, "features")

    def test_other_features(self, kind, model, batch, task, tmp_path):
        others = Exemplars.gaussian(n_classes=30, n_exemplars=3, n_features=8)
        other = write_run(tmp_path / "other", FewShotTask(others, task.config))
        self.refused(kind(run=other, step=STEP, layer=0), model, batch, "8 features")

    def test_other_labels(self, kind, model, batch, exemplars, tmp_path):
        wider = FewShotTask(exemplars, TaskConfig(n_train_classes=12, n_labels=6))
        other = write_run(tmp_path / "other", wider)
        self.refused(kind(run=other, step=STEP, layer=0), model, batch, "6 labels")

    def test_another_width(self, kind, model, batch, task, tmp_path):
        config = RunConfig(model=ModelConfig(d_model=32, n_heads=4))
        other = write_run(tmp_path / "other", task, config)
        self.refused(kind(run=other, step=STEP, layer=0), model, batch, "d_model 32")

    def test_learned_positions_of_longer_sequences(self, kind, model, batch, exemplars, tmp_path):
        longer = FewShotTask(exemplars, TaskConfig(n_train_classes=12, n_pairs=3))
        config = RunConfig(model=ModelConfig(positional_embedding_type="standard"))
        other = write_run(tmp_path / "other", longer, config)
        self.refused(kind(run=other, step=STEP, layer=0), model, batch, "7 tokens")

    def test_a_plain_model(self, kind, batch, run):
        cfg = HookedTransformerConfig(
            n_layers=2, d_model=64, n_ctx=5, d_head=8, n_heads=8, d_vocab=95, attn_only=True
        )
        self.refused(kind(run=run, step=STEP, layer=0), HookedTransformer(cfg), batch, "few-shot")


def test_graft_in_needs_the_sequences(run, model, batch):
    graft = GraftIn(run=run, step=STEP, layer=0)
    with pytest.raises(ValueError, match="pass the batch"), clamped(model, [graft]):
        model(batch.tokens)


@pytest.mark.parametrize(
    "given", [{"step": -1, "layer": 0}, {"step": 0, "layer": -1}, {"layer": 0}], ids=str
)
def test_numbers_are_checked_where_they_are_written(given):
    with pytest.raises(ValueError, match="Clamp number 0"):
        clamps.parse([{"kind": "graft_in", "run": "run", **given}])
