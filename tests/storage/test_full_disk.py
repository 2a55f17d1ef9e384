"""A full disk stops the run in words, leaves it whole, and it goes on when there is room."""

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest
from kills import folder_bytes, small_fleet

import ih_interp as ih
from ih_interp.storage import run_files
from ih_interp.training import loop
from ih_interp.training.state import TrainingFailedError

pytestmark = pytest.mark.slow

CONFIG, MATE = small_fleet()[:2]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    root = tmp_path_factory.mktemp("straight")
    ih.train(CONFIG, root, progress=False)
    return folder_bytes(root)


class FullDisk:
    """Lets so many files be written, and then none, until there is room again."""

    def __init__(self, room: int) -> None:
        self.room, self.refused = room, 0
        self.fsync = os.fsync

    def __call__(self, descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        if name.is_file():
            if self.room <= 0:
                self.refused += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.room -= 1
        self.fsync(descriptor)


@pytest.mark.parametrize("room", [0, 1, 2, 4, 9, 13, 14, 17])
def test_a_run_stops_in_words_and_goes_on(room, straight, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)  # a state after every update
    disk = FullDisk(room)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk)
        with pytest.raises((TrainingFailedError, OSError), match="The disk is full") as told:
            ih.train(CONFIG, tmp_path, progress=False)
    assert disk.refused
    folder = tmp_path / CONFIG.name
    assert str(folder) in str(told.value)
    left = {path.name for path in folder.rglob("*")} if folder.is_dir() else set()
    assert not [name for name in left if name.startswith(".")]
    if room:  # config.json is the first file
        assert "train again, and they resume from their last saved state" in str(told.value)
        run = ih.Run(folder)
        assert len(run.metrics) >= 0
        for step in run.steps:
            run.model(step)
        for path in run_files.saved_states(folder):
            run_files.load_tensors(path)
    (run,) = ih.train(CONFIG, tmp_path, progress=False)
    assert folder_bytes(tmp_path) == straight


@pytest.mark.parametrize("save_seconds", [0.0, 20.0])
def test_files_that_cannot_be_written_end_their_run_alone(
    save_seconds, straight, tmp_path, monkeypatch
):
    monkeypatch.setattr(loop, "SAVE_SECONDS", save_seconds)
    fsync = os.fsync

    def broken(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if path.parent.name == run_files.CHECKPOINTS and path.parent.parent.name == CONFIG.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        with pytest.raises(TrainingFailedError, match=r"Input/output error.*train again") as told:
            ih.train([CONFIG, MATE], tmp_path, progress=False)
    assert str(tmp_path / CONFIG.name) in str(told.value)
    assert str(tmp_path / MATE.name) not in str(told.value)
    assert ih.Run(tmp_path / MATE.name).whole
    ih.train([CONFIG, MATE], tmp_path, progress=False)
    found = folder_bytes(tmp_path)
    assert {name: found[name] for name in straight} == straight


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own; only root may make one."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("no tmpfs can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_full_in_truth(straight, small_disk):
    with pytest.raises((TrainingFailedError, OSError), match="The disk is full"):
        ih.train(CONFIG, small_disk, progress=False)
    assert not [path for path in small_disk.rglob(".*") if path.is_file()]
    run = ih.Run(small_disk / CONFIG.name)
    for step in run.steps:
        run.model(step)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    ih.train(CONFIG, small_disk, progress=False)
    assert folder_bytes(small_disk) == straight


def test_a_full_disk_does_not_turn_an_interrupt_into_a_failure(tmp_path, monkeypatch):
    """After which the next fleet would begin."""

    def full(fleet):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path))

    monkeypatch.setattr(loop, "save", full)
    plain, _, clamped = small_fleet()
    with pytest.raises(KeyboardInterrupt, match="once there is room"):
        ih.train(
            [plain, clamped],
            tmp_path,
            progress=False,
            on_metrics=lambda run, row: os.kill(os.getpid(), signal.SIGINT),
        )
    assert ih.Run(tmp_path / "clamped").steps == []
