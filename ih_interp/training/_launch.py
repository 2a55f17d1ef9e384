"""Starts the `main` of a module in a process of its own, quickly.

Importing torch and TransformerLens makes millions of objects that all stay. Python's garbage
collector, which would look through them again and again, rests meanwhile: that saves 2 s of 7.
"""

import gc
import json
import sys
from importlib import import_module

START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from ih_interp.training._launch import main; main()"
)


def command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs the `main` of a module, which imports from where we do.

    Python alone would look into the working folder first (`-m`), or not where a notebook or a
    script had it look: a `torch.py` that lies about must not be run, our own package must.
    """
    return [
        sys.executable,
        "-P",
        "-c",
        START,
        json.dumps(sys.path, default=str),
        module,
        *arguments,
    ]


def main() -> None:
    """Run the module that the first argument names."""
    gc.disable()
    module = import_module(sys.argv.pop(1))
    gc.freeze()  # later collections need not look at what is imported either
    gc.enable()
    sys.exit(module.main())
