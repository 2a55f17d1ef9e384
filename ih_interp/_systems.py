"""The operating systems on which this package runs: Linux and macOS."""

import sys
from importlib import import_module


def refuse_other_systems() -> None:
    """Raise ImportError in words where Python lacks what locks and signals need, as on Windows."""
    for name in ("fcntl", "resource"):
        try:
            import_module(name)
        except ImportError as error:
            raise ImportError(
                f"ih_interp runs on Linux and macOS, and this system ({sys.platform}) has no "
                f"module {name}: on Windows, use the Windows Subsystem for Linux (WSL)."
            ) from error
