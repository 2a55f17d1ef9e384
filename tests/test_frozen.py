"""The base of what is written to JSON."""

import importlib
import inspect
import pickle
import pkgutil
import pydoc
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import Field, ValidationError

import ih_interp as ih
from ih_interp._config_base import Frozen, canonical_json, explain
from ih_interp.clamps import AblateHeads, AbstractClamp, InductionAttention, Preserve, during
from ih_interp.clamps.schedules import During, Ramp
from ih_interp.config import Grid, RunConfig, Seeds
from ih_interp.tasks.exemplars import GaussianSource
from ih_interp.toy import ToyConfig


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
    with pytest.raises(TypeError, match=r"Outer.* 3 "):
        Outer(3)
    with pytest.raises(TypeError, match=r"Inner\(rate="):
        Inner(0.1)
    with pytest.raises(TypeError, match=r"InductionAttention\(heads="):
        InductionAttention(["L1H3"])
    assert pickle.loads(pickle.dumps(Outer(size=1))) == Outer(size=1)


@pytest.mark.parametrize("rate", [float("nan"), float("inf")])
def test_numbers_are_finite(rate):
    with pytest.raises(ValueError, match="finite number"):
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
    with pytest.raises(ValueError, match="expected a number"):
        Outer(size=value)
    with pytest.raises(ValueError, match="expected a number"):
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
    assert told[0].startswith("size='many': ")
    assert told[1] == "inner.speed=2: there is no such field"


def test_a_value_made_wrongly_is_told_with_what_was_expected():
    for given, words in (
        ({"sise": 2}, r"sise=2: there is no such field \(did you mean size\?\)"),
        ({"size": "many"}, "size='many': expected int"),
        ({"inner": {"speed": 2}}, r"inner\.speed=2: there is no such field"),
    ):
        with pytest.raises(ValueError, match=rf"^Outer: .*{words}"):
            Outer(**{"size": 3, "names": ["b"]} | given)


def every_value():
    """Every configuration, clamp and schedule of the package, found as Python knows them."""
    for module in pkgutil.walk_packages(ih.__path__, "ih_interp."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    found, left = [], [Frozen]
    while left:
        below = [sub for sub in left.pop().__subclasses__() if sub.__module__[:9] == "ih_interp"]
        found += below
        left += below
    return found


EVERY_VALUE = every_value()


@pytest.mark.parametrize("value", EVERY_VALUE, ids=lambda value: value.__name__)
def test_every_field_is_described_where_help_shows_it(value):
    described = value.__doc__.partition("Fields:\n")[2]
    for name, field in value.model_fields.items():
        words = (field.description or "").split()
        assert len(words) >= 3, f"{value.__name__}.{name} has no docstring under it"
        assert f"\n    {name} (" in f"\n{described}"
        assert " ".join(words) in " ".join(described.split())


@pytest.mark.parametrize("value", EVERY_VALUE, ids=lambda value: value.__name__)
def test_help_and_signature_are_in_words(value):
    signature = str(inspect.signature(value))
    told = pydoc.render_doc(value, renderer=pydoc.plaintext)
    assert set(inspect.signature(value).parameters) == set(value.model_fields) - {"kind"}
    for internal in ("Annotated", "FieldInfo", "Validator", "typing.", "ih_interp"):
        assert internal not in signature
    assert told.count("pydantic") == 1  # in the method resolution order
    for internal in ("model_dump", "model_fields", "__init__", "model_config", "ForwardRef"):
        assert internal not in told


def test_a_notebooks_question_mark_shows_nothing_of_pydantic():
    shell = pytest.importorskip("IPython.core.interactiveshell").InteractiveShell()
    shell.user_ns["RunConfig"] = RunConfig
    shown = shell.object_inspect("RunConfig")
    told = " ".join(shown[key] or "" for key in ("init_definition", "docstring", "init_docstring"))
    assert "sequences: int = 1000000" in told
    assert "How many sequences are seen" in told
    assert "pydantic" not in told
    assert "ValidationError" not in told


def test_there_are_values_to_look_at():
    assert {RunConfig, AblateHeads, Grid, ToyConfig, GaussianSource} <= set(EVERY_VALUE)
    assert sum(issubclass(value, AbstractClamp) for value in EVERY_VALUE) > 14


def test_types_and_limits_are_words():
    always = "AbstractSchedule = Always()"
    assert str(inspect.signature(AblateHeads)) == f"(*, heads: list of heads, schedule: {always})"
    assert 'what: list of "patterns" | "values"' in str(inspect.signature(Preserve))
    assert "clamps: list of clamps = []" in str(inspect.signature(RunConfig))
    assert "evaluations: Grid = Grid(every=5000)" in str(inspect.signature(RunConfig))
    assert str(inspect.signature(ToyConfig)).startswith("(*, sizes: list of 3 ints = [20, 20, 20]")
    assert (
        "    strength (float, at least 0, at most 1): Attention weight"
        in InductionAttention.__doc__
    )
    assert "    every (int | None, at least 1): Sequences from" in Grid.__doc__
    assert 'kind ("ablate_heads"): Always "ablate_heads"' in AblateHeads.__doc__


def test_a_class_of_a_users_own_is_told_too():
    class Mine(Inner):
        size: int
        """How large it is."""

    assert str(inspect.signature(Mine)) == "(*, size: int, rate: float = 0.5)"
    assert Mine.__doc__.splitlines()[:3] == ["Mine", "", "Fields:"]
    assert "    size (int): How large it is." in Mine.__doc__


def test_a_users_fields_may_be_of_any_type():
    class Odd(Frozen):
        when: date = Field(default=date(2024, 5, 1), ge=date(2020, 1, 1))
        nothing: tuple[()] = ()
        function: Callable[[int], int] | None = None
        anything: Any = 0
        names: frozenset[str] = frozenset()

    assert "when (date, at least 2020-01-01):" in Odd.__doc__
    assert "anything: Any = 0" in str(inspect.signature(Odd))


def test_a_value_prints_what_differs_from_its_defaults():
    assert repr(RunConfig()) == str(RunConfig()) == "RunConfig()"
    assert repr(Grid(per_decade=8)) == "Grid(per_decade=8)"
    run = RunConfig(clamps=[AblateHeads(heads=["L1H0"], schedule=during(stop=9))])
    assert repr(run) == (
        "RunConfig(clamps=(AblateHeads(schedule=During(stop=9), heads=(Head(layer=1, head=0),)),))"
    )
    assert (
        eval(
            repr(run),
            vars(ih)
            | vars(ih.clamps)
            | {"During": type(during()), "Head": ih.Head, "RunConfig": RunConfig},
        )
        == run
    )
