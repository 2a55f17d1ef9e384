"""The style of plots, with colours that also work for colour-blind readers and in grey; saving."""

import inspect
import math
import typing
import warnings
from collections.abc import Callable, Generator, Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from itertools import count, cycle, pairwise
from os import PathLike
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeAlias, TypeVar

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import cbook, colormaps
from matplotlib.axes import Axes
from matplotlib.colors import is_color_like
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from ih_interp._columns import distinct, equal, shown
from ih_interp._expect import expect
from ih_interp.plots._tables import expect_table
from ih_interp.types import Head

Palette: TypeAlias = Mapping[Any, Any] | Sequence[Any] | str | None
"""Colours by the name of what they colour, in the plot's order, or the name of a colour map."""

HEAD_COLOURS = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#B8A800", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
"""Okabe and Ito's palette, its yellow darkened for white paper; head h has colour h mod 8."""

HEAD_MARKERS = "osD^vXP*"  # Head h has marker h mod 8, which tells heads apart in grey

FAINT: dict[str, Any] = {"color": "0.6", "linewidth": 0.8, "linestyle": ":"}  # a line at a level


class Line(NamedTuple):
    """The look of a condition's curve; dashes tell apart what grey cannot."""

    colour: str | tuple[float, ...]
    dash: str | tuple[int, tuple[int, ...]] = "-"
    words: str = ""  # what a legend says of the condition


CLAMP_LINES: dict[str, Line] = {
    "none": Line("#000000", "-", "A, B, C"),
    "previous token": Line("#0072B2", (0, (5, 1)), "A's copying, B, C"),
    "layer 1": Line("#D55E00", "-", "B, C"),
    "match": Line("#009E73", (0, (7, 1, 1, 1, 1, 1)), "C"),
    "copy": Line("#CC79A7", (0, (3, 1, 1, 1)), "A, B"),
    "layer 1 + copy": Line("#E69F00", (0, (1, 1)), "B"),
}
"""The conditions of Figure 5b, in the paper's order, and the subcircuits that each leaves to learn.

Layers are counted as in the paper, from 1.
"""

SPLIT_LINES: dict[str, Line] = {
    "train": Line("#000000"),
    "test_exemplars": Line("#0072B2", (0, (5, 1))),
    "test_relabel": Line("#D55E00", (0, (3, 1, 1, 1))),
}

DASHES = ("-", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)))  # of conditions without their own

CLAMPED_VECTORS: dict[str, Line] = {
    "none": Line("#000000", "-", "waits, then falls"),
    "c": Line("#0072B2", (0, (5, 1)), "waits less"),
    "b, c": Line("#CC79A7", (0, (3, 1, 1, 1)), "falls exponentially"),
}
"""The conditions of Figure 5a, and the course of the loss under each."""

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
    """Use the package's plot style inside the block; matplotlib's settings return after it."""
    with mpl.rc_context(_RC):
        yield


Given = ParamSpec("Given")
Plotted_co = TypeVar("Plotted_co", covariant=True)


@typing.runtime_checkable
class Plot(Protocol[Given, Plotted_co]):
    """A plot that makes axes of its own if it gets none."""

    def __call__(
        self, table: Any, ax: Any = None, /, *args: Given.args, **kwargs: Given.kwargs
    ) -> Plotted_co: ...


def axes_optional(
    plot: Callable[Concatenate[Any, Any, Given], Plotted_co],
) -> Plot[Given, Plotted_co]:
    """Make a plot's second argument optional: without it, the plot makes axes in `style`.

    An argument called `axes` stands for two axes side by side. Raises TypeError for an argument of
    another type, and for a setting, such as `figsize`, that the plot's artists do not have.
    """
    signature = inspect.signature(plot)
    table, axes, *others = signature.parameters.values()
    name, optional = axes.name, axes.replace(default=None, annotation=axes.annotation | None)
    signature = signature.replace(parameters=[table, optional, *others])

    @wraps(plot)
    def plotted(*args: Any, **kwargs: Any) -> Plotted_co:
        given = signature.bind(*args, **kwargs)
        make = given.arguments.get(name) is None
        if not make and name == "ax":
            expect(given.arguments[name], Axes, "ax", "give figure.subplots(), or none")
        with style() if make else nullcontext(), ExitStack() as failing:
            if make:
                # Only here: importing pyplot chooses a window system.
                from matplotlib import pyplot as plt

                n_axes = 2 if name == "axes" else 1
                figure, given.arguments[name] = plt.subplots(1, n_axes, layout="constrained")
                failing.callback(plt.close, figure)  # a notebook would show it, empty
            try:
                result = plot(*given.args, **given.kwargs)
            except AttributeError as error:
                if "unexpected keyword argument" not in str(error):
                    raise
                raise TypeError(
                    f"{plot.__name__}: expected settings of its artists, and {error}. The size is "
                    "that of the axes: give plt.subplots(figsize=(8, 4))[1]."
                ) from error
            failing.pop_all()
            return result

    plotted.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]
    return plotted


