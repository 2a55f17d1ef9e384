"""`ih-interp reproduce`: train what figures need, draw them, and say which claims hold."""

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure as Canvas

from ih_interp._torch_state import plain_torch
from ih_interp.paper.claims import Claim, merge_claims, write_readme
from ih_interp.paper.figures import FIGURES
from ih_interp.paper.presets import PRESETS
from ih_interp.paper.study import Figure, Networks, Study, train_study
from ih_interp.plots._style import save, style
from ih_interp.storage.atomic import PathLike, as_path
from ih_interp.tasks.exemplars import Exemplars
from ih_interp.training.train import Engine

MAIN_TEXT = ("3a", "3b", "4a", "4b", "5a", "5b", "6")  # Figures of the paper's main text
SAMPLED = 2_000  # sequences that measures are averaged over, but for the paper preset: every one


class Request(NamedTuple):
    """Figures that were asked for, and how to make them."""

    figures: list[Figure]
    preset: str
    exemplars: Path | None
    seeds: int

    @classmethod
    def of(
        cls, figures: Sequence[str], preset: str, exemplars: PathLike | None, seeds: int | None
    ) -> "Request":
        """Check names and numbers; ValueError for those that are not known."""
        if preset not in PRESETS:
            raise ValueError(f"There is no preset {preset!r}; choose from {', '.join(PRESETS)}.")
        seeds = PRESETS[preset].seeds if seeds is None else seeds
        if seeds < 1:
            raise ValueError(f"seeds={seeds}: expected at least one network to train.")
        default = ["all"] if preset == "paper" else MAIN_TEXT
        chosen = {found for asked in figures or default for found in named(asked)}
        wanted = [figure for known, figure in FIGURES.items() if known in chosen]
        source = None if exemplars is None else as_path(exemplars, "exemplars")
        return cls(wanted, preset, source, seeds)

    @property
    def runs(self) -> str:
        """The name of the folder of runs, as "paper-omniglot_features"."""
        return f"{self.preset}-{'synthetic' if self.exemplars is None else self.exemplars.stem}"

    def command(self, figure: Figure, seeds: int) -> str:
        """Return the command that draws one of the figures from this many networks."""
        options = "" if self.preset == "quick" else f" --preset {self.preset}"
        if self.exemplars is not None:
            options += f" --exemplars {self.exemplars.name}"
        if seeds != PRESETS[self.preset].seeds:
            options += f" --seeds {seeds}"
        return f"ih-interp reproduce {figure.word}{options}"


def named(name: str) -> list[str]:
    """Return the figures that "3b", "fig3b", "3", "table1" or "all" asks for; ValueError for none.

    >>> named("Figure 3"), named("table 1")
    (['3a', '3b'], ['table 1'])
    """
    asked = name.lower().replace(" ", "").removeprefix("fig").removeprefix("ure")
    found = [
        known
        for known, figure in FIGURES.items()
        if asked in {"all", figure.word, figure.word.rstrip("abc") if known[0].isdigit() else None}
    ]
    if not found:
        words = ", ".join(figure.word for figure in FIGURES.values())
        raise ValueError(f"There is no figure {name}; choose from {words}.")
    return found


@plain_torch(gradient=None)
def reproduce(
    figures: Sequence[str] = (),
    *,
    preset: str = "quick",
    exemplars: PathLike | None = None,
    seeds: int | None = None,
    runs: PathLike = "runs",
    folder: PathLike = "figures",
    engine: Engine = "auto",
    say: Callable[[str], None] | None = None,
) -> list[Claim]:
    """Draw figures and tables of the paper into `folder`, training the runs they need.

    Each is written as pdf, png and csv, and what the paper claims about them as `claims.csv`, which
    keeps the claims of figures drawn earlier, and as a table in `README.md` (`write_readme`); the
    smoke preset's are not judged. Finished runs under `runs` are used again, interrupted ones
    resumed. Every row of a csv that comes from a run names it (`run`), and the fingerprint of its
    configuration (`config`), as `Run(folder).config.fingerprint` gives it.

    Args:
        figures: names such as "3a", "3" for all of its parts, "table1", or "all"; by default
            those of the main text, at the paper preset all.
        preset: "smoke", "quick" or "paper": how long and how densely runs are.
        exemplars: a file for `Exemplars.load`; by default synthetic features.
        seeds: how many networks, from seed 5 on; by default 5 at the paper preset, else 1.
        runs: where runs lie, in a folder for preset and features.
        folder: where figures go.
        engine: as in `train`.
        say: is called with each message on the progress.

    Raises ValueError for an unknown figure or preset, and what `Exemplars.load` and `train` raise.
    """
    asked, place = Request.of(figures, preset, exemplars, seeds), as_path(folder, "folder")
    study = prepare(
        figures, preset=preset, exemplars=exemplars, seeds=seeds, runs=runs, engine=engine, say=say
    )
    tables = ((figure, figure.table(study)) for figure in asked.figures)
    return _draw_all(tables, asked, place, say or (lambda _: None), study)


