"""Copying: whether a head raises the logit of the token that it attends to.

Several definitions are in use, and disagree. Those of weights read the circuit `W_E W_V W_O W_U`
from a token to the logits along the direct path, and so miss what earlier heads wrote at the token.
With `layer_norm=True` embeddings are normalised as the head's LayerNorm would normalise them alone,
and the final norm's centring and gain are counted in (`_weights`); with False the matrices are
multiplied as they are. Scores are `[layer, head]`.

In the few-shot task labels are copied to labels: each head has a matrix `[label in, label out]`,
whose diagonal an induction head needs.
"""

import itertools
from typing import Annotated, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ih_interp._reprs import short_repr
from ih_interp._torch_state import in_single
from ih_interp.analysis.checks import checked_in_plain_torch
from ih_interp.analysis.heads._weights import Weights
from ih_interp.analysis.heads.pattern_scores import (
    SEQUENCES,
    PerHeadScore,
    Sequences,
    each_chunk,
    layer_scores,
    present_in,
    tokens_of,
)
from ih_interp.batch import Batch
from ih_interp.hooked_model import HookedModel
from ih_interp.model import FewShotEmbed

CHOSEN = "give tokens, each once, as torch.arange(100)"
Chosen: TypeAlias = Annotated[Int[Tensor, " token"] | None, CHOSEN]
Circuit: TypeAlias = Annotated[Float[Tensor, "layer head label label"], "give label_copying(model)"]
Values: TypeAlias = Float[Tensor, "batch pos _head d_head"]
"""Values at every position; of fewer heads where queries share them."""

LARGE = 2**31  # numbers in the circuits of all heads; for more, tokens have to be chosen
ROWS = 1_024  # tokens at a time: a block of the circuit is [token, output]


@short_repr
class DiagonalCopying(NamedTuple):
    """The share of tokens that raise their own logit most, and the mean rank of their own."""

    top: Float[Tensor, "layer head"]
    rank: Float[Tensor, "layer head"]


@checked_in_plain_torch()
def copying_score_eig(
    model: HookedModel, tokens: Chosen = None, *, full: bool = True, layer_norm: bool = True
) -> Float[Tensor, "layer head"]:
    """Return `sum of Re lambda / sum of |lambda|` over eigenvalues of a head's OV circuit.

    In [-1, 1]. The circuit is `W_E W_V W_O W_U` over `tokens` that are inputs and outputs (Elhage
    et al. 2021), by default all, in few-shot models the labels; with `full=False` `W_V W_O` alone.
    1 if all eigenvalues are positive, as for copying; 0 for a head that writes nothing; chance 0.
    Vocabularies may be large. Raises ValueError for models whose outputs are not their tokens,
    unless `tokens` are given.
    """
    weights = Weights(model, layer_norm)
    chosen = weights.copied_tokens(tokens) if full else torch.arange(0)
    w_u, scores = weights.unembedding()[:, chosen].double() if full else None, list[Tensor]()
    for layer in range(model.cfg.n_layers):
        values, outputs = weights.inputs("W_V", layer).double(), weights.of("W_O", layer).double()
        if w_u is not None:
            values = weights.embedded(chosen, layer).double() @ weights.of("W_V", layer).double()
            outputs = outputs @ w_u
        scores.append(eigenvalue_ratio(values, outputs))
    return torch.stack(scores).to(in_single(model.W_U))


@checked_in_plain_torch()
def copying_score_diag(
    model: HookedModel, tokens: Chosen = None, *, layer_norm: bool = True
) -> DiagonalCopying:
    """Return where a token's own logit stands in its row of `W_E W_V W_O W_U`, `[token, output]`.

    `top`: share of tokens whose own logit is the largest of all outputs, in [0, 1]; chance
    1 / d_vocab_out. `rank`: mean share of the other outputs that are lower, in [0, 1]; chance 1/2.
    Ties count in equal parts. Rows are those of `tokens` (`copying_score_eig`). All tokens are
    refused (ValueError) where heads times tokens times outputs exceed 2^31, as in GPT-2: let
    `tokens` name some hundreds or thousands.
    """
    weights = Weights(model, layer_norm)
    chosen = weights.copied_tokens(tokens)
    size = model.cfg.n_layers * model.cfg.n_heads * len(chosen) * model.cfg.d_vocab_out
    if tokens is None and size > LARGE:
        raise ValueError(
            f"tokens=None: {len(chosen):,} tokens take {size:,} numbers, and hours: expected some "
            "of them, tokens=torch.randperm(model.cfg.d_vocab_out)[:500]."
        )
    w_u, (d_model, d_head) = weights.unembedding(), (model.cfg.d_model, model.cfg.d_head)
    # The shorter of the two ways to multiply three matrices.
    by_head = len(chosen) * d_model > d_head * (d_model + len(chosen))
    top, rank = torch.zeros(2, model.cfg.n_layers, model.cfg.n_heads, dtype=torch.float64)
    for layer, head in itertools.product(range(model.cfg.n_layers), range(model.cfg.n_heads)):
        w_v, w_o = (weights.of(name, layer)[head] for name in ("W_V", "W_O"))
        w_ou = w_o @ w_u if by_head else None
        for rows in chosen.split(ROWS):
            values = weights.embedded(rows, layer) @ w_v
            circuit = values @ w_o @ w_u if w_ou is None else values @ w_ou
            own = circuit.gather(1, rows[:, None])
            lower = (circuit < own).sum(dim=1).double()
            tied = (circuit == own).sum(dim=1).double()  # itself among them
            rank[layer, head] += ((lower + (tied - 1) / 2) / (circuit.shape[1] - 1)).sum().cpu()
            top[layer, head] += ((lower + tied == circuit.shape[1]) / tied).sum().cpu()
    return DiagonalCopying((top / len(chosen)).float(), (rank / len(chosen)).float())


