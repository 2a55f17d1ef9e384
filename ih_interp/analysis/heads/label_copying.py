"""Label copying: what a head that attends to a label adds to each label's logit.

In the few-shot task copying is from labels to labels: a matrix `[label in, label out]` for every
head, whose diagonal is what an induction head needs. It can be read from the weights alone, or from
the values that heads really have at the labels, where earlier heads have written too.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp._torch_state import plain_torch
from ih_interp.analysis.checks import called_with, refuse_wrong
from ih_interp.analysis.heads.pattern_scores import each_chunk
from ih_interp.analysis.heads.weights import (
    copied_tokens,
    embedded,
    refuse_other_models,
    unembedding,
)
from ih_interp.model import FewShotEmbed
from ih_interp.types import Batch, PerHead


@called_with("it reads weights alone; label_copying_of_values(model, batch) takes sequences")
@plain_torch()
def label_copying(
    model: HookedTransformer,
    *,
    tokens: Int[Tensor, " token"] | None = None,
    layer_norm: bool = True,
) -> Float[Tensor, "layer head label label"]:
    """Label attended to -> logits, by weights: `W_E[label] W_V W_O W_U`, any real number.

    `[layer, head, label in, label out]`. With `layer_norm` the label's embedding is normalised as
    the head's LayerNorm would normalise it alone, and the final norm's centring and gain are
    counted in, its division not; with False the matrices are multiplied as they are. Only the
    label's own embedding is followed: in a trained network layer 0 rewrites labels, and later heads
    copy what it wrote, which `label_copying_of_values` sees. `tokens` are the labels by default,
    and have to be given for other than few-shot models. Score and chance:
    `label_copying_score`.
    """
    refuse_wrong(model=model, vocabulary=tokens, layer_norm=layer_norm)
    refuse_other_models(model)
    if tokens is None and not isinstance(model.embed, FewShotEmbed):
        raise ValueError("Only few-shot models have labels; say with tokens= which are meant.")
    chosen = copied_tokens(model, tokens)
    w_u = unembedding(model, layer_norm=layer_norm)[:, chosen]
    circuits = [
        embedded(model, chosen, layer, layer_norm=layer_norm)
        @ block.attn.W_V
        @ block.attn.W_O
        @ w_u
        for layer, block in enumerate(model.blocks)
    ]
    return torch.stack(circuits)


@plain_torch()
def label_copying_of_values(
    model: HookedTransformer, batch: Batch
) -> Float[Tensor, "layer head label label"]:
    """Label attended to -> logits, by values: the mean of `v W_O W_U` where the label stands.

    `[layer, head, label in, label out]`: the head's value v at every occurrence of a label in the
    contexts, through the final norm's centring and gain but not its division. Runs the model, and
    so sees clamped values. Score and chance: `label_copying_score`. Raises ValueError for a label
    that no context shows.
    """
    refuse_wrong(model=model, batch=batch)
    refuse_other_models(model)
    positions = list(batch.layout.labels)
    shown = torch.nn.functional.one_hot(batch.context_labels, model.cfg.d_vocab_out)
    counts = shown.sum(dim=(0, 1))
    if int(counts.min()) == 0:
        missing = torch.nonzero(counts == 0).flatten().tolist()
        raise ValueError(f"No context shows the labels {missing}; give more sequences.")
    w_u = unembedding(model, layer_norm=True)

    def read(values: PerHead, layer: int, rows: slice) -> Float[Tensor, "batch head label d_head"]:
        del layer
        values = values.repeat_interleave(model.cfg.n_heads // values.shape[2], dim=2)  # grouped
        return torch.einsum("bphr,bpl->bhlr", values[:, positions], shown[rows].to(values))

    chunks = each_chunk(model, batch.tokens, "attn.hook_v", read)
    total = sum((part.double().sum(dim=0) for part in chunks), torch.zeros(()).double())
    means = (total / counts[:, None]).to(w_u)
    return means @ model.W_O @ w_u


@plain_torch()
def label_copying_score(
    circuit: Float[Tensor, "layer head label label"],
) -> Float[Tensor, "layer head"]:
    """Mean diagonal of a label copying matrix minus the mean of the rest; any real number.

    In logits before the final norm's division: how much more a head raises the label it attends to
    than it raises that label from another. Chance 0. What a head adds to a logit whichever the
    label cancels. Over checkpoints:

        ih.trace(run, lambda model, batch: ih.label_copying_score(ih.label_copying(model)))
    """
    refuse_wrong(circuit=circuit)
    if circuit.ndim != 4 or circuit.shape[-1] != circuit.shape[-2] or 0 in circuit.shape:
        raise ValueError(
            f"circuit has shape {tuple(circuit.shape)}; [layer, head, label, label] was expected."
        )
    n = circuit.shape[-1]
    own = circuit.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    return own / n - (circuit.sum(dim=(-2, -1)) - own) / (n * (n - 1))
