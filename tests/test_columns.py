"""Columns and arrays are taken for what they say, or refused by name."""

import numpy as np
import pandas as pd
import pytest
import torch

from ih_interp import _columns as columns

GAPS = (None, np.nan, pd.NA, pd.NaT)


@pytest.mark.parametrize(
    "values",
    [
        [0, 1, 200],
        np.array([0, 1, 200], np.uint8),
        np.array([0, 1, 200], np.float16),
        np.array([0, 1, 200], np.longdouble),
        torch.tensor([0, 1, 200], dtype=torch.bfloat16, requires_grad=True),
        torch.tensor([0, 1, 200], dtype=torch.int16),
        pd.Series([0, 1, 200], dtype="Int64", index=[7, 7, 7]),
        np.array([0, True, np.float32(200)], dtype=object),
    ],
    ids=lambda values: str(getattr(values, "dtype", "list")),
)
def test_numbers_of_any_type_are_double(values):
    found = columns.numbers(values, "x")
    assert found.dtype == np.float64
    assert found.tolist() == [0, 1, 200]


def test_gaps_are_nan():
    for values in ([1.0, None], pd.Series([1, pd.NA], dtype="Int64"), np.array([1, pd.NA])):
        assert np.isnan(columns.numbers(values, "x")).tolist() == [False, True]


@pytest.mark.parametrize(
    "values",
    [
        ["1", "2"],
        np.array(["1"], dtype=object),
        np.array([1j]),
        torch.tensor([1j]),
        np.array([np.complex64(1)], dtype=object),
        np.array(["2020-01-01"], dtype="datetime64[D]"),
        pd.Series(pd.to_datetime(["2020-01-01"])),
        [[1, 2], [3]],
    ],
    ids=str,
)
def test_what_is_no_real_number_is_refused_by_name(values):
    with pytest.raises(TypeError, match="The loss: expected"):
        columns.numbers(values, "The loss")


def test_finite_numbers_have_a_lower_end():
    assert columns.finite([0.0, 2.0], "x", low=0).tolist() == [0, 2]
    for bad in (np.nan, np.inf, -np.inf, -0.5):
        with pytest.raises(ValueError, match=f"x holds {bad:g}"):
            columns.finite([1.0, bad], "x", low=0)


def test_flags_are_truth_values_or_0_and_1():
    for values in (
        [True, False],
        [1, 0],
        [1.0, np.float32(0)],
        np.array([True, False]),
        [1, False],
    ):
        assert columns.flags(values, "x").tolist() == [True, False]
    for bad in ("True", "False", 2, 0.5, np.nan, None, pd.NA, -1, b"1", [1]):
        with pytest.raises(ValueError, match="x holds"):
            columns.flags([True, bad], "x")


@pytest.mark.parametrize("gap", GAPS, ids=repr)
def test_a_missing_key_is_a_key(gap):
    table = pd.DataFrame({"k": pd.Series(["b", gap, "a", gap], dtype=object), "v": range(4)})
    found = columns.groups(table, ["k"])
    assert [rows["v"].tolist() for _, rows in found] == [[0], [1, 3], [2]]
    assert [columns.shown(key["k"]) for key, _ in found] == ["b", "none", "a"]
    assert [columns.shown(key) for key in columns.distinct(table["k"])] == ["b", "none", "a"]
    for other in GAPS:
        assert columns.equal(table["k"], other).tolist() == [False, True, False, True]
    assert columns.equal(table["k"], "a").tolist() == [False, False, True, False]


def test_all_kinds_of_missing_are_one_key():
    table = pd.DataFrame({"k": pd.Series([*GAPS, "a"], dtype=object)})
    assert [len(rows) for _, rows in columns.groups(table, ["k"])] == [4, 1]
    assert len(columns.distinct(table["k"])) == 2


def test_keys_of_several_types_stay_apart_and_empty_categories_are_none():
    table = pd.DataFrame({"k": pd.Series([1, "1", 1], dtype=object)})
    assert [len(rows) for _, rows in columns.groups(table, ["k"])] == [2, 1]
    kinds = pd.Categorical(["b", None, "a"], categories=["a", "b", "never"])
    table = pd.DataFrame({"k": kinds, "s": [0, 0, 0]})
    assert [len(rows) for _, rows in columns.groups(table, ["k", "s"])] == [1, 1, 1]
    assert columns.equal(table["k"], "a").tolist() == [False, False, True]


def test_nullable_columns_are_compared():
    column = pd.Series([1, pd.NA, 2], dtype="Int64")
    assert columns.equal(column, 2).tolist() == [False, False, True]
    with pytest.raises(ValueError, match="one value"):
        columns.equal(column, [1, 2, 2])


def test_the_order_is_numbers_words_and_what_is_missing():
    column = pd.Series(["x", None, 10, 9, "x", 9.5], dtype=object)
    assert columns.ordered(column) == [9, 9.5, 10, "x", None]


def test_columns_there_are_are_there_once():
    table = pd.DataFrame([[1, 2]], columns=["a", "a"])
    with pytest.raises(ValueError, match=r"more than one column \['a'\]"):
        columns.refuse_columns(table, ["a"])
    for by in ([], ["a", "a"], "time"):
        with pytest.raises(ValueError, match="by="):
            columns.key_columns(by, "time")


def test_masked_numbers_are_missing_and_sparse_ones_are_read():
    masked = np.ma.masked_array([1.0, 99.0], mask=[False, True])
    np.testing.assert_array_equal(columns.numbers(masked, "x"), [1, np.nan])
    sparse = torch.tensor([0.0, 3.0]).to_sparse()
    np.testing.assert_array_equal(columns.numbers(sparse, "x"), [0, 3])


def test_keys_that_are_lists_are_refused_in_words():
    with pytest.raises(TypeError, match="words and numbers"):
        columns.groups(pd.DataFrame({"clamp": [["a"]]}), ["clamp"])