def palette_colours(palette: Palette, names: Iterable[Any]) -> dict[Any, Any]:
    """Return the colours that a palette gives to these names; a mapping may leave out some names.

    Raises TypeError for another kind of palette, and ValueError for an unknown colour or map.

    >>> palette_colours({"match": "red"}, ["none", "match"])
    {'match': 'red'}
    """
    names = list(names)
    if palette is None:
        return {}
    expect(palette, (Mapping, Sequence, np.ndarray), "palette", 'write {"match": "red"}')
    if isinstance(palette, Mapping):
        keyed = {shown(key): colour for key, colour in palette.items()}
        chosen = {name: keyed[shown(name)] for name in names if shown(name) in keyed}
    else:
        if isinstance(palette, str) and palette in mpl.color_sequences:
            palette = mpl.color_sequences[palette]
        elif isinstance(palette, str):
            if palette not in colormaps:
                raise ValueError(f"palette={palette!r}: expected a colour map, such as viridis.")
            palette = [*map(tuple, colormaps[palette].resampled(len(names))(range(len(names))))]
        chosen = dict(zip(names, cycle(palette), strict=False))
    wrong = [colour for colour in chosen.values() if not is_color_like(colour)]
    if wrong:
        raise ValueError(f"palette holds {wrong[0]!r}: expected a colour, such as red or #0072B2.")
    return chosen


def looking(given: Mapping[str, Any], kind: type = Line2D, /, **own: Any) -> dict[str, Any]:
    """Return an artist's settings: the caller's (`lw` is `linewidth`), else the plot's own.

    Raises TypeError for a setting that comes under two names.
    """
    return own | cbook.normalize_kwargs(dict(given), kind)  # pyright: ignore[reportArgumentType]


def condition_lines(
    conditions: Sequence[Hashable], known: Mapping[str, Line] = CLAMP_LINES, palette: Palette = None
) -> dict[Any, Line]:
    """Return a line for every condition: its own in `known`, or one that is left of the palette.

    Raises ValueError for two conditions of one name in words: a legend could not tell them apart.

    >>> condition_lines(["mine", "none"])["mine"].colour == HEAD_COLOURS[1]
    True
    """
    names = [shown(condition) for condition in conditions]
    alike = [c for c, name in zip(conditions, names, strict=True) if names.count(name) > 1]
    if alike:
        raise ValueError(f"The conditions {alike} have one name in words; rename one.")
    free = [c for c in HEAD_COLOURS if c not in {known[n].colour for n in names if n in known}]
    chosen = palette_colours(palette, conditions)
    places = ((turn, place) for turn in count() for place in range(len(free)))
    unused = (Line(free[place], DASHES[(place + turn) % len(DASHES)]) for turn, place in places)
    lines = {c: known.get(name) or next(unused) for c, name in zip(conditions, names, strict=True)}
    return {c: line._replace(colour=chosen.get(c, line.colour)) for c, line in lines.items()}


def conditions_of(
    table: pd.DataFrame, column: str, known: Mapping[str, Line], palette: Palette
) -> list[tuple[str, Line, pd.DataFrame]]:
    """Return the name in words, the line and the rows of every condition in a column.

    The conditions of `known` come first, in its order, then the others in the table's.
    """
    order = [*known]
    there = distinct(table[column])
    there.sort(key=lambda c: order.index(shown(c)) if shown(c) in known else len(order))
    lines = condition_lines(there, known, palette)
    return [(shown(c), line, table[equal(table[column], c)]) for c, line in lines.items()]


def head_place(name: object) -> Head:
    """Return layer and head of a name, "L1H3" or "L1KV0", from 0; ValueError for another."""
    return Head.parse(str(name).replace("KV", "H"))  # a missing name is refused as well


def head_colour(name: str) -> str:
    """Return the colour of a head, the same in every plot."""
    return HEAD_COLOURS[head_place(name).head % len(HEAD_COLOURS)]


