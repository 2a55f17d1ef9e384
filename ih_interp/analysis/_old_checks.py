"""What an argument of a name has to be, for every function of the analysis: one table."""

import functools
import inspect
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp._columns import finite, flags
from ih_interp._stock import refuse_other_names, refuse_unfit_weights
from ih_interp.model import refuse_other_exemplars
from ih_interp.tasks.few_shot import FewShotTask
from ih_interp.types import Batch, expect

Given = ParamSpec("Given")
Result = TypeVar("Result")


class Wanted(NamedTuple):
    """Kinds of object, what to do instead, and for numbers the range, both ends included."""

    kinds: type | tuple[type, ...]
    remedy: str = ""
    low: float = -math.inf
    high: float = math.inf


FUNCTION: type = Callable  # pyright: ignore[reportAssignmentType], which isinstance takes
INTEGER, NUMBER = (int, np.integer), (int, float, np.integer, np.floating)
TABLE = "make it with emergence_table"

WANTED: dict[str, Wanted] = {
    "model": Wanted(HookedTransformer, "a run's is run.model(step)"),
    "batch": Wanted(Batch, "give the Batch itself, not its tokens"),
    "clean": Wanted(Batch, "give the Batch itself, not its tokens"),
    "corrupted": Wanted(Batch, "make it with swap_labels(clean)"),
    "reference": Wanted(Batch, "give a batch of other sequences"),
    "sequences": Wanted((Batch, Tensor), "give a Batch or its tokens"),
    "tokens": Wanted(Tensor, "give token ids, batch.tokens or torch.tensor([...])"),
    "vocabulary": Wanted(Tensor, "give token ids, torch.tensor([...])"),
    "previous": Wanted(Tensor, "give previous_token_score(model, batch)"),
    "circuit": Wanted(Tensor, "give label_copying(model)"),
    "task": Wanted(FewShotTask, "a run's is run.task"),
    "generator": Wanted(torch.Generator, "make it with torch.Generator().manual_seed(0)"),
    "heads": Wanted(Iterable, 'write ["L1H3", "L1H5"]'),
    "order": Wanted(Iterable, 'write ["L1H3", "L1H5"]'),
    "crossings": Wanted(Sequence, "give one Crossing a run, [learned(...), ...]"),
    "first": Wanted(Mapping, "give a Crossing a seed, {5: learned(...)}"),
    "second": Wanted(Mapping, "give a Crossing a seed, {5: learned(...)}"),
    "scores": Wanted(Mapping, "give scores by name, {'induction': induction_strength(...)}"),
    "chance": Wanted(Mapping, "give levels by name, {'induction': 0.0}"),
    "times": Wanted(pd.DataFrame, TABLE),
    "curves": Wanted(pd.DataFrame, "give one row a point, as trace does"),
    "value": Wanted(str, "name a column"),
    "values": Wanted((np.ndarray, Tensor), "use np.array(...)"),
    "use": Wanted((np.ndarray, Tensor), "give wiring_map(..., per_sequence=True).effects"),
    "single": Wanted((np.ndarray, Tensor), "use np.array(...)"),
    "joint": Wanted((np.ndarray, Tensor), "use np.array(...)"),
    "metrics": Wanted((str, FUNCTION, Sequence), 'write "loss" or ["loss", "accuracy"]'),
    "metric": Wanted((str, FUNCTION, Sequence), 'write "loss"'),
    "score": Wanted(FUNCTION, "give a function of a pattern"),
    "criterion": Wanted(FUNCTION, "give a function such as learned"),
    "via": Wanted((str, Sequence), 'write "q" or ["q", "k", "v"]'),
    "by": Wanted((str, Sequence), 'write "clamp" or ["clamp", "seed"]'),
    "band": Wanted(Sequence, "write (0.6, 0.8)"),
    "preserve": Wanted((str, Sequence), 'write "patterns"'),
    "receiver_layer": Wanted(INTEGER),
    "sender_layer": Wanted(INTEGER),
    "seed": Wanted(INTEGER, "", 0, 2**32 - 1),
    "layer": Wanted(INTEGER, "layers count from 0", 0),
    "n_positions": Wanted(INTEGER, "", 1, 10**6),
    "n_draws": Wanted(INTEGER, "", 2),
    "n_resamples": Wanted(INTEGER, "", 1),
    "n_permutations": Wanted(INTEGER, "", 1),
    "n_sequences": Wanted(INTEGER),
    "n_points": Wanted(INTEGER),
    "for_at_least": Wanted(INTEGER),
    "period": Wanted(INTEGER, "", high=10**6),
    "repeats": Wanted(INTEGER, "", high=10**6),
    "offset": Wanted(INTEGER),
    "distance": Wanted(INTEGER, "", 0),
    "token": Wanted(INTEGER, "", 0, 2**31),
    "level": Wanted(NUMBER),
    "confidence": Wanted(NUMBER, "0.95 is usual", 0, 1),
    "at_least": Wanted(NUMBER, "", 0),
    "after": Wanted(NUMBER),
    "horizon": Wanted(NUMBER, "", 0, sys.float_info.max),
    "idle": Wanted(NUMBER, "", 0),
    "share": Wanted(NUMBER),
}
"""By name: an argument of one name means the same in every function."""

