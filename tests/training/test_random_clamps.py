"""A clamp that draws random numbers: they follow from the run, so that bytes stay the same."""

import warnings
from typing import Literal

import pytest
import torch
from small_runs import SMALL, folder_bytes, stop_after_an_update

import ih_interp as ih
from ih_interp._torch_state import seeded


class RandomGain(ih.clamps.HeadClamp):
    """What heads write is multiplied by 1 plus noise."""

    kind: Literal["random_gain"] = "random_gain"
    sets = "z"
    size: float = 0.5

    def hooks(self, setting):
        return self.at_each_layer(setting, "hook_z", self._scaled)

    def _scaled(self, z, hook, heads):
        gain = 1 + self.size * torch.randn(len(z), 1, 1, 1)
        return torch.where(heads[:, None], gain * z, z)


NOISY = SMALL.replace(name="noisy", clamps=[RandomGain(heads=["L0H0", "L1H3"])])


def trained(root, configs=NOISY, *, seed=0, **given):
    """The bytes of runs, and whether the process's own random numbers went on untouched."""
    torch.manual_seed(seed)
    before = torch.get_rng_state()
    runs = ih.train(configs, root, progress=False, engine="eager", **given)
    assert torch.equal(torch.get_rng_state(), before)
    return [folder_bytes(run.folder) for run in runs]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("alone"))[0]


def test_noise_counts(alone, tmp_path):
    assert trained(tmp_path, NOISY.replace(clamps=[]))[0] != alone


def test_it_is_the_same_whatever_the_process_drew_before(alone, tmp_path):
    def drawn(*_):
        torch.rand(3)

    torch.rand(5)
    (run,) = ih.train(NOISY, tmp_path, progress=False, engine="eager", on_metrics=drawn)
    assert folder_bytes(run.folder) == alone


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_it_is_the_same_in_a_fleet(workers, alone, tmp_path):
    seeds = [ih.Seeds(init=init) for init in (6, 5, 7)]
    configs = [NOISY.replace(name=f"noisy-{s.init}", seeds=s) for s in seeds]
    together = trained(tmp_path, configs, seed=3, workers=workers)
    assert together[1] == alone
    assert together[0] != alone


def test_it_is_the_same_when_a_run_goes_on(alone, tmp_path, monkeypatch):
    stop_after_an_update(tmp_path, monkeypatch, config=NOISY, engine="eager")
    torch.rand(7)
    (run,) = ih.train(NOISY, tmp_path, progress=False)
    assert folder_bytes(run.folder) == alone


def test_it_is_drawn_anew_at_every_update_and_by_the_seed():
    drawn = []
    for numbers in [(0, 1), (0, 2), (1, 1), (0, 1)]:
        with seeded(*numbers):
            drawn.append(torch.rand(4).tolist())
    assert drawn[0] == drawn[3]
    assert drawn[0] != drawn[1]
    assert drawn[0] != drawn[2]


@pytest.mark.slow
def test_where_it_should_be_compiled_it_is_done_eagerly_and_says_so(alone, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (run,) = ih.train(NOISY, tmp_path, progress=False, engine="compiled")
    assert any("random" in str(warning.message) for warning in caught)
    assert run.engine == "eager"
    assert folder_bytes(run.folder) == alone
