"""Composition: how much of what a head writes lies where a later head's weights read.

All scores are `[source layer, source head, layer, head]`, in [0, 1]; 0 where either head's weights
are all zero. They are NaN where the source's layer is not an earlier one, so that no mean counts
pairs which cannot compose (TransformerLens's `all_composition_scores` has 0 there). They read
weights alone.
"""

from typing import Annotated, Literal, NamedTuple, TypeAlias

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ih_interp.analysis.checks import Within, checked_in_plain_torch
from ih_interp.analysis.heads._weights import Weights
from ih_interp.hooked_model import HookedModel
from ih_interp.types import Head

KIND = 'it reads weights alone: give "Q", "K" or "V", the input of the later head'
GENERATOR = "give generator=torch.Generator().manual_seed(0)"
Kind: TypeAlias = Annotated[Literal["Q", "K", "V"], KIND]
"""The use that the later head makes of its input: queries, keys or values."""

Pairs: TypeAlias = Float[Tensor, "source_layer source_head layer head"]
"""A number for every source and every head that reads it."""

Draws: TypeAlias = Annotated[int, Within(2)]


class Chance(NamedTuple):
    """A score's mean and standard deviation over random weights."""

    mean: float
    std: float


@checked_in_plain_torch(KIND)
def composition_scores(model: HookedModel, kind: Kind, *, fold_ln: bool = False) -> Pairs:
    """Return composition after Elhage et al. (2021, "A Mathematical Framework"), in [0, 1].

    With W_OV = W_V W_O of source s and row vectors, the Frobenius norms

        Q   |W_OV^s W_QK| / (|W_OV^s| |W_QK|),   W_QK = W_Q W_K^T
        K   |W_OV^s W_QK^T| / (|W_OV^s| |W_QK|)
        V   |W_OV^s W_OV| / (|W_OV^s| |W_OV|)

    `fold_ln=True` multiplies W_Q, W_K and W_V by their LayerNorm's gain and centres them, as
    TransformerLens does when it loads a language model; False takes the weights as they are, and so
    equals `model.all_composition_scores(kind)`. Chance: `composition_chance`.
    """
    weights = Weights(model, fold_ln)
    w_o = _outputs(weights)
    rest = w_o.mT if kind == "V" else _reads(weights, "K" if kind == "Q" else "Q")
    writes, reads = _small(_reads(weights, "V")) @ w_o, _reads(weights, kind) @ _small(rest).mT
    return _pairs(writes, reads)


@checked_in_plain_torch(KIND)
def output_composition(model: HookedModel, kind: Kind) -> Pairs:
    """Return `|W_O^s W_X| / (|W_O^s| |W_X|)` with X = Q, K or V, Frobenius norms, in [0, 1].

    The published notebook's composition (Singh et al. 2024, Figure 11): how much of the source's
    output matrix the later head's input matrix reads. No LayerNorm is folded in. Chance:
    `output_composition_chance`, about 1 / sqrt(d_model).
    """
    weights = Weights(model, layer_norm=False)
    return _pairs(_outputs(weights), _reads(weights, kind))


@checked_in_plain_torch(GENERATOR)
def composition_chance(
    model: HookedModel, *, generator: torch.Generator, n_draws: Draws = 1_000
) -> Chance:
    """Return `composition_scores` of Gaussian matrices of the model's shapes.

    About 1 / sqrt(d_model), for Q, K and V alike; Elhage et al. subtract it. The standard deviation
    is that of one pair of heads.
    """
    d, r = model.cfg.d_model, model.cfg.d_head
    w_v, w_q = _gaussian(generator, 2, n_draws, d, r)
    w_o, w_k = _gaussian(generator, 2, n_draws, r, d)
    return _chance(_small(w_v) @ w_o, w_q @ _small(w_k.mT).mT)


@checked_in_plain_torch(GENERATOR)
def output_composition_chance(
    model: HookedModel, *, generator: torch.Generator, n_draws: Draws = 1_000
) -> Chance:
    """Return `output_composition` of Gaussian matrices of the model's shapes."""
    d, r = model.cfg.d_model, model.cfg.d_head
    return _chance(_gaussian(generator, n_draws, r, d), _gaussian(generator, n_draws, d, r))


@checked_in_plain_torch()
def pair_table(scores: Pairs) -> pd.DataFrame:
    """Return scores of pairs as a table, as `plots.plot_composition` draws it.

    Columns `source`, `name` (both "L1H3"), `value`; pairs that cannot compose (NaN) have no row.
    """
    rows = [
        (str(Head(a, b)), str(Head(c, d)), float(scores[a, b, c, d]))
        for a, b, c, d in torch.nonzero(~scores.isnan()).tolist()
    ]
    return pd.DataFrame(rows, columns=["source", "name", "value"])


def _reads(weights: Weights, kind: Kind) -> Float[Tensor, "layer head d_model d_head"]:
    layers = range(weights.model.cfg.n_layers)
    return torch.stack([weights.inputs(f"W_{kind}", layer) for layer in layers])


def _outputs(weights: Weights) -> Float[Tensor, "layer head d_head d_model"]:
    layers = range(weights.model.cfg.n_layers)
    return torch.stack([weights.of("W_O", layer) for layer in layers])


def _small(factor: Float[Tensor, "*any d_model d_head"]) -> Float[Tensor, "*any small d_head"]:
    """Return a small R with |R M| = |factor M| for every M: rotations change no norm."""
    return torch.linalg.qr(factor, mode="r").R


def _pairs(
    writes: Float[Tensor, "source_layer source_head small d_model"],
    reads: Float[Tensor, "layer head d_model also_small"],
) -> Pairs:
    n_layers, n_heads = reads.shape[:2]
    scores = torch.full((n_layers, n_heads) * 2, torch.nan).to(reads)
    norms = reads.norm(dim=(-2, -1))
    for source in range(n_layers - 1):
        later = slice(source + 1, n_layers)
        products = torch.einsum("sad,lhdb->slhab", writes[source], reads[later])
        scale = writes[source].norm(dim=(-2, -1))[:, None, None] * norms[later]
        together = products.norm(dim=(-2, -1)) / scale.clamp(min=torch.finfo(scale.dtype).tiny)
        scores[source, :, later] = torch.where(scale > 0, together, 0.0)
    return scores


def _chance(
    writes: Float[Tensor, "draw a d_model"], reads: Float[Tensor, "draw d_model b"]
) -> Chance:
    together, writer, reader = (m.norm(dim=(-2, -1)) for m in (writes @ reads, writes, reads))
    scores = together / (writer * reader)
    return Chance(float(scores.mean()), float(scores.std()))


def _gaussian(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)
