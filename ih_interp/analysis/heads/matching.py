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

from ih_interp._torch_state import in_single
from ih_interp.analysis.checks import Within, checked_in_plain_torch
from ih_interp.analysis.heads._weights import Weights
from ih_interp.analysis.heads.composition import Pairs
from ih_interp.analysis.heads.copying import CHOSEN, eigenvalue_ratio
from ih_interp.hooked_model import HookedModel

Distance: TypeAlias = Annotated[int, Within(0)]
Different: TypeAlias = Annotated[Int[Tensor, " token"], CHOSEN]
PREVIOUS = "give tokens, each once, and then previous_token_score(model, batch)"


@checked_in_plain_torch(CHOSEN)
def qk_matching(
    model: HookedModel, tokens: Different, *, distance: Distance = 0, layer_norm: bool = True
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
    weights = Weights(model, layer_norm)
    tokens = weights.different_tokens(tokens, model.cfg.d_vocab)
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    scores = torch.full((n_layers, n_heads) * 2, torch.nan).to(in_single(model.W_U))
    for layer in range(1, n_layers):
        queries = _queries(weights, tokens, layer, distance)
        w_k = weights.inputs("W_K", layer)
        for source in range(layer):
            copies = weights.written(tokens, source)
            for writer, head in itertools.product(range(n_heads), repeat=2):
                matches = queries[head] @ (copies[writer] @ w_k[head]).T
                scores[source, writer, layer, head] = _share_below_diagonal(matches)
    return scores


@checked_in_plain_torch(PREVIOUS)
def induction_trace(
    model: HookedModel,
    tokens: Different,
    previous: Annotated[Float[Tensor, "layer head"], PREVIOUS],
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
    weights = Weights(model, layer_norm)
    tokens = weights.different_tokens(tokens, model.cfg.d_vocab)
    n_layers, n_heads = model.cfg.n_layers, model.cfg.n_heads
    if previous.shape != (n_layers, n_heads):
        shapes = f"{(n_layers, n_heads)}, got shape {tuple(previous.shape)}"
        raise ValueError(f"previous: expected [layer, head], {shapes}.")
    scores = torch.full((n_layers, n_heads), torch.nan).to(in_single(model.W_U))
    copies = torch.zeros(len(tokens), model.cfg.d_model).to(scores)
    for layer in range(1, n_layers):
        earlier = weights.written(tokens, layer - 1)
        copies = copies + torch.einsum("h,hnd->nd", previous[layer - 1].to(earlier), earlier)
        queries = _queries(weights, tokens, layer, distance)
        keys = copies @ weights.inputs("W_K", layer)
        scores[layer] = (queries * keys).sum(dim=(-2, -1))
        if normalise:
            scores[layer] = eigenvalue_ratio(queries.double(), keys.double().mT).to(scores)
    return scores


def _queries(
    weights: Weights, tokens: Tensor, layer: int, distance: int
) -> Float[Tensor, "head token d_head"]:
    cfg, attention = weights.model.cfg, weights.model.blocks[layer].attn
    if cfg.use_qk_norm or getattr(attention, "q_norm", None) is not None:
        raise ValueError(
            f"blocks.{layer}.attn norms queries and keys (use_qk_norm), so that weights alone do "
            "not say how they match: use scores of patterns, or path_patch."
        )
    queries = weights.embedded(tokens, layer) @ weights.of("W_Q", layer)
    if distance == 0:
        return queries
    kind = cfg.positional_embedding_type
    if kind != "rotary":
        raise ValueError(f"distance={distance}: expected 0, as positions are {kind!r}, not rotary.")
    if not hasattr(attention, "apply_rotary"):
        raise ValueError(
            f"distance={distance}: expected 0, as a {type(attention).__name__} does not show how "
            "it turns queries; use a HookedTransformer."
        )
    if attention.attn_type == "local" and distance >= (cfg.window_size or 0):
        raise ValueError(
            f"distance={distance}: expected less than window_size={cfg.window_size}, as heads of "
            f"layer {layer} attend to nothing before."
        )
    if distance >= cfg.n_ctx:
        raise ValueError(f"distance={distance}: expected from 0 to {cfg.n_ctx - 1}.")
    by_position = queries.movedim(0, 1)[:, None]
    turned = attention.apply_rotary(by_position, past_kv_pos_offset=distance)
    return turned[:, 0].movedim(1, 0)


def _share_below_diagonal(matches: Float[Tensor, "token token"]) -> float:
    own = matches.diagonal()[:, None]
    n = len(matches)
    lower, tied = int((matches < own).sum()), int((matches == own).sum()) - n
    return (lower + tied / 2) / (n * (n - 1))
