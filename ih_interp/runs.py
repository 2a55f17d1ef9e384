"""A run on disk: its configuration, metrics and checkpoints."""

import json
import platform
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformer_lens import HookedTransformer

from ih_interp import store
from ih_interp.clamps import AbstractClamp
from ih_interp.config import RunConfig
from ih_interp.exemplars import Exemplars
from ih_interp.model import build_model
from ih_interp.task import FewShotTask

FORMAT = 1
"""Of the run folder; another number is refused."""


class Run:
    """A run folder, read only: `metrics`, `steps`, `model(step)`, `task`.

        run = ih.Run("runs/main")
        model = run.model(run.steps[-1])

    Raises FileNotFoundError where there is no run, ValueError where it cannot be read.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / store.CONFIG
        if not path.is_file():
            raise FileNotFoundError(f"There is no run at {self.folder}: {store.CONFIG} is missing.")
        recorded = store.read_json(path)
        if recorded.get("format") != FORMAT:
            raise ValueError(
                f"{path} has format {recorded.get('format')!r}; this version reads {FORMAT}. "
                "Read it with the version that wrote it."
            )
        try:
            self.config = RunConfig.load(recorded["run"])
            self.versions: dict[str, str] = recorded["versions"]
            self.engine: str = recorded["engine"]
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from error

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {len(self.steps)} checkpoints, finished={self.finished})"

    @cached_property
    def task(self) -> FewShotTask:
        """The task the run trained on; its features are read again, and checked to be the same."""
        return FewShotTask(Exemplars.from_source(self.config.exemplars), self.config.task)

    @property
    def clamps(self) -> tuple[AbstractClamp, ...]:
        """The clamps in force while it trained."""
        return self.config.clamps

    @property
    def steps(self) -> list[int]:
        """Updates that have a checkpoint, ascending; sequences are `step * batch_size`."""
        return store.checkpoint_steps(self.folder)

    @property
    def finished(self) -> bool:
        """Whether the last checkpoint is there."""
        return store.checkpoint_path(self.folder, self.config.n_steps).is_file()

    @property
    def metrics(self) -> pd.DataFrame:
        """One row an evaluation and split: `step`, `sequences`, `split`, `evaluation.METRICS`."""
        return pd.DataFrame(store.read_metrics(self.folder))

    def model(self, step: int | None = None) -> HookedTransformer:
        """The model after `step` updates, by default the last checkpoint; unclamped.

        Raises ValueError for a step without checkpoint, or a checkpoint that is damaged.
        """
        model = build_model(self.task, self.config.model, seed=self.config.seeds.init)
        self.load_weights(model, self.steps[-1] if step is None and self.steps else step)
        return model

    def load_weights(self, model: HookedTransformer, step: int | None) -> None:
        """Write a checkpoint's weights into a model of this run."""
        if step is None or step not in self.steps:
            raise ValueError(
                f"{self.folder} has no checkpoint at step {step}; it has {self.steps}."
            )
        path = store.checkpoint_path(self.folder, step)
        weights, facts = store.load_tensors(path)
        if facts.get("run") != self.config.fingerprint:
            raise ValueError(
                f"{path} belongs to run {facts.get('run')}, not to {self.config.fingerprint}; "
                "it was copied from elsewhere."
            )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in weights:
                    parameter.copy_(weights[name])


def refuse_other_run(folder: Path, config: RunConfig) -> None:
    """Raise ValueError if the folder holds a run of another configuration."""
    if (folder / store.CONFIG).is_file():
        there = Run(folder).config
        if there.fingerprint != config.fingerprint:
            raise ValueError(
                f"{folder} holds another run: {_difference(there, config)}. "
                "Give this one another name or root, or delete the folder."
            )


def create_run(folder: Path, config: RunConfig, task: FewShotTask, *, engine: str) -> Run:
    """Write `config.json`, or take the run that is there; nothing is overwritten.

    `engine`, "compiled" or "eager", is recorded: their last digits differ, so a run keeps to one.
    """
    refuse_other_run(folder, config)
    if (folder / store.CONFIG).is_file():
        return Run(folder)
    recorded: dict[str, Any] = {
        "format": FORMAT,
        "run": config.save(),
        "fingerprint": config.fingerprint,
        "features_sha256": task.exemplars.sha256,
        "engine": engine,
        "threads": torch.get_num_threads(),
        "versions": versions(),
    }
    store.write_atomic(
        folder / store.CONFIG, (json.dumps(recorded, indent=2, sort_keys=True) + "\n").encode()
    )
    return Run(folder)


def versions() -> dict[str, str]:
    """What the numbers may depend on beside the configuration."""
    packages = {name: version(name) for name in ("ih-interp", "torch", "transformer-lens")}
    return {**packages, "python": platform.python_version(), "machine": platform.machine()}


def _difference(there: RunConfig, here: RunConfig) -> str:
    old, new = there.save(), here.save()
    changed = [name for name in new if name != "name" and new[name] != old[name]]
    return "; ".join(f"{name} is {old[name]} there and {new[name]} here" for name in changed)
