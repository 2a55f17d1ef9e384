"""Checks of a plot's table: a wrong one is refused, so that no plot is empty or partial."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pandas import DataFrame

from ih_interp._columns import (
    distinct,
    equal,
    finite,
    measured_once,
    missing,
    numbers,
    refuse_columns,
)

SEVERAL_RUNS = (
    ": to compare losses, ih.plots.plot_clamped_losses draws several runs, from one split of "
    "their metrics: "
    "pd.concat(run.metrics.query(\"split == 'train'\").assign(clamp=run.config.name) "
    "for run in runs)"
)
MOST_LISTED = 12  # the values that a message lists, at most


def plotted_rows(
    table: Any,
    *columns: str,
    where: Mapping[str, object] | None = None,
    once: Sequence[str] = (),
    finite: Sequence[str] = (),
    gaps: Sequence[str] = (),
    seed: bool = False,
    quantity: str = "",
) -> DataFrame:
    """Return the rows that a plot shows, without the table's index; refuse a wrong table.

    All columns named have to be there. `where` chooses rows, as `rows_where` does; no two rows may
    be the same in the columns `once`; the columns `finite` and `gaps` hold finite numbers, and
    `gaps` may hold NaN. With `seed`, a table without that column is one network's, and gets it;
    rows are those of a `quantity` where the table has several. Raises TypeError unless it gets a
    table, and ValueError for all else.
    """
    where = dict(where or {})
    needed = dict.fromkeys([*where, *once, *columns, *finite, *gaps])
    expect_table(table, *(column for column in needed if not (seed and column == "seed")))
    rows = measured_once(table).reset_index(drop=True)  # whose name may be that of a column
    if seed and "seed" not in rows:
        rows["seed"] = 0
    if quantity and "quantity" in rows:
        where["quantity"] = quantity
    rows = rows_where(rows, **where)
    if once:
        expect_once(rows, *once)
    expect_numbers(rows, *finite)
    expect_numbers(rows, *gaps, gaps=True)
    return rows


def expect_table(table: object, *columns: str) -> None:
    """Raise TypeError unless this is a table, ValueError if it lacks columns or has no rows."""
    if not isinstance(table, DataFrame):
        hint = ": give its .table()" if callable(getattr(table, "table", None)) else ""
        hint = ": give its .metrics" if hasattr(table, "metrics") else hint
        if (
            isinstance(table, list | tuple)
            and table
            and all(hasattr(one, "metrics") for one in table)
        ):
            hint = SEVERAL_RUNS
        raise TypeError(f"table: expected a DataFrame, got {type(table).__name__}{hint}.")
    refuse_columns(table, columns)


def rows_where(table: DataFrame, **values: object) -> DataFrame:
    """Return the rows with these values in these columns; ValueError, if none, lists what is there.

    >>> rows_where(DataFrame({"via": ["k", "v"]}), via="q")
    Traceback (most recent call last):
    ValueError: via='q' is not in the table; it has ['k', 'v'].
    """
    done = ""
    for column, value in values.items():
        there = table[equal(table[column], value)]
        if there.empty:
            known = _listed([known for known in distinct(table[column]) if not missing(known)])
            raise ValueError(f"{column}={value!r} is not in the table{done}; it has {known}.")
        done += f"{' and' if done else ' where'} {column}={value!r}"
        table = there
    return table


def expect_once(table: DataFrame, *columns: str) -> None:
    """Raise ValueError where two rows are the same in these columns: one would hide the other.

    The message names a column of words in which they differ, such as `split`, to choose by.
    """
    twice = table.duplicated([*columns]).to_numpy()
    if not twice.any():
        return
    first = table[[*columns]].iloc[[int(twice.argmax())]].to_dict("records")[0]
    alike = np.all([equal(table[column], first[column]) for column in columns], axis=0)
    remedy = "give the rows of one network at one time"
    if "seed" in columns:
        remedy = "give each network another `seed`"
    for column in table.columns.difference([*columns], sort=False):
        values = distinct(table.loc[alike, column])
        if len(values) > 1 and all(isinstance(value, str) for value in values):
            choice = f'.query("{column} == {values[0]!r}")'
            remedy = f"they differ in `{column}`, {_listed(values)}: keep one, {choice}"
            break
    place = ", ".join(f"{column}={value!r}" for column, value in first.items())
    raise ValueError(f"More than one row has {place}; {remedy}.")


def expect_numbers(table: DataFrame, *columns: str, gaps: bool = False) -> None:
    """Raise ValueError where a column holds infinities, or NaN; with `gaps` it may hold NaN."""
    for column in columns:
        values = numbers(table[column], f"The column {column!r}")
        finite(values[~np.isnan(values)] if gaps else values, f"The column {column!r}")


def expect_known(table: DataFrame, column: str, known: Iterable[str]) -> None:
    """Raise ValueError for values of a column that a plot has no line for."""
    known = list(known)
    others = [value for value in distinct(table[column]) if value not in set(known)]
    if others:
        words = f"{_listed(others)}; {_listed(known)} were expected"
        raise ValueError(f"The column {column!r} holds {words}.")


def _listed(values: Sequence[object]) -> str:
    """Return values in brackets, the first of them where there are many."""
    more = ", ..." if len(values) > MOST_LISTED else ""
    return f"[{', '.join(map(repr, values[:MOST_LISTED]))}{more}]"
