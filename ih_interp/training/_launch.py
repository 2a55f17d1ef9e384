"""Processes of this package, each of which runs the `main` of a module.

Importing torch and TransformerLens makes millions of objects that all stay. Python's garbage
collector, which would look through them repeatedly, is off meanwhile: that saves 2 s of 7.
"""

import ctypes
import gc
import json
import os
import signal
import sys
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from ih_interp.training._launch import main; main()"
)
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs the `main` of a module, with the import path of this process.

    With `-m` Python would import from the working folder first, where a `torch.py` may lie, and
    not from the folders that a notebook or a script has added.
    """
    paths = json.dumps(sys.path, default=str)
    return [sys.executable, "-P", "-c", START, paths, str(os.getpid()), module, *arguments]


def main() -> None:
    """Run the module that the second argument names; the first is the parent's number."""
    die_with_parent(int(sys.argv.pop(1)))
    gc.disable()
    module = import_module(sys.argv.pop(1))
    gc.freeze()  # later collections need not look at what is imported either
    gc.enable()
    sys.exit(module.main())


def die_with_parent(parent: int) -> None:
    """Let the kernel end this process as soon as its parent ends, for whatever reason.

    Its runs can then be trained again at once, as after any kill. On other systems than Linux the
    process notices the end of its orders, a little later, and holds the lock until then.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before we asked
            os._exit(130)


def received(connection: Connection) -> dict[str, Any] | None:
    """Wait for the next message, a JSON object; return None where the other process is gone."""
    try:
        return json.loads(connection.recv_bytes())
    except (EOFError, OSError):
        return None
