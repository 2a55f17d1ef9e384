"""A request for figures by name, checked before anything happens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ih_interp.paper.figures import FIGURES
from ih_interp.paper.presets import PRESETS, PresetName
from ih_interp.paper.study import Figure
from ih_interp.storage.atomic import PathLike, as_path

MAIN_TEXT = ("3a", "3b", "4a", "4b", "5a", "5b", "6")  # Figures of the paper's main text

SEEDS: Mapping[PresetName, int] = {"smoke": 1, "quick": 1, "paper": 5}
"""The numbers of networks of requests that name none."""


class Request(NamedTuple):
    """Figures that were asked for, and how to make them."""

    figures: list[Figure]
    preset: PresetName
    exemplars: Path | None
    seeds: int

    @classmethod
    def of(
        cls, figures: Sequence[str], preset: str, exemplars: PathLike | None, seeds: int | None
    ) -> "Request":
        """Check names and numbers; ValueError for those that are not known."""
        presets: dict[str, PresetName] = {known: known for known in PRESETS}
        name = presets.get(preset)
        if name is None:
            raise ValueError(f"There is no preset {preset!r}; choose from {', '.join(PRESETS)}.")
        seeds = SEEDS[name] if seeds is None else seeds
        if seeds < 1:
            raise ValueError(f"seeds={seeds}: expected at least one network to train.")
        default = ["all"] if name == "paper" else MAIN_TEXT
        chosen = {found for asked in figures or default for found in named(asked)}
        wanted = [figure for known, figure in FIGURES.items() if known in chosen]
        source = None if exemplars is None else as_path(exemplars, "exemplars")
        return cls(wanted, name, source, seeds)

    @property
    def runs(self) -> str:
        """The name of the folder of runs, as "paper-omniglot_features"."""
        return f"{self.preset}-{'synthetic' if self.exemplars is None else self.exemplars.stem}"

    def command(self, figure: Figure, seeds: int) -> str:
        """Return the command that draws one of the figures from this many networks."""
        options = "" if self.preset == "quick" else f" --preset {self.preset}"
        if self.exemplars is not None:
            options += f" --exemplars {self.exemplars.name}"
        if seeds != SEEDS[self.preset]:
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
