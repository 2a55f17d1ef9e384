"""One pass over every layer's activation at a hook point, and what a score makes of it.

`pattern_scores` is how every score of attention patterns is computed, and how to add one's own:

    def to_first(pattern, rows):  # attention to the first token, chance 1 / n where n are visible
        return pattern[..., 0].mean(dim=-1)

    pattern_scores(model, tokens, to_first)  # [layer, head]

The model runs as it stands, under clamps and other people's hooks, and both are left as they were.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer
from transformer_lens.hook_points import HookPoint

from ih_interp._torch_state import plain_torch
from ih_interp.analysis.checks import called_with, given_copies, refuse_wrong
from ih_interp.clamps._active import active, pass_size
from ih_interp.engine.compiled_scores import read as compiled_read
from ih_interp.types import Head, Tokens, expect

PerHeadScore: TypeAlias = Float[Tensor, "layer head"] | Float[Tensor, "batch layer head"]
Score: TypeAlias = Callable[[Tensor, slice], Tensor]
"""From a layer's pattern, and which sequences these are, to `[batch, head]`."""

LayerScore: TypeAlias = Callable[[Tensor, int, slice], Tensor]
"""From a layer's activation, the layer, and which sequences these are, to `[batch, head]`."""

CHUNK = 1_024  # sequences a pass: the activations of more leave the processor's cache


@plain_torch()
def pattern_scores(
    model: HookedTransformer,
    tokens: Tokens,
    score: Score,
    *,
    per_sequence: bool = False,
    last_query: bool = False,
) -> PerHeadScore:
    """Apply a score of one's own to every layer's pattern, 1,024 sequences at a time.

    `score(pattern [batch, head, query, key], rows)` gives `[batch, head]`; `rows` is the slice of
    `tokens` that the pattern belongs to. Chance is the score of `A[i, j] = 1 / (i + 1)`. A score
    that reads `pattern[:, :, -1]` alone may say so with `last_query`: compiled passes (`trace`)
    then compute no other rows of the last layer.
    """
    refuse_wrong(
        model=model, sequences=tokens, per_sequence=per_sequence, last_query=last_query, score=score
    )
    score = given_copies(score)
    return layer_scores(
        model,
        tokens,
        "attn.hook_pattern",
        lambda pattern, _, rows: score(pattern, rows),
        per_sequence=per_sequence,
        last_query=last_query,
    )


def layer_scores(
    model: HookedTransformer,
    tokens: Tokens,
    point: str,
    score: LayerScore,
    *,
    per_sequence: bool = False,
    last_query: bool = False,
) -> PerHeadScore:
    """Apply a score to the activation at a hook point of every layer, such as "attn.hook_v"."""
    score = given_copies(score)
    values = torch.cat(list(each_chunk(model, tokens, point, score, last_query=last_query)))
    return values if per_sequence else values.double().mean(dim=0).float()


@plain_torch()
def each_chunk(
    model: HookedTransformer,
    tokens: Tokens,
    point: str,
    read: LayerScore,
    *,
    last_query: bool = False,
) -> Iterator[Float[Tensor, "batch layer head ..."]]:
    """What `read` makes of the activation at every layer's `point`, 1,024 sequences at a time.

    Nothing after the last layer is computed unless clamps are on the model.
    """
    expect(model, HookedTransformer, "The model", "a run's is run.model(step)")
    if len(tokens) == 0:
        raise ValueError("There are no sequences to score; give at least one.")
    n_layers = model.cfg.n_layers
    size = pass_size(model, len(tokens), CHUNK)
    # A clamp whose hook never fires is an error, and some act on the logits.
    stop = None if active(model) else n_layers
    for start in range(0, len(tokens), size):
        rows = slice(start, start + size)
        found: dict[int, Tensor] = {}

        def keep(
            activation: Tensor,
            hook: HookPoint,
            found: dict[int, Tensor] = found,
            rows: slice = rows,
        ) -> None:
            found[hook.layer()] = read(activation, hook.layer(), rows)

        names = [f"blocks.{layer}.{point}" for layer in range(n_layers)]
        compiled = compiled_read(model, tokens[rows], names, last_query=last_query)
        if compiled is not None:
            found.update((layer, read(a, layer, rows)) for layer, a in enumerate(compiled))
        else:
            with model.hooks(fwd_hooks=[(name, keep) for name in names]):
                model(tokens[rows], stop_at_layer=stop)
        yield torch.stack([found[layer] for layer in range(n_layers)], dim=1)


@called_with("give scores by name, {'induction': induction_strength(...)}")
@plain_torch()
def head_table(
    scores: Mapping[str, Float[Tensor, "layer head"]], chance: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """Scores by name as one table, as `plots.plot_head_scores` draws it.

    Columns `score`, `name` ("L1H3"), `value`, `chance`; NaN where no chance level is given.
    """
    refuse_wrong(scores=scores, chance=chance)
    for score, values in scores.items():
        expect(values, Tensor, f"The score {score!r}", "give values [layer, head]")
    levels = chance or {}
    return pd.DataFrame(
        [
            {
                "score": score,
                "name": str(Head(layer, head)),
                "value": float(values[layer, head]),
                "chance": levels.get(score, float("nan")),
            }
            for score, values in scores.items()
            for layer in range(values.shape[0])
            for head in range(values.shape[1])
        ]
    )