def redraw(
    figures: Sequence[str] = (),
    *,
    preset: str = "quick",
    exemplars: PathLike | None = None,
    folder: PathLike = "figures",
    say: Callable[[str], None] | None = None,
) -> list[Claim]:
    """Draw figures again from their csv files in `folder`, without any run.

    The csv files stay as they are; pdf, png and claims are written as by `reproduce`, and captions
    say the command that made the numbers: `preset` and `exemplars` are those of that command, whose
    file of features need not be there. Figures without a csv in the folder are left out.

    Raises ValueError for an unknown figure or preset, and FileNotFoundError where no csv is there.
    """
    asked, place = Request.of(figures, preset, exemplars, None), as_path(folder, "folder")
    files = {figure: place / f"{figure.file_name}.csv" for figure in asked.figures}
    there = {figure: file for figure, file in files.items() if file.is_file()}
    if not there:
        names = ", ".join(file.name for file in files.values())
        raise FileNotFoundError(f"{place}: expected one of {names}, found none to draw again.")
    as_words = {"heads": str, "ablated": str}  # which may be empty
    tables = ((figure, pd.read_csv(file, converters=as_words)) for figure, file in there.items())
    return _draw_all(tables, asked, place, say or (lambda _: None))


def _draw_all(
    tables: Iterable[tuple[Figure, pd.DataFrame]],
    asked: Request,
    folder: Path,
    say: Callable[[str], None],
    study: Study | None = None,
) -> list[Claim]:
    """Draw and judge figures; without a study, leave their csv files as they are."""
    claims: list[Claim] = []
    drawn: list[str] = []
    for figure, table in tables:
        seeds = table["seed"].nunique() if "seed" in table else asked.seeds
        canvas = draw(figure, table, caption=asked.command(figure, seeds))
        if study is not None:
            paths = save(canvas, folder, figure.file_name, _traceable(table, study))
        else:
            with TemporaryDirectory() as beside:  # a csv that is read has lost digits
                pictures = save(canvas, beside, figure.file_name, table)[:2]
                paths = [shutil.move(picture, folder / picture.name) for picture in pictures]
        say(f"{figure.file_name}: {', '.join(map(str, paths))}")
        claims += figure.claims(table)
        drawn.append(figure.name)
    claims = [claim._replace(judged=asked.preset != "smoke") for claim in claims]
    merge_claims(folder, claims, drawn=drawn, runs=asked.runs)
    write_readme(folder)
    return claims


@plain_torch(gradient=None)
def prepare(
    figures: Sequence[str] = (),
    *,
    preset: str = "quick",
    exemplars: PathLike | None = None,
    seeds: int | None = None,
    runs: PathLike = "runs",
    engine: Engine = "auto",
    say: Callable[[str], None] | None = None,
) -> Study:
    """Return the finished runs that figures are drawn from, trained where they are missing.

        study = prepare(["3b"], preset="smoke")
        table = FIGURES["3b"].table(study)

    Arguments and errors as in `reproduce`.
    """
    say = say or (lambda _: None)
    asked, root = Request.of(figures, preset, exemplars, seeds), as_path(runs, "runs")
    synthetic, given = PRESETS[preset].exemplars, asked.exemplars
    source = synthetic if given is None else Exemplars.load(given).recorded_source
    if preset == "smoke":
        say("smoke preset: everything runs, nothing is learned, no claim is judged")
    folder = root / asked.runs
    networks = Networks(asked.figures, PRESETS[preset], source, seeds=asked.seeds, root=folder)
    sequences = None if preset == "paper" else SAMPLED
    return train_study(networks, sequences=sequences, engine=engine, say=say)


def draw(figure: str | Figure, table: pd.DataFrame, *, caption: str = "") -> Canvas:
    """Draw a figure of the paper from its table; the caption says by which command.

    Raises ValueError for a name that no figure has, or several have, such as "3".
    """
    if isinstance(figure, str):
        name, *others = named(figure)
        if others:
            raise ValueError(f"figure={figure!r}: expected one, not {', '.join([name, *others])}.")
        figure = FIGURES[name]
    with style():
        canvas = Canvas(figsize=figure.size, layout="constrained")
        figure.draw(table, canvas)
        if caption:
            name = figure.name if figure.name.startswith("table") else f"figure {figure.name}"
            numbered = any(map(str.isdigit, name))
            source = "Singh et al. (2024)"
            source = f"{source}, {name.capitalize()}" if numbered else f"Beyond {source}"
            canvas.supxlabel(
                f"{source}, by: {caption}", fontsize=mpl.rcParams["font.size"] * 0.6, color="0.4"
            )
    return canvas


def _traceable(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    """Return the table with the fingerprint of every row's run."""
    if "run" not in table:
        return table
    sets = [runs for by_seed in study.runs.values() for runs in by_seed.values()]
    marks = {run.config.name: run.config.fingerprint for runs in sets for run in runs.values()}
    return table.assign(config=table["run"].map(marks))
