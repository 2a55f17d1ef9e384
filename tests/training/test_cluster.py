"""Sweeps in jobs of a cluster: bytes of one machine, no run submitted twice, ends that are told."""

import json
import os
import signal
import sys
import time
from threading import Thread
from types import SimpleNamespace

import pytest
from small_runs import FOUR_UPDATES, SMALL, folder_bytes

import ih_interp as ih
from ih_interp.storage import run_files
from ih_interp.storage.lock import claimed, holder
from ih_interp.training import _cluster_jobs as jobs, _cluster_sweep as sweep, _cluster_task as task
from ih_interp.training._cluster_jobs import Job, Queue, record_job, recorded_job, report_path
from ih_interp.training.cluster import ClusterError
from ih_interp.training.state import TrainingFailedError

HERE = ih.Slurm(executor="local")
FREE = FOUR_UPDATES.replace(name="free")
MATCHED = FREE.replace(name="matched", clamps=[ih.clamps.match("L1H3")])
BROKEN = FREE.replace(name="broken", optimiser=ih.SGD(learning_rate=1e30))


class Stub:
    """A cluster in this process: a job trains when it is submitted, or when it is let go."""

    def __init__(self, root):
        self.logs = root / ".cluster" / "logs"
        self.orders, self.numbers, self.held = [], set(), []

    def submit(self, orders, cluster, logs):
        assert logs == self.logs
        new = [Job(cluster.executor, str(len(self.orders) + n), logs) for n in range(len(orders))]
        self.orders += map(json.loads, orders)
        self.numbers |= {job.number for job in new}
        for job in new:
            if job.number not in self.held:
                self.run(job.number)
        return new

    def run(self, number):
        failures = task.train_ordered(self.orders[int(number)])
        run_files.write_json(report_path(self.logs, number), {"failures": failures})
        self.numbers.discard(number)

    @property
    def trained(self):
        """The runs of each job, by name."""
        return [[run.rpartition("/")[2] for run in order["runs"]] for order in self.orders]


@pytest.fixture
def stub(tmp_path, monkeypatch):
    stub = Stub(tmp_path / "there")
    monkeypatch.setattr(sweep, "submitted", stub.submit)
    monkeypatch.setattr(sweep, "refuse_missing", lambda cluster: None)
    monkeypatch.setattr(Queue, "numbers", lambda queue: set(stub.numbers))
    monkeypatch.setattr(sweep, "LOOK_SECONDS", 0.0)
    return stub


def train(configs, tmp_path, **options):
    options = {"cluster": HERE, "progress": False, **options}
    return ih.train(configs, tmp_path / "there", **options)


def expect_equal(tmp_path, *configs):
    ih.train(configs, tmp_path / "here", workers=1, progress=False)
    for config in configs:
        ours, theirs = (folder_bytes(tmp_path / root / config.name) for root in ("here", "there"))
        assert ours == theirs


def during_waiting(monkeypatch, *events):
    """Have events happen, one at each pause of the waiting; another pause is too many."""
    left = [*events]
    monkeypatch.setattr(sweep.time, "sleep", lambda _: left.pop(0)())


def test_fleets_are_jobs_which_leave_the_bytes_of_one_machine(stub, tmp_path):
    rows, second = [], FREE.replace(name="second", seeds=ih.Seeds(init=6))
    runs = train([FREE, MATCHED, second], tmp_path, on_metrics=lambda run, row: rows.append(row))
    assert [run.config.name for run in runs] == ["free", "matched", "second"]
    assert stub.trained == [["free", "second"], ["matched"]]
    expect_equal(tmp_path, FREE, MATCHED, second)
    train([FREE, MATCHED], tmp_path)
    assert len(stub.orders) == 2
    train([FREE, BROKEN.replace(optimiser=ih.SGD(learning_rate=1e-3))], tmp_path)
    assert stub.trained[2:] == [["broken"]]


def test_rows_are_told_as_they_appear(stub, tmp_path, monkeypatch):
    rows = []
    stub.held = ["0"]
    during_waiting(monkeypatch, lambda: stub.run("0"))
    train(FREE, tmp_path, on_metrics=lambda run, row: rows.append((run.config.name, row["step"])))
    assert sorted(set(rows)) == [("free", 0), ("free", 4)]
    assert len(rows) == 2 * len(FREE.task.build().splits)


def test_a_row_that_would_stop_a_run_is_refused(stub, tmp_path, monkeypatch):
    def stop(run, row):
        raise ih.StopRun

    stub.held = ["0"]
    during_waiting(monkeypatch, lambda: stub.run("0"))
    with pytest.raises(ValueError, match="StopRun"):
        train(FREE, tmp_path, on_metrics=stop)


