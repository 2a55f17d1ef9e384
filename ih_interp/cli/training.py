"""Commands about runs: `train`, `runs`, `report`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ih_interp.cli._shared import (
    RESUMES,
    Json,
    Plugins,
    RunsFolder,
    before_training,
    echo_json,
    echo_table,
    grouped,
    label,
    load_plugins,
    size,
    told_in_words,
)

if TYPE_CHECKING:
    from ih_interp.config import RunConfig
    from ih_interp.training.listing import RunStatus

CLAMPS_SHOWN = 40  # letters


def train(
    configs: Annotated[
        list[str],
        typer.Argument(
            metavar="CONFIG...",
            help="JSON files of a RunConfig or of a list of them, or the config.json of a run; "
            "- is standard input.",
        ),
    ],
    runs: RunsFolder = Path("runs"),
    workers: Annotated[
        int | None, typer.Option(help="Processes; by default one per core if there is enough.")
    ] = None,
    engine: Annotated[
        Literal["auto", "compiled", "eager"], typer.Option(help="How updates are computed.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    plugins: Plugins = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Verify every file; train damaged ones again.")
    ] = False,
    slurm: Annotated[
        str | None,
        typer.Option(help='Train on a SLURM cluster, "partition=short,time=2:00:00,cpus=4".'),
    ] = None,
    wait: Annotated[
        bool, typer.Option(help="With --slurm: wait for the jobs, or only submit them.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Train runs; the same command goes on where it stopped."""
    before_training()
    with told_in_words(RESUMES):
        if not wait and slurm is None:
            raise ValueError("--no-wait: expected --slurm with it; here training takes this time.")
        load_plugins(plugins)
        every = [run for source in configs for run in read_configs(source)]
        import ih_interp as ih
        from ih_interp.training.state import TrainingFailedError

        options: dict[str, Any] = {"engine": engine, "workers": workers, "device": device}
        options |= {"repair": repair, "plugins": plugins or ()}
        options |= {} if slurm is None else _cluster(slurm, wait=wait)
        try:
            ih.train(every, runs, **options)
        except TrainingFailedError:
            _tell_trained(every, runs, as_json=as_json)
            raise
        _tell_trained(every, runs, as_json=as_json)


def _cluster(slurm: str, *, wait: bool) -> dict[str, Any]:
    """Return the arguments of `ih.train` for a cluster."""
    from ih_interp.training.cluster import Slurm

    return {"cluster": Slurm.parse(slurm), "wait": wait}


def read_configs(source: str) -> "list[RunConfig]":
    """Read one configuration or several from a JSON file, or from standard input for "-".

    Raises ValueError that names the file and the field, FileNotFoundError for a missing file,
    IsADirectoryError for a folder.
    """
    from ih_interp._config_base import short
    from ih_interp.config import RunConfig

    where = "standard input" if source == "-" else source
    try:
        text = sys.stdin.read() if source == "-" else _file(source).read_text(encoding="utf-8")
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}.") from error
    found: list[RunConfig] = []
    for number, given in enumerate(value if isinstance(value, list) else [value]):
        place = f"{where}, run {number + 1}" if isinstance(value, list) else where
        if isinstance(given, dict) and {"run", "fingerprint"} <= given.keys():
            given = given["run"]  # as a run folder records it
        if not isinstance(given, dict):
            raise ValueError(
                f"{place}: expected a JSON object with a run's fields, got {short(given)}."
            )
        try:
            found.append(RunConfig.load(given))
        except ValueError as error:
            raise ValueError(f"{place}: {error}.") from error
    if not found:
        raise ValueError(f"{where}: expected at least one run, got an empty list.")
    return found


def _file(source: str) -> Path:
    """Return the place of a configuration; IsADirectoryError or FileNotFoundError in words."""
    path = Path(source).expanduser()
    if path.is_dir():
        raise IsADirectoryError(
            f"{source} is a folder: expected a JSON file, as {source}/config.json of a run."
        )
    if not path.exists():
        raise FileNotFoundError(
            f"There is no file {source}: expected JSON of a RunConfig, or of a list of them."
        )
    return path


def _tell_trained(configs: "Sequence[RunConfig]", root: Path, *, as_json: bool) -> None:
    """Tell how far each run is: one line per run."""
    from ih_interp.config import run_folder
    from ih_interp.training.listing import status

    folders = [run_folder(root, config) for config in configs]
    found = [status(folder) for folder in folders if folder.is_dir()]
    if as_json:
        echo_json([each.save() for each in found])
        return
    for run in found:
        loss = "" if run.loss is None else f", loss {run.loss:.4f}"
        done = f"{_number(run.step)} of {_number(run.steps)} updates"
        typer.echo(f"{run.name}: {run.folder}, {run.state}, {done}{loss}")


def runs(
    root: Annotated[Path, typer.Argument(help="A folder of runs, or one run.")] = Path("runs"),
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """List the runs below a folder.

    A row says how far a run is, its last training loss in nats, whether it is finished, stopped by
    a callback, interrupted, damaged or being trained, and by whom, its size and its clamps.
    """
    with told_in_words():
        load_plugins(plugins)
        from ih_interp.training.listing import list_runs

        found = list_runs(root)
        if as_json:
            echo_json([run.save() for run in found])
        elif not found:
            typer.echo(f"There is no run below {root}.", err=True)
        else:
            heads = ("run", "updates", "loss", "state", "size", "trained by", "clamps")
            echo_table(heads, [_row(run, root) for run in found])
            wrong = [(run.folder, run.reason) for run in found if run.reason]
            for names, reason in grouped(wrong, root):
                typer.echo(f"\n{names}: {reason}")


def _row(run: "RunStatus", root: Path) -> list[str]:
    done = f"{_number(run.step)} of {_number(run.steps)}"
    loss = "" if run.loss is None else f"{run.loss:.4f}"
    clamps = ", ".join(run.clamps)
    clamps = f"{clamps[:CLAMPS_SHOWN]}..." if len(clamps) > CLAMPS_SHOWN + 3 else clamps
    return [
        label(run.folder, root),
        done,
        loss,
        run.state,
        size(run.bytes),
        run.trained_by or "",
        clamps,
    ]


def _number(value: int | None) -> str:
    return "?" if value is None else f"{value:,}"


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    out: Annotated[Path, typer.Option(help="The page, one file.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="The page's title.")] = None,
    plugins: Plugins = None,
) -> None:
    """Write a page on runs, one HTML file.

    It shows losses, heads, wiring and patterns, and opens without a network.
    """
    typer.echo("loading torch and TransformerLens ...", err=True)
    with told_in_words():
        load_plugins(plugins)
        import ih_interp as ih

        typer.echo(ih.report(runs, title=title).save(out))
