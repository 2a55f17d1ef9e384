"""The base of what is written to JSON."""

import pickle

import pytest
from pydantic import ValidationError

from ih_interp.clamps import InductionAttention
from ih_interp.frozen import Frozen, canonical_json, explain


class Inner(Frozen):
    rate: float = 0.5


class Outer(Frozen):
    size: int
    inner: Inner = Inner()
    names: tuple[str, ...] = ()


def test_values_do_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        Outer(size=1).size = 2


def test_fields_come_by_name():
    with pytest.raises(TypeError, match=r"^Outer takes its fields by name and 3 came without one"):
        Outer(3)
    with pytest.raises(TypeError, match=r"write Inner\(rate=\.\.\.\)"):
        Inner(0.1)
    with pytest.raises(TypeError, match=r"write InductionAttention\(heads=\.\.\.\)"):
        InductionAttention(["L1H3"])
    assert pickle.loads(pickle.dumps(Outer(size=1))) == Outer(size=1)


@pytest.mark.parametrize("rate", [float("nan"), float("inf")])
def test_numbers_are_finite(rate):
    with pytest.raises(ValidationError, match="finite number"):
        Inner(rate=rate)


def test_equal_values_have_one_spelling():
    expected = '{"inner":{"rate":0.5},"names":["b","a"],"size":3}'
    assert canonical_json(Outer(size=3, names=("b", "a"))) == expected
    assert canonical_json(Outer(names=["b", "a"], inner={"rate": 0.5}, size=3)) == expected


def test_errors_are_told_field_by_field():
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate({"size": "many", "inner": {"rate": -1, "speed": 2}})
    told = explain(caught.value).split("; ")
    assert len(told) == 2
    assert told[0].startswith("size: Input should be a valid integer")
    assert told[0].endswith("(got 'many')")
    assert told[1] == "inner.speed: Extra inputs are not permitted (got 2)"
