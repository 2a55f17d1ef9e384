"""The base of what is written to JSON."""

import pickle

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ih_interp.clamps import AblateHeads, InductionAttention
from ih_interp.clamps.schedules import During, Ramp
from ih_interp.config import RunConfig, Seeds
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


@pytest.mark.parametrize(
    "size", [np.int64(3), np.uint8(3), np.array(3), torch.tensor(3), np.float64(3)], ids=repr
)
def test_numbers_of_numpy_and_torch_are_written_as_pythons(size):
    given = Outer(size=size, inner={"rate": np.float32(0.25)}, names=np.array(["b", "a"]))
    assert type(given.size) is int
    assert type(given.inner.rate) is float
    assert canonical_json(given) == '{"inner":{"rate":0.25},"names":["b","a"],"size":3}'


@pytest.mark.parametrize("value", [True, np.True_, np.array(True), torch.tensor(False)], ids=repr)
def test_true_is_no_number(value):
    with pytest.raises(ValidationError, match="expected a number"):
        Outer(size=value)
    with pytest.raises(ValidationError, match="expected a number"):
        Inner(rate=value)


@pytest.mark.parametrize(
    "heads",
    [
        np.array([[0, 1], [1, 3]]),
        torch.tensor([[0, 1], [1, 3]]),
        [np.array([0, 1]), (np.int64(1), np.int64(3))],
        np.argwhere(np.array([[0, 1, 0, 0], [0, 0, 0, 1]])),
        np.array(["L0H1", "L1H3"]),
    ],
    ids=repr,
)
def test_arrays_of_heads_are_heads(heads):
    assert AblateHeads(heads=heads) == AblateHeads(heads=["L0H1", "L1H3"])
    assert AblateHeads(heads=heads).model_dump_json().endswith('"heads":["L0H1","L1H3"]}')


def test_schedules_and_runs_take_numbers_of_numpy():
    assert During(start=np.int64(2), stop=np.int64(5)) == During(start=2, stop=5)
    assert Ramp(start=np.int32(0), stop=np.int64(8), low=np.float32(0.5)).low == 0.5
    config = RunConfig(sequences=np.int64(640), seeds=Seeds(init=np.uint32(7)))
    assert config.fingerprint == RunConfig(sequences=640, seeds=Seeds(init=7)).fingerprint
    assert config.replace(batch_size=np.int64(64)).save()["batch_size"] == 64


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
