"""Tables of the page: cells in words, and the same numbers to download as csv."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ih_interp._columns import missing

DIGITS = 3
"""Digits after the point in a cell; csv files have six that count."""


@dataclass(frozen=True, kw_only=True)
class Download:
    """A file in the page, as a data link."""

    file: str
    href: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table as the page shows it."""

    caption: str
    columns: list[str]
    rows: list[list[str]]


def csv_link(file: str, table: pd.DataFrame) -> Download:
    """Return a table as a csv file in a link."""
    text = table.to_csv(index=False, float_format="%.6g")
    return Download(file=file, href=_data("text/csv", text))


def json_link(file: str, text: str) -> Download:
    """Return a JSON text as a file in a link."""
    return Download(file=file, href=_data("application/json", text))


def shown_table(table: pd.DataFrame, columns: Mapping[str, str], caption: str) -> Table:
    """Return these columns of a table, by their names in words, with cells in words."""
    rows = [[cell(row[name]) for name in columns] for row in table.to_dict("records")]
    return Table(caption=caption, columns=list(columns.values()), rows=rows)


def cell(value: Any) -> str:
    """Return a value as a cell shows it: a number with three digits, a hyphen for none.

    >>> cell(0.12345), cell(64_000), cell(float("nan")), cell("L1H3")
    ('0.123', '64,000', '-', 'L1H3')
    """
    if missing(value) or value == "":
        return "-"
    if isinstance(value, str):
        return value
    is_whole = float(value).is_integer() and not isinstance(value, float)
    return f"{int(value):,}" if is_whole else f"{value:z.{DIGITS}f}"


def unbroken(text: str) -> str:
    """Return a list of edges of which lines break after commas only.

    >>> [len(edge) for edge in unbroken("L0H3 keys 2.0, L0H1 values 0.42").split(" ")]
    [14, 16]
    """
    return text.replace(" ", "\u00a0").replace(",\u00a0", ", ")


def two_digits(value: float) -> str:
    """Return a number with two digits that count.

    >>> two_digits(0.00312), two_digits(10.386), two_digits(0.0996)
    ('0.0031', '10', '0.10')
    """
    rounded = f"{value:.1e}"
    n_decimals = max(0, 1 - int(rounded.partition("e")[2]))
    return f"{float(rounded):,.{n_decimals}f}"


def _data(kind: str, text: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"