@checked_in_plain_torch(SEQUENCES)
def copying_score_logit(
    model: HookedModel, batch: Sequences, *, per_sequence: bool = False
) -> PerHeadScore:
    """Return the share of a head's raise of logits that goes to the token attended to, in [0, 1].

    Attention to position j alone would add `v_j W_O W_U` to the logits (v_j the actual value, under
    clamps too; the final norm's centring and gain counted in). Centred over all outputs and cut
    below 0, it is the raise of each output. The score is the raise of j's own token divided by that
    of all different tokens of the sequence, averaged over the j whose token is an output, in
    few-shot models the labels (after Olsson et al. 2022, appendix, on random tokens, without their
    rescaling to [-1, 1]). Where none is raised it is the chance level, `copying_logit_chance`. The
    bias of values counts, unless TransformerLens has folded it into b_O when it loaded the model.
    Raises ValueError for sequences with fewer than two different outputs.
    """
    weights, tokens = Weights(model), tokens_of(batch)
    share = _shares_of_outputs(model, batch)
    w_u = weights.unembedding()
    w_u = w_u - w_u.mean(dim=1, keepdim=True)
    same = tokens[:, :, None] == tokens[:, None, :]

    def score(values: Values, layer: int, rows: slice) -> Float[Tensor, "batch head"]:
        w_o = weights.of("W_O", layer)
        added = torch.einsum("bphr,hrd->bphd", _of_each_head(values, len(w_o)), w_o)
        outputs = w_u.T[tokens[rows].clamp(max=w_u.shape[1] - 1)]
        raises = torch.einsum("bjhd,bkd->bhjk", added, outputs).relu()
        # Every position of a token has its part, so that a token counts once.
        part = share[rows, None, None, :].to(raises)
        whole = (raises * part).sum(dim=-1)
        own = (raises * part * same[rows, None]).sum(dim=-1)
        n_different = share[rows].sum(dim=1)[:, None, None].to(raises)
        ratio = torch.where(whole > 0, own / whole, 1 / n_different)
        counted = (share[rows, None] > 0).to(raises)
        return (ratio * counted).sum(dim=-1) / counted.sum(dim=-1)

    return layer_scores(model, tokens, score, point="attn.hook_v", per_sequence=per_sequence)


@checked_in_plain_torch(SEQUENCES)
def copying_logit_chance(model: HookedModel, batch: Sequences) -> float:
    """Return the score of a head that raises all alike: the mean of 1 / (number of outputs)."""
    return float((1 / _shares_of_outputs(model, batch).sum(dim=1)).mean())


@checked_in_plain_torch("on sequences use label_copying_of_values(model, batch)")
def label_copying(
    model: HookedModel, tokens: Chosen = None, *, layer_norm: bool = True
) -> Float[Tensor, "layer head label label"]:
    """Return what attending to a label adds to the logits, by weights: `W_E[label] W_V W_O W_U`.

    `[layer, head, label in, label out]`, any real number. Only the label's own embedding is
    followed: in a trained network layer 0 rewrites labels, and later heads copy what it wrote,
    which `label_copying_of_values` sees. By default `tokens` are the labels; other than few-shot
    models need them (ValueError). Score and chance: `label_copying_score`.
    """
    weights = Weights(model, layer_norm)
    if tokens is None and not isinstance(model.embed, FewShotEmbed):
        raise ValueError("tokens=None: expected tokens, as only few-shot models have labels.")
    chosen = weights.copied_tokens(tokens)
    w_u = weights.unembedding()[:, chosen]
    return torch.stack([weights.written(chosen, n) @ w_u for n in range(model.cfg.n_layers)])


