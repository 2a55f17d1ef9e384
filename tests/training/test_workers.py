"""Fleets in processes of their own: as in this one, and when a process dies or Ctrl-C comes."""

import os
import signal
import sys
import threading
import time
from multiprocessing import Pipe

import pytest
from kills import folder_bytes, small_fleet

import ih_interp as ih
from ih_interp.runs import create_run
from ih_interp.storage.lock import HELD, claimed
from ih_interp.training import _worker as worker, _workers as workers, fleet as fleet_module, loop
from ih_interp.training._launch import received
from ih_interp.training._workers import train_in_workers
from ih_interp.training.fleet import Fleet
from ih_interp.training.state import TrainingFailedError, record_engine

pytestmark = pytest.mark.slow

SMALL = small_fleet(sequences=8 * 24)[0]


def with_seeds(*seeds):
    return [SMALL.replace(name=f"w{seed}", seeds=ih.Seeds(init=seed)) for seed in seeds]


def create(root, config=SMALL, engine="compiled"):
    task = config.task.build()
    return create_run(root / config.name, config, task, engine=engine)


def ordered(runs):
    """What a worker tells as it trains these runs, in this process."""
    ours, theirs = Pipe()
    with claimed([run.folder for run in runs]):
        report = worker.train_ordered({str(run.folder): HELD[run.folder] for run in runs}, theirs)
    theirs.close()
    return list(iter(lambda: received(ours), None)), report


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Has workers be a script, which starts at once; `life` counts from 1 how often it has been."""

    def install(script):
        path = tmp_path / "stand-in"
        path.write_text(
            f"#!{sys.executable} -SE\n"
            "import json, os, signal, sys, time\n"
            "from multiprocessing.connection import Connection\n"
            f"with open({str(tmp_path / 'pids')!r}, 'a+') as pids:\n"
            "    print(os.getpid(), file=pids, flush=True)\n"
            "    life = len(open(pids.name).readlines())\n"
            "parent = Connection(int(sys.argv[-1]))\n"
            "def tell(**message): parent.send_bytes(json.dumps(message).encode())\n"
            "while order := json.loads(parent.recv_bytes()):\n"
            f"    (folder,) = order['train']\n    {script}\n"
        )
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return install


def test_workers_train_as_this_process_does(tmp_path):
    configs, rows = with_seeds(5, 6, 7), []
    ih.train(configs, tmp_path / "here", workers=1, progress=False)
    ih.train(
        configs,
        tmp_path / "there",
        workers=2,
        progress=False,
        on_metrics=lambda run, row: rows.append(run.folder.name),
    )
    assert folder_bytes(tmp_path / "here") == folder_bytes(tmp_path / "there")
    assert set(rows) == {"w5", "w6", "w7"}


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_worker_that_is_killed_is_replaced_once(deaths, tmp_path, monkeypatch):
    configs = with_seeds(5, 6)
    ih.train(configs[deaths - 1 :], tmp_path / "here", workers=1, progress=False)
    give, left = workers.Worker.give, [deaths]

    def give_and_kill(worker, job):
        give(worker, job)
        if left[0] and str(tmp_path / "there" / "w5") in job.runs:
            left[0] -= 1
            worker.kill()

    monkeypatch.setattr(workers.Worker, "give", give_and_kill)
    if deaths == 1:
        ih.train(configs, tmp_path / "there", workers=2, progress=False)
    else:
        with pytest.raises(TrainingFailedError, match=r"w5 ended with status -9, twice"):
            ih.train(configs, tmp_path / "there", workers=2, progress=False)
    expected, found = folder_bytes(tmp_path / "here"), folder_bytes(tmp_path / "there")
    assert {name: found[name] for name in expected} == expected


def test_what_a_replaced_worker_repeats_is_told_once(tmp_path, stand_in):
    rows, updates = [], []
    stand_in("""
    def row(step): tell(folder=folder, row=dict(step=step, split="train"))
    tell(done=3 if life > 1 else 2, loss=0)
    if life == 1: tell(done=7, loss=1.0)
    row(4)
    if life == 1: sys.exit(9)
    tell(done=8, loss=1.0)
    tell(done=12, loss=1.0)
    row(8)
    tell(failures=[], engines={})
    """)
    failures = train_in_workers(
        [[create(tmp_path)]],
        1,
        lambda run, row: rows.append(row["step"]),
        lambda n, loss: updates.append(n),
    )
    assert failures == []
    assert updates == [5, 1, 4]  # from 2 to 12
    assert rows == [4, 8]


def test_the_engine_that_a_worker_recorded_is_told(tmp_path, stand_in):
    stand_in("tell(failures=[], engines={folder: 'eager'})")
    run = create(tmp_path)
    assert train_in_workers([[run]], 1, None, print) == []
    assert run.engine == "eager"


def test_a_second_interrupt_leaves_no_worker(tmp_path, stand_in):
    """One that takes its time to save: before the lock is let go of, it is killed."""
    stand_in("""
    signal.signal(signal.SIGTERM, lambda *_: open(folder + "/asked", "w"))
    open(folder + "/ready", "w")
    while True: time.sleep(0.01)
    """)

    run = create(tmp_path)

    def interrupt():
        for sign in ("ready", "asked"):
            end = time.monotonic() + 20
            while not (run.folder / sign).exists() and time.monotonic() < end:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train_in_workers([[run]], 1, None, print)
    thread.join()
    assert time.monotonic() - begun < workers.STOP_SECONDS
    for pid in (tmp_path / "pids").read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_a_fallback_outlives_the_worker(tmp_path, monkeypatch):
    """Another that goes on with its runs goes on eagerly."""
    config = SMALL.replace(name="fallen")
    ih.train(config, tmp_path / "eager", engine="eager", progress=False)
    advance = Fleet.advance

    def fail(*_):
        raise RuntimeError("no compiler")

    def die_at_17(fleet):
        if fleet.runs[0].step == 17:
            raise SystemExit
        return advance(fleet)

    monkeypatch.setattr(fleet_module, "traced_step", fail)
    run = create(tmp_path, config)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "SAVE_SECONDS", 0.0)
        patch.setattr(Fleet, "advance", die_at_17)
        with pytest.warns(UserWarning, match="no compiler"), pytest.raises(SystemExit):
            ordered([run])
    (begun, *_), report = ordered([run])
    assert begun["done"] == 17
    assert report == {"failures": [], "engines": {str(run.folder): "eager"}}
    for name, content in folder_bytes(tmp_path / "eager" / "fallen").items():
        assert (run.folder / name).read_bytes() == content, name


def test_runs_whose_fallback_was_half_recorded_go_on_each_by_its_engine(tmp_path, monkeypatch):
    runs, trained = [create(tmp_path, config) for config in with_seeds(5, 6)], []
    record_engine(runs[0], "eager")
    monkeypatch.setattr(
        loop,
        "train_fleet",
        lambda fleet, **_: trained.append([(run.config.name, run.engine) for run in fleet]),
    )
    ordered(runs)
    assert sorted(trained) == [[("w5", "eager")], [("w6", "compiled")]]


def test_a_worker_leaves_the_warnings_of_a_cluster_to_its_parent(monkeypatch):
    """SLURM sends them to every process of a job, and by default they end a process."""
    warnings = (signal.SIGUSR1, signal.SIGUSR2)
    before = {number: signal.getsignal(number) for number in (*warnings, signal.SIGTERM)}
    ours, theirs = Pipe()
    ours.close()
    monkeypatch.setattr(sys, "argv", ["worker", str(os.dup(theirs.fileno()))])
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    try:
        assert worker.main() == 0
        assert [signal.getsignal(number) for number in warnings] == [signal.SIG_IGN] * 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_another_worker_leaves_finished_runs_alone(tmp_path, monkeypatch):
    (run,) = ih.train(SMALL, tmp_path, progress=False)
    monkeypatch.setattr(loop, "train_fleet", lambda *_, **__: pytest.fail("trained again"))
    (message,), report = ordered([run])
    assert message["done"] == SMALL.n_steps
    assert report["failures"] == []


def test_an_unexpected_error_in_a_worker_says_where_it_arose(tmp_path, monkeypatch, capsys):
    def arises_here(fleet):
        raise LookupError("unforeseen")

    monkeypatch.setattr(Fleet, "advance", arises_here)
    run = create(tmp_path, engine="eager")
    _, report = ordered([run])
    assert report["failures"] == [f"{run.folder}: LookupError: unforeseen"]
    assert "in arises_here" in capsys.readouterr().err
