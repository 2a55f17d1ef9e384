"""The `ih-interp` command. Heavy imports wait until a command runs, so that help is instant."""

import os
import shutil
import textwrap
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

if TYPE_CHECKING:
    from ih_interp.paper.claims import Claim

app = typer.Typer(
    help="Train induction heads under clamps, read their checkpoints, draw the figures.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _tell_version(asked: bool) -> bool:
    if asked:
        typer.echo(version("ih-interp"))
        raise typer.Exit
    return asked


Features: TypeAlias = Annotated[
    Path | None,
    typer.Option(help="Features (.h5, .npz or .npy); by default synthetic, no download."),
]
RunsFolder: TypeAlias = Annotated[Path, typer.Option(help="Where runs are kept, and resumed from.")]


@app.callback()
def _app(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_tell_version, is_eager=True, help="Say which this is."),
    ] = False,
) -> None:
    pass


@app.command()
def reproduce(
    figures: Annotated[
        list[str] | None,
        typer.Argument(
            help="Figures such as 3a 5b table1, or all; by default those of the main text, "
            "with --preset paper all."
        ),
    ] = None,
    preset: Annotated[
        Literal["smoke", "quick", "paper"],
        typer.Option(
            help="smoke: seconds, nothing is learned. quick: minutes, fewer and larger updates. "
            "paper: the paper's schedule."
        ),
    ] = "quick",
    exemplars: Features = None,
    seeds: Annotated[
        int | None,
        typer.Option(help="Networks, from seed 5 on; by default 1, or 5 with --preset paper."),
    ] = None,
    runs: RunsFolder = Path("runs"),
    figures_dir: Annotated[
        Path, typer.Option("--figures", help="Where pdf, png and csv go.")
    ] = Path("figures"),
    redraw: Annotated[
        bool,
        typer.Option(help="Draw figures from their csv, without runs; repeat the other options."),
    ] = False,
) -> None:
    """Train what the figures need, draw them, and compare them with the paper."""
    typer.echo("loading torch and TransformerLens ...", err=True)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads take half of the speed
    with told_in_words("Everything is saved; the same command goes on from here."):
        from ih_interp.paper.reproduce import redraw as draw_again, reproduce as draw

        act = draw_again if redraw else partial(draw, seeds=seeds, runs=runs)
        claims = act(
            figures or (), preset=preset, exemplars=exemplars, folder=figures_dir, say=typer.echo
        )
        typer.echo(claims_text(claims))


@app.command()
def study(
    name: Annotated[
        str, typer.Argument(help="critical-periods, emergence-law, frozen-weights or other-tasks.")
    ],
    preset: Annotated[
        Literal["smoke", "quick", "paper"],
        typer.Option(
            help="smoke: nothing is learned. quick: small networks, tens of minutes. "
            "paper: the paper's schedule, hours."
        ),
    ] = "quick",
    exemplars: Features = None,
    runs: RunsFolder = Path("runs"),
    figures_dir: Annotated[
        Path, typer.Option("--figures", help="Where pdf, png, csv and findings go.")
    ] = Path("figures"),
    redraw: Annotated[
        bool, typer.Option(help="Draw and judge from the csv, without runs.")
    ] = False,
) -> None:
    """Run a study beyond the paper: its runs, its tables, its figure, and what it found."""
    typer.echo("loading torch and TransformerLens ...", err=True)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with told_in_words("Everything is saved; the same command goes on from here."):
        from ih_interp.studies.run import run_study

        act = partial(run_study, preset=preset, redraw=redraw, say=typer.echo)
        findings = act(name, exemplars=exemplars, runs=runs, folder=figures_dir)
        for finding in findings:
            p = "" if isnan(finding.p) else f"; p = {finding.p:.2g}"
            typer.echo(f"\n{finding.claim}: {finding.verdict}\n     {finding.found}{p}")


@app.command()
def bench(
    sizes: Annotated[
        str, typer.Option(help="Sizes of the fleets, with commas between.")
    ] = "2,4,8,16,32",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are over them.")] = 5,
    figures_dir: Annotated[
        Path, typer.Option("--figures", help="Where bench.csv, pdf and png go.")
    ] = Path("figures"),
) -> None:
    """Measure how fast training is here: eager, compiled, in fleets, on all cores."""
    with told_in_words():
        numbers = _sizes(sizes)
        from ih_interp.bench.bench import bench as measure, contenders, write

        table = measure(
            contenders(numbers), repeats=repeats, say=lambda line: typer.echo(line, err=True)
        )
        typer.echo(table.round(3).to_string(index=False))
        typer.echo(", ".join(map(str, write(table, figures_dir.expanduser()))))


def _sizes(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) >= 2 for part in parts):
        raise ValueError(f"--sizes {text!r}: whole numbers from 2 on were expected, as 2,4,8.")
    return sorted({int(part) for part in parts})


def claims_text(claims: "Sequence[Claim]") -> str:
    """Return claims as text, as wide as the terminal: claim, paper, ours, whether it holds."""
    if not all(claim.judged for claim in claims):
        return (
            "\nEverything ran. The smoke preset learns nothing, so no claim is judged; "
            "--preset quick or --preset paper does that."
        )
    width = max(60, min(110, shutil.get_terminal_size().columns)) - 12

    def block(label: str, text: str) -> str:
        first = f"     {label:<6}"
        return textwrap.fill(text, width, initial_indent=first, subsequent_indent=" " * 11)

    lines: list[str] = [""]
    for claim in claims:
        verdict = "holds" if claim.holds else "DOES NOT HOLD"
        if claim.of > 1:
            verdict += f" ({claim.held} of {claim.of} networks)"
        lines += [f"{claim.figure:>3}  {claim.claim}: {verdict}"]
        lines += [block("paper", claim.paper), block("here", claim.ours)]
    held = sum(claim.holds for claim in claims)
    return "\n".join([*lines, "", f"{held} of {len(claims)} claims hold."])


@contextmanager
def told_in_words(after_interrupt: str = "") -> Generator[None]:
    """End the command in words, without a traceback, at errors in the input and at Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"\nInterrupted. {after_interrupt}", err=True)
        raise typer.Exit(130) from None
    except (ValueError, OSError) as error:
        typer.echo(f"ih-interp: {error}", err=True)
        raise typer.Exit(2) from None
    except RuntimeError as error:
        from ih_interp.training.state import TrainingFailedError

        if not isinstance(error, TrainingFailedError):
            raise
        typer.echo(f"ih-interp: {error}", err=True)
        raise typer.Exit(1) from None


def main() -> None:
    """Run the console script."""
    app()
