"""`checked`: every argument against its annotation, once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from jaxtyping import Float, Int, Shaped
from numpy import ndarray
from numpy.typing import ArrayLike
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp.analysis.checks import Confidence, Seed, Within, checked
from ih_interp.batch import Batch
from ih_interp.types import Tokens

FITS = {
    "int": (int, [3, np.int64(3)], [True, 2.5, "3", None, np.nan]),
    "float": (float, [3, 2.5, np.float32(2)], [True, "3", None, torch.tensor(2.0)]),
    "bool": (bool, [True, np.True_], [1, 0, "yes", None]),
    "str": (str, ["x"], [3, None]),
    "optional": (int | None, [3, None], ["3", True]),
    "choice": (Literal["q", "k"], ["q"], [3, None, ["q"]]),
    "choice or function": (Literal["q"] | Callable[[int], int], ["q", abs], [3, None]),
    "several": (str | Sequence[str], ["x", ["x", "y"], ()], [3, ["x", 3], {"x": 1}]),
    "sequence": (Sequence[int], [[1], (1, 2), range(3)], [3, [1, "2"], [True]]),
    "mapping": (Mapping[str, Tensor], [{"x": torch.ones(1)}], [{"x": 1.0}, [1]]),
    "pair": (tuple[float, float], [(0.1, 1), [1, 2]], [3, (1, "2")]),
    "iterable": (Iterable[str], [iter("x"), ["x"], {"x"}], [3, None]),
    "table": (pd.DataFrame, [pd.DataFrame()], [{}, []]),
    "values": (
        Shaped[ndarray, "..."] | Shaped[Tensor, "..."],
        [np.ones(2), torch.ones(2)],
        [[1.0], 1.0],
    ),
    "tensor": (Float[Tensor, "layer head"], [torch.ones(1, 1)], [np.ones((1, 1)), None]),
    "anything": (Any, [3, None, "x"], []),
    "array-like": (ArrayLike, [3, [1], np.ones(1)], []),
}


@pytest.mark.parametrize(("hint", "good", "bad"), FITS.values(), ids=FITS)
def test_a_type_is_what_the_annotation_says(hint, good, bad):
    def function(value):
        return value

    function.__annotations__["value"] = hint
    call = checked()(function)
    for value in good:
        if not callable(value):
            assert call(value) is value
    for value in bad:
        with pytest.raises(TypeError, match=r"^value"):
            call(value)


@checked("give numbers")
def example(
    kind: Literal["Q", "K"],
    level: Confidence = 0.9,
    seed: Seed = 0,
    band: tuple[float, float] = (0, 1),
    size: Annotated[int, Within(2), "two are least"] = 2,
):
    return kind, level, seed, band, size


@pytest.mark.parametrize(
    ("given", "token"),
    [
        ({"kind": "V"}, "kind='V': expected 'Q' or 'K'"),
        ({"level": 1.5}, "0.95 is usual"),
        ({"level": np.nan}, "level=nan"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**32}, "seed=4294967296"),
        ({"band": (1.0,)}, "band="),
        ({"size": 1}, "two are least"),
    ],
)
def test_a_value_lies_where_the_annotation_says(given, token):
    assert example(kind="Q") == ("Q", 0.9, 0, (0, 1), 2)
    with pytest.raises(ValueError, match=token):
        example(**{"kind": "Q"} | given)


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), (("Q",), {"other": 1}), (("Q",) * 6, {})])
def test_a_call_that_does_not_fit_says_what_would(args, kwargs):
    with pytest.raises(TypeError, match=r"example takes \(kind, .*give numbers"):
        example(*args, **kwargs)


@checked()
def of_model(model: HookedTransformer, batch: Batch | Tokens, vocabulary: Int[Tensor, " token"]):
    return model, batch, vocabulary


WORDS = torch.tensor([0, 1])
OTHERS = {
    "no sequences": (lambda b: b.tokens[:0], "at least one"),
    "one axis": (lambda b: b.tokens[0], r"\(5,\)"),
    "floats": (lambda b: b.tokens.float(), "float32"),
    "masks": (lambda b: b.tokens.to(torch.uint8), "uint8"),
    "unknown tokens": (lambda b: b.tokens + 1000, "tokens in"),
    "below zero": (lambda b: b.tokens - 1000, "tokens in"),
    "too long": (lambda b: torch.cat([b.tokens] * 9, dim=1), "45 positions"),
    "unknown targets": (lambda b: b.replace(targets=b.target + 100), "targets in"),
}


@pytest.mark.parametrize(("made", "token"), OTHERS.values(), ids=OTHERS)
def test_sequences_are_the_models_own(model, batch, made, token):
    assert of_model(model, batch, WORDS)[1] is batch
    assert of_model(model, batch.tokens, WORDS)[1] is batch.tokens
    with pytest.raises(ValueError, match=token):
        of_model(model, made(batch), WORDS)
    with pytest.raises(ValueError, match="uint8"):
        of_model(model, batch, WORDS.to(torch.uint8))
    with pytest.raises(TypeError, match="model: expected a HookedTransformer"):
        of_model(torch.nn.Linear(1, 1), batch, WORDS)


def test_a_users_function_gets_copies():
    @checked()
    def applied(function: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
        return function(value)

    value = torch.ones(3)
    assert applied(lambda x: x.mul_(2), value).tolist() == [2, 2, 2]
    assert value.tolist() == [1, 1, 1]
