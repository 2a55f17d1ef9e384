"""What a drawing demands of its table: refused in words, so that no picture is empty or partial."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ih_interp._columns import distinct as distinct, equal, missing, numbers

MOST_TOLD = 12
"""Values that a message lists, at most."""


def expect_table(table: object, *columns: str) -> None:
    """Refuse what is not a table (TypeError), lacks columns or has no rows (ValueError)."""
    if not isinstance(table, pd.DataFrame):
        hint = ": give its .table()" if callable(getattr(table, "table", None)) else ""
        hint = ": give its .metrics" if hasattr(table, "metrics") else hint
        raise TypeError(f"table: expected a DataFrame, got {type(table).__name__}{hint}.")
    names = list(table.columns)
    lacking = [column for column in columns if column not in names]
    if lacking:
        raise ValueError(
            f"The table has no column {_told(lacking)} and needs one; it has {_told(names)}."
        )
    twice = [column for column in columns if names.count(column) > 1]
    if twice:
        raise ValueError(f"The table has more than one column {_told(twice)}; rename the others.")
    if table.empty:
        raise ValueError("The table has no rows, so there is nothing to draw; give it some.")


def rows_where(table: pd.DataFrame, **values: object) -> pd.DataFrame:
    """The rows with these values in these columns; ValueError, with what there is, for none.

    >>> rows_where(pd.DataFrame({"via": ["k", "v"]}), via="q")
    Traceback (most recent call last):
    ValueError: via='q' is not in the table; it has ['k', 'v'].
    """
    expect_table(table, *values)
    done = ""
    for column, value in values.items():
        there = table[equal(table[column], value)]
        if there.empty:
            known = _told([known for known in distinct(table[column]) if not missing(known)])
            raise ValueError(f"{column}={value!r} is not in the table{done}; it has {known}.")
        done += f"{' and' if done else ' where'} {column}={value!r}"
        table = there
    return table


def of_quantity(table: Any, quantity: str) -> pd.DataFrame:
    """Its rows of a whole report; a table without the column `quantity` is taken to be of it."""
    expect_table(table)
    return rows_where(table, quantity=quantity) if "quantity" in table else table


def with_seed(table: Any) -> pd.DataFrame:
    """The table itself; without a column `seed` it is one network's, and gets one."""
    expect_table(table)
    return table if "seed" in table else table.assign(seed=0)


def expect_once(table: pd.DataFrame, *columns: str, remedy: str) -> None:
    """Raise ValueError where two rows are the same in these columns: one would hide the other.

    It names a column of words in which they differ, such as `split`: one of its values is meant.
    """
    twice = table.duplicated([*columns]).to_numpy()
    if not twice.any():
        return
    first = table[[*columns]].iloc[[int(twice.argmax())]].to_dict("records")[0]
    alike = np.all([equal(table[column], first[column]) for column in columns], axis=0)
    for column in table.columns.difference([*columns], sort=False):
        values = distinct(table.loc[alike, column])
        if len(values) > 1 and all(isinstance(value, str) for value in values):
            choice = f'.query("{column} == {values[0]!r}")'
            remedy = f"they differ in `{column}`, {_told(values)}: keep one, {choice}"
            break
    place = ", ".join(f"{column}={value!r}" for column, value in first.items())
    raise ValueError(f"More than one row has {place}; {remedy}.")


def expect_numbers(table: pd.DataFrame, *columns: str, gaps: bool = False) -> None:
    """Raise ValueError where a column holds what has no place in a picture: infinities, and NaN.

    With `gaps` it may be NaN, which then is left out.
    """
    for column in columns:
        values = numbers(table[column], f"The column {column!r}")
        bad = np.isinf(values) if gaps else ~np.isfinite(values)
        if bad.any():
            row = table.iloc[int(bad.argmax())]
            names = [f"{c}={v!r}" for c, v in row.items() if isinstance(v, str) or missing(v)]
            raise ValueError(
                f"The column {column!r} holds {values[bad][0]:g}, which has no place in a picture, "
                f"where {', '.join(names)}; leave such rows out."
            )


def expect_known(table: pd.DataFrame, column: str, known: Iterable[str]) -> None:
    """Raise ValueError for values of a column that a picture has no line for."""
    others = [value for value in distinct(table[column]) if value not in set(known)]
    if others:
        raise ValueError(
            f"The column {column!r} holds {_told(others)}; {_told(list(known))} are drawn."
        )


ONE_NETWORK = "give the rows of one network"
ONE_NETWORK_AND_TIME = "give the rows of one network, at one time of its training"
A_SEED_EACH = "give each network another `seed`"
"""Remedies where rows would hide each other."""


def _told(values: Sequence[object]) -> str:
    """Values in brackets, the first of them where there are many."""
    more = ", ..." if len(values) > MOST_TOLD else ""
    return f"[{', '.join(map(repr, values[:MOST_TOLD]))}{more}]"
