"""Writing files whole or not at all."""

import os
from pathlib import Path


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file whole or not at all: temporary file beside it, flush, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile's, which nobody else may read: the run folder may be shared.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
