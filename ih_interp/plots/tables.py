"""What a drawing demands of its table: refused in words, so that no picture is empty or partial."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

MOST_TOLD = 12
"""Values that a message lists, at most."""


def expect_table(table: object, *columns: str) -> None:
    """Refuse what is not a table (TypeError), lacks columns or has no rows (ValueError)."""
    if not isinstance(table, pd.DataFrame):
        hint = ": give its .table()" if callable(getattr(table, "table", None)) else ""
        hint = ": give its .metrics" if hasattr(table, "metrics") else hint
        raise TypeError(f"A DataFrame is drawn and a {type(table).__name__} came{hint}.")
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(
            f"The table has no column {_told(missing)} and needs one; it has "
            f"{_told(list(table.columns))}."
        )
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
        there = table[table[column] == value]
        if there.empty:
            known = _told(distinct(table[column].dropna()))
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
    """ValueError where two rows are the same in these columns: one would hide the other."""
    twice = table[table.duplicated([*columns])]
    if len(twice):
        first = twice[[*columns]].iloc[:1].to_dict("records")[0]
        place = ", ".join(f"{column}={value!r}" for column, value in first.items())
        raise ValueError(f"More than one row has {place}; {remedy}.")


ONE_NETWORK = "give the rows of one network"
ONE_NETWORK_AND_TIME = "give the rows of one network, at one time of its training"
A_SEED_EACH = "give each network another `seed`"
"""Remedies where rows would hide each other."""


def distinct(values: pd.Series) -> list[Any]:
    """Each value once, in order of appearance."""
    return values.drop_duplicates().tolist()


def _told(values: Sequence[object]) -> str:
    """Values in brackets, the first of them where there are many."""
    more = ", ..." if len(values) > MOST_TOLD else ""
    return f"[{', '.join(map(repr, values[:MOST_TOLD]))}{more}]"
