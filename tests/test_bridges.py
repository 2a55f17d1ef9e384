"""What works with every TransformerLens that is allowed, and what says which one it needs."""

import importlib
import pkgutil

import pytest
import torch
from bridges import BRIDGES, HAS_TWINS, TWINS, bridge, needs_twins, tokens_for, twins
from small_runs import SMALL
from torch.testing import assert_close

import ih_interp
import ih_interp as ih
from ih_interp import hooked_model
from ih_interp._stock import refuse_other_names
from ih_interp.batch import Batch
from ih_interp.hooked_model import HookedModel
from ih_interp.runs import create_run
from ih_interp.storage import run_files

METRICS = ("loss", "accuracy")


def test_every_module_and_public_name_can_be_imported():
    for module in pkgutil.walk_packages(ih_interp.__path__, "ih_interp."):
        if not module.name.endswith(("__main__", "_few_shot_transformer")):
            importlib.import_module(module.name)
    for name in ih.__all__:
        assert getattr(ih, name) is not None


@pytest.fixture
def without_hooked_transformers(monkeypatch):
    """As TransformerLens 4 is, where it is not that one."""
    if HAS_TWINS:
        monkeypatch.setattr(hooked_model, "HAS_HOOKED_TRANSFORMERS", False)


@pytest.mark.parametrize(
    "made",
    [
        lambda task, folder: ih.build_model(task),
        lambda task, folder: ih.train(SMALL, folder),
        lambda task, folder: ih.compile_step(bridge("gpt2")),
    ],
    ids=["build_model", "train", "compile_step"],
)
@pytest.mark.usefixtures("without_hooked_transformers")
def test_what_trains_says_which_transformer_lens_to_install(made, task, tmp_path):
    with pytest.raises(ImportError, match=r"transformer-lens>=3\.9,<4"):
        made(task, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("without_hooked_transformers")
def test_a_run_can_be_read_though_its_model_cannot_be_made(tmp_path):
    task = SMALL.task.build()
    run = create_run(tmp_path / "run", SMALL, task, engine="eager")
    row = {"step": 0, "sequences": 0, "split": "train", "under": "free"}
    rows = [row | dict.fromkeys(ih_interp.evaluation.METRICS, 0.5)]
    run_files.write_metrics(run.folder, rows, SMALL.fingerprint)
    weights = {"embed.W_in": torch.zeros(2, 2)}
    facts = {"run": SMALL.fingerprint, "step": 0}
    run_files.save_tensors(run_files.checkpoint_path(run.folder, 0), weights, facts)
    run = ih.Run(run.folder)
    assert run.config == SMALL
    assert run.metrics["loss"].tolist() == [0.5]
    assert run.steps == [0]
    with pytest.raises(ImportError, match=r"transformer-lens>=3\.9,<4"):
        run.model()


@pytest.mark.parametrize("name", BRIDGES)
def test_a_bridge_is_a_model_whose_points_are_where_their_names_say(name):
    model = bridge(name)
    assert isinstance(model, HookedModel)
    assert hooked_model.is_bridge(model)
    refuse_other_names(model)
    point = model.blocks[1].attn.hook_pattern
    model.blocks[1].attn.hook_pattern = type(point)()
    with pytest.raises(ValueError, match="hook_pattern"):
        refuse_other_names(model)


@pytest.mark.parametrize("name", BRIDGES)
def test_metrics_of_a_bridge_are_those_of_its_logits(name):
    model = bridge(name)
    tokens = tokens_for(model)
    batch = Batch(tokens, tokens[:, 0], foils=tokens[:, 1:3])
    logits = model(tokens)[:, -1].detach()
    loss = torch.nn.functional.cross_entropy(logits, tokens[:, 0], reduction="none")
    found = ih.evaluate(model, batch)
    assert_close(found["loss"], loss)
    assert_close(found["accuracy"], (logits.argmax(-1) == tokens[:, 0]).float())


@needs_twins
@pytest.mark.parametrize("name", TWINS)
def test_metrics_of_a_bridge_are_those_of_its_twin(name):
    hooked, model = twins(name)
    tokens = tokens_for(model)
    batch = Batch(tokens, tokens.roll(-1, dims=1))
    expected, found = (ih.evaluate(each, batch) for each in (hooked, model))
    for metric in METRICS:
        assert_close(found[metric], expected[metric], rtol=0, atol=1e-5)
    assert not hooked_model.is_bridge(hooked)


def test_weights_in_half_precision_have_to_be_those_of_cfg():
    model = bridge("gpt2")
    tokens = tokens_for(model)
    model.original_model.half()
    with pytest.raises(ValueError, match="dtype"):
        ih.evaluate(model, Batch(tokens, tokens[:, 0]))


def test_a_bridge_that_drops_out_is_refused_and_measured_after_eval():
    import transformers
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    config = transformers.GPT2Config(
        vocab_size=20, n_embd=16, n_layer=1, n_head=2, n_positions=8, resid_pdrop=0.1
    )
    original = transformers.GPT2LMHeadModel(config).train()
    model = build_bridge_from_module(original, "GPT2LMHeadModel", hf_config=config)
    batch = ih.Batch(torch.arange(12).reshape(2, 6), torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="dropout"):
        ih.evaluate(model, batch)
    with pytest.raises(ValueError, match="dropout"):
        ih.coalitions(model, batch, ["L0H0", "L0H1"], metric="loss")
    model.eval()
    assert torch.equal(ih.evaluate(model, batch).loss, ih.evaluate(model, batch).loss)
