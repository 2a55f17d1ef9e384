"""What Weights & Biases is told: by its own library offline, and call by call by a stand-in."""

import sys
import types

import pytest
from small_runs import FOUR_UPDATES, SMALL

import ih_interp as ih


class StandIn(types.ModuleType):
    """Has the calls of the library that are made here, and remembers them."""

    def __init__(self, step=0):
        super().__init__("wandb")
        self.opened, self.logged, self.finished, self.step = [], [], [], step

    @staticmethod
    def Settings(**given):
        return given

    def init(self, **given):
        folder = f"offline-run-{len(self.opened)}-{given['id']}"
        self.opened.append(given)
        opened = types.SimpleNamespace(step=self.step, dir=f"{given['dir']}/wandb/{folder}/files")
        ih.storage.atomic.make_folders(ih.storage.atomic.as_path(opened.dir, "files"))
        opened.log = lambda numbers, step: self.logged.append((given["name"], step, numbers))
        opened.finish = lambda: self.finished.append(given["name"])
        return opened


@pytest.fixture
def wandb(monkeypatch):
    stand_in = StandIn()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


def test_every_evaluation_is_logged_once_at_its_update(wandb, tmp_path):
    configs = [SMALL, SMALL.replace(name="other", seeds=ih.Seeds(init=1))]
    tracker = ih.track.WandB("project", folder=tmp_path, init={"group": "sweep"})
    runs = ih.train(configs, tmp_path / "runs", progress=False, on_metrics=tracker)
    for run, opened in zip(runs, wandb.opened, strict=True):
        asked = {name: opened[name] for name in ("project", "mode", "group", "name", "config")}
        assert asked == {
            "project": "project",
            "mode": "offline",
            "group": "sweep",
            "name": run.config.name,
            "config": run.config.save(),
        }
        logged = {step: numbers for name, step, numbers in wandb.logged if name == opened["name"]}
        table = run.metrics
        assert list(logged) == list(table["step"].unique())
        for row in table.to_dict("records"):
            assert logged[row["step"]][f"loss/{row['split']}/clamped"] == row["loss"]
    assert len(wandb.logged) == 2 * 4
    assert sorted(wandb.finished) == ["other", "small"]


def test_what_was_logged_offline_is_not_logged_again(wandb, tmp_path):
    def crash(run, row):
        if row["step"] == 16:
            raise KeyError("a callback")

    first = ih.track.WandB("project", folder=tmp_path)
    with pytest.raises(KeyError, match="a callback"):
        ih.train(SMALL, tmp_path / "a", progress=False, on_metrics=ih.track.All(first, crash))
    # A run that begins anew gives the same numbers.
    ih.train(SMALL, tmp_path / "b", progress=False, on_metrics=ih.track.WandB("p", folder=tmp_path))
    assert len({opened["id"] for opened in wandb.opened}) == 1
    steps = [step for _, step, _ in wandb.logged]
    assert steps == [0, 8, 16, 24]


def test_what_the_library_knows_online_is_not_logged_again(tmp_path, monkeypatch):
    stand_in = StandIn(step=9)
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    tracker = ih.track.WandB("project", mode="online", folder=tmp_path)
    ih.train(SMALL, tmp_path / "runs", progress=False, on_metrics=tracker)
    assert [step for _, step, _ in stand_in.logged] == [16, 24]


@pytest.mark.untyped
def test_other_modes_are_refused(wandb):
    with pytest.raises(ValueError, match="mode='disabled'"):
        ih.track.WandB("project", mode="disabled")


def test_a_missing_library_is_named_with_its_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install -c \S+ -e '\.\[wandb\]'"):
        ih.track.WandB("project")


@pytest.mark.slow
def test_the_library_itself_writes_a_folder_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, folder in (("CONFIG", "config"), ("CACHE", "cache"), ("DATA", "data")):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / folder))
    tracker = ih.track.WandB("project", folder=tmp_path)
    (run,) = ih.train(FOUR_UPDATES, tmp_path / "runs", progress=False, on_metrics=tracker)
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    (written,) = folder.glob("*.wandb")
    content = written.read_bytes()
    for part in (b"project", run.config.fingerprint.encode(), b"loss/train/clamped"):
        assert part in content
    for loss in run.metrics["loss"]:
        assert repr(loss).encode() in content
    assert (folder / "ih_interp.last_step").read_text() == "4"
