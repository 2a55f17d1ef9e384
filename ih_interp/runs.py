"""A run on disk: its configuration, metrics and checkpoints."""

from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from ih_interp._config_base import short
from ih_interp._expect import integer
from ih_interp._recorded import read_config, rewrite_config, write_config
from ih_interp._torch_state import plain_torch
from ih_interp.clamps import AbstractClamp
from ih_interp.config import RunConfig
from ih_interp.evaluation import METRICS
from ih_interp.hooked_model import HookedModel
from ih_interp.model import build_model, is_zero_bias
from ih_interp.storage import run_files
from ih_interp.storage.atomic import PathLike, as_path
from ih_interp.tasks.base import Task
from ih_interp.tasks.exemplars import Exemplars
from ih_interp.tasks.pairs import PairsConfig, PairsTask

COLUMNS = ["step", "sequences", "split", "under", *METRICS]


class Run:
    """A run folder, read only: `ih.train` returns it, and it can be opened again at any time.

        run = ih.Run("runs/main")  # the root and the name that it was trained under
        run.config.seeds.init, run.config.clamps  # its RunConfig
        run.metrics.query("split == 'train'")  # loss, accuracy ... at every evaluation
        run.steps  # updates that have a checkpoint; each is run.config.batch_size sequences
        model = run.model(run.steps[-1])  # a HookedModel, unclamped; run.model() is the same
        batch = run.task.sample("train", 1_000, generator=torch.Generator().manual_seed(1))
        ih.induction_strength(model, batch)

    `exemplars` are those it was trained on, needed where their file was moved or removed. Raises
    FileNotFoundError where there is no run, ValueError where it cannot be read or was trained on
    other exemplars.
    """

    def __init__(self, folder: PathLike, exemplars: Exemplars | None = None) -> None:
        self.folder = as_path(folder, "The folder of a run").absolute()
        recorded, self.config = read_config(self.folder / run_files.CONFIG)
        self.versions = recorded.versions
        self.engine: str = recorded.engine
        self.features_sha256 = recorded.features_sha256
        if exemplars is not None:
            self._refuse_other(exemplars.sha256)
        self._exemplars = exemplars

    def __repr__(self) -> str:
        if not self.folder.is_dir():
            return f"Run({str(self.folder)!r}, which is no longer there)"
        return f"Run({str(self.folder)!r}, {len(self.steps)} checkpoints, finished={self.finished})"

    @cached_property
    def task(self) -> Task:
        """The task that the run trained on; its features are read again, and must be the same.

        Raises FileNotFoundError where their file is gone, ValueError where it holds others.
        """
        config = self.config.task
        if not isinstance(config, PairsConfig):
            return config.build()
        exemplars = self._exemplars
        if exemplars is None:
            try:
                exemplars = config.build().exemplars
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"{self.folder} was trained on features that are no longer there: {error} "
                    "Pass them: Run(folder, exemplars=Exemplars.load(path))."
                ) from error
            self._refuse_other(exemplars.sha256)
        return config.over(exemplars)

    @property
    def clamps(self) -> tuple[AbstractClamp, ...]:
        """The clamps under which it trained."""
        return self.config.clamps

    @property
    def steps(self) -> list[int]:
        """The updates that have a checkpoint, ascending; `step * batch_size` sequences each."""
        self._expect_there()
        return run_files.checkpoint_steps(self.folder)

    @property
    def sequences_per_step(self) -> int:
        """Return the sequences of an update, the batch size."""
        return self.config.batch_size

    @property
    def finished(self) -> bool:
        """Return whether the last checkpoint exists."""
        self._expect_there()
        return run_files.checkpoint_path(self.folder, self.config.n_steps).is_file()

    @property
    def stopped(self) -> int | None:
        """The update at which a callback ended the run (`ih.StopRun`), None where none did.

        `ih.train` leaves such a run alone; without the file `stopped.json` it goes on from there.
        """
        self._expect_there()
        path = self.folder / run_files.STOPPED
        if not path.is_file():
            return None
        remedy = "delete it, and training goes on to the run's end"
        facts = run_files.read_json(path, remedy)
        run, step = facts.get("run"), facts.get("step")
        if run != self.config.fingerprint or type(step) is not int or step < 0:
            what = f"does not say where this run was ended (run {short(run)}, step {short(step)})"
            raise run_files.DamagedFileError(path, what, remedy)
        return step

    @property
    def whole(self) -> bool:
        """Return whether the run is finished and no checkpoint or metrics are missing.

        Checkpoints are not read for this. Raises ValueError for damaged metrics.
        """
        return self.finished and not self.lost(self.config.n_steps + 1)

    def lost(self, before: int) -> list[str]:
        """Say what should exist before an update and is missing; ValueError for damaged metrics."""
        config = self.config
        due, there = config.checkpoints.steps(config.n_steps, config.batch_size), set(self.steps)
        missing = [step for step in due if step < before and step not in there]
        files = [f"{run_files.checkpoint_path(self.folder, step)} is missing" for step in missing]
        return files + self._unmeasured(self._saved_rows(), before)

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per evaluation and split: `step`, `sequences`, `split`, `under`, metrics.

        Under is "clamped", each clamp as its schedule has it at that step, or "free", without any,
        as `config.evaluate` asks. A run in training has the rows saved so far. Raises ValueError
        for a damaged file, and for missing evaluations of a finished run.
        """
        rows = self.rows(before=self.config.n_steps + 1 if self.finished else 0)
        return pd.DataFrame(rows, columns=None if rows else COLUMNS)

    def rows(self, *, before: int) -> list[dict[str, Any]]:
        """Return the metrics row by row; ValueError if one due before step `before` is missing."""
        rows = self._saved_rows()
        if unmeasured := self._unmeasured(rows, before):
            raise ValueError(
                f"{unmeasured[0]}: train the run to its end or, if the file was lost, train again "
                "with repair=True, which gives the same numbers."
            )
        return rows

    def _unmeasured(self, rows: list[dict[str, Any]], before: int) -> list[str]:
        """Say in one sentence, or none, which evaluations before an update are missing."""
        grid = self.config.evaluations.steps(self.config.n_steps, self.config.batch_size)
        due, found = [step for step in grid if step < before], {row["step"] for row in rows}
        missing = [step for step in due if step not in found]
        path, share = self.folder / run_files.METRICS, f"{len(missing)} of {len(due)}"
        return [f"{path} lacks {share} evaluations, the first at step {s}" for s in missing[:1]]

    def _expect_there(self) -> None:
        """Refuse a folder that was moved or removed meanwhile: it would read as an empty run."""
        if not (self.folder / run_files.CONFIG).is_file():
            raise FileNotFoundError(
                f"There is no run at {self.folder} any more: {run_files.CONFIG} is missing. Open "
                "the run where it is now, or train it again."
            )

    def _saved_rows(self) -> list[dict[str, Any]]:
        self._expect_there()
        return run_files.read_metrics(self.folder, self.config.fingerprint)

    @plain_torch()
    def model(self, step: int | None = None) -> HookedModel:
        """Return the model after `step` updates, by default the last checkpoint; unclamped.

        Raises ValueError for a step without checkpoint, or a checkpoint that is damaged.
        """
        if not (steps := self.steps):
            raise ValueError(f"{self.folder} has no checkpoints yet; train it first.")
        step = self.checkpoint_step(steps[-1] if step is None else step)
        model = build_model(self.task, self.config.model, seed=self.config.seeds.init)
        if isinstance(self.task, PairsTask):  # its features may have been changed in place
            self._refuse_other(self.task.exemplars.last_sha256)
        self.load_weights(model, step)
        return model

    def checkpoint_step(self, step: object) -> int:
        """Return a step that has a checkpoint as an int; TypeError or ValueError for others."""
        wanted = integer(step, f"step={step!r}", "give one of run.steps, which are updates")
        if wanted not in self.steps:
            raise ValueError(
                f"{self.folder} has no checkpoint at step {step}; it has {short(self.steps)}."
            )
        return wanted

    @plain_torch()
    def load_weights(self, model: HookedModel, step: int) -> None:
        """Write a checkpoint's weights into a model of this run; ValueError where they differ."""
        path, (weights, _) = run_files.checkpoint_path(self.folder, step), self.read_weights(step)
        parameters = dict(model.named_parameters())
        trained = {n: tuple(p.shape) for n, p in parameters.items() if not is_zero_bias(n)}
        if trained != {name: tuple(weight.shape) for name, weight in weights.items()}:
            raise ValueError(f"{path} holds the weights of another model than the one given.")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights.get(name, torch.zeros(())))

    def read_weights(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read a checkpoint's weights by name, and the facts saved with them.

        Raises ValueError for a missing, damaged or foreign checkpoint.
        """
        step = self.checkpoint_step(step)
        path = run_files.checkpoint_path(self.folder, step)
        weights, facts = run_files.load_tensors(path)
        belongs, expected = (facts.get("run"), facts.get("step")), (self.config.fingerprint, step)
        if belongs != expected:
            there, here = (f"{run} at step {number}" for run, number in (belongs, expected))
            what = f"belongs to run {there}, not to {here}; it was copied from elsewhere"
            raise run_files.DamagedFileError(path, what)
        is_state = any(":" in name for name in weights)
        if is_state or {weight.dtype for weight in weights.values()} != {torch.float32}:
            what = "holds tensors that are not weights, which are float32"
            raise run_files.DamagedFileError(path, what)
        return weights, facts

    def _refuse_other(self, sha256: str) -> None:
        trained_on = str(self.features_sha256)
        if sha256 != trained_on:
            raise ValueError(
                f"{self.folder} was trained on other features (sha256 {trained_on[:12]}, "
                f"got {sha256[:12]}); pass those it was trained on: Run(folder, exemplars=...)."
            )


def refuse_other_run(folder: Path, config: RunConfig) -> None:
    """Raise ValueError if the folder holds a run of another configuration, or part of one."""
    if (folder / run_files.CONFIG).is_file():
        there = Run(folder).config
        if there.sequences > config.sequences and there.fingerprint == config.fingerprint:
            raise ValueError(
                f"{folder} holds a run of sequences={there.sequences}, and {config.sequences} here "
                "are fewer: give at least as many, with which it goes on, or another name."
            )
        if there.fingerprint != config.fingerprint:
            old, new = there.identity.save(), config.identity.save()
            changed = [name for name in new if new[name] != old[name]]
            words = [f"{name} is {old[name]} there and {new[name]} here" for name in changed]
            raise ValueError(
                f"{folder} holds another run: {'; '.join(words)}. Give this one another name or "
                "root."
            )
        return
    files = (run_files.METRICS, run_files.STATE, run_files.STATE_BEFORE)
    left = [name for name in files if (folder / name).exists()]
    left += [run_files.CHECKPOINTS] if run_files.checkpoint_steps(folder) else []
    if left:
        raise ValueError(
            f"{folder} holds {', '.join(left)} and no {run_files.CONFIG} that says of which run. "
            "Restore it, give this run another name or root, or train with repair=True, which "
            "removes them and begins the run anew."
        )


def create_run(folder: Path, config: RunConfig, task: Task, *, engine: str) -> Run:
    """Write `config.json`, or open the run that is there.

    Only that run's name, length and the paths of its files are written anew, where they have
    changed. `engine`, "compiled" or "eager", is recorded: a run keeps to one, since their numbers
    differ in the last digits.
    """
    refuse_other_run(folder, config)
    path, exemplars = folder / run_files.CONFIG, getattr(task, "exemplars", None)
    if path.is_file():
        run = Run(folder, exemplars)
        if run.config != config:
            rewrite_config(path, {"run": config.save()})
            run.config = config
        return run
    (folder / run_files.STOPPED).unlink(missing_ok=True)  # of an earlier run
    sha256 = None if exemplars is None else exemplars.sha256
    write_config(path, config, features_sha256=sha256, engine=engine)
    return Run(folder, exemplars)
