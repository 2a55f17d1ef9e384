"""How figures look: colours that colour-blind people and grey printers tell apart; saving."""

import inspect
import math
import re
import warnings
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar, runtime_checkable

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ih_interp._columns import shown
from ih_interp.plots._palettes import Palette, palette_colours
from ih_interp.plots._tables import expect_table
from ih_interp.types import expect

HEAD_COLOURS = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#B8A800",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
"""Okabe and Ito's palette, its yellow darkened for white paper; head h has colour h mod 8."""

HEAD_MARKERS = "osD^vXP*"
"""Head h has marker h mod 8, which tells heads apart in grey."""


class Line(NamedTuple):
    """How a condition is drawn; dashes tell apart what grey cannot."""

    colour: str | tuple[float, ...]
    dash: str | tuple[int, tuple[int, ...]] = "-"


CLAMP_LINES: dict[str, Line] = {
    "none": Line("#000000"),
    "previous token": Line("#0072B2", (0, (5, 1))),
    "layer 1": Line("#D55E00"),
    "match": Line("#009E73", (0, (7, 1, 1, 1, 1, 1))),
    "copy": Line("#CC79A7", (0, (3, 1, 1, 1))),
    "layer 1 + copy": Line("#E69F00", (0, (1, 1))),
}
"""Conditions of Figure 5b, in the paper's order; layers as the paper counts them, from 1."""

SPLIT_LINES: dict[str, tuple[str, Line]] = {
    "train": ("train", Line("#000000")),
    "test_exemplars": ("test (exemplars)", Line("#0072B2", (0, (5, 1)))),
    "test_relabel": ("test (relabel)", Line("#D55E00", (0, (3, 1, 1, 1)))),
}
"""Splits, the paper's names for them, and their lines."""

DASHES = ("-", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))
"""Of lines that have none of their own."""

CLAMPED_VECTORS: dict[str, Line] = {
    "none": Line("#000000"),
    "c": Line("#0072B2", (0, (5, 1))),
    "b, c": Line("#CC79A7", (0, (3, 1, 1, 1))),
}
"""Conditions of Figure 5a."""

PREVIOUS_TOKEN_LINES: dict[str, tuple[str, Line]] = {
    "none": ("none", Line("#000000")),
    "best": ("the best previous-token head", Line("#0072B2", (0, (5, 1)))),
    "unlike": ("the head least like one", Line("#E69F00", (0, (1, 1)))),
    "like": ("every previous-token head", Line("#009E73", (0, (3, 1, 1, 1)))),
    "all": ("all heads of layer 0", Line("#D55E00")),
}
"""Conditions of Figure 8, in words, and their lines."""

DONOR_LINES: dict[str, tuple[str, Line]] = {
    "none": ("nothing grafted", Line("#000000")),
    "own": ("its own", Line("#D55E00")),
    "another's": ("another's", Line("#0072B2", (0, (5, 1)))),
    "a third's": ("a third's", Line("#009E73", (0, (3, 1, 1, 1)))),
}
"""Whose trained embedding and layer 0 Figure 7 grafts in, in words, and their lines."""

_RC: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "figure.figsize": (5.2, 3.4),
    "figure.dpi": 120,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # text stays text
}


@contextmanager
def style() -> Generator[None]:
    """The figures' settings inside the block; matplotlib's own are back after it."""
    with mpl.rc_context(_RC):
        yield


Given = ParamSpec("Given")
Drawn_co = TypeVar("Drawn_co", covariant=True)


@runtime_checkable
class Drawing(Protocol[Given, Drawn_co]):
    """A drawing that can do without axes."""

    def __call__(
        self, table: Any, ax: Any = None, /, *args: Given.args, **kwargs: Given.kwargs
    ) -> Drawn_co: ...


