"""`ih-interp study`: train a study's runs, write its tables, draw its figure, judge its claims."""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure as Canvas

from ih_interp._torch_state import plain_torch
from ih_interp.plots._style import save, style
from ih_interp.storage.atomic import PathLike, as_path
from ih_interp.studies import STUDIES
from ih_interp.studies.findings import FILE, Finding, read_findings, write_findings
from ih_interp.studies.study import Study, study_folder, train_stages
from ih_interp.tasks.exemplars import Exemplars
from ih_interp.training.train import Engine


@plain_torch(gradient=None)
def run_study(
    name: str | Study,
    *,
    preset: str = "quick",
    exemplars: PathLike | None = None,
    runs: PathLike = "runs",
    folder: PathLike = "figures",
    engine: Engine = "auto",
    redraw: bool = False,
    say: Callable[[str], None] | None = None,
) -> list[Finding]:
    """Train a study's runs and write what they show into `folder`.

    The table, a row per run or evaluation, is written as csv beside the figure's pdf and png; the
    summary with intervals over networks as `..._summary.csv`; claims go into `findings.csv` and
    `README.md`. Every row names its runs and the fingerprints of their configurations. Finished
    runs under `runs` are used again, interrupted ones resumed.

    Args:
        name: a key of `STUDIES`, such as "critical periods", or with hyphens; or a study of yours.
        preset: "smoke", "quick" or "paper": how many networks, and how long their runs are.
        exemplars: a file for `Exemplars.load`; by default synthetic features.
        runs: where runs lie, in a folder for study, preset and features.
        folder: where the files go.
        engine: as in `train`.
        redraw: whether the csv in `folder` is drawn and judged again, without runs, as by the
            command that wrote it.
        say: is called with each message on the progress.

    Raises ValueError for an unknown study or preset, FileNotFoundError where no csv is there to
    draw again, and what `Exemplars.load` and `train` raise.
    """
    study, say = find_study(name), say or (lambda _: None)
    if preset not in study.scales:
        known = ", ".join(study.scales)
        raise ValueError(f"There is no preset {preset!r}; choose from {known}.")
    place = as_path(folder, "folder")
    features = None if exemplars is None else as_path(exemplars, "exemplars")
    if redraw:
        table = read_table(study, place)
    else:
        scale = study.scales[preset]
        if features is not None:
            scale = scale.replace(exemplars=Exemplars.load(features).recorded_source)
        root = study_folder(as_path(runs, "runs"), study, preset, features)
        table = train_stages(study, scale, root, engine=engine, say=say)
    command = _command(study, preset, features)
    if redraw and (place / FILE).is_file():
        before = read_findings(place)
        command = next(iter(before.loc[before["study"] == study.name, "command"]), command)
    write(study, table, place, command=command, say=say)
    findings = study.judge(table)
    if "--preset smoke" in command:
        findings = [finding._replace(verdict="not judged") for finding in findings]
    write_findings(place, study.name, findings, command=command)
    return findings


def find_study(name: str | Study) -> Study:
    """Return the study of a name, with spaces, hyphens or underscores; ValueError for none."""
    if isinstance(name, Study):
        return name
    asked = name.lower().replace("-", " ").replace("_", " ")
    if asked not in STUDIES:
        words = ", ".join(study.word for study in STUDIES.values())
        raise ValueError(f"There is no study {name!r}; choose from {words}.")
    return STUDIES[asked]


def read_table(study: Study, folder: Path) -> pd.DataFrame:
    """Return the table that a study wrote; FileNotFoundError where there is none."""
    path = folder / f"{study.file_name}.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a table to draw again, found none.")
    return pd.read_csv(path, dtype={"run": str, "config": str})  # "12e3" is no number


def draw_study(study: Study, table: pd.DataFrame, *, command: str = "") -> Canvas:
    """Draw a study's figure from its table; its last line says by which command."""
    with style():
        canvas = Canvas(figsize=study.size, layout="constrained")
        study.draw(table, canvas)
        if command:
            small = mpl.rcParams["font.size"] * 0.6
            canvas.supxlabel(f"{study.question} By: {command}", fontsize=small, color="0.4")
    return canvas


def write(
    study: Study, table: pd.DataFrame, folder: Path, *, command: str, say: Callable[[str], None]
) -> None:
    """Write a study's table, its summary and its figure."""
    canvas = draw_study(study, table, command=command)
    paths = save(canvas, folder, study.file_name, table)
    summary = folder / f"{study.file_name}_summary.csv"
    study.summarise(table).to_csv(summary, index=False)
    say(", ".join(map(str, [*paths, summary])))


def _command(study: Study, preset: str, exemplars: Path | None) -> str:
    options = "" if preset == "quick" else f" --preset {preset}"
    options += "" if exemplars is None else f" --exemplars {exemplars.name}"
    return f"ih-interp study {study.word}{options}"