def test_a_run_that_fails_is_named_with_its_log_and_the_others_end(stub, tmp_path):
    with pytest.raises(TrainingFailedError, match=r"broken.*1_0_log\.err") as failure:
        train([FREE, BROKEN], tmp_path)
    assert "free" not in str(failure.value)
    assert ih.Run(tmp_path / "there" / "free").finished
    with pytest.raises(TrainingFailedError, match="broken"):
        train([FREE, BROKEN], tmp_path)
    assert stub.trained == [["free"], ["broken"], ["broken"]]


def test_an_unexpected_error_of_a_job_is_told(stub, tmp_path, monkeypatch):
    (run,) = train(FREE, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(task, "train", lambda *_, **__: 1 / 0)
        order = {"runs": [str(run.folder)], "plugins": {str(run.folder): []}}
        (failure,) = task.train_ordered({**order, "workers": 1, "path": []})
    assert "free" in failure
    assert "ZeroDivisionError" in failure


def test_jobs_that_are_there_are_waited_for_and_not_submitted_twice(stub, tmp_path, monkeypatch):
    stub.held = ["0"]
    (run,) = train(FREE, tmp_path, wait=False)
    assert not run.finished
    assert recorded_job(run.folder) == Job("local", "0", stub.logs)
    during_waiting(monkeypatch, lambda: None, lambda: stub.run("0"))
    (run,) = train(FREE, tmp_path)
    assert run.finished
    assert len(stub.orders) == 1


def test_a_job_that_ends_without_a_report_is_told_and_submitted_by_the_next_call(
    stub, tmp_path, monkeypatch
):
    stub.held = ["0"]
    during_waiting(monkeypatch, lambda: stub.numbers.clear(), lambda: None)
    with pytest.raises(TrainingFailedError, match=r"Job 0.*free.*cancelled.*0_0_log\.err"):
        train([FREE, MATCHED], tmp_path)
    assert ih.Run(tmp_path / "there" / "matched").finished
    train([FREE, MATCHED], tmp_path)
    assert stub.trained == [["free"], ["matched"], ["free"]]
    expect_equal(tmp_path, FREE, MATCHED)


def test_a_report_that_a_network_shows_late_is_waited_for(stub, tmp_path, monkeypatch):
    stub.held = ["0"]
    monkeypatch.setattr(sweep, "REPORT_SECONDS", 60.0)
    during_waiting(monkeypatch, lambda: stub.numbers.clear(), lambda: None, lambda: stub.run("0"))
    (run,) = train(FREE, tmp_path, cluster=ih.Slurm())
    assert run.finished


def test_a_run_that_another_process_trains_is_waited_for(stub, tmp_path, monkeypatch):
    (run,) = train(FREE, tmp_path, wait=False)
    (run.folder / "checkpoints" / "00000004.safetensors").unlink()
    lock = claimed([run.folder])
    lock.__enter__()
    during_waiting(monkeypatch, lambda: None, lambda: lock.__exit__(None, None, None), lambda: None)
    before = len(stub.orders)
    train(FREE, tmp_path)
    assert len(stub.orders) == before + 1
    expect_equal(tmp_path, FREE)


def test_ctrl_c_leaves_the_jobs_and_names_them(stub, tmp_path, monkeypatch):
    def interrupt():
        signal.raise_signal(signal.SIGTERM)

    stub.held = ["0"]
    during_waiting(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt, match=r"jobs 0 .*same call"):
        train(FREE, tmp_path)
    assert stub.numbers == {"0"}


def test_a_longer_run_goes_on_in_a_job(stub, tmp_path):
    train(FREE, tmp_path)
    longer = FREE.replace(sequences=8 * 8)
    (run,) = train(longer, tmp_path)
    assert run.config.n_steps == 8
    assert run.finished
    assert len(stub.orders) == 2


def test_a_job_that_trained_less_than_is_wanted_now_is_followed_by_another(
    stub, tmp_path, monkeypatch
):
    stub.held = ["0"]
    train(FREE, tmp_path, wait=False)
    report = report_path(stub.logs, "0")
    during_waiting(
        monkeypatch, lambda: run_files.write_json(report, {"failures": []}), lambda: None
    )
    (run,) = train(FREE.replace(sequences=8 * 8), tmp_path)
    assert run.finished
    assert stub.trained == [["free"], ["free"]]


def test_repair_finds_damage_before_jobs_are_submitted(stub, tmp_path):
    (run,) = train(FREE, tmp_path)
    (run.folder / "checkpoints" / "00000002.safetensors").write_bytes(b"damaged")
    with pytest.warns(UserWarning, match="removed damaged"):
        train(FREE, tmp_path, repair=True)
    assert len(stub.orders) == 2
    expect_equal(tmp_path, FREE)


def test_the_queue_of_slurm_is_read_and_may_not_answer(tmp_path, monkeypatch):
    squeue = tmp_path / "squeue"
    monkeypatch.setenv("PATH", str(tmp_path))
    squeue.write_text("#!/bin/sh\necho 12_3\necho 14\n")
    squeue.chmod(0o755)
    queue = Queue("slurm")
    assert queue.numbers() == {"12_3", "14"}
    squeue.write_text("#!/bin/sh\nexit 1\n")
    assert queue.numbers() == {"12_3", "14"}  # it is asked seldom
    queue.ask_again()
    assert queue.numbers() is None


def test_a_damaged_record_of_a_job_is_refused(stub, tmp_path):
    record_job(tmp_path / "there" / "free", Job("slurm", "1", stub.logs))
    path = tmp_path / "there" / ".cluster" / "free.json"
    path.write_text(path.read_text().replace("slurm", "pbs"))
    with pytest.raises(run_files.DamagedFileError, match=r"free\.json"):
        train(FREE, tmp_path)
    assert not stub.orders


def test_without_submitit_or_slurm_it_says_what_is_missing(tmp_path, monkeypatch):
    ih.train(MATCHED, tmp_path / "there", progress=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ClusterError, match=r"sbatch.*executor"):
        train(FREE, tmp_path, cluster=ih.Slurm())
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ImportError, match=r"pip install -c \S+ -e '\.\[cluster\]'"):
        train(FREE, tmp_path)
    assert not (tmp_path / "there" / "free").exists()
    train(MATCHED, tmp_path)  # it is finished, and nothing is submitted


