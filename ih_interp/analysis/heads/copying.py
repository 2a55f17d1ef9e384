"""Copying: whether a head raises the logit of the token that it attends to.

Several definitions are in use, and disagree; each has its own name here. Those of weights read the
circuit `W_E W_V W_O W_U` from a token to the logits along the direct path, and so miss what earlier
heads wrote at the token. With `layer_norm=True` embeddings are normalised as the head's LayerNorm
would normalise them alone, and the final norm's centring and gain are counted in (`weights`); with
False the matrices are multiplied as they are. Scores are `[layer, head]`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp._reprs import short_repr
from ih_interp._torch_state import plain_torch
from ih_interp.analysis.checks import called_with, refuse_wrong
from ih_interp.analysis.heads.pattern_scores import PerHeadScore, layer_scores
from ih_interp.analysis.heads.weights import (
    copied_tokens,
    embedded,
    inputs,
    refuse_other_models,
    unembedding,
)
from ih_interp.model import FewShotEmbed
from ih_interp.types import Batch, PerHead, Tokens

LARGE = 2**31  # numbers in the circuits of all heads, from which a choice of tokens is asked for
TOKENS = "name tokens, as tokens=torch.arange(model.cfg.d_vocab)"
ROWS = 1_024  # tokens at a time: a block of the circuit is [token, output]


@short_repr
class DiagonalCopying(NamedTuple):
    """How often a token raises its own logit most, and how high its own stands among all."""

    top: Float[Tensor, "layer head"]
    rank: Float[Tensor, "layer head"]


@called_with(TOKENS)
@plain_torch()
def copying_score_eig(
    model: HookedTransformer,
    *,
    full: bool = True,
    tokens: Int[Tensor, " token"] | None = None,
    layer_norm: bool = True,
) -> Float[Tensor, "layer head"]:
    """`sum of Re lambda / sum of |lambda|` over eigenvalues of a head's OV circuit, in [-1, 1].

    Of `W_E W_V W_O W_U` over `tokens` that are inputs and outputs (Elhage et al. 2021), by default
    all, in few-shot models the labels; with `full=False` of `W_V W_O` alone. 1 if all are positive,
    as for copying; 0 for a head that writes nothing. Chance 0: random matrices have eigenvalues
    symmetric about it.

    The eigenvalues other than 0 are those of a d_head x d_head matrix, so that large vocabularies
    are cheap. Raises ValueError for models whose outputs are not their tokens, unless `tokens` are
    given.
    """
    refuse_wrong(model=model, full=full, vocabulary=tokens, layer_norm=layer_norm)
    refuse_other_models(model)
    chosen = copied_tokens(model, tokens) if full else torch.arange(0)
    scores: list[Tensor] = []
    for layer, block in enumerate(model.blocks):
        w_o = block.attn.W_O.double()
        if full:
            rows = embedded(model, chosen, layer, layer_norm=layer_norm).double()
            values = rows @ block.attn.W_V.double()
            outputs = w_o @ unembedding(model, layer_norm=layer_norm)[:, chosen].double()
        else:
            values = inputs(model, "W_V", layer, layer_norm=layer_norm).double()
            outputs = w_o
        scores.append(eigenvalue_ratio(values, outputs))
    return torch.stack(scores).to(model.W_U)


@called_with(TOKENS)
@plain_torch()
def copying_score_diag(
    model: HookedTransformer,
    *,
    tokens: Int[Tensor, " token"] | None = None,
    layer_norm: bool = True,
) -> DiagonalCopying:
    """Where a token's own logit stands in its row of `W_E W_V W_O W_U`, `[token, output]`.

    `top`: share of tokens whose own logit is the largest of all outputs, in [0, 1]; chance
    1 / d_vocab_out. `rank`: mean share of the other outputs that are lower, in [0, 1]; chance 1/2.
    Ties count in equal parts. Rows are those of `tokens` (`copying_score_eig`). Heads times tokens
    times outputs are computed: where that is more than 2^31, as for all of GPT-2's vocabulary, all
    tokens are refused (ValueError), and `tokens` has to name some hundreds or thousands.
    """
    refuse_wrong(model=model, vocabulary=tokens, layer_norm=layer_norm)
    refuse_other_models(model)
    chosen = copied_tokens(model, tokens)
    size = model.cfg.n_layers * model.cfg.n_heads * len(chosen) * model.cfg.d_vocab_out
    if tokens is None and size > LARGE:
        raise ValueError(
            f"All {len(chosen):,} tokens would take {size:,} numbers, which takes minutes to "
            "hours; name some of them: tokens=torch.randperm(model.cfg.d_vocab_out)[:500]."
        )
    tops, ranks = [], []
    for layer in range(model.cfg.n_layers):
        for head in range(model.cfg.n_heads):
            top, rank = 0.0, 0.0
            for rows in chosen.split(ROWS):
                circuit = _circuit(model, rows, layer, head, layer_norm)
                own = circuit.gather(1, rows[:, None])
                lower = (circuit < own).double().sum(dim=1)
                tied = (circuit == own).double().sum(dim=1)  # itself among them
                rank += float(((lower + (tied - 1) / 2) / (circuit.shape[1] - 1)).sum())
                top += float(((lower + tied == circuit.shape[1]) / tied).sum())
            tops.append(top / len(chosen))
            ranks.append(rank / len(chosen))
    shape = (model.cfg.n_layers, model.cfg.n_heads)
    return DiagonalCopying(torch.tensor(tops).reshape(shape), torch.tensor(ranks).reshape(shape))


@plain_torch()
def copying_score_logit(
    model: HookedTransformer, batch: Batch | Tokens, *, per_sequence: bool = False
) -> PerHeadScore:
    """Share of a head's raise of logits that goes to the token attended to, in [0, 1].

    For every position j of a sequence whose token t is an output: attending to j alone would add
    `v_j W_O W_U` to the logits (the actual value v_j, the final norm's centring and gain counted
    in); centred over all outputs and cut below 0, it raises each output. The score is the raise of
    t divided by that of all different tokens of the sequence, averaged over j (after Olsson et al.
    2022, appendix, on random tokens; their rescaling to [-1, 1] is left to the reader). Where none
    of them is raised it is the chance level, `copying_logit_chance`. In few-shot models only labels
    are outputs.

    Runs the model, and so sees clamped values. `[layer, head]`, or `[batch, layer, head]`. Raises
    ValueError for sequences with fewer than two different outputs.
    """
    refuse_wrong(model=model, sequences=batch, per_sequence=per_sequence)
    refuse_other_models(model)
    tokens = batch.tokens if isinstance(batch, Batch) else batch
    share = _shares_of_outputs(model, tokens)
    w_u = unembedding(model, layer_norm=True)
    w_u = w_u - w_u.mean(dim=1, keepdim=True)
    same = tokens[:, :, None] == tokens[:, None, :]

    def score(values: PerHead, layer: int, rows: slice) -> Float[Tensor, "batch head"]:
        w_o = model.W_O[layer]
        values = values.repeat_interleave(len(w_o) // values.shape[2], dim=2)  # grouped queries
        written = torch.einsum("bphr,hrd->bphd", values, w_o)
        outputs = w_u.T[tokens[rows].clamp(max=w_u.shape[1] - 1)]
        raises = torch.einsum("bjhd,bkd->bhjk", written, outputs).relu()
        # Every position of a token has its part, so that a token counts once.
        part = share[rows, None, None, :].to(raises)
        whole = (raises * part).sum(dim=-1)
        own = (raises * part * same[rows, None]).sum(dim=-1)
        n_different = share[rows].sum(dim=1)[:, None, None].to(raises)
        ratio = torch.where(whole > 0, own / whole, 1 / n_different)
        counted = (share[rows, None] > 0).to(raises)
        return (ratio * counted).sum(dim=-1) / counted.sum(dim=-1)

    return layer_scores(model, tokens, "attn.hook_v", score, per_sequence=per_sequence)


@plain_torch()
def copying_logit_chance(model: HookedTransformer, batch: Batch | Tokens) -> float:
    """Score of a head that raises all tokens of a sequence alike: mean of 1 / different outputs."""
    refuse_wrong(model=model, sequences=batch)
    tokens = batch.tokens if isinstance(batch, Batch) else batch
    return float((1 / _shares_of_outputs(model, tokens).sum(dim=1)).mean())


@plain_torch()
def eigenvalue_ratio(
    left: Float[Tensor, "head n r"], right: Float[Tensor, "head r n"]
) -> Float[Tensor, " head"]:
    """`sum of Re lambda / sum of |lambda|` of `left @ right`; 0 where all are 0."""
    n, r = left.shape[-2:]
    # AB and BA have the same eigenvalues but for zeros; the smaller one has the fewer of those.
    product = right @ left if r <= n else left @ right
    values = torch.linalg.eigvals(product.double())
    size = values.abs().sum(dim=-1)
    # No eigenvalue is larger than the norm; ratios of rounding errors are not reported.
    real = size > 1e-12 * left.norm(dim=(-2, -1)) * right.norm(dim=(-2, -1))
    return torch.where(real, values.real.sum(dim=-1) / size.where(real, torch.ones_like(size)), 0.0)


def _circuit(
    model: HookedTransformer, rows: Tensor, layer: int, head: int, layer_norm: bool
) -> Float[Tensor, "token output"]:
    attention = model.blocks[layer].attn
    read = embedded(model, rows, layer, layer_norm=layer_norm)
    written = read @ attention.W_V[head] @ attention.W_O[head]
    return written @ unembedding(model, layer_norm=layer_norm)


def _shares_of_outputs(model: HookedTransformer, tokens: Tokens) -> Float[Tensor, "batch pos"]:
    """1 / (how often the token stands in its sequence), 0 for tokens that are no outputs."""
    if model.cfg.d_vocab != model.cfg.d_vocab_out and not isinstance(model.embed, FewShotEmbed):
        raise ValueError(
            f"The model has {model.cfg.d_vocab} tokens and {model.cfg.d_vocab_out} outputs; "
            "which are the same is not known."
        )
    counts = (tokens[:, :, None] == tokens[:, None, :]).sum(dim=2)
    shares = torch.where(tokens < model.cfg.d_vocab_out, 1 / counts, 0.0)
    few = int((shares.sum(dim=1) < 1.5).sum())
    if few:
        raise ValueError(
            f"{few} of {len(tokens)} sequences have fewer than two different tokens that are "
            "outputs; there is nothing to tell apart."
        )
    return shares
