"""`ih-interp reproduce`: train what figures need, draw them, and say what holds."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure as Canvas

from ih_interp._torch_state import plain_torch
from ih_interp.paper.claims import merge_claims
from ih_interp.paper.figures import FIGURES
from ih_interp.paper.networks import Networks, train_study
from ih_interp.paper.presets import PRESETS, Preset, PresetName
from ih_interp.paper.study import Claim, Figure, Study
from ih_interp.plots._style import save, style
from ih_interp.storage.atomic import PathLike, as_path
from ih_interp.tasks.exemplars import Exemplars, ExemplarSource
from ih_interp.training.train import Engine

SAMPLED = 2_000  # sequences that measures are averaged over, but for the paper preset: every one

SEEDS: Mapping[PresetName, int] = {"smoke": 1, "quick": 1, "paper": 5}
"""Networks where no number is asked for."""


class Request(NamedTuple):
    """What was asked for, checked."""

    figures: list[Figure]
    preset: PresetName
    source: ExemplarSource
    seeds: int
    root: Path
    options: str
    """As the command line has them."""

    def command(self, figure: Figure) -> str:
        """What draws one of the figures."""
        return f"ih-interp reproduce {figure.word}{self.options}"


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
    keeps the claims of figures drawn earlier; the smoke preset's are not judged. Finished runs
    under `runs` are used again, interrupted ones resumed. Every row of a csv that comes from a run
    names it (`run`), and the fingerprint of its configuration (`config`), as
    `Run(folder).config.fingerprint` gives it.

    Args:
        figures: names such as "3a", "3" for all of its parts, "table1", or "all"; by default
            those of the main text, at the paper preset all.
        preset: "smoke", "quick" or "paper": how long and how densely runs are.
        exemplars: a file for `Exemplars.load`; by default synthetic features.
        seeds: how many networks, from seed 5 on; by default 5 at the paper preset, else 1.
        runs: where runs lie, in a folder for preset and features.
        folder: where figures go.
        engine: as in `train`.
        say: is told what happens.

    Raises ValueError for an unknown figure or preset, and what `Exemplars.load` and `train` raise.
    """
    say = say or (lambda _: None)
    asked = _request(figures, preset, exemplars, seeds, as_path(runs, "runs"))
    study, place = _trained(asked, engine, say), as_path(folder, "folder")
    claims: list[Claim] = []
    for figure in asked.figures:
        table = figure.table(study)
        canvas = draw(figure, table, caption=asked.command(figure))
        paths = save(canvas, place, figure.file_name, _traceable(table, study))
        say(f"{figure.file_name}: {', '.join(map(str, paths))}")
        judged = asked.preset != "smoke"
        claims += [claim._replace(judged=judged) for claim in figure.claims(table)]
    drawn = [figure.name for figure in asked.figures]
    merge_claims(place, claims, drawn=drawn, runs=asked.root.name)
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
    """The finished runs that figures are drawn from, trained where they are missing.

        study = prepare(["3b"], preset="smoke")
        table = FIGURES["3b"].table(study)

    Arguments and errors as in `reproduce`.
    """
    asked = _request(figures, preset, exemplars, seeds, as_path(runs, "runs"))
    return _trained(asked, engine, say or (lambda _: None))


def draw(figure: str | Figure, table: pd.DataFrame, *, caption: str = "") -> Canvas:
    """A figure of the paper from its table; the caption says by which command.

    Raises ValueError for a name that no figure has, or several have, such as "3".
    """
    if isinstance(figure, str):
        found = _named(figure)
        if len(found) > 1:
            raise ValueError(f"Several figures are called {figure}: {', '.join(found)}; draw one.")
        figure = FIGURES[found[0]]
    with style():
        canvas = Canvas(figsize=figure.size, layout="constrained")
        figure.draw(table, canvas)
        if caption:
            canvas.supxlabel(
                f"{_source_of(figure)}, by: {caption}",
                fontsize=mpl.rcParams["font.size"] * 0.6,
                color="0.4",
            )
    return canvas


def _trained(asked: Request, engine: Engine, say: Callable[[str], None]) -> Study:
    if asked.preset == "smoke":
        say("smoke preset: everything runs, nothing is learned, no claim is judged")
    networks = Networks(
        asked.figures, PRESETS[asked.preset], asked.source, seeds=asked.seeds, root=asked.root
    )
    sequences = None if asked.preset == "paper" else SAMPLED
    return train_study(networks, sequences=sequences, engine=engine, say=say)


def _source_of(figure: Figure) -> str:
    """What a figure repeats, for its caption."""
    paper = "Singh et al. (2024)"
    if not any(map(str.isdigit, figure.name)):
        return f"Beyond {paper}"
    is_table = figure.name.startswith("table")
    return f"{paper}, {figure.name.capitalize() if is_table else f'Figure {figure.name}'}"


def _request(
    figures: Sequence[str], preset: str, exemplars: PathLike | None, seeds: int | None, runs: Path
) -> Request:
    """Everything that can be refused is refused here."""
    name = _preset(preset)
    wanted = _wanted(figures, name)
    seeds = SEEDS[name] if seeds is None else seeds
    if seeds < 1:
        raise ValueError(f"seeds={seeds}; at least one network has to be trained.")
    source = _source(PRESETS[name], exemplars)
    root = runs / f"{preset}-{'synthetic' if exemplars is None else Path(exemplars).stem}"
    options = ""
    if name != "quick":
        options += f" --preset {name}"
    if exemplars is not None:
        options += f" --exemplars {Path(exemplars).name}"
    if seeds != SEEDS[name]:
        options += f" --seeds {seeds}"
    return Request(wanted, name, source, seeds, root, options)


def _wanted(names: Sequence[str], preset: PresetName) -> list[Figure]:
    if not names:
        return [figure for figure in FIGURES.values() if preset == "paper" or figure.main_text]
    chosen: set[str] = set()
    for name in names:
        chosen.update(_named(name))
    return [figure for name, figure in FIGURES.items() if name in chosen]


def _named(name: str) -> list[str]:
    """The figures that "3b", "3" or "all" asks for; ValueError for none."""
    found = [known for known in FIGURES if _means(name, known)]
    if not found:
        words = ", ".join(figure.word for figure in FIGURES.values())
        raise ValueError(f"There is no figure {name}; choose from {words}.")
    return found


def _means(asked: str, name: str) -> bool:
    """Whether "3b", "fig3b", "3", "table1" or "all" asks for a figure."""
    asked = asked.lower().replace(" ", "").removeprefix("fig").removeprefix("ure")
    known = name.replace(" ", "")
    return asked in {"all", known, known.rstrip("abc") if known[0].isdigit() else known}


def _preset(name: str) -> PresetName:
    for known in PRESETS:
        if known == name:
            return known
    raise ValueError(f"There is no preset {name!r}; choose from {', '.join(PRESETS)}.")


def _source(preset: Preset, exemplars: PathLike | None) -> ExemplarSource:
    if exemplars is None:
        return preset.exemplars
    return Exemplars.load(exemplars).recorded_source


def _traceable(table: pd.DataFrame, study: Study) -> pd.DataFrame:
    """The table with the fingerprint of every row's run."""
    if "run" not in table:
        return table
    fingerprints = {
        run.config.name: run.config.fingerprint
        for by_seed in study.runs.values()
        for by_condition in by_seed.values()
        for run in by_condition.values()
    }
    return table.assign(config=[fingerprints[name] for name in table["run"]])
