"""Tasks, clamps and schedules of another package: JSON, two workers, kills, runs without it."""

import importlib
import json
import shutil
import sys

import pytest
import torch
from small_runs import SMALL, folder_bytes

import ih_interp as ih
from ih_interp import registry
from ih_interp.storage import run_files
from ih_interp.training import _workers as workers
from ih_interp.training.state import TrainingFailedError

pytestmark = pytest.mark.slow

MODULE = '''
from typing import ClassVar, Literal

import torch

import ih_interp as ih


class LastSeen(ih.tasks.AbstractTask):
    """The token that stood after the query's last occurrence."""

    kind: Literal["last_seen_of_tests"] = "last_seen_of_tests"
    n_tokens: int = 6
    length: int = 5
    asks_last: ClassVar = True

    @property
    def d_vocab(self):
        return self.n_tokens

    @property
    def n_ctx(self):
        return self.length

    def sample(self, split, n, *, generator):
        tokens = torch.randint(self.n_tokens, (n, self.length), generator=generator)
        place = torch.randint(self.length - 2, (n, 1), generator=generator)
        tokens[:, -1:] = tokens.gather(1, place)
        return ih.Batch(tokens, tokens.gather(1, place + 1)[:, 0], task=self)


class Sink(ih.clamps.HeadClamp):
    """Heads attend to the first token."""

    kind: Literal["sink_of_tests"] = "sink_of_tests"

    def sites(self, shape):
        return frozenset(ih.clamps.Site("pattern", *head) for head in self.heads)

    def hooks(self, setting):
        return self.at_each_layer(setting, "hook_pattern", sink)


def sink(pattern, hook, heads):
    first = torch.zeros_like(pattern)
    first[..., 0] = 1
    return torch.where(heads[:, None, None], first, pattern)


class EveryOther(ih.clamps.AbstractSchedule):
    """On at even updates, and ever after the loss was measured below 1."""

    kind: Literal["every_other_of_tests"] = "every_other_of_tests"

    def gate(self, step, metrics=None):
        learned = any(row["loss"] < 1 for row in metrics or [])
        return float(step % 2 == 0 or learned)
'''
NAME = "third_party_of_tests"
KINDS = {"task": "last_seen_of_tests", "clamp": "sink_of_tests", "schedule": "every_other_of_tests"}


def forget():
    for family, kind in KINDS.items():
        registry._KINDS[family].pop(kind, None)
    sys.modules.pop(NAME, None)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The other package, in a folder that this process imports from."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / f"{NAME}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module(NAME)
    forget()


def two_runs(package):
    clamp = package.Sink(heads=["L0H1"], schedule=package.EveryOther())
    base = SMALL.replace(
        task=package.LastSeen(),
        model=ih.ModelConfig(n_layers=2, d_model=8, n_heads=2, d_head=4),
        name="free",
    )
    return [base, base.replace(name="sink", clamps=[clamp])]


def test_kinds_of_another_package_train_in_two_workers(package, tmp_path, monkeypatch):
    configs = two_runs(package)
    ih.train(configs, tmp_path / "here", workers=1, progress=False)
    give, left = workers.Worker.give, [1]

    def give_and_kill(worker, job):
        give(worker, job)
        if left[0] and "sink" in str([*job.runs]):
            left[0] -= 1
            worker.kill()

    def stop(run, row):
        if row["step"] == 16:
            raise OSError("stop here")

    monkeypatch.setattr(workers.Worker, "give", give_and_kill)
    with pytest.raises(OSError, match="stop here"):
        ih.train(configs, tmp_path / "there", workers=2, progress=False, on_metrics=stop)
    ih.train(configs, tmp_path / "there", workers=2, progress=False)
    assert not left[0]
    for config in configs:
        ours, theirs = (folder_bytes(tmp_path / root / config.name) for root in ("here", "there"))
        assert ours == theirs
    free, sink = (ih.Run(tmp_path / "there" / config.name) for config in configs)
    assert not free.metrics.equals(sink.metrics)
    assert ih.RunConfig.load(json.loads(json.dumps(configs[1].save()))) == configs[1]
    table = ih.trace(
        sink,
        ih.heads.previous_token_score,
        batch=sink.task.sample("test", 8, generator=torch.Generator().manual_seed(0)),
    )
    assert len(table)


def test_a_run_without_its_package_says_what_to_import_and_stays(package, tmp_path):
    (run,) = ih.train(two_runs(package)[1], tmp_path / "runs", progress=False)
    recorded = json.loads((run.folder / run_files.CONFIG).read_text())
    assert recorded["kinds"] == {f"{family} {kind}": NAME for family, kind in KINDS.items()}
    forget()
    before = folder_bytes(run.folder)
    with pytest.raises(ValueError, match=rf"--plugins {NAME}") as refusal:
        ih.Run(run.folder)
    assert "repair" not in str(refusal.value)
    assert "anew" not in str(refusal.value)
    for repair in (False, True):
        with pytest.raises(ValueError, match=NAME):
            ih.train(SMALL.replace(name="sink"), tmp_path / "runs", repair=repair, progress=False)
    assert folder_bytes(run.folder) == before
    importlib.import_module(NAME)
    assert ih.Run(run.folder).finished


def test_a_plugin_that_a_worker_cannot_import_fails_its_run_alone(package, tmp_path):
    configs = [two_runs(package)[1], SMALL]
    shutil.rmtree(tmp_path / "site")
    with pytest.raises(TrainingFailedError, match=rf"sink.*{NAME}") as failure:
        ih.train(configs, tmp_path / "runs", workers=2, progress=False)
    assert "small" not in str(failure.value)
    assert ih.Run(tmp_path / "runs" / "small").finished
    (run,) = ih.train(configs[0], tmp_path / "runs", workers=1, progress=False)
    assert run.finished


def test_modules_are_named_as_plugins(package, tmp_path):
    values = two_runs(package)[1].save()
    forget()
    with pytest.raises(ValueError, match=r"of_tests.*--plugins"):
        ih.RunConfig.load(values)
    with pytest.raises(ValueError, match="no_such_module"):
        ih.train(SMALL, tmp_path / "runs", plugins=["no_such_module"], progress=False)
    with pytest.raises(TypeError, match="plugins"):
        ih.train(SMALL, tmp_path / "runs", plugins=NAME, progress=False)
    assert not (tmp_path / "runs").exists()
    ih.train(SMALL, tmp_path / "runs", plugins=[NAME], progress=False)
    assert ih.RunConfig.load(values).save() == values


def test_a_class_of_the_program_itself_trains_in_this_process(package, tmp_path, monkeypatch):
    configs = two_runs(package)
    for kind in (package.LastSeen, package.Sink, package.EveryOther):
        monkeypatch.setattr(kind, "__module__", "__main__")
    with pytest.raises(ValueError, match=r"workers=2.*__main__"):
        ih.train(configs, tmp_path / "runs", workers=2, progress=False)
    assert not (tmp_path / "runs").exists()
    monkeypatch.setattr(ih.training.train, "WORTH_WORKERS", 0)
    monkeypatch.setattr(
        ih.training.train, "train_in_workers", lambda *_: pytest.fail("not in this process")
    )
    assert all(run.finished for run in ih.train(configs, tmp_path / "runs", progress=False))
