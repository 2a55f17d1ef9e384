"""A package that `ih_interp` has never seen goes all the way: workers, a kill, analysis, plots.

Everything runs in processes of its own: its kinds would join the families of this one.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CONFIGS = [
    {
        "name": name,
        "task": {"kind": "last_seen", "length": 10},
        "clamps": [
            {"kind": "sink_attention", "heads": ["L0H0"], "schedule": {"kind": "fade"}},
            {"kind": "copy_from_attention", "head": "L1H1"},
        ],
        "model": {"d_model": 16, "n_heads": 2, "d_head": 8},
        "optimiser": {"kind": "adam", "learning_rate": 0.01},
        "seeds": {"init": seed},
        "sequences": 16 * 600,
        "batch_size": 16,
        "evaluations": {"every": 160},
        "evaluation_size": 40,
        "checkpoints": {"every": 160},
    }
    for name, seed in (("one", 1), ("two", 2))
]  # fmt: skip
TRAIN = """
import json, sys
import ih_interp as ih
configs = [ih.RunConfig.load(config) for config in json.loads(sys.argv[1])]
assert configs == [ih.RunConfig.load(config.save()) for config in configs]
ih.train(configs, sys.argv[2], engine="eager", workers=int(sys.argv[3]), progress=False)
"""
ANALYSE = """
import sys
import torch
import ih_interp as ih
run = ih.Run(sys.argv[1])
batch = run.task.sample("test", 200, seed=1)
other = run.task.sample("test", 200, seed=2)
strengths = ih.trace(run, ih.induction_strength, batch=batch, steps=run.steps[::20])
assert strengths["value"].between(-1, 1).all() and len(strengths)
model, edge = run.model(), {"senders": ["L0H0"], "receivers": ["L1H1"], "via": "k"}
ih.path_patch(model, batch, other, **edge, metric="loss")
values = ih.coalitions(run.model(), batch, ["L1H0", "L1H1"], metric="loss").values
assert torch.as_tensor(values).isfinite().all() and len(values) == 4
assert float(run.metrics.query("split == 'test'")["loss"].iloc[-1]) > 0
ih.plots.plot_losses(run.metrics).figure.savefig("losses.png")
"""


def process(code, *given, **options):
    path = os.pathsep.join([str(HERE / "third_party"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", code, *map(str, given)]
    return subprocess.Popen(
        command,
        env=environment,
        text=True,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **options,
    )


def done(code, *given, **options):
    running = process(code, *given, **options)
    errors = running.communicate(timeout=300)[1]
    assert running.returncode == 0, errors


def files_of(root):
    every = [path for path in root.rglob("*") if path.suffix in (".safetensors", ".jsonl")]
    return {str(path.relative_to(root)): path.read_bytes() for path in every}


@pytest.mark.slow
def test_it_trains_in_workers_is_killed_goes_on_and_is_analysed(tmp_path):
    configs = json.dumps(CONFIGS)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done(TRAIN, configs, whole, 1)
    running = process(TRAIN, configs, killed, 2)
    begun = killed / "two" / "checkpoints" / "00000100.safetensors"
    until = time.monotonic() + 200
    while not begun.exists():
        assert time.monotonic() < until
        assert running.poll() is None, running.stderr.read()
        time.sleep(0.02)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate()
    assert not (killed / "two" / "checkpoints" / "00000600.safetensors").exists()
    time.sleep(1)  # workers end when they find their parent gone
    done(TRAIN, configs, killed, 2)
    assert files_of(killed) == files_of(whole)
    done(ANALYSE, whole / "one", cwd=tmp_path)
    assert (tmp_path / "losses.png").stat().st_size > 1_000


@pytest.mark.slow
def test_a_run_whose_package_is_missing_says_which_and_nothing_else(tmp_path):
    done(TRAIN, json.dumps([{**CONFIGS[0], "sequences": 16}]), tmp_path, 1)
    before = files_of(tmp_path)
    read = f"import ih_interp as ih; ih.Run({str(tmp_path / 'one')!r})"
    alone = subprocess.run([sys.executable, "-c", read], capture_output=True, text=True)
    assert alone.returncode == 1
    assert "last_seen" in alone.stderr
    assert "anew" not in alone.stderr
    assert files_of(tmp_path) == before
