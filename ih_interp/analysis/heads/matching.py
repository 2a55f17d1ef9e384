"""Matching: whether a head's queries find the key to which an earlier head wrote the same token.

In an induction circuit an earlier, previous-token head s writes at a label what stands before it,
an exemplar y; a later head r finds it by K-composition with the query's exemplar x. Along that path
alone the attention score of x for the label after y is

    M[x, y] = (x W_Q^r) . (y W_V^s W_O^s W_K^r)

for vectors x, y that the heads read at the tokens' embeddings (`_weights`). These scores of weights
say what a circuit can do; path patching says what it does.
"""

import itertools
from typing import Annotated, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp.analysis.checks import Within, checked_in_plain_torch
from ih_interp.analysis.heads import _weights as weights
from ih_interp.analysis.heads.composition import Pairs
from ih_interp.analysis.heads.copying import eigenvalue_ratio

Distance: TypeAlias = Annotated[int, Within(0)]


@checked_in_plain_torch()
def qk_matching(
    model: HookedTransformer,
    tokens: Int[Tensor, " token"],
    *,
    distance: Distance = 0,
    layer_norm: bool = True,
) -> Pairs:
    """Return the share of pairs of tokens x, y with M[x, x] > M[x, y], in [0, 1]; chance 1/2.

    `[source layer, source head, layer, head]`, NaN where the source's layer is not an earlier one;
    over all ordered pairs of different `tokens`, ties counted half. For sequences of two pairs it
    is the accuracy with which head r would find the query's class by the output of head s alone.

    In few-shot models `tokens` are exemplars, `task.token(class, exemplar)`. `distance` is from key
    to query, by which rotary models turn queries, in few-shot sequences of two pairs 1 or 3; 0
    leaves rotation out. With `layer_norm` the norms count (`copying`); False multiplies matrices
    as they are. Raises ValueError for fewer than two tokens, repeated ones, or a distance beyond
    the context.
    """
    weights.refuse_other_models(model)
    tokens = weights.different_tokens(model, tokens, model.cfg.d_vocab)
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    scores = torch.full((n_layers, n_heads) * 2, torch.nan).to(model.W_U)
    for layer in range(1, n_layers):
        queries = _queries(model, tokens, layer, distance, layer_norm)
        w_k = weights.inputs(model, "W_K", layer, layer_norm=layer_norm)
        for source in range(layer):
            copies = weights.written(model, tokens, source, layer_norm=layer_norm)
            for writer, head in itertools.product(range(n_heads), repeat=2):
                matches = queries[head] @ (copies[writer] @ w_k[head]).T
                scores[source, writer, layer, head] = _share_below_diagonal(matches)
    return scores


@checked_in_plain_torch()
def induction_trace(
    model: HookedTransformer,
    tokens: Int[Tensor, " token"],
    previous: Float[Tensor, "layer head"],
    *,
    distance: Distance = 0,
    layer_norm: bool = True,
    normalise: bool = True,
) -> Float[Tensor, "layer head"]:
    """Return the trace of M, summed over sources by how much they attend to the previous token.

    `W = sum over earlier heads s of previous[s] M_s`, a matrix over `tokens` (Olsson et al. 2022,
    appendix, with their matrices transposed; M as in `qk_matching`). Its trace, divided by the sum
    of its eigenvalues' absolute values, lies in [-1, 1], 1 for a head that matches every token with
    itself alone; `normalise=False` does not divide. Chance 0. NaN in layer 0, which has no earlier
    heads.

    `previous` weighs the sources: `previous_token_score`, or that minus its chance. The other
    arguments and the errors are those of `qk_matching`.
    """
    weights.refuse_other_models(model)
    tokens = weights.different_tokens(model, tokens, model.cfg.d_vocab)
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    if previous.shape != (n_layers, n_heads):
        raise ValueError(
            f"previous: expected [layer, head], {(n_layers, n_heads)}, got shape "
            f"{tuple(previous.shape)}."
        )
    scores = torch.full((n_layers, n_heads), torch.nan).to(model.W_U)
    copies = torch.zeros(len(tokens), model.cfg.d_model).to(model.W_U)
    for layer in range(1, n_layers):
        earlier = weights.written(model, tokens, layer - 1, layer_norm=layer_norm)
        copies = copies + torch.einsum("h,hnd->nd", previous[layer - 1].to(earlier), earlier)
        queries = _queries(model, tokens, layer, distance, layer_norm)
        keys = copies @ weights.inputs(model, "W_K", layer, layer_norm=layer_norm)
        scores[layer] = (
            eigenvalue_ratio(queries.double(), keys.double().transpose(-2, -1)).to(scores)
            if normalise
            else (queries * keys).sum(dim=(-2, -1))
        )
    return scores


def _queries(
    model: HookedTransformer, tokens: Tensor, layer: int, distance: int, layer_norm: bool
) -> Float[Tensor, "head token d_head"]:
    attention = model.blocks[layer].attn
    queries = weights.embedded(model, tokens, layer, layer_norm=layer_norm) @ attention.W_Q
    if distance == 0:
        return queries
    if model.cfg.positional_embedding_type != "rotary":
        raise ValueError(
            f"distance={distance}: expected 0, as positions are "
            f"{model.cfg.positional_embedding_type!r} and not rotary."
        )
    if distance >= model.cfg.n_ctx:
        raise ValueError(f"distance={distance}: expected from 0 to {model.cfg.n_ctx - 1}.")
    by_position = queries.movedim(0, 1)[:, None]
    turned = attention.apply_rotary(by_position, past_kv_pos_offset=distance)
    return turned[:, 0].movedim(1, 0)


def _share_below_diagonal(matches: Float[Tensor, "token token"]) -> float:
    own = matches.diagonal()[:, None]
    n = len(matches)
    lower, tied = int((matches < own).sum()), int((matches == own).sum()) - n
    return (lower + tied / 2) / (n * (n - 1))
