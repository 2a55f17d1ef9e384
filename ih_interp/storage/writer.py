"""Checkpoints written beside the training: a disk that takes its time does not hold it up."""

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from ih_interp.storage.atomic import sync_folder, write_atomic


class Writer:
    """Writes files in a thread, in the order given; writers may share one.

    `settle` waits until they are on the disk under their names, and raises what went wrong with any
    of them. Leaving the block settles too; where an exception leaves it, that one goes on.
    """

    def __init__(self, thread: ThreadPoolExecutor | None = None) -> None:
        self._thread = thread or ThreadPoolExecutor(max_workers=1)
        self._begun: list[tuple[Path, Future[None]]] = []

    def write(self, path: Path, content: bytes) -> None:
        """Begin to replace a file whole (`files.write_atomic`), in a folder that is there."""
        how = {"sync_name": False, "new_folders": False}
        written = self._thread.submit(write_atomic, path, content, **how)
        self._begun.append((path, written))

    def settle(self) -> None:
        """Wait for everything begun; the first error of a file is raised."""
        begun, self._begun = self._begun, []
        for _, written in begun:
            written.result()
        for folder in sorted({path.parent for path, _ in begun}):  # once for many files
            with suppress(FileNotFoundError):  # moved meanwhile, as the next save finds out
                sync_folder(folder)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        try:
            self.settle()
        except Exception as unwritten:
            if error is None:
                raise
            error.add_note(f"Besides, files could not be written: {unwritten}")
        finally:
            self._thread.shutdown()