@pytest.mark.parametrize(
    ("fields", "token"),
    [
        ({"time": "soon"}, "time='soon'"),
        ({"time": 0}, "time=0"),
        ({"time": "1:2:3:4"}, "time="),
        ({"cpus": 0}, "cpus=0"),
        ({"cpus": True}, "cpus=True"),
        ({"memory": "much"}, "memory='much'"),
        ({"at_once": 0}, "at_once=0"),
        ({"setup": ["a\nb"]}, "setup"),
        ({"extra": {"array": "0-9"}}, "at_once"),
        ({"extra": {"cpus_per_task": 3}}, "cpus"),
        ({"extra": {"output": "here"}}, "output"),
        ({"extra": {"--qos": "low"}}, "--qos"),
        ({"extra": {"qos": "low\nrm"}}, "qos"),
        ({"executor": "pbs"}, "executor"),
        ({"partitions": "short"}, "partition"),
        ({"qos": "low"}, r"'qos': 'low'.*extra\.qos=low"),
        ({"cpus_per_task": 3}, "field cpus"),
        ({"output": "here"}, "leave it out"),
    ],
)
def test_wrong_requests_are_refused_by_name(fields, token):
    with pytest.raises(ValueError, match=token):
        ih.Slurm(**fields)


@pytest.mark.parametrize(
    ("time", "minutes"),
    [(45, 45), ("45", 45), ("2:00:00", 120), ("0:30", 1), ("1:00:30", 61), ("1-0", 1440),
     ("1-2:03", 1563), ("1-02:03:04", 1564)],
)  # fmt: skip
def test_times_are_read_as_slurm_reads_them(time, minutes):
    assert ih.Slurm(time=time).minutes == minutes


def test_a_request_is_read_from_a_command_line():
    text = "partition=short,long, time=2:00:00,cpus=4,setup=module load a; module load b,"
    text += "extra.qos=low,extra.exclusive=true"
    assert ih.Slurm.parse(text) == ih.Slurm(
        partition="short,long",
        time="2:00:00",
        cpus=4,
        setup=["module load a", "module load b"],
        extra={"qos": "low", "exclusive": True},
    )


@pytest.mark.parametrize("text", ["", "short", "cpus=4,cpus=5", "cpus=four", "nodes=2"])
def test_other_words_are_refused(text):
    with pytest.raises(ValueError, match=text.rpartition(",")[2].partition("=")[0] or "name=value"):
        ih.Slurm.parse(text)


@pytest.mark.untyped
def test_what_does_not_go_with_a_cluster_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="workers=2"):
        train(FREE, tmp_path, workers=2)
    with pytest.raises(ValueError, match="wait=False"):
        train(FREE, tmp_path, cluster=None, wait=False)
    with pytest.raises(TypeError, match="cluster"):
        train(FREE, tmp_path, cluster="short")
    monkeypatch.setattr(type(MATCHED.clamps[0]), "__module__", "__main__")
    with pytest.raises(ValueError, match=r"On a cluster.*__main__"):
        train(MATCHED, tmp_path)
    assert not (tmp_path / "there").exists()