CHOICES = frozenset(
    {*("rows", "kind", "convention", "which", "split"), *("scale", "keep", "ablation", "direction")}
)
FLAGS = frozenset(
    {
        *("per_sequence", "full", "layer_norm", "fold_ln", "freeze_ln", "normalise"),
        *("perfect_match", "last_query", "bos"),
    }
)
OPTIONAL = frozenset(
    {
        *("heads", "order", "corrupted", "reference", "vocabulary", "period", "token", "horizon"),
        *("chance", "receiver_layer"),
    }
)
"""Where None stands for a default."""


Function = TypeVar("Function", bound=Callable[..., Any])


def given_copies(function: Function) -> Function:
    """Return a user's function so that it gets copies of tensors, batches and arrays.

    It may then write into them, as `logits -= ...` does, and no other numbers change. The
    package's own functions, which write into nothing, are returned as they are.
    """
    if str(getattr(function, "__module__", "")).startswith("ih_interp."):
        return function

    @functools.wraps(function)
    def called(*given: Any) -> Any:
        return function(*(_copy(value) for value in given))

    return cast(Function, called)


def _copy(value: Any) -> Any:
    if isinstance(value, Batch):
        return replace(value, tokens=value.tokens.clone(), target=value.target.clone())
    if isinstance(value, Tensor):
        return value.clone()
    return value.copy() if isinstance(value, np.ndarray | list) else value


def refuse_no_heads(heads: object) -> None:
    """Refuse None where a function has no heads of its own to take."""
    expect(heads, Iterable, "heads", WANTED["heads"].remedy)


def refuse_wrong(**given: Any) -> None:
    """Refuse arguments that are not what their name says: TypeError or ValueError in words.

    None passes where it stands for a default. Tokens and exemplars are compared with the model,
    where both are given.
    """
    for name, value in given.items():
        if value is None and name in OPTIONAL:
            continue
        if name in CHOICES:
            expect(value, str, f"{name}={_shown(value)}")
        elif name in FLAGS:
            expect(value, (bool, np.bool_), f"{name}={_shown(value)}")
        else:
            _refuse_kind(name, value, WANTED[name])
    if given.get("model") is not None:
        refuse_unfit_weights(given["model"])
        refuse_other_names(given["model"])
    for name in ("crossings", "first", "second"):
        crossings = given.get(name, ())
        for one in crossings.values() if isinstance(crossings, Mapping) else crossings:
            _refuse_crossing(name, one)
    if len(given.get("crossings", "some")) == 0:
        raise ValueError("There are no runs; give at least one.")
    for name in ("batch", "clean", "corrupted", "sequences"):
        if given.get(name) is not None:
            value = given[name]
            _refuse_tokens(name, value if isinstance(value, Tensor) else value.tokens, given)
            if isinstance(value, Batch):
                _refuse_targets(name, value, given)
                if given.get("model") is not None:
                    refuse_other_exemplars(given["model"], value)


