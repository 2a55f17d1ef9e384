"""Starts the `main` of a module, quickly: `python -m ih_interp.launch MODULE ARGUMENTS`.

Importing torch and TransformerLens makes millions of objects that all stay. Python's garbage
collector, which would look through them again and again, rests meanwhile: that saves 2 s of 7.
"""

import gc
import sys
from importlib import import_module


def command(module: str, *arguments: str) -> list[str]:
    """The command that runs the `main` of a module in a process of its own."""
    return [sys.executable, "-m", __name__, module, *arguments]


def _main() -> None:
    gc.disable()
    module = import_module(sys.argv.pop(1))
    gc.freeze()  # later collections need not look at what is imported either
    gc.enable()
    sys.exit(module.main())


if __name__ == "__main__":
    _main()
