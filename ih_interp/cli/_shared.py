"""The parts that commands share: options, words instead of tracebacks, tables, JSON."""

import json
import os
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from math import isnan
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from ih_interp._reprs import with_notes

RESUMES = "Everything is saved; the same command goes on from here."

Features: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Features (.h5, .npz or .npy); by default synthetic, no download."),
]
FiguresFolder: TypeAlias = Annotated[
    Path, typer.Option("--figures", help="Where pictures and tables go.")
]
RunsFolder: TypeAlias = Annotated[Path, typer.Option(help="Where runs are kept, and resumed from.")]
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", help="Write JSON to standard output, and all else to the other.")
]
Plugins: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODULE",
        help="A module with tasks, clamps and others of your own, found in the working folder, "
        "too; may be repeated.",
    ),
]


@contextmanager
def told_in_words(after_interrupt: str = "") -> Generator[None]:
    """End the command in words, without a traceback, at errors in the input and at Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted. {after_interrupt}", err=True)
        raise typer.Exit(130) from None
    except (ValueError, OSError, ImportError) as error:
        typer.echo(f"ih-interp: {_words(error)}", err=True)
        raise typer.Exit(2) from None
    except RuntimeError as error:
        from ih_interp.training.cluster import ClusterError
        from ih_interp.training.state import TrainingFailedError

        if not isinstance(error, TrainingFailedError | ClusterError):
            raise
        typer.echo(f"ih-interp: {error}", err=True)
        raise typer.Exit(1) from None


def _words(error: Exception) -> str:
    """Return an error's message and notes; of the system's errors, path and reason alone."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror[:1].lower()}{error.strerror[1:]}."
    return with_notes(error)


def load_plugins(plugins: Sequence[str] | None) -> None:
    """Import modules of the user's own, from the working folder too, where Python would not look.

    It comes last: a `torch.py` that lies there is not imported for torch.
    """
    if plugins:
        from ih_interp import registry

        sys.path.append(str(Path.cwd()))
        registry.load_plugins(plugins)


def before_training() -> None:
    """Say that loading takes seconds, and keep threads that wait from taking half of the speed."""
    typer.echo("loading torch and TransformerLens ...", err=True)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def saying(as_json: bool) -> Callable[[str], None]:
    """Return a function that tells the progress; standard output may be kept for JSON."""
    return partial(typer.echo, err=as_json)


def echo_json(value: object) -> None:
    """Write a value as JSON, NaN as null."""
    typer.echo(json.dumps(_plain(value), indent=2, allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and isnan(value) else value


def echo_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write rows of words in columns, under their heads."""
    table = [list(heads), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        typer.echo("  ".join(cells).rstrip())


def label(folder: Path, root: Path) -> str:
    """Return a folder's path below the root, its name where it is the root; others as they are."""
    top = root.expanduser().absolute()
    if folder == top:
        return folder.name
    return str(folder.relative_to(top) if folder.is_relative_to(top) else folder)


def grouped(reasons: Iterable[tuple[Path, str]], root: Path) -> list[tuple[str, str]]:
    """Return each reason once, after the labels of the folders that it concerns.

    A file in such a folder is named without the folder, by which alone reasons may differ.
    """
    labels: dict[str, list[str]] = {}
    for folder, reason in reasons:
        labels.setdefault(reason.replace(f"{folder}/", ""), []).append(label(folder, root))
    return [(", ".join(names), reason) for reason, names in labels.items()]


def size(n_bytes: int) -> str:
    """Return a number of bytes as people read it.

    >>> size(999), size(1_500_000)
    ('999 B', '1.5 MB')
    """
    number, units = float(n_bytes), ["B", "kB", "MB", "GB", "TB"]
    while number >= 999.95 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.0f} {units[0]}" if units[0] == "B" else f"{number:.1f} {units[0]}"
