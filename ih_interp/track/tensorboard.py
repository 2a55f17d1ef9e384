"""TensorBoard as a tracker."""

from collections.abc import Mapping
from typing import Any

from ih_interp.runs import Run
from ih_interp.storage.atomic import PathLike, as_path
from ih_interp.track.base import AbstractTracker, library


class TensorBoard(AbstractTracker):
    """Write TensorBoard's event files, a folder per run; needs the extra `[tensorboard]`.

        ih.train(runs, "runs", on_metrics=ih.track.TensorBoard("logs"))

    `tensorboard --logdir logs` shows them. Give runs of each root a folder of their own: a run that
    begins takes away the points of an earlier one of its name.

    Args:
        folder: where the run folders go.
        options: `measures` and `batch`, as for `AbstractTracker`.
    """

    def __init__(self, folder: PathLike = "tensorboard", **options: Any) -> None:
        super().__init__(**options)
        self.folder = as_path(folder, "folder").absolute()
        self._library = library("torch.utils.tensorboard", "tensorboard")

    def open(self, run: Run, step: int) -> Any:
        """Return a writer, which makes TensorBoard forget points at and after the update."""
        folder = self.folder / run.config.name
        writer = self._library.SummaryWriter(str(folder), purge_step=step)
        if step == 0:
            writer.add_text("config", f"```json\n{run.config.model_dump_json(indent=2)}\n```", 0)
        return writer

    def write(self, writer: Any, step: int, numbers: Mapping[str, float]) -> None:
        """Write numbers, and wait until they are in the file."""
        for name, number in numbers.items():
            writer.add_scalar(name, number, step)
        writer.flush()

    def end(self, writer: Any) -> None:
        """Close the file."""
        writer.close()
