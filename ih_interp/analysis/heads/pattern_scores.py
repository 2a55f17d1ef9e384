"""One pass over every layer's activation at a hook point, and scores made of these activations.

The model runs as it stands, under clamps and other people's hooks, and both are left as they were.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, TypeAlias

import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from ih_interp._torch_state import in_single
from ih_interp.analysis.checks import checked_in_plain_torch
from ih_interp.batch import Batch
from ih_interp.clamps._active import active, rows_per_pass
from ih_interp.hooked_model import HookedModel
from ih_interp.types import Head, Pattern, Tokens

Sequences: TypeAlias = Annotated[Batch | Tokens, "give a Batch, or its tokens [batch, pos]"]
SEQUENCES = "give sequences, batch or repeated_tokens(model, generator)"
PerHeadScore: TypeAlias = Float[Tensor, "layer head"] | Float[Tensor, "batch layer head"]
Score: TypeAlias = Callable[[Tensor, slice], Tensor]
"""Maps a layer's pattern, and the slice of sequences that it is of, to `[batch, head]`."""

LayerScore: TypeAlias = Callable[[Tensor, int, slice], Tensor]
"""Maps a layer's activation, the layer, and the slice of sequences to `[batch, head]`."""

BY_NAME = "give scores by name, {'induction': induction_strength(...)}"


@checked_in_plain_torch("score is a function of (pattern, rows)")
def pattern_scores(
    model: HookedModel, batch: Sequences, score: Score, *, per_sequence: bool = False
) -> PerHeadScore:
    """Apply a score of your own to every layer's pattern, 1,024 sequences at a time.

    `score(pattern [batch, head, query, key], rows)` returns `[batch, head]`; `rows` is the slice of
    the sequences that the pattern belongs to. Chance is the score of `A[i, j] = 1 / (i + 1)`.

        pattern_scores(model, batch, lambda pattern, rows: pattern[..., 0].mean(dim=-1))
    """
    return layer_scores(model, batch, lambda a, _, rows: score(a, rows), per_sequence=per_sequence)


def layer_scores(
    model: HookedModel,
    batch: Sequences,
    score: LayerScore,
    *,
    point: str = "attn.hook_pattern",
    per_sequence: bool = False,
) -> PerHeadScore:
    """Apply a score to the activation at a hook point of every layer, by default its pattern."""
    values = torch.cat(list(each_chunk(model, tokens_of(batch), point, score)))
    return values if per_sequence else values.double().mean(dim=0).float()


def entry_score(
    model: HookedModel,
    batch: Sequences,
    queries: Sequence[int],
    keys: Sequence[int],
    *,
    divisor: int | None = None,
    per_sequence: bool = False,
) -> PerHeadScore:
    """Return the sum of `A[query, key]` over pairs, by the number of queries or `divisor`.

    Queries are those that hold a token of the sequence; ValueError for a sequence without any.
    """
    there = present_in(batch)[:, list(queries)]
    n_queries = there.sum(dim=1)
    if not bool(n_queries.all()):
        place = int((n_queries == 0).nonzero()[0, 0])
        raise ValueError(
            f"lengths: sequence {place} ends before position {min(queries)}, the first query: "
            "expected a longer one."
        )

    def score(pattern: Pattern, _: int, rows: slice) -> Float[Tensor, "batch head"]:
        entries = pattern[:, :, list(queries), list(keys)]
        total = torch.where(there[rows, None], entries, 0).sum(dim=-1)
        return total / (divisor or n_queries[rows, None])

    return layer_scores(model, batch, score, per_sequence=per_sequence)


def entry_chance(queries: Sequence[int], divisor: int | None = None) -> float:
    """Return the `entry_score` of even attention, 1 / (i + 1) at every key from query i."""
    return sum(1 / (query + 1) for query in queries) / (divisor or len(queries))


def mean_over_lengths(positions: int | Sequences, chance: Callable[[int], float]) -> float:
    """Return a number that depends on a sequence's length, averaged over sequences."""
    if isinstance(positions, Batch | Tensor):
        lengths, counts = present_in(positions).sum(dim=1).unique(return_counts=True)
        pairs = zip(lengths.tolist(), counts.tolist(), strict=True)
        return sum(chance(length) * count for length, count in pairs) / len(positions)
    return chance(int(positions))


def tokens_of(batch: Sequences) -> Tokens:
    """Return the tokens of a batch, or tokens as they are."""
    return batch.tokens if isinstance(batch, Batch) else batch


def present_in(batch: Sequences) -> Bool[Tensor, "batch pos"]:
    """Return which positions hold a token of the sequence; only a batch says where padding is."""
    if isinstance(batch, Batch):
        return batch.present
    return torch.ones_like(batch, dtype=torch.bool)


def each_chunk(
    model: HookedModel, tokens: Tokens, point: str, read: LayerScore
) -> Iterator[Float[Tensor, "batch layer head ..."]]:
    """Yield `read` of the activation at every layer's `point`, 1,024 sequences at a time.

    Nothing after the last layer is computed unless clamps are on the model.
    """
    size = rows_per_pass(model, tokens)
    # A clamp whose hook never fires is an error, and some act on the logits.
    stop = None if active(model) else model.cfg.n_layers
    names = [f"blocks.{layer}.{point}" for layer in range(model.cfg.n_layers)]
    rows, found = slice(size), dict[int, Tensor]()

    # Read in the hook, not kept: patterns of all layers of a language model would fill memory.
    def keep(activation: Tensor, hook: HookPoint) -> None:
        found[hook.layer()] = read(in_single(activation), hook.layer(), rows)

    for start in range(0, len(tokens), size):
        rows = slice(start, start + size)
        with model.hooks(fwd_hooks=[(name, keep) for name in names]):
            model(tokens[rows], stop_at_layer=stop)
        yield torch.stack([found.pop(layer) for layer in range(model.cfg.n_layers)], dim=1)


@checked_in_plain_torch(BY_NAME)
def head_table(
    scores: Annotated[Mapping[str, Float[Tensor, "layer head"]], BY_NAME],
    chance: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """Return scores by name as one table, as `plots.plot_head_scores` draws it.

    Columns `score`, `name` ("L1H3"), `value`, `chance`; NaN where no chance level is given.
    """
    rows = [
        (score, name, value, (chance or {}).get(score, math.nan))
        for score, values in scores.items()
        for name, value in by_head(values).items()
    ]
    return pd.DataFrame(rows, columns=["score", "name", "value", "chance"])


def by_head(values: Float[Tensor, "layer head"]) -> dict[str, float]:
    """Return numbers by the name of the head, "L1H3"."""
    places = itertools.product(*map(range, values.shape))
    return {str(Head(*place)): float(values[place]) for place in places}
