"""Columns and arrays read as numbers, flags and keys, or refused by name.

A missing key (None, NaN, NA or NaT) is a key like any other, as the clamp of a run without clamps.
Tables keep it as it came, and plots call it "none".
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from numpy import ndarray


def numbers(values: Any, what: str) -> Float[ndarray, "*shape"]:
    """Return real numbers in double precision; missing and masked values become NaN.

    `values` is a list, an array, a column or a torch tensor of integers, truth values or numbers of
    any precision. Raises TypeError, with the name `what`, for words, dates, complex numbers and
    lists of unequal length.
    """
    if type(values) is ndarray and values.dtype == np.float64:
        return values
    try:
        array = np.asarray(_plain(values))
        if array.dtype.kind == "O":
            flat = [_number(value) for value in array.ravel()]
            array = np.array(flat, dtype=np.float64).reshape(array.shape)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{what}: expected numbers, but {error}.") from error
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{what}: expected real numbers, got {array.dtype}; convert them.")
    return array.astype(np.float64, copy=False)


def measured_once(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of metrics that were measured under clamps or, where none were, all."""
    is_clamped = table["under"] == "clamped" if "under" in table else pd.Series(dtype=bool)
    return table[is_clamped] if is_clamped.any() else table


def time_column(table: Any) -> str:
    """Return the column of time: `sequences`, or `step` where a table has that alone."""
    names = getattr(table, "columns", ())
    return "step" if "step" in names and "sequences" not in names else "sequences"


def time_unit(times: pd.DataFrame) -> str:
    """Return what an emergence table's times count; ValueError where rows count different things.

    Its column `unit` says so where they are not sequences.
    """
    units = distinct(times["unit"]) if "unit" in times else ["sequences"]
    if len(units) != 1:
        named = ["sequences" if missing(unit) else unit for unit in units]
        raise ValueError(f"The column 'unit' holds {named}: expected times of one unit.")
    return str(units[0])


def finite(values: Any, what: str, *, low: float | int = -np.inf) -> Float[ndarray, "*shape"]:
    """Return `numbers` without NaN or infinity, none below `low`; ValueError names another."""
    array = numbers(values, what)
    bad = array[~(np.isfinite(array) & (array >= low))]
    if bad.size:
        least = f" of at least {low:g}" if low > -np.inf else ""
        raise ValueError(
            f"{what} holds {bad[0]:g}: expected finite numbers{least}; leave such rows out."
        )
    return array


def flags(values: Iterable[object], what: str) -> Bool[ndarray, " row"]:
    """Return truth values, which may come as 0 and 1; ValueError for words, gaps and others."""
    listed = list(values)
    for value in listed:
        is_number = isinstance(value, bool | np.bool_ | int | float | np.number)
        if not is_number or value not in (0, 1):
            raise ValueError(f"{what} holds {value!r}: expected True, False, 1 or 0; convert it.")
    return np.array(listed, dtype=bool)


def missing(value: object) -> bool:
    """Return whether a value is None, NaN, NA or NaT."""
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))  # pyright: ignore


def shown(key: object) -> str:
    """Return a key in words; a missing one is "none"."""
    return "none" if missing(key) else str(key)


def equal(column: "pd.Series[Any]", value: object) -> Bool[ndarray, " row"]:
    """Return which rows have this value; every missing value equals every other."""
    if missing(value):
        return column.isna().to_numpy(dtype=bool)
    if not pd.api.types.is_scalar(value):
        raise ValueError(f"{column.name}={value!r}: expected one value.")
    return (column == value).to_numpy(dtype=bool, na_value=False)


def distinct(column: "pd.Series[Any]") -> list[Any]:
    """Return each value once, in order of appearance; all missing values count as one."""
    values = column.drop_duplicates().tolist()
    first = next((place for place, value in enumerate(values) if missing(value)), 0)
    return [v for place, v in enumerate(values) if place == first or not missing(v)]


def ordered(column: "pd.Series[Any]") -> list[Any]:
    """Return each value once: numbers in order, then words in order, and a missing value last."""

    def place(value: Any) -> tuple[bool, bool, Any]:
        is_number = isinstance(value, int | float | np.number)
        return missing(value), not is_number, value if is_number else str(value)

    return sorted(distinct(column), key=place)


def groups(table: pd.DataFrame, by: Sequence[str]) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Return rows by their keys in these columns, in order of appearance."""
    table = table.reset_index(drop=True)  # whose name may be that of a column
    try:
        found = table.groupby(list(by), sort=False, dropna=False, observed=True)
        len(found)
    except TypeError as error:
        raise TypeError(f"{list(by)}: expected words and numbers, but {error}.") from error
    return [({column: rows[column].iloc[0] for column in by}, rows) for _, rows in found]


def key_columns(by: str | Sequence[str], *made: str, seed: bool = False) -> list[str]:
    """Return the columns that tell rows apart; ValueError for none, one twice, or one of `made`."""
    columns = [*([by] if isinstance(by, str) else by), *(["seed"] if seed else [])]
    if not columns or len(set(columns)) < len(columns) or set(columns) & set(made):
        raise ValueError(
            f"by={columns}: expected different columns to tell rows apart, and none of "
            f"{', '.join(made)}."
        )
    return columns


def refuse_columns(table: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse a table that lacks columns, has two of one name or has no rows, with ValueError."""
    names = list(table.columns)
    lacking = [column for column in columns if column not in names]
    if lacking or len(table) == 0:
        lacks = f" and lacks the columns {lacking}" if lacking else ""
        wanted = ", ".join(map(str, columns)) or "some rows"
        raise ValueError(
            f"The table has {len(table)} rows{lacks}: expected {wanted}, got {names[:12]}."
        )
    twice = [column for column in columns if names.count(column) > 1]
    if twice:
        raise ValueError(f"The table has more than one column {twice}: expected one; drop others.")


def refuse_seeds(seeds: Sequence[object]) -> None:
    """Refuse seeds that cannot pair runs: some missing, or words beside numbers (ValueError)."""
    if any(missing(seed) for seed in seeds) or len({isinstance(s, str) for s in seeds}) > 1:
        raise ValueError(f"seed={seeds[:12]}: expected numbers or words, and none missing.")


def _plain(values: Any) -> Any:
    """Return as an array what NumPy would misread: tensors (of bfloat16) and masked arrays."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().to_dense()
        return (values if values.is_complex() else values.double()).numpy()
    if isinstance(values, np.ma.MaskedArray):
        return np.where(np.ma.getmaskarray(values), np.nan, values.data)
    return values


def _number(value: Any) -> float:
    if missing(value):
        return np.nan
    if isinstance(value, str | bytes | complex | np.complexfloating):
        raise TypeError(f"got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TypeError(f"got a {type(value).__name__}") from None
