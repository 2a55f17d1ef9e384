"""The report page of runs: one HTML file that works offline, also in a notebook."""

import html
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd

from ih_interp._expect import expect, installing, with_article
from ih_interp.page import _captions as captions, _figures as figures
from ih_interp.page.contents import Contents, contents
from ih_interp.runs import Run
from ih_interp.storage.atomic import PathLike, as_path, write_atomic

FOLDER = Path(__file__).parent
NEEDED = ("plotly", "jinja2")
HEIGHT = 900
"""Pixels of the page in a notebook."""


@dataclass(frozen=True, repr=False)
class Report:
    """A page about runs; a notebook shows it where it is the last value of a cell."""

    html: str
    """The whole page, with everything that it needs."""

    def __repr__(self) -> str:
        return f"Report({len(self.html.encode()) / 1e6:.1f} MB; .save(path) writes it)"

    def save(self, out: PathLike) -> Path:
        """Write the page, whole or not at all, and return its path; folders are made.

        Raises OSError where it cannot be written.
        """
        path = as_path(out, "out")
        write_atomic(path, self.html.encode())
        return path

    def _repr_html_(self) -> str:
        page = html.escape(self.html)
        style = f"width: 100%; height: {HEIGHT}px; border: 0"
        return f'<iframe title="Report of runs" style="{style}" srcdoc="{page}"></iframe>'


def report(runs: Sequence[PathLike | Run] | PathLike | Run, *, title: str | None = None) -> Report:
    """Return a page about runs: losses, heads, wiring, patterns, ablations, configuration.

        ih.report("runs/main")  # in a notebook
        ih.report([free, clamped]).save("report.html")

    Of several runs, losses are drawn together, and the rest is shown for the run that is chosen. A
    run need not be finished: each part that cannot be computed says why. Everything is measured at
    checkpoints, under the run's clamps, by the functions of the package; tables can be downloaded
    as csv from the page, which makes no request.

    Raises ImportError without plotly, FileNotFoundError or ValueError for a folder that holds no
    run or one that cannot be read, ValueError for no runs, and TypeError for other values, such as
    `ih.Pretrained` and `ih.ModelSeries`, which `ih.trace` reads.
    """
    refuse_missing_extra()
    opened = opened_runs(runs)
    if title is not None:
        expect(title, str, "title", 'write title="My runs"')
    names = names_of(opened)
    each = [contents(run, name) for run, name in zip(opened, names, strict=True)]
    return Report(_rendered(each, title or _title(names)))


def refuse_missing_extra() -> None:
    """Raise ImportError in words where the packages that draw the page are not installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ImportError(f"The report page needs {' and '.join(missing)}: {installing('report')}.")


def opened_runs(runs: object) -> list[Run]:
    """Return runs as they are, and folders opened; see `report` for what is refused."""
    kinds = (str, os.PathLike, Run)
    given: list[Any] = [runs] if isinstance(runs, kinds) else []
    if not given:
        given = [*runs] if isinstance(runs, Iterable) else [runs]
    if not given:
        raise ValueError("runs=[]: expected at least one run, or the folder of one.")
    for each in given:
        if not isinstance(each, kinds):
            raise TypeError(
                f"A report needs runs that ih.train made: expected a folder, an ih.Run or a list "
                f"of them, got {with_article(type(each).__name__)}; ih.trace reads other "
                "checkpoints, such as ih.Pretrained."
            )
    return [each if isinstance(each, Run) else Run(each) for each in given]


def names_of(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run: its folder's, with the root's where two have the same."""
    short = [run.folder.name for run in runs]
    twice = {name for name, n in Counter(short).items() if n > 1}
    names = [
        f"{run.folder.parent.name}/{name}" if name in twice else name
        for run, name in zip(runs, short, strict=True)
    ]
    again = {name for name, n in Counter(names).items() if n > 1}
    return [f"{name} ({i + 1})" if name in again else name for i, name in enumerate(names)]


def _title(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} runs: {', '.join(names)}"


def _rendered(each: Sequence[Contents], title: str) -> str:
    """Return the page: the template with data, style, script and plotly in it."""
    import jinja2
    from plotly.offline import get_plotlyjs

    tables = [found.metrics for found in each if len(found.metrics)]
    guesses = dict(found.guess for found in each if len(found.metrics))
    compared = None
    if len(each) > 1 and tables:
        table = pd.concat(tables, ignore_index=True)
        compared = figures.compared_losses_figure(table, guesses)
    data = {
        "templates": figures.templates(),
        "scales": figures.SCALES,
        "compared": compared,
        "runs": [{part.key: part.figure for part in found.sections} for found in each],
    }
    loader = jinja2.FileSystemLoader(FOLDER)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    splits = list(dict.fromkeys(split for table in tables for split in table["split"]))
    return environment.get_template("page.html").render(
        title=title,
        runs=each,
        compared="" if compared is None else captions.compared(guesses),
        splits=splits,
        data=_embedded(data),
        style=(FOLDER / "page.css").read_text(),
        script=(FOLDER / "page.js").read_text(),
        plotly=get_plotlyjs(),
    )


def _embedded(data: figures.Json) -> str:
    """Return JSON that no text in it can end, inside a script element."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