def drawing(plot: Callable[Concatenate[Any, Any, Given], Drawn_co]) -> Drawing[Given, Drawn_co]:
    """Let a drawing do without its second argument: it then makes axes, in the house's look.

    Where the argument is called `axes`, these are two beside each other. A table's index counts for
    nothing, even where it has the name of a column.
    """
    signature = inspect.signature(plot)
    parameters = list(signature.parameters.values())
    parameters[1] = parameters[1].replace(default=None)
    signature = signature.replace(parameters=parameters)
    name = parameters[1].name

    @wraps(plot)
    def drawn(*args: Any, **kwargs: Any) -> Drawn_co:
        given = signature.bind(*args, **kwargs)
        for key, value in given.arguments.items():
            if isinstance(value, pd.DataFrame):
                given.arguments[key] = value.reset_index(drop=True)
        if given.arguments.get(name) is not None:
            if name == "ax":
                expect(given.arguments[name], Axes, "ax", "give figure.subplots(), or none")
            with _unknown_settings(plot.__name__):
                return plot(*given.args, **given.kwargs)
        # Only here: importing pyplot chooses a window system.
        from matplotlib import pyplot as plt

        with style():
            n_axes = 2 if name == "axes" else 1
            figure, given.arguments[name] = plt.subplots(1, n_axes, layout="constrained")
            try:
                with _unknown_settings(plot.__name__):
                    return plot(*given.args, **given.kwargs)
            except Exception:
                plt.close(figure)  # nothing was drawn, and a notebook would show it
                raise

    drawn.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
    return drawn


@contextmanager
def _unknown_settings(name: str) -> Generator[None]:
    """Refuse in words a setting, such as `figsize`, that what is drawn does not have."""
    try:
        yield
    except AttributeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise TypeError(
            f"{name}: expected settings of what it draws, and {error}. The size is that of the "
            "axes: give plt.subplots(figsize=(8, 4))[1]."
        ) from error


def condition_lines(
    conditions: Sequence[Hashable],
    known: Mapping[str, Line] = CLAMP_LINES,
    palette: Palette | None = None,
) -> dict[Any, Line]:
    """A line for every condition: those of `known` have theirs, others what is left of the palette.

    Raises ValueError for two conditions of one name in words: a legend could not tell them apart.

    >>> condition_lines(["mine", "none"])["mine"].colour == HEAD_COLOURS[1]
    True
    """
    names = [shown(condition) for condition in conditions]
    for name in names:
        alike = [c for c, other in zip(conditions, names, strict=True) if other == name]
        if len(alike) > 1:
            raise ValueError(f"The conditions {alike} would all be called {name!r}; rename one.")
    free = [c for c in HEAD_COLOURS if c not in {known[n].colour for n in names if n in known}]
    others = [condition for condition in conditions if shown(condition) not in known]
    lines: dict[Any, Line] = {}
    for number, condition in enumerate(others):
        turn, place = divmod(number, len(free))
        lines[condition] = Line(free[place], DASHES[(place + turn) % len(DASHES)])
    found = {c: lines.get(c) or known[shown(c)] for c in conditions}
    chosen = palette_colours(palette, conditions)
    return {c: line._replace(colour=chosen.get(c, line.colour)) for c, line in found.items()}


def known_first(conditions: Sequence[Any], known: Mapping[str, object]) -> list[Any]:
    """The conditions that are there: those of `known` in its order, then others in theirs.

    >>> known_first(["mine", "match", "none"], CLAMP_LINES)
    ['none', 'match', 'mine']
    """
    others = [condition for condition in conditions if shown(condition) not in known]
    return [c for name in known for c in conditions if shown(c) == name] + others


def head_place(name: object) -> tuple[int, int]:
    """Layer and head of a head's name, from 0; ValueError for another name.

    >>> head_place("L1H3")
    (1, 3)
    """
    match = re.fullmatch(r"L(\d+)H(\d+)", str(name))  # which may be missing
    if match is None:
        raise ValueError(f'{name!r} is not a head; "L1H3" was expected.')
    return int(match[1]), int(match[2])


def head_colour(name: str) -> str:
    """The colour of a head, the same in every drawing."""
    return HEAD_COLOURS[head_place(name)[1] % len(HEAD_COLOURS)]


def head_colours(names: Iterable[str], palette: Palette | None = None) -> dict[str, Any]:
    """Return the colour of each head: a palette's, or its own."""
    names = list(names)
    return {name: head_colour(name) for name in names} | palette_colours(palette, names)


