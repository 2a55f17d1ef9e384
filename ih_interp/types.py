"""The vocabulary: heads, where things stand in a sequence, batches, and the shapes of activations.

Axes, everywhere in the package:

    batch     sequences
    pos       positions of a sequence: x1 l1 x2 l2 ... xq
    query     the position that attends        key       the position attended to
    head      attention heads of one layer     layer     layers, from 0
    pair      (exemplar, label) pairs in the context
    label     output labels                    class     characters of Omniglot, or their likes
"""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Annotated, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Int
from pydantic import BeforeValidator, PlainSerializer
from torch import Tensor

from ih_interp._expect import integer, once_each

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
"""A metric of few-shot sequences, at the query: `evaluation.measured` defines them."""


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


HeadField: TypeAlias = Annotated[Head, BeforeValidator(Head.parse), PlainSerializer(str)]
"""A head in a clamp or a configuration; `"L1H3"` in JSON."""
