"""The vocabulary: heads, where things stand in a sequence, batches, and the shapes of activations.

Axes, everywhere in the package:

    batch     sequences
    pos       positions of a sequence: x1 l1 x2 l2 ... xq
    query     the position that attends        key       the position attended to
    head      attention heads of one layer     layer     layers, from 0
    pair      (exemplar, label) pairs in the context
    label     output labels                    class     characters of Omniglot, or their likes
"""

import operator
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from pydantic import BeforeValidator, PlainSerializer
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ih_interp._reprs import short_repr

Entry = TypeVar("Entry")

Tokens: TypeAlias = Int[Tensor, "batch pos"]
"""Token ids: the labels first, then every exemplar (`FewShotTask.token`)."""

Residual: TypeAlias = Float[Tensor, "batch pos d_model"]
"""The residual stream (`hook_embed`, `hook_resid_pre`, `hook_resid_post`)."""

PerHead: TypeAlias = Float[Tensor, "batch pos head d_head"]
"""Queries, keys, values or attention output, head by head (`hook_q`, `hook_k`, `hook_v`)."""

Scores: TypeAlias = Float[Tensor, "batch head query key"]
"""Scaled attention scores after the causal mask and before the softmax (`hook_attn_scores`)."""

Pattern: TypeAlias = Float[Tensor, "batch head query key"]
"""Attention weights after the softmax; every row over `key` sums to 1 (`hook_pattern`)."""

Logits: TypeAlias = Float[Tensor, "batch pos label"]
"""Output logits (`unembed.hook_logits`); the query's row is `logits[:, -1]`."""

MetricName: TypeAlias = Literal[
    "loss",
    "accuracy",
    "in_context_accuracy",
    "probability",
    "in_context_probability",
    "context_probability",
]
"""A number that every evaluation measures at the query, as `evaluation.QueryMetrics` defines it."""


def expect(value: object, kind: type | tuple[type, ...], what: str, remedy: str = "") -> None:
    """Raise TypeError for another kind of object: "what: expected a Kind, got another; remedy."."""
    if not isinstance(value, kind):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(with_article(one.__name__) for one in kinds)
        raise _wrong_kind(value, names, what, remedy)


def _wrong_kind(value: object, expected: str, what: str, remedy: str) -> TypeError:
    came, hint = with_article(type(value).__name__), f"; {remedy}" if remedy else ""
    return TypeError(f"{what}: expected {expected}, got {came}{hint}.")


def integer(value: object, what: str, remedy: str = "") -> int:
    """Return a whole number of any library as Python's; TypeError for True and anything else.

    Arrays and tensors without axes are numbers too.

    >>> integer(np.int64(5), "n"), integer(torch.tensor(5), "n")
    (5, 5)
    """
    is_bool = isinstance(value, bool) or getattr(value, "dtype", None) == torch.bool
    with suppress(TypeError):
        if not is_bool and getattr(value, "shape", ()) == ():
            return operator.index(value)  # pyright: ignore[reportArgumentType]
    raise _wrong_kind(value, "an integer", what, remedy)


def with_article(name: str) -> str:
    """Return a name with its article, "a Batch" or "an int"."""
    vowel = name[0] in "AEIOUaeiou" or name.startswith("ndarray")
    return f"{'an' if vowel else 'a'} {name}"


def values_are_known() -> bool:
    """Return whether tensors have values now: not in a trace, a compiler or a `vmap` or `grad`."""
    level = torch._C._functorch.maybe_current_level()  # pyright: ignore
    return level is None and get_proxy_mode() is None and not torch.compiler.is_compiling()


class Head(NamedTuple):
    """An attention head; layer and head count from 0, so the paper's L2H3 is `Head(1, 3)`.

    >>> str(Head(1, 3)), Head.parse("L0H2") == (0, 2)
    ('L1H3', True)
    """

    layer: int
    head: int

    @classmethod
    def parse(cls, value: object) -> "Head":
        """Read "L1H3", `(1, 3)` or a row of `np.argwhere`; a ValueError says what came instead."""
        if isinstance(value, str) and len(value) < 20:
            if match := re.fullmatch(r"L(\d+)H(\d+)", value):
                return cls(int(match[1]), int(match[2]))
        elif isinstance(value, Sequence | np.ndarray | Tensor) and np.shape(value) == (2,):
            with suppress(TypeError):
                pair = cls(*(integer(part, "A head") for part in value))
                if min(pair) >= 0:
                    return pair
        raise ValueError(f'{value!r} is not a head; write "L1H3" or (1, 3), both from zero.')

    def __str__(self) -> str:
        return f"L{self.layer}H{self.head}"


HeadName: TypeAlias = str | tuple[int, int] | Int[np.ndarray, "2"] | Int[Tensor, "2"] | Head
"""A head as callers write it: `"L1H3"`, `(1, 3)`, or a row of `np.argwhere`."""