def head_marker(name: str) -> str:
    """The marker of a head, the same in every drawing."""
    return HEAD_MARKERS[head_place(name)[1] % len(HEAD_MARKERS)]


def head_order(names: pd.Index) -> pd.Index:
    """Keys that sort an index of heads by layer and number: L0H2 before L0H10."""
    return pd.Index([head_place(str(name)) for name in names], tupleize_cols=False)


def short_head(name: str) -> str:
    """A head's name where its layer is known: "H3" of "L1H3"."""
    return f"H{head_place(name)[1]}"


def name_points(
    ax: Axes, names: Sequence[str], x: Sequence[float], y: Sequence[float], *, away: int = 4
) -> None:
    """Write names beside points, by turns left and right of them, off the line they lie along.

    The axes get room for the names of their first and last point.
    """
    order = sorted(range(len(names)), key=lambda point: x[point])
    rises = sum((y[b] - y[a]) * (x[b] - x[a]) for a, b in pairwise(order)) >= 0
    for turn, point in enumerate(order):
        side = -1 if turn % 2 == 0 else 1
        ax.annotate(
            names[point],
            (x[point], y[point]),
            (side * (away + 1), (-side if rises else side) * away),
            textcoords="offset points",
            ha="right" if side < 0 else "left",
            va="center",
            fontsize=8,
        )
    ax.margins(x=0.15)


def legend_off_curves(ax: Axes, *handles: Sequence[Any], **look: Any) -> None:
    """A legend in the upper right corner, or beside the axes where a curve runs through it there.

    To be called last: it looks at the layout as it is then.
    """
    legend = ax.legend(*handles, loc="upper right", **look)
    figure = ax.get_figure(root=True)
    if figure is None:
        return
    with warnings.catch_warnings():  # a legend too wide for its place is about to move
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        figure.draw_without_rendering()
    box = legend.get_window_extent()
    paths = [line.get_path().transformed(line.get_transform()) for line in ax.lines]
    if any(len(path) and path.intersects_bbox(box, filled=False) for path in paths):
        legend.set_loc("center left")
        legend.set_bbox_to_anchor((1.08, 0.5), ax.transAxes)  # off the words at ln 2


def count_sequences(ax: Axes) -> None:
    """Write the x axis as sequences seen: 0, 200k, 1M."""
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    ax.set_xlabel("sequences seen")
    ax.set_xlim(left=0)


def short_count(value: float) -> str:
    """A count for labels; infinity is "never".

    >>> [short_count(value) for value in (12.0, 2e5, 1.5e6, float("inf"))]
    ['12', '200k', '1.5M', 'never']
    """
    if math.isinf(value):
        return "never"
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def start_at_zero(ax: Axes, end: float) -> None:
    """Show x from 0 to `end`, and y from 0 on, or from below where there is something."""
    ax.set_xlim(0, end if end > 0 else 1)
    ax.set_ylim(bottom=min(0.0, float(ax.dataLim.y0)))


def save(figure: Figure, folder: str | PathLike[str], name: str, table: pd.DataFrame) -> list[Path]:
    """Write `name.pdf`, `name.png` and the numbers as `name.csv`; equal input, equal bytes.

    `folder` is made where it is not there, and may begin with `~`. Numbers keep every digit, and
    a table's index is written where it has a name.
    """
    if not isinstance(figure, Figure):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"figure: expected a Figure, ax.figure, got {type(figure).__name__}.")
    is_word = isinstance(name, str)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not is_word or name != Path(name).name or not name.strip(". ") or "\0" in name:
        raise ValueError(f"name={name!r}: a file's name was expected, without a folder.")
    expect_table(table)
    expect(folder, (str, PathLike), "folder", 'write "figures"')
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("pdf", "png", "csv")]
    with style():
        figure.savefig(paths[0], metadata={"CreationDate": None}, bbox_inches="tight")
        figure.savefig(paths[1], metadata={"Software": None}, bbox_inches="tight")
    table.to_csv(paths[2], index=any(part is not None for part in table.index.names))
    return paths
