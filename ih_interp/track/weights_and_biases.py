"""Weights & Biases as a tracker."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ih_interp._expect import expect
from ih_interp.runs import Run
from ih_interp.storage.atomic import PathLike, as_path, write_atomic
from ih_interp.track.base import AbstractTracker, library

LAST_STEP = "ih_interp.last_step"  # the file that says how far a folder's run was logged


class WandB(AbstractTracker):
    """Log to Weights & Biases, a run per run; needs the extra `[wandb]`.

        ih.train(runs, "runs", on_metrics=ih.track.WandB("induction"))

    Offline, `wandb sync FOLDER/wandb/offline-run-*` uploads what was logged; a run that resumed has
    a folder for each part, under one id. The same configuration under the same name is the same
    run there, and its points are not logged twice.

    Args:
        project: the project's name.
        mode: "offline" or "online".
        folder: where the folder `wandb` goes.
        init: further arguments of `wandb.init`, such as `{"entity": "lab", "group": "sweep"}`.
        options: `measures` and `batch`, as for `AbstractTracker`.
    """

    def __init__(
        self,
        project: str,
        *,
        mode: Literal["offline", "online"] = "offline",
        folder: PathLike = ".",
        init: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if mode not in ("offline", "online"):
            raise ValueError(f'mode={mode!r}: expected "offline" or "online".')
        expect(project, str, f"project={project!r}")
        self.folder = as_path(folder, "folder").absolute()
        self._given = {"project": project, "mode": mode, **(init or {})}
        self._library = library("wandb", "wandb")

    def open(self, run: Run, step: int) -> Any:
        """Return a run of Weights & Biases, and the first update that is not logged in it."""
        name = f"{run.config.name}-{run.config.fingerprint}"
        self.folder.mkdir(parents=True, exist_ok=True)
        logged = [
            int(path.read_text())
            for path in self.folder.glob(f"wandb/*-{name}/{LAST_STEP}")
            if path.is_file()
        ]
        opened = self._library.init(
            dir=str(self.folder),
            id=name,
            name=run.config.name,
            config=run.config.save(),
            resume="allow",
            reinit="create_new",  # several runs train at once
            settings=self._library.Settings(console="off", silent=True, disable_git=True),
            **self._given,
        )
        return opened, max([step, opened.step, *(last + 1 for last in logged)])

    def write(self, writer: Any, step: int, numbers: Mapping[str, float]) -> None:
        """Log numbers, but for those of updates that are logged already."""
        opened, first = writer
        if step >= first:
            opened.log(dict(numbers), step=step)
            # Offline the library does not say how far a run was logged.
            place = Path(opened.dir).parent / LAST_STEP
            write_atomic(place, str(step).encode(), with_folder=False)

    def end(self, writer: Any) -> None:
        """Finish the run."""
        writer[0].finish()