def parse_heads(heads: Iterable[object]) -> tuple[Head, ...]:
    """Return heads in the order given; ValueError for one alone, or one that is named twice.

    >>> [str(head) for head in parse_heads(["L1H3", (0, 2)])]
    ['L1H3', 'L0H2']
    """
    if isinstance(heads, str | Head):
        raise ValueError(f'heads={heads}: expected a list, such as ["L1H3"].')
    return once_each(map(Head.parse, heads), "heads")


def once_each(values: Iterable[Entry], name: str) -> tuple[Entry, ...]:
    """Return the values of an argument or a field; ValueError where one came twice."""
    given = tuple(values)
    if len(set(given)) < len(given):
        raise ValueError(f"{name}={', '.join(map(str, given))}: expected each once.")
    return given


HeadField: TypeAlias = Annotated[Head, BeforeValidator(Head.parse), PlainSerializer(str)]
"""A head in a clamp or a configuration; `"L1H3"` in JSON."""


def as_indices(values: Tensor, what: str) -> Int[Tensor, "..."]:
    """Return whole numbers as int64; ValueError for floats, complex numbers and booleans."""
    if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{what}: expected integers, as torch.int64, got {values.dtype}.")
    return values.long()


@dataclass(frozen=True)
class Layout:
    """The places of exemplars, labels and the query in `x1 l1 x2 l2 ... xq`.

    >>> Layout(n_pairs=2).labels, Layout(n_pairs=2).query
    ((1, 3), 4)
    """

    n_pairs: int

    @classmethod
    def of(cls, tokens: Tensor) -> "Layout":
        """Return the layout of sequences `[..., pos]`."""
        n_positions = tokens.shape[-1]
        if n_positions < 3 or n_positions % 2 == 0:
            raise ValueError(
                f"Sequences of {n_positions} tokens are not pairs and a query: expected an odd "
                "number of at least 3, x1 l1 ... xq."
            )
        return cls(n_pairs=n_positions // 2)

    @property
    def exemplars(self) -> tuple[int, ...]:
        """Positions of the exemplars in the context."""
        return tuple(range(0, 2 * self.n_pairs, 2))

    @property
    def labels(self) -> tuple[int, ...]:
        """Positions of their labels."""
        return tuple(range(1, 2 * self.n_pairs, 2))

    @property
    def query(self) -> int:
        """Position of the query, the last one."""
        return 2 * self.n_pairs

    @property
    def n_positions(self) -> int:
        return 2 * self.n_pairs + 1


@short_repr
@dataclass(frozen=True)
class Batch:
    """Sequences and the query's label, which is never an input.

    A batch that a task drew knows its exemplars: functions refuse a model that embeds others.
    """

    tokens: Integer[Tensor, "batch pos"]
    """Whole numbers of any width, which become int64: to torch, uint8 is a mask."""
    target: Integer[Tensor, " batch"]
    exemplars: object = field(default=None, repr=False, compare=False)
    """The task's `Exemplars`; None where they are unknown."""

    def __post_init__(self) -> None:
        for name, value in (("tokens", self.tokens), ("target", self.target)):
            expect(value, Tensor, name, "use torch.tensor(...)")
            object.__setattr__(self, name, as_indices(value, name))
        if self.tokens.device != self.target.device:
            raise ValueError(
                f"tokens are on {self.tokens.device} and target on {self.target.device}: expected "
                "one device, tokens.to(device) and target.to(device)."
            )
        if self.tokens.ndim != 2 or self.target.shape != self.tokens.shape[:1]:
            raise ValueError(
                f"tokens have shape {tuple(self.tokens.shape)} and target "
                f"{tuple(self.target.shape)}: expected [batch, pos] and [batch]."
            )

    @property
    def layout(self) -> Layout:
        return Layout.of(self.tokens)

    @property
    def context_labels(self) -> Int[Tensor, "batch pair"]:
        """The labels of the context; a label token is the label itself."""
        return self.tokens[:, list(self.layout.labels)]

    @property
    def correct(self) -> Bool[Tensor, "batch pair"]:
        """True for the context labels that equal the target."""
        return self.context_labels == self.target[:, None]

    def to(self, device: str) -> "Batch":
        return replace(self, tokens=self.tokens.to(device), target=self.target.to(device))

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, rows: "slice | Tensor") -> "Batch":
        try:
            return replace(self, tokens=self.tokens[rows], target=self.target[rows])
        except IndexError as error:
            what = f"a slice, or rows of {len(self)} as int64 or bool"
            raise IndexError(f"batch[rows]: expected {what}: {error}.") from error

    def split(self, size: int) -> "list[Batch]":
        """Return consecutive batches of at most `size` sequences; ValueError if there are none."""
        if integer(size, "size") < 1:
            raise ValueError(f"size={size}: expected at least 1.")
        if len(self) == 0:
            raise ValueError("There are no sequences in this batch; give at least one.")
        return [self[start : start + size] for start in range(0, len(self), size)]
