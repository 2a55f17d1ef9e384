import json

import pytest
import torch
from torch.testing import assert_close

import ih_interp as ih
from ih_interp import store
from ih_interp.config import Grid, RunConfig
from ih_interp.exemplars import GaussianSource

CONFIG = RunConfig(
    name="run",
    exemplars=GaussianSource(n_classes=20, n_exemplars=2, n_features=16),
    task=ih.TaskConfig(n_train_classes=8),
    sequences=32,
    batch_size=8,
    evaluations=Grid(every=16),
    evaluation_size=10,
    checkpoints=Grid(every=16),
)


@pytest.fixture
def run(tmp_path):
    return ih.train(CONFIG, tmp_path, progress=False)[0]


def test_a_checkpoint_is_the_model_at_that_step(run):
    untrained = ih.build_model(run.task, CONFIG.model, seed=CONFIG.seeds.init)
    tokens = run.task.enumerate("train").tokens[:7]
    assert_close(run.model(0)(tokens), untrained(tokens), rtol=0, atol=0)
    assert not torch.equal(run.model()(tokens), untrained(tokens))
    assert torch.equal(run.model()(tokens), run.model(4)(tokens))


def test_evaluating_a_checkpoint_gives_the_recorded_metrics(run):
    from ih_interp.evaluation import evaluation_sets, means

    sets = evaluation_sets(run.task, run.config)
    for step in run.steps:
        for split, batch in sets.items():
            (recorded,) = run.metrics.query(f"step == {step} and split == '{split}'").to_dict(
                "records"
            )
            found = means(ih.evaluate(run.model(step), batch))
            assert found == pytest.approx({name: recorded[name] for name in found}, abs=1e-6)


def test_there_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no run at .*: config\.json is missing"):
        ih.Run(tmp_path)


def test_there_is_no_such_step(run):
    with pytest.raises(ValueError, match=r"has no checkpoint at step 3; it has \[0, 2, 4\]"):
        run.model(3)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda text: text[: len(text) // 2], "is not JSON, it may be cut short"),
        (
            lambda text: text.replace('"format": 1', '"format": 99'),
            "has format 99; this version reads 1",
        ),
        (
            lambda text: text.replace('"sequences": 32', '"sequences": 33'),
            "not a whole number of batches",
        ),
        (lambda text: "[1, 2]", "a JSON object was expected"),
        (lambda text: '{"format": 1}', "cannot be read: 'run'"),
    ],
)
def test_a_damaged_configuration_is_named(run, damage, words):
    path = run.folder / store.CONFIG
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=words):
        ih.Run(run.folder)


def test_a_damaged_checkpoint_is_named(run):
    path = store.checkpoint_path(run.folder, 4)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"00000004\.safetensors was altered after it was written"):
        run.model(4)
    path.write_bytes(bytes(content[:-100]))
    with pytest.raises(ValueError, match=r"00000004\.safetensors is no checkpoint .* cut short"):
        run.model(4)


def test_a_checkpoint_from_another_run_is_refused(run, tmp_path):
    other = CONFIG.replace(seeds=ih.RunConfig().seeds.model_copy(update={"init": 6}))
    (stranger,) = ih.train(other, tmp_path / "other", progress=False)
    path = store.checkpoint_path(run.folder, 4)
    path.write_bytes(store.checkpoint_path(stranger.folder, 4).read_bytes())
    with pytest.raises(ValueError, match=r"belongs to run .* copied from elsewhere"):
        run.model(4)


def test_features_that_changed_are_refused(tmp_path):
    import numpy as np

    path = tmp_path / "features.npz"
    exemplars = ih.Exemplars.gaussian(n_classes=20, n_exemplars=2, n_features=16).save(path)
    config = CONFIG.replace(exemplars=exemplars.source)
    (run,) = ih.train(config, tmp_path / "runs", progress=False)
    assert ih.Run(run.folder).task.exemplars.sha256 == exemplars.sha256
    np.savez(path, features=exemplars.features.numpy() + 1)
    with pytest.raises(ValueError, match="holds other features than when the run was made"):
        ih.Run(run.folder).task  # noqa: B018


def test_a_run_records_what_its_numbers_may_depend_on(run):
    recorded = json.loads((run.folder / store.CONFIG).read_text())
    assert recorded["threads"] == 1
    assert recorded["engine"] == "eager"
    assert {"torch", "transformer-lens", "python"} <= set(recorded["versions"])
    assert recorded["features_sha256"] == run.task.exemplars.sha256
