"""The `ih-interp` command. Heavy imports wait until a command runs, so that help is instant."""

from typing import Annotated

import typer

from ih_interp.cli.figures import bench, reproduce, study
from ih_interp.cli.files import clean, features
from ih_interp.cli.training import report, runs, train

app = typer.Typer(
    help="Train induction heads under clamps, read their checkpoints, draw the figures.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (train, runs, report, reproduce, study, bench, features, clean):
    app.command()(command)


def _tell_version(asked: bool) -> bool:
    if asked:
        from importlib.metadata import version

        typer.echo(version("ih-interp"))
        raise typer.Exit
    return asked


@app.callback()
def _app(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Say which this is."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the console script."""
    app()