def _refuse_kind(name: str, value: Any, wanted: Wanted) -> None:
    is_number = wanted.kinds in (INTEGER, NUMBER)
    if isinstance(value, bool) and is_number:  # an int to Python
        raise TypeError(f"{name}={value} has to be a number.")
    if not isinstance(value, wanted.kinds):  # else not shown: a list's words take long to write
        large = name in ("model", "batch")  # whose value nobody wants to read
        what = f"The {name}" if large else f"{name}={_shown(value)}"
        expect(value, wanted.kinds, what, wanted.remedy)
    if isinstance(value, Tensor) and name in ("tokens", "vocabulary"):
        _refuse_narrow(name, value)
    if is_number and not wanted.low <= value <= wanted.high:
        remedy = f"; {wanted.remedy}" if wanted.remedy else ""
        raise ValueError(f"{name}={value} has to lie in [{wanted.low:g}, {wanted.high:g}]{remedy}.")


def _refuse_narrow(name: str, tokens: Tensor) -> None:
    """To torch, uint8 and bool are masks, and other narrow integers no indices."""
    if tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"The {name} are {tokens.dtype}: expected torch.int64, {name}.long().")


def _refuse_crossing(name: str, one: Any) -> None:
    time, observed = getattr(one, "time", None), getattr(one, "observed", None)
    if type(time) is float and 0 <= time < math.inf and type(observed) is bool:
        return  # as they are made: the rest is slow, and a bootstrap asks a thousand times
    if not hasattr(one, "time") or not hasattr(one, "observed"):
        raise TypeError(f"{name} holds {_shown(one)}, which is no Crossing.")
    finite([time], f"A time of {name}", low=0)
    flags([observed], f"`observed` of {name}")


def _refuse_tokens(name: str, tokens: Tensor, given: Mapping[str, Any]) -> None:
    if tokens.ndim == 2 and len(tokens) == 0:
        raise ValueError(f"There are no sequences to score in {name}; give at least one.")
    if tokens.ndim != 2 or tokens.is_floating_point() or 0 in tokens.shape:
        raise ValueError(
            f"The tokens of {name} are {tokens.dtype} of shape {tuple(tokens.shape)}; "
            "integers [batch, pos], neither of them empty, were expected."
        )
    _refuse_narrow(f"tokens of {name}", tokens)
    model = given.get("model")
    high = math.inf if model is None else model.cfg.d_vocab
    room = math.inf if model is None else model.cfg.n_ctx
    if not (int(tokens.min()) >= 0 and int(tokens.max()) < high):
        raise ValueError(
            f"The tokens of {name} run from {int(tokens.min())} to {int(tokens.max())}; they must "
            f"lie in [0, {high}): use sequences of the model's own task."
        )
    if tokens.shape[1] > room:
        raise ValueError(f"{name} has {tokens.shape[1]} positions; the model takes {room}.")


def _refuse_targets(name: str, batch: Batch, given: Mapping[str, Any]) -> None:
    model = given.get("model")
    high = math.inf if model is None else model.cfg.d_vocab_out
    if not (int(batch.target.min()) >= 0 and int(batch.target.max()) < high):
        raise ValueError(
            f"The targets of {name} run from {int(batch.target.min())} to "
            f"{int(batch.target.max())}; they must be labels, in [0, {high})."
        )


def _shown(value: object) -> str:
    is_module = isinstance(value, torch.nn.Module)  # whose repr is all its parts
    text = f"{type(value).__name__}(...)" if is_module else " ".join(repr(value).split())
    return text if len(text) < 60 else f"{text[:57]}..."


def called_with(remedy: str) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Decorate a function so that a call that does not fit it is told with what it takes.

    For those whose first guess is another call, as `backup_heads(model, batch)`: Python would only
    count the arguments.
    """

    def decorate(function: Callable[Given, Result]) -> Callable[Given, Result]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def call(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                name, names = function.__name__, ", ".join(signature.parameters)
                raise TypeError(f"{name} takes ({names}): {error}; {remedy}.") from None
            return function(*args, **kwargs)

        return call

    return decorate