def test_the_script_of_a_job_has_what_was_asked_for(tmp_path, monkeypatch):
    """By submitit, with commands of SLURM's that only write down what they are given."""
    for name in ("srun", "sbatch"):
        (tmp_path / name).write_text('#!/bin/sh\necho "Submitted batch job 7"\n')
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    cluster = ih.Slurm(
        partition="short",
        account="lab",
        time="2:00:00",
        cpus=4,
        memory="4G",
        at_once=3,
        setup=["module load gcc"],
        extra={"qos": "low"},
    )
    found = jobs.submitted(["{}", "{}"], cluster, tmp_path / "logs")
    assert [job.number for job in found] == ["7_0", "7_1"]
    script = (tmp_path / "logs" / "7_submission.sh").read_text().splitlines()
    options = ("array=0-1%2", "partition=short", "account=lab", "time=120", "cpus-per-task=4")
    for option in (*options, "mem=4G", "qos=low", "requeue", "open-mode=append"):
        assert f"#SBATCH --{option}" in script, script
    assert "module load gcc" in script
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho no such partition >&2\nexit 1\n")
    with pytest.raises(ClusterError, match=r"no such partition"):
        jobs.submitted(["{}"], cluster, tmp_path / "logs")


@pytest.fixture
def in_a_job(tmp_path, monkeypatch):
    """Has a fleet be called as in a job; gives what happened to the job, in order."""
    events, before = [], signal.getsignal(task.WARNING)

    def call(cluster, train):
        environment = SimpleNamespace(
            cluster=cluster, paths=SimpleNamespace(folder=tmp_path), job_id="3_1"
        )
        monkeypatch.setattr(task, "JobEnvironment", lambda: environment)
        monkeypatch.setattr(task, "train_ordered", lambda order: train())
        monkeypatch.setattr(task.time, "sleep", lambda seconds: events.append(seconds))
        task.TrainFleet()("{}")

    signal.signal(task.WARNING, lambda number, frame: events.append("requeued"))
    yield call, events
    signal.signal(task.WARNING, before)


def test_a_job_that_is_warned_saves_first_and_then_goes_back_to_the_queue(in_a_job, tmp_path):
    call, events = in_a_job

    def train():
        try:
            signal.raise_signal(task.WARNING)
        finally:
            events.append("saved")

    with pytest.raises(KeyboardInterrupt):
        call("local", train)
    assert events == ["saved", "requeued"]
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_slurm_preempts_saves_and_waits_for_its_end(in_a_job, tmp_path):
    """One that ends within its time of grace counts as failed, and is not requeued."""
    call, events = in_a_job
    with pytest.raises(KeyboardInterrupt):
        call("slurm", lambda: signal.raise_signal(signal.SIGTERM))
    assert events == [task.GRACE_SECONDS]
    assert list(tmp_path.iterdir()) == []


def test_a_job_reports_and_then_fails(in_a_job, tmp_path):
    call, _ = in_a_job
    with pytest.raises(TrainingFailedError, match="the loss was nan"):
        call("slurm", lambda: ["the loss was nan"])
    assert Job("slurm", "3_1", tmp_path).failures() == ["the loss was nan"]


LONG = SMALL.replace(sequences=8 * 600, checkpoints=ih.Grid(every=8 * 20))


def until(is_so, seconds=900):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.slow
def test_real_jobs_that_are_killed_or_warned_leave_the_bytes_of_one_machine(tmp_path):
    killed, warned = (
        LONG.replace(name="killed"),
        LONG.replace(name="warned", batch_size=4, sequences=4 * 600),
    )
    runs = train([killed, warned], tmp_path, wait=False)
    events = {runs[0]: signal.SIGKILL, runs[1]: signal.SIGUSR2}

    def all_sent():
        for run in [run for run in events if len(run.steps) > 3]:
            os.kill(holder(run.folder).pid, events.pop(run))
        return not events

    sender = Thread(target=until, args=(all_sent,))
    sender.start()  # while the call below waits: one that comes later would submit the run again
    with pytest.raises(TrainingFailedError, match="killed") as failure:
        train([killed, warned], tmp_path)
    sender.join()
    assert "warned" not in str(failure.value)
    assert [run.finished for run in runs] == [False, True]
    log = recorded_job(runs[1].folder).log.with_suffix(".out").read_text()
    assert log.count("Starting with") == 2
    assert "Requeued" in log
    train([killed, warned], tmp_path)
    expect_equal(tmp_path, killed, warned)