def head_colours(names: Iterable[str], palette: Palette = None) -> dict[str, Any]:
    """Return the colour of each head: a palette's, or its own."""
    names = list(names)
    return {name: head_colour(name) for name in names} | palette_colours(palette, names)


def head_marker(name: str) -> str:
    """Return the marker of a head, the same in every plot."""
    return HEAD_MARKERS[head_place(name).head % len(HEAD_MARKERS)]


def short_head(name: str) -> str:
    """Return a head's name where its layer is known: "H3" for "L1H3"."""
    return f"H{head_place(name).head}"


def note(ax: Axes, words: str, xy: Any, offset: Any = (0, 0), **look: Any) -> None:
    """Write small words at a point of the data, moved by an offset in points, right and up."""
    own: dict[str, Any] = {"textcoords": "offset points", "va": "center", "fontsize": 8}
    ax.annotate(words, xy, offset, **(own | look))


def name_heads(ax: Axes, heads: Iterable[str], x: Iterable[float], y: Iterable[float]) -> None:
    """Write heads' names left and right of points in turn, off the line that the points lie along.

    The axes get room for the names of their first and last point.
    """
    points = sorted(zip(x, y, heads, strict=True), key=lambda point: point[0])
    rises = [(b[1] - a[1]) * (b[0] - a[0]) for a, b in pairwise(points)]
    up = 1 if sum(rises) >= 0 else -1
    for turn, (*point, head) in enumerate(points):
        side, ha = (-1, "right") if turn % 2 == 0 else (1, "left")
        note(ax, short_head(head), point, (5 * side, -4 * side * up), ha=ha)
    ax.margins(x=0.15)


def legend_beside(ax: Axes, **look: Any) -> Axes:
    """Put a legend to the right of the axes, and return them."""
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), **look)
    return ax


def legend_off_curves(ax: Axes, *handles: Sequence[Any], **look: Any) -> Axes:
    """Put a legend in the upper right corner, or beside the axes where a curve runs through it.

    It looks at the layout of the moment: call it last.
    """
    legend = ax.legend(*handles, loc="upper right", **look)
    figure: Any = ax.get_figure(root=True)
    with warnings.catch_warnings():  # a legend too wide for its place is about to move
        warnings.filterwarnings("ignore", message="constrained_layout not applied")
        figure.draw_without_rendering()
    box = legend.get_window_extent()
    paths = [line.get_path().transformed(line.get_transform()) for line in ax.lines]
    if any(len(path) and path.intersects_bbox(box, filled=False) for path in paths):
        legend.set_loc("center left")
        legend.set_bbox_to_anchor((1, 0.5), ax.transAxes)
        legend.borderaxespad = 3.2  # in font sizes: clear of the words at ln 2 in any axes
    return ax


def count_sequences(ax: Axes, time: str = "sequences") -> None:
    """Write the x axis as sequences seen: 0, 200k, 1M; or as steps, where `time` is that column."""
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_count(value)))
    ax.set_xlabel("sequences seen" if time == "sequences" else time)
    ax.set_xlim(left=0)


def short_count(value: float) -> str:
    """Return a count for labels; infinity is "never".

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
    """Show x from 0 to `end`, and y from 0, or from below where there is something."""
    ax.set_xlim(0, end if end > 0 else 1)
    ax.set_ylim(bottom=min(0.0, float(ax.dataLim.y0)))


def save(figure: Figure, folder: str | PathLike[str], name: str, table: pd.DataFrame) -> list[Path]:
    """Write `name.pdf`, `name.png` and the numbers as `name.csv`; equal input, equal bytes.

    The folder is made if needed, and may begin with `~`. Numbers keep every digit, and a table's
    index is written if it has a name. Legends that lie outside the axes are kept. Returns the three
    paths. Raises TypeError for another kind of argument, and ValueError for a name of no file.
    """
    expect(figure, Figure, "figure", "give ax.figure")
    expect_table(table)
    expect(folder, (str, PathLike), "folder", 'write "figures"')
    if not isinstance(name, str) or name != Path(name).name or not name.strip(". ") or "\0" in name:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f"name={name!r}: expected a file's name, without a folder.")
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("pdf", "png", "csv")]
    with style():
        figure.savefig(paths[0], metadata={"CreationDate": None}, bbox_inches="tight")
        figure.savefig(paths[1], metadata={"Software": None}, bbox_inches="tight")
    table.to_csv(paths[2], index=any(part is not None for part in table.index.names))
    return paths