@checked_in_plain_torch()
def label_copying_of_values(
    model: HookedModel, batch: Batch
) -> Float[Tensor, "layer head label label"]:
    """Return what attending to a label adds to the logits, by values: the mean of `v W_O W_U`.

    From the head's value v at every occurrence of a label in the contexts, under clamps too,
    through the final norm's centring and gain but not its division; otherwise as `label_copying`.
    Raises ValueError for a label that no context shows.
    """
    weights = Weights(model)
    positions = list(batch.layout.labels)
    shown = torch.nn.functional.one_hot(batch.context_labels, model.cfg.d_vocab_out)
    counts = shown.sum(dim=(0, 1))
    if int(counts.min()) == 0:
        missing = torch.nonzero(counts == 0).flatten().tolist()
        raise ValueError(f"batch: no context shows the labels {missing}; give more sequences.")
    w_u = weights.unembedding()

    def read(values: Values, _: int, rows: slice) -> Float[Tensor, "batch head label d_head"]:
        values = _of_each_head(values, model.cfg.n_heads)
        return torch.einsum("bphr,bpl->bhlr", values[:, positions], shown[rows].to(values))

    chunks = each_chunk(model, batch.tokens, "attn.hook_v", read)
    total = sum((part.double().sum(dim=0) for part in chunks), torch.zeros(()).double())
    means = (total / counts[:, None]).to(w_u)
    w_o = torch.stack([weights.of("W_O", layer) for layer in range(model.cfg.n_layers)])
    return means @ w_o @ w_u


@checked_in_plain_torch("give label_copying(model), or label_copying_of_values(model, batch)")
def label_copying_score(circuit: Circuit) -> Float[Tensor, "layer head"]:
    """Return the mean diagonal of a label copying matrix minus the mean of the rest.

    Any real number, in logits before the final norm's division; chance 0. What a head adds to a
    logit whatever label it attends to cancels. Over checkpoints:

        ih.trace(run, lambda model, _: ih.heads.label_copying_score(ih.heads.label_copying(model)))
    """
    if circuit.ndim != 4 or circuit.shape[-1] != circuit.shape[-2] or 0 in circuit.shape:
        shape = tuple(circuit.shape)
        raise ValueError(f"circuit: expected [layer, head, label, label], got shape {shape}.")
    n = circuit.shape[-1]
    own = circuit.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    return own / n - (circuit.sum(dim=(-2, -1)) - own) / (n * (n - 1))


def eigenvalue_ratio(
    left: Float[Tensor, "head n r"], right: Float[Tensor, "head r n"]
) -> Float[Tensor, " head"]:
    """Return `sum of Re lambda / sum of |lambda|` of `left @ right`; 0 where all are 0."""
    n, r = left.shape[-2:]
    # AB and BA have the same eigenvalues but for zeros; the smaller one has the fewer of those.
    product = right @ left if r <= n else left @ right
    values = torch.linalg.eigvals(product.double())
    size = values.abs().sum(dim=-1)
    # No eigenvalue is larger than the norm; ratios of rounding errors are not reported.
    real = size > 1e-12 * left.norm(dim=(-2, -1)) * right.norm(dim=(-2, -1))
    return torch.where(real, values.real.sum(dim=-1) / size.where(real, torch.ones_like(size)), 0.0)


def _of_each_head(values: Values, n_heads: int) -> Values:
    return values.repeat_interleave(n_heads // values.shape[2], dim=2)


def _shares_of_outputs(model: HookedModel, batch: Sequences) -> Float[Tensor, "batch pos"]:
    """Return 1 / (how often the token stands in its sequence), 0 where it is not an output."""
    tokens = torch.where(present_in(batch), tokens_of(batch), -1)
    if model.cfg.d_vocab != model.cfg.d_vocab_out and not isinstance(model.embed, FewShotEmbed):
        counted = f"{model.cfg.d_vocab} tokens and {model.cfg.d_vocab_out} outputs"
        raise ValueError(f"model: expected outputs which are tokens, got {counted}.")
    counts = (tokens[:, :, None] == tokens[:, None, :]).sum(dim=2)
    shares = torch.where((tokens >= 0) & (tokens < model.cfg.d_vocab_out), 1 / counts, 0.0)
    few = int((shares.sum(dim=1) < 1.5).sum())
    if few:
        words = "expected two or more different tokens that are outputs in each, to tell apart"
        raise ValueError(f"{few} of {len(tokens)} sequences: {words}.")
    return shares
