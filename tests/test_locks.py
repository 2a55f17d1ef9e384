"""One writer a run folder, and a lock that no dead process leaves behind."""

import errno
import fcntl
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from kills import children_of, small_fleet

import ih_interp as ih
from ih_interp.training import lock
from ih_interp.training.lock import LOCK, claimed, shared

FORK = multiprocessing.get_context("fork")  # without importing torch again


def hold(folder, ready, kind=claimed):
    with kind([folder]):
        ready.set()
        time.sleep(60)


@pytest.fixture
def held_elsewhere(tmp_path):
    """Another process that holds the lock of `run`."""
    folder, ready = tmp_path / "run", FORK.Event()
    process = FORK.Process(target=hold, args=(folder, ready))
    process.start()
    assert ready.wait(20)
    yield folder, process
    process.kill()
    process.join()


def test_the_second_process_is_refused_and_told_who_holds_it(held_elsewhere):
    folder, process = held_elsewhere
    words = rf"run is being trained by process {process.pid} on {socket.gethostname()}, and a run "
    with pytest.raises(ValueError, match=words), claimed([folder]):
        pass
    assert (folder / LOCK).is_file()


def test_training_is_refused_and_reading_is_not(tmp_path):
    (config,) = small_fleet()[:1]
    (run,) = ih.train(config, tmp_path, progress=False)
    before = sorted(path.name for path in run.folder.iterdir())
    with claimed([run.folder]):
        assert ih.train(config, tmp_path, progress=False)[0].whole  # nothing to write
        assert len(ih.Run(run.folder).metrics)
        run.model(0)
        (run.folder / "checkpoints" / f"{run.steps[0]:08d}.safetensors").unlink()
        with pytest.raises(ValueError, match=rf"is being trained by process {os.getpid()} on"):
            ih.train(config, tmp_path, progress=False)
    assert ih.train(config, tmp_path, progress=False)[0].whole
    assert sorted(path.name for path in run.folder.iterdir()) == before


def test_a_dead_process_leaves_nothing_that_refuses(held_elsewhere):
    folder, process = held_elsewhere
    process.kill()
    process.join()
    assert (folder / LOCK).is_file()
    with claimed([folder]):
        pass
    assert not (folder / LOCK).exists()


def test_a_worker_that_outlives_its_parent_still_holds(held_elsewhere, monkeypatch):
    folder, process = held_elsewhere
    ready = FORK.Event()
    worker = FORK.Process(target=hold, args=(folder, ready, shared))
    worker.start()
    assert ready.wait(20)
    process.kill()
    process.join()
    monkeypatch.setattr(lock, "WAIT_SECONDS", 0.2)
    with pytest.raises(ValueError, match="is being trained by another process"), claimed([folder]):
        pass
    monkeypatch.setattr(lock, "WAIT_SECONDS", 20.0)
    worker.kill()  # and who waits for it gets in
    with claimed([folder]):
        pass
    worker.join()


def test_a_worker_does_not_share_what_another_has_claimed(tmp_path):
    with claimed([tmp_path]):
        descriptor = os.open(tmp_path / LOCK, os.O_RDWR)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    with pytest.raises(FileNotFoundError), shared([tmp_path]):
        pass
    os.close(descriptor)
    descriptor = os.open(tmp_path / LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(RuntimeError, match="taken over by another process"), shared([tmp_path]):
        pass
    os.close(descriptor)


def test_all_locks_or_none_and_no_folder_is_left(tmp_path):
    with claimed([tmp_path / "b"]):
        wanted = [tmp_path / "new" / "a", tmp_path / "b"]
        with pytest.raises(ValueError, match="b is being trained"), claimed(wanted):
            pass
        assert sorted(path.name for path in tmp_path.iterdir()) == ["b"]
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_kill_are_swept(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    temporary = [
        tmp_path / ".config.json.77",
        tmp_path / "checkpoints" / ".00000008.safetensors.77",
    ]
    kept = [tmp_path / "notes.1", tmp_path / ".hidden"]
    for path in (*temporary, *kept):
        path.touch()
    with claimed([tmp_path]):
        assert not any(path.exists() for path in temporary)
        assert all(path.exists() for path in kept)


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    words = "without locks .No locks available.: see to it that no second process"
    folders = [tmp_path / "run"]
    with pytest.warns(UserWarning, match=words), claimed(folders), shared(folders):
        pass


def test_who_comes_in_between_is_named(tmp_path, monkeypatch):
    """As we go over from the exclusive lock to the shared one; its name is in the file later."""
    flock, path, other = fcntl.flock, tmp_path / LOCK, []

    def come_in_between(descriptor, kind):
        if kind == fcntl.LOCK_SH | fcntl.LOCK_NB and not other:
            other.append(os.open(path, os.O_RDWR))
            flock(descriptor, fcntl.LOCK_UN)
            flock(other[0], fcntl.LOCK_EX)
        flock(descriptor, kind)

    monkeypatch.setattr(fcntl, "flock", come_in_between)
    monkeypatch.setattr(time, "sleep", lambda _: path.write_text("77 elsewhere"))
    with pytest.raises(ValueError, match="by process 77 on elsewhere"), claimed([tmp_path]):
        pass
    os.close(other[0])
    with claimed([tmp_path]):
        pass


def test_orphaned_workers_die_at_once(tmp_path):
    """Of a parent that is killed; the runs can be trained again immediately."""
    script = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "import ih_interp as ih\n"
        "from kills import small_fleet\n"
        f"ih.train(small_fleet(sequences=10**7), {str(tmp_path)!r}, workers=2, engine='eager',"
        " progress=False)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script], cwd=Path(__file__).parents[1]
    )
    started, end = False, time.monotonic() + 100
    while not started and time.monotonic() < end and parent.poll() is None:
        time.sleep(0.2)
        started = any(tmp_path.glob("*/checkpoints/*.safetensors"))
    assert started
    workers = children_of(parent.pid)
    assert len(workers) == 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    begun = time.monotonic()
    with claimed([path for path in tmp_path.iterdir() if path.is_dir()]):
        assert time.monotonic() - begun < 5
