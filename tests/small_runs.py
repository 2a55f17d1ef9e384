"""Runs small enough to train in a second, their fleet, and the bytes which they must leave."""

import os
import signal

import pytest

import ih_interp as ih
from ih_interp.config import Grid, RunConfig
from ih_interp.runs import create_run
from ih_interp.storage import run_files
from ih_interp.tasks.exemplars import GaussianSource
from ih_interp.training.fleet import Fleet

SMALL = RunConfig(
    name="small",
    task=ih.TaskConfig(
        exemplars=GaussianSource(n_classes=20, n_exemplars=2, n_features=16), n_train_classes=8
    ),
    optimiser=ih.Adam(learning_rate=1e-3),
    sequences=24 * 8,
    batch_size=8,
    evaluations=Grid(every=64),
    evaluation_size=20,
    checkpoints=Grid(every=64),
)
"""24 updates, evaluated and saved every eighth."""

FOUR_UPDATES = SMALL.replace(
    optimiser=ih.Adam(),
    sequences=4 * 8,
    evaluations=Grid(),
    evaluation_size=10,
    checkpoints=Grid(every=16),
)
"""Four updates, evaluated rarely, a checkpoint every second one."""

NARROW = FOUR_UPDATES.replace(name="narrow", model=ih.ModelConfig(n_heads=4, d_model=16, d_head=4))
"""Four updates of two layers of four heads, between which there are few edges."""


def make_fleet(tmp_path, configs):
    runs = []
    for config in configs:
        folder = tmp_path / config.name
        runs.append(create_run(folder, config, config.task.build(), engine="eager"))
    return Fleet(runs, compiled=False)


def folder_bytes(folder):
    """Everything of a run that must not depend on how it came about."""
    names = [
        run_files.METRICS,
        *(f"checkpoints/{p.name}" for p in (folder / "checkpoints").iterdir()),
    ]
    return {name: (folder / name).read_bytes() for name in sorted(names)}


def stop_after_an_update(root, monkeypatch, *, config=SMALL, engine="auto"):
    """Begin a run, the small one, and leave it as a scheduler's SIGTERM would."""
    advance = Fleet.advance

    def stop(fleet):
        os.kill(os.getpid(), signal.SIGTERM)
        return advance(fleet)

    with monkeypatch.context() as patch:
        patch.setattr(Fleet, "advance", stop)
        with pytest.raises(KeyboardInterrupt):
            ih.train(config, root, engine=engine, progress=False)
