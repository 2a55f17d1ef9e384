"""Processes of this package's own, each of which runs the `main` of a module.

Importing torch and TransformerLens makes millions of objects that all stay. Python's garbage
collector, which would look through them again and again, rests meanwhile: that saves 2 s of 7.
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
    """Return the command that runs the `main` of a module, which imports from where we do.

    Python alone would look into the working folder first (`-m`), or not where a notebook or a
    script had it look: a `torch.py` that lies about must not be run, our own package must.
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
    """Let the kernel end this process as soon as its parent ends, by whatever.

    Its runs are then as after any kill: nothing that was saved is lost, and they can be trained
    again at once. On other systems than Linux the end of the orders tells it, a little later, and
    until then it holds the lock.
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
