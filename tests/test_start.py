"""Where runs start: from the seed, from another run, from a file of the published code."""

import json
import shutil
from typing import Literal

import pytest
import torch
from published_files import OPTIONS, as_bytes, leaves, random_model
from small_runs import FOUR_UPDATES, SMALL, folder_bytes, stop_after_an_update

import ih_interp as ih
from ih_interp import registry
from ih_interp.clamps import grafts
from ih_interp.model import trained_parameters
from ih_interp.start import AbstractStart, FromICLDynamics, FromRun, FromSeed


def test_the_default_is_the_seed():
    assert ih.RunConfig().start == FromSeed()


def test_a_run_starts_from_anothers_weights_without_its_moments(small_run, tmp_path):
    config = FOUR_UPDATES.replace(name="on", start=FromRun(small_run.folder, 2))
    (run,) = ih.train(config, tmp_path, progress=False)
    assert run.config.start == config.start.pinned()
    weights, _ = run.read_weights(0)
    expected, _ = small_run.read_weights(2)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert not torch.equal(run.read_weights(4)[0]["unembed.W_U"], expected["unembed.W_U"])
    assert ih.RunConfig.load(json.loads(json.dumps(run.config.save()))) == run.config


def test_the_place_of_a_start_does_not_matter_but_its_bytes_do(small_run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(small_run.folder, moved)
    grafts._read_source.cache_clear()
    one, other, later = (
        FOUR_UPDATES.replace(start=FromRun(run=folder, step=step)).pinned()
        for folder, step in ((small_run.folder, 2), (moved, 2), (moved, 4))
    )
    assert one.fingerprint == other.fingerprint != later.fingerprint
    model = small_run.model()
    with pytest.raises(ValueError, match="digest"):
        one.start.replace(step=4).weights(model, small_run.task)


def test_a_run_that_has_begun_needs_its_start_no_more(small_run, tmp_path, monkeypatch):
    shutil.copytree(small_run.folder, tmp_path / "source")
    config = SMALL.replace(start=FromRun(tmp_path / "source", 4)).pinned()
    (straight,) = ih.train(config, tmp_path / "straight", progress=False)
    stop_after_an_update(tmp_path / "resumed", monkeypatch, config=config)
    shutil.rmtree(tmp_path / "source")
    (resumed,) = ih.train(config, tmp_path / "resumed", progress=False)
    assert folder_bytes(resumed.folder) == folder_bytes(straight.folder)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model": ih.ModelConfig(d_model=32)}, "shape"),
        ({"model": ih.ModelConfig(n_layers=3)}, "blocks.2"),
        ({"start": {"kind": "run", "run": "nowhere", "step": 2}}, "nowhere"),
        ({"start": {"kind": "icl_dynamics", "path": "no.eqx"}}, "no.eqx"),
        ({"step": 3}, "step 3"),
    ],
)
def test_weights_that_do_not_fit_are_refused_before_anything_is_written(
    change, word, small_run, tmp_path
):
    change = dict(change)
    start = FromRun(small_run.folder, change.pop("step", 2))
    config = FOUR_UPDATES.replace(**{"name": "on", "start": start, **change})
    with pytest.raises((ValueError, FileNotFoundError), match=word):
        ih.train(config, tmp_path, progress=False)
    assert not any(tmp_path.iterdir())


def test_a_run_starts_from_the_published_codes_weights(tmp_path):
    options = {**OPTIONS, "d_model": 64, "num_heads": 8}
    task = FOUR_UPDATES.task.build()
    model = random_model(task, FOUR_UPDATES.model)
    (tmp_path / "config.json").write_text(json.dumps(options))
    (tmp_path / "one.eqx").write_bytes(as_bytes(*leaves(model)))
    start = FromICLDynamics(tmp_path / "one.eqx")
    (run,) = ih.train(FOUR_UPDATES.replace(start=start), tmp_path / "runs", progress=False)
    for name, weight in trained_parameters(model).items():
        assert torch.equal(run.read_weights(0)[0][name], weight)
    other = ih.build_model(task, FOUR_UPDATES.model)
    (tmp_path / "one.eqx").write_bytes(as_bytes(*leaves(other)))
    with pytest.raises(ValueError, match="digest"):
        run.config.start.weights(model, task)


def test_a_start_of_ones_own_is_checked(tmp_path):
    class Zeros(AbstractStart):
        kind: Literal["zeros_of_test"] = "zeros_of_test"
        value: float = 0.0

        def weights(self, model, task):
            return {n: torch.zeros_like(p) / self.value for n, p in model.named_parameters()}

    try:
        with pytest.raises(ValueError, match="Zeros"):  # b_Q and others are never trained
            ih.train(FOUR_UPDATES.replace(start=Zeros()), tmp_path, progress=False)
    finally:
        registry._KINDS["start"].pop("zeros_of_test")
