"""Commands that train and draw: `reproduce`, `study`, `bench`."""

import shutil
import textwrap
from collections.abc import Sequence
from functools import partial
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ih_interp.cli._shared import (
    RESUMES,
    Features,
    FiguresFolder,
    Json,
    RunsFolder,
    before_training,
    echo_json,
    saying,
    told_in_words,
)

if TYPE_CHECKING:
    from ih_interp.paper.claims import Claim

FIGURES = (
    *("3a", "3b", "4a", "4b", "5a", "5b", "6", "7", "8", "9", "10", "11", "11init", "12", "13"),
    *("14", "15", "16", "17", "18", "table1", "table2", "table3", "additivity"),
)
STUDIES = ("critical-periods", "emergence-law", "frozen-weights", "other-tasks")
"""Names that a shell completes, here without the modules that define them."""


def _figures(incomplete: str) -> list[str]:
    return [name for name in (*FIGURES, "all") if name.startswith(incomplete.lower())]


def _studies(incomplete: str) -> list[str]:
    return [name for name in STUDIES if name.startswith(incomplete.lower())]


def reproduce(
    figures: Annotated[
        list[str] | None,
        typer.Argument(
            autocompletion=_figures,
            help="Figures such as 3a 5b table1, or all; by default those of the main text, "
            "with --preset paper all.",
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
    figures_dir: FiguresFolder = Path("figures"),
    redraw: Annotated[
        bool,
        typer.Option(help="Draw figures from their csv, without runs; repeat the other options."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Train what the figures need, draw them, and compare them with the paper."""
    before_training()
    with told_in_words(RESUMES):
        from ih_interp.paper.reproduce import redraw as draw_again, reproduce as draw

        act = draw_again if redraw else partial(draw, seeds=seeds, runs=runs)
        say = saying(as_json)
        claims = act(figures or (), preset=preset, exemplars=exemplars, folder=figures_dir, say=say)
        if as_json:
            echo_json([{**claim._asdict(), "verdict": claim.verdict} for claim in claims])
        else:
            typer.echo(claims_text(claims))


def study(
    name: Annotated[
        str, typer.Argument(autocompletion=_studies, help=f"One of {', '.join(STUDIES)}.")
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
    figures_dir: FiguresFolder = Path("figures"),
    redraw: Annotated[
        bool, typer.Option(help="Draw and judge from the csv, without runs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a study beyond the paper: its runs, its tables, its figure, and what it found."""
    before_training()
    with told_in_words(RESUMES):
        from ih_interp.studies.run import run_study

        findings = run_study(
            name,
            preset=preset,
            exemplars=exemplars,
            runs=runs,
            folder=figures_dir,
            redraw=redraw,
            say=saying(as_json),
        )
        if as_json:
            echo_json([finding._asdict() for finding in findings])
            return
        for finding in findings:
            p = "" if isnan(finding.p) else f"; p = {finding.p:.2g}"
            typer.echo(f"\n{finding.claim}: {finding.verdict}\n     {finding.found}{p}")


def bench(
    sizes: Annotated[
        str, typer.Option(help="Sizes of the fleets, with commas between.")
    ] = "2,4,8,16,32",
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; medians are over them.")] = 5,
    figures_dir: FiguresFolder = Path("figures"),
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
