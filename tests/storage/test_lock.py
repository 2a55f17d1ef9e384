"""One writer a run folder, and a lock that no dead process leaves behind."""

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from kills import children_of, small_fleet

import ih_interp as ih
from ih_interp.storage import lock
from ih_interp.storage.lock import LOCK, claimed
from ih_interp.training.state import TrainingFailedError

pytestmark = pytest.mark.slow

FORK = multiprocessing.get_context("fork")  # without importing torch again


def hold(folder, ready):
    """Hold the lock, and have a child inherit it; put its process number into the queue."""
    with claimed([folder]):
        command = [sys.executable, "-SE", "-c", "import time; time.sleep(60)"]
        ready.put(subprocess.Popen(command, pass_fds=lock.HELD.values()).pid)
        time.sleep(60)


@pytest.fixture
def held_elsewhere(tmp_path, monkeypatch):
    """Another process that holds the lock of `run`, and the number of its worker."""
    monkeypatch.setattr(lock, "WAIT_SECONDS", 0.2)
    folder, ready = tmp_path / "run", FORK.SimpleQueue()
    process = FORK.Process(target=hold, args=(folder, ready))
    process.start()
    worker = ready.get()
    yield folder, process, worker
    process.kill()
    process.join()
    with suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)


def test_the_second_process_is_refused_and_told_who_holds_it(held_elsewhere):
    folder, process, _ = held_elsewhere
    words = rf"run is being trained by process {process.pid} on {socket.gethostname()}"
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
    folder, process, worker = held_elsewhere
    for pid in (process.pid, worker):
        os.kill(pid, signal.SIGKILL)
    process.join()
    assert (folder / LOCK).is_file()
    with claimed([folder]):
        pass
    assert not (folder / LOCK).exists()


def test_a_worker_that_outlives_its_parent_still_holds(held_elsewhere, monkeypatch):
    folder, process, worker = held_elsewhere
    process.kill()
    process.join()
    with pytest.raises(ValueError, match="is being trained by"), claimed([folder]):
        pass
    monkeypatch.setattr(lock, "WAIT_SECONDS", 20.0)
    os.kill(worker, signal.SIGKILL)  # and who waits for it gets in
    with claimed([folder]):
        pass


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
    with pytest.warns(UserWarning, match=words), claimed(folders):
        assert not lock.HELD


def test_orphaned_workers_die_at_once(tmp_path):
    """Of a parent that is killed; the runs can be trained again immediately."""
    script = (
        "import sys; sys.path.insert(0, 'tests/stress')\n"
        "import ih_interp as ih\n"
        "from kills import small_fleet\n"
        f"ih.train(small_fleet(sequences=10**7), {str(tmp_path)!r}, workers=2, engine='eager',"
        " progress=False)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script], cwd=Path(__file__).parents[2]
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


NOT_OURS = {
    "a link": lambda path, other: path.symlink_to(other),
    "a link to nothing": lambda path, other: path.symlink_to(other.with_name("gone")),
    "a hard link": lambda path, other: path.hardlink_to(other),
    "a pipe": lambda path, other: os.mkfifo(path),
    "a folder": lambda path, other: path.mkdir(),
    "a socket": lambda path, other: socket.socket(socket.AF_UNIX).bind(str(path)),
    "somebody's file": lambda path, other: path.write_text("door: 12-34-56\n"),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("kind", NOT_OURS)
def test_what_is_no_lock_of_ours_is_refused_and_left(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    Path("run").mkdir()
    path, other = Path("run", LOCK), Path("thesis.tex")
    other.write_text("42 years")
    NOT_OURS[kind](path, other.absolute() if "hard" not in kind else other)
    before = path.lstat()
    with pytest.raises(ValueError, match=r"\.lock"), claimed([Path("run")]):
        pass
    assert path.lstat().st_mode == before.st_mode
    assert other.read_text() == "42 years"
    assert not other.with_name("gone").exists()
    if kind == "somebody's file":
        assert path.read_text() == "door: 12-34-56\n"


def test_only_our_temporary_files_are_swept_and_never_through_a_link(tmp_path):
    folder, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    (folder / "notes").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "checkpoints").symlink_to(elsewhere)
    (folder / ".cache.3").mkdir()
    kept = [
        folder / ".bash_history.1",
        folder / ".config.json.bak.1",
        folder / ".00000008.safetensors.77",
        folder / "notes" / ".config.json.77",
        elsewhere / ".bash_history.1",
        elsewhere / ".00000008.safetensors.77",
    ]
    for path in kept:
        path.touch()
    (folder / ".metrics.jsonl.5").symlink_to(elsewhere / "thesis.tex")
    with claimed([folder]):
        pass
    assert all(path.exists() for path in (*kept, folder / ".cache.3"))
    assert (folder / ".metrics.jsonl.5").is_symlink()


def replace_by_a_run(folder):
    """As a second writer: a folder with a lock of its own where the first is training."""
    folder.rename(folder.with_name("moved"))
    folder.mkdir()
    (folder / LOCK).write_text("1 elsewhere\n")


GONE = {
    "renamed": lambda folder: folder.rename(folder.with_name("moved")),
    "removed": shutil.rmtree,
    "replaced": replace_by_a_run,
}


@pytest.mark.parametrize("how", GONE)
def test_a_folder_that_goes_while_it_is_trained_in_is_not_made_anew(how, tmp_path):
    plain, mate, _ = small_fleet()
    folder = tmp_path / plain.name

    def take_away(run, row):
        if (run.config.name, row["step"], row["split"]) == (plain.name, 10, "train"):
            GONE[how](folder)

    with pytest.raises(TrainingFailedError, match="plain"):
        ih.train([plain, mate], tmp_path, progress=False, on_metrics=take_away)
    left = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    assert left == ([LOCK] if how == "replaced" else [])  # the other's, which nobody removes
    assert ih.Run(tmp_path / mate.name).whole


def test_a_link_to_nothing_or_a_file_is_no_run_folder(tmp_path):
    (config,) = small_fleet()[:1]
    folder = tmp_path / config.name
    for make in (lambda: folder.symlink_to("gone"), lambda: folder.write_text("")):
        make()
        with pytest.raises(ValueError, match="plain is not a folder"):
            ih.train(config, tmp_path, progress=False)
        folder.unlink()


def test_who_holds_a_lock_is_told_without_taking_it(held_elsewhere):
    folder, process, worker = held_elsewhere
    assert lock.holder(folder) == (process.pid, socket.gethostname())
    process.kill()
    process.join()
    assert lock.holder(folder).pid == process.pid  # its worker still has the lock
    os.kill(worker, signal.SIGKILL)
    while lock.holder(folder) is not None:
        time.sleep(0.01)
    assert (folder / LOCK).is_file()


def test_nobody_holds_what_nobody_locked(tmp_path):
    assert lock.holder(tmp_path) is None
    assert not (tmp_path / LOCK).exists()
    with claimed([tmp_path]):
        (tmp_path / LOCK).write_text("")  # as in the moment before the number is written
        assert lock.holder(tmp_path) == (None, "")
    (tmp_path / LOCK).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=LOCK):
        lock.holder(tmp_path)
