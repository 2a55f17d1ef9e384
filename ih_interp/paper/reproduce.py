"""`ih-interp reproduce`: train what figures need, draw them, and say what holds."""

from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure as Canvas

from ih_interp.config import RunConfig
from ih_interp.exemplars import Exemplars, ExemplarSource
from ih_interp.paper.figures import FIGURES, Claim, Figure, Study
from ih_interp.paper.recipes import (
    FIRST_SEED,
    PRESETS,
    Circuit,
    Preset,
    PresetName,
    choose_circuit,
    clamped_runs,
    main_run,
)
from ih_interp.plots.style import save, style
from ih_interp.runs import Run
from ih_interp.store import CONFIG
from ih_interp.training.train import Engine, train

SAMPLED = 2_000  # sequences that measures are averaged over, but for the paper preset: every one


def reproduce(
    figures: Sequence[str] = (),
    *,
    preset: str = "quick",
    exemplars: str | Path | None = None,
    seeds: int = 1,
    runs: str | Path = "runs",
    folder: str | Path = "figures",
    engine: Engine = "auto",
    say: Callable[[str], None] | None = None,
) -> list[Claim]:
    """Draw figures of the paper into `folder` as pdf, png and csv, training the runs they need.

    Finished runs under `runs` are used again, interrupted ones resumed. `figures` are names such as
    "3a", by default all there are; `exemplars` a file for `Exemplars.load`, by default synthetic
    features; `seeds` networks are trained, from seed 5 on; `say` is told what happens.

    Raises ValueError for an unknown figure or preset, and what `Exemplars.load` and `train` raise.
    """
    say = say or (lambda _: None)
    wanted = _wanted(figures)
    name = _preset(preset)
    if seeds < 1:
        raise ValueError(f"seeds={seeds}; at least one network has to be trained.")
    source = _source(PRESETS[name], exemplars)
    root = Path(runs) / f"{preset}-{'synthetic' if exemplars is None else Path(exemplars).stem}"
    if name == "smoke":
        say("smoke preset: everything runs, nothing is learned, so that claims do not hold")
    study = _train(wanted, name, source, seeds, root, engine, say)
    command = _command(wanted, preset, exemplars, seeds)
    claims: list[Claim] = []
    for figure in wanted:
        table = figure.table(study)
        paths = _draw(figure, table, Path(folder), command)
        say(f"figure {figure.name}: {', '.join(map(str, paths))}")
        claims += figure.claims(table)
    return claims


def _wanted(names: Sequence[str]) -> list[Figure]:
    names = [name.removeprefix("fig") for name in names]
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise ValueError(
            f"There is no figure {', '.join(unknown)}; choose from {', '.join(FIGURES)}."
        )
    return [figure for name, figure in FIGURES.items() if not names or name in names]


def _preset(name: str) -> PresetName:
    for known in PRESETS:
        if known == name:
            return known
    raise ValueError(f"There is no preset {name!r}; choose from {', '.join(PRESETS)}.")


def _source(preset: Preset, exemplars: str | Path | None) -> ExemplarSource:
    if exemplars is None:
        return preset.exemplars
    source = Exemplars.load(exemplars).source
    assert source is not None
    return source


def _train(
    figures: Sequence[Figure],
    preset: PresetName,
    source: ExemplarSource,
    seeds: int,
    root: Path,
    engine: Engine,
    say: Callable[[str], None],
) -> Study:
    """The runs that figures need: first the networks, then, with their heads known, the clamps."""
    sampled = None if preset == "paper" else SAMPLED
    needs = {figure.needs for figure in figures}
    if needs <= {"nothing"}:
        return Study({}, {}, sampled)
    numbers = range(FIRST_SEED, FIRST_SEED + seeds)
    plan = [main_run(PRESETS[preset], source, seed) for seed in numbers]
    say(_plan(plan, root))
    main = dict(zip(numbers, train(plan, root, engine=engine), strict=True))
    if "clamped" not in needs:
        return Study(main, {}, sampled)
    clamped: dict[int, dict[str, RunConfig]] = {}
    for seed, run in main.items():
        circuit = choose_circuit(run)
        say(_heads(seed, circuit))
        clamped[seed] = clamped_runs(PRESETS[preset], source, seed, circuit)
    configs = [config for conditions in clamped.values() for config in conditions.values()]
    say(_plan(configs, root))
    trained = {run.config.name: run for run in train(configs, root, engine=engine)}
    return Study(
        main,
        {
            seed: {condition: trained[config.name] for condition, config in conditions.items()}
            for seed, conditions in clamped.items()
        },
        sampled,
    )


def _plan(configs: Sequence[RunConfig], root: Path) -> str:
    folders = [root / config.name for config in configs]
    done = sum((folder / CONFIG).is_file() and Run(folder).finished for folder in folders)
    updates = sum(config.n_steps for config in configs)
    return f"{root}: {updates:,} updates for {len(configs)} run(s), {done} of them done already"


def _heads(seed: int, circuit: Circuit) -> str:
    return (
        f"seed {seed}: {circuit.previous_token} attends most to the previous token, "
        f"{circuit.induction} is the strongest induction head"
    )


def _command(
    figures: Sequence[Figure], preset: str, exemplars: str | Path | None, seeds: int
) -> str:
    """The command that draws these figures again."""
    parts = ["ih-interp reproduce"]
    if len(figures) < len(FIGURES):
        parts += [figure.name for figure in figures]
    if preset != "quick":
        parts.append(f"--preset {preset}")
    if exemplars is not None:
        parts.append(f"--exemplars {Path(exemplars).name}")
    if seeds != 1:
        parts.append(f"--seeds {seeds}")
    return " ".join(parts)


def _draw(figure: Figure, table: pd.DataFrame, folder: Path, command: str) -> list[Path]:
    with style():
        canvas = Canvas(figsize=mpl.rcParams["figure.figsize"], layout="constrained")
        figure.draw(table, canvas.subplots())
        canvas.supxlabel(
            f"Singh et al. (2024), Figure {figure.name}, by: {command}", fontsize=6, color="0.4"
        )
    return save(canvas, folder, f"fig{figure.name}", table)
