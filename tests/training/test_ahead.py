"""A process that fills the cache of compiled graphs: what it leaves, and that it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
from small_runs import SMALL
from torch._inductor.utils import clear_caches

import ih_interp as ih
from ih_interp.clamps import AblateHeads
from ih_interp.engine.compile_cache import VARIABLE
from ih_interp.engine.compiled_forward import compiler_found
from ih_interp.training import _ahead as ahead
from ih_interp.training._ahead import Ahead, compiled_ahead
from ih_interp.training.train import compiled_for_later

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not compiler_found(), reason="no C++ compiler")]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    clear_caches()  # what torch has loaded from another folder is not compiled into this one
    return tmp_path / "cache"


@pytest.fixture
def started(monkeypatch):
    """The processes that were started."""
    processes = []

    class Popen(subprocess.Popen):
        def __init__(self, *args, **given):
            super().__init__(*args, **given)
            processes.append(self)

    monkeypatch.setattr(ahead.subprocess, "Popen", Popen)
    return processes


def graphs_and_libraries(cache):
    return {*cache.rglob("*.so"), *cache.glob("fxgraph/*/*")}


def test_training_finds_what_was_compiled_for_other_heads_and_seeds(cache, tmp_path, monkeypatch):
    """In this process, since one of low priority waits while other tests run."""
    planned = SMALL.replace(clamps=[AblateHeads(heads=["L1H0"])])
    unfit = SMALL.replace(clamps=[AblateHeads(heads=["L9H9"])])  # it does not end the process
    orders = [{"runs": [run.model_dump_json()], "updates": True} for run in (unfit, planned)]
    (tmp_path / ahead.ORDERS).write_text("\n".join(map(json.dumps, orders)))
    monkeypatch.setattr(ahead, "NICENESS", 0)
    monkeypatch.setattr(ahead.signal, "signal", lambda *_: None)
    monkeypatch.setattr(ahead, "Thread", Mock())  # it would wait for the end of standard input
    monkeypatch.setattr(ahead.sys, "argv", ["", str(tmp_path)])
    assert ahead.main() == 0
    compiled = graphs_and_libraries(cache)
    assert compiled
    other = {"clamps": [AblateHeads(heads=["L1H3", "L1H4"])], "seeds": ih.Seeds(init=4)}
    clear_caches()  # torch remembers what it has loaded
    ih.train(SMALL.replace(**other), tmp_path, engine="compiled", workers=1, progress=False)
    assert graphs_and_libraries(cache) == compiled


def test_it_ends_with_the_block(cache, started):
    with compiled_ahead([Ahead([SMALL])]):
        assert started[0].poll() is None
    assert started[0].returncode is not None


def test_a_process_that_was_killed_harms_nothing(cache, started):
    with compiled_ahead([Ahead([SMALL])]):
        started[0].kill()


def test_it_ends_with_its_parent(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from ih_interp.config import RunConfig\n"
        "from ih_interp.training._ahead import *\n"
        "config = RunConfig.model_validate_json(sys.argv[1])\n"
        "with compiled_ahead([Ahead([config])]) as process:\n"
        "    print(process, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    if sys.platform != "linux":
        pytest.skip("only Linux ends a process with its parent")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, SMALL.model_dump_json()],
        capture_output=True,
        text=True,
        env=os.environ | {VARIABLE: str(tmp_path)},
    )
    assert result.returncode == -signal.SIGKILL
    state, until = Path(f"/proc/{int(result.stdout)}/stat"), time.monotonic() + 20
    while state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(("cores", "engine"), [(1, "compiled"), (2, "eager")])
def test_nothing_is_started_where_it_does_not_help(cores, engine, started, monkeypatch):
    monkeypatch.setattr("ih_interp.training.train.cores", lambda: cores)
    with compiled_for_later([SMALL], engine=engine):
        pass
    with compiled_for_later([], engine=engine):
        pass
    assert not started
