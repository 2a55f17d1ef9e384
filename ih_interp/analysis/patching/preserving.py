"""The paper's wiring analysis: heads of layer 0 ablated while patterns or values stay clean.

A clean pass, completely unablated, gives the patterns or the values of all layers, which are then
forced (Singh et al. 2024, appendix E, Figures 11 and 12, Table 1). With patterns preserved, ablated
heads of layer 0 no longer reach the values of layer 1; with values preserved, no longer its queries
and keys; in both, no longer the output directly. Layers count from 0 here, from 1 in the paper.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp._reprs import short_repr
from ih_interp._stock import not_plain, parts_of
from ih_interp._torch_state import plain_torch
from ih_interp.analysis._passes import HeadName, by_layer, chunk_size, into_stream, recording
from ih_interp.analysis.ablation._linear_readout import times
from ih_interp.analysis.checks import refuse_no_heads, refuse_wrong
from ih_interp.analysis.patching._last_layer import LastRow
from ih_interp.clamps import AblateHeads, Preserve
from ih_interp.evaluation import QueryMetrics, evaluate, measured
from ih_interp.types import Batch, Head

Kept: TypeAlias = Literal["patterns", "values"]
"""What of a clean pass is forced."""

Keep: TypeAlias = Literal["all_but_one", "one"]
"""Which senders are left: all but the sender of a cell (column 1), or it alone (column 2)."""

FAST_CHUNK = 128
"""Sequences at once where only the last row is computed: nine columns of more leave the cache."""

SCALES = ("accuracy", "loss")


@short_repr
@dataclass(frozen=True)
class Preserving:
    """One map of Figure 11, `[receiver, sender]` as there, or `[batch, receiver, sender]`."""

    accuracy: Float[Tensor, "*batch receiver sender"]
    """1 where the largest logit is the target's; chance 1/L."""
    loss: Float[Tensor, "*batch receiver sender"]
    """Cross-entropy over all labels, nats; chance ln L."""
    unablated_accuracy: Float[Tensor, "*batch receiver"]
    """With every sender left and one receiver: what column 1 of the figure subtracts."""
    unablated_loss: Float[Tensor, "*batch receiver"]

    @property
    def accuracy_change(self) -> Float[Tensor, "*batch receiver sender"]:
        """In [-1, 1]; negative where the ablation harms. Column 1 of Figure 11."""
        return self.accuracy - self.unablated_accuracy[..., None]

    def table(self) -> pd.DataFrame:
        """One row a cell: `receiver`, `sender`, `accuracy`, `loss`, and their changes."""
        columns = {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "accuracy_change": self.accuracy_change,
            "loss_change": self.loss - self.unablated_loss[..., None],
        }
        n_receivers, n_senders = self.accuracy.shape[-2:]
        values = {
            name: column.reshape(-1, n_receivers, n_senders).double().mean(dim=0).flatten().tolist()
            for name, column in columns.items()
        }
        places = [
            {"receiver": str(Head(1, r)), "sender": str(Head(0, s))}
            for r in range(n_receivers)
            for s in range(n_senders)
        ]
        return pd.DataFrame(places).assign(**values)


@short_repr
class PerSequence(dict[str, Float[Tensor, " batch"]]):
    """Numbers of every sequence, by name."""


@plain_torch()
def preserving_map(
    model: HookedTransformer,
    batch: Batch,
    *,
    preserve: Kept,
    keep: Keep = "all_but_one",
    per_sequence: bool = False,
) -> Preserving:
    """Accuracy and loss with one head of layer 1 left, for every head and every sender below.

    Cell `[i, j]` ablates all heads of layer 1 but i, and of layer 0 only j (`keep="all_but_one"`,
    column 1 of Figure 11) or all but j (`keep="one"`, column 2), with `preserve` forced from a
    clean pass: what `evaluate(model, batch, [Preserve, AblateHeads])` gives. In two layers of
    attention without hooks what layer 0 writes is clean but for who is left, so that one pass and
    one reading of layer 1 a sender give every receiver; under hooks and clamps, which may be made
    for whole passes, each cell is a pass.

    Raises ValueError for models of other than two layers, or with MLPs, for which "the layer below"
    is not defined by the paper; and for another `preserve` or `keep`.
    """
    refuse_wrong(model=model, batch=batch, keep=keep, per_sequence=per_sequence, preserve=preserve)
    for name, value, kind in (("preserve", preserve, Kept), ("keep", keep, Keep)):
        if value not in get_args(kind):
            raise ValueError(f"{name}={value!r}; choose from {', '.join(get_args(kind))}.")
    if model.cfg.n_layers != 2 or not model.cfg.attn_only:
        raise ValueError(
            f"The map is of two layers of attention; this model has {model.cfg.n_layers} "
            f"{'' if model.cfg.attn_only else 'and MLPs'}. Use preserving_ablation, or wiring_map."
        )
    alone = not_plain(model, parts_of(model)) is None
    cells = _cells_by_linearity if alone else _cells_by_passes
    size = min(chunk_size(model, len(batch)), FAST_CHUNK) if alone else len(batch)
    parts = [cells(model, part, preserve, _senders_left(model, keep)) for part in batch.split(size)]
    accuracy, loss = torch.cat(parts, dim=-1).movedim(-1, 1)
    if not per_sequence:
        accuracy, loss = (value.double().mean(dim=0).float() for value in (accuracy, loss))
    return Preserving(accuracy[..., 1:], loss[..., 1:], accuracy[..., 0], loss[..., 0])


@plain_torch()
def preserving_ablation(
    model: HookedTransformer,
    batch: Batch,
    heads: Iterable[HeadName],
    *,
    preserve: Kept | Sequence[Kept],
) -> QueryMetrics:
    """Metrics of every sequence with heads ablated and patterns, values or both forced clean.

    Table 1 of the paper: `preserving_ablation(model, batch, ["L0H1", "L0H2", "L0H5"],
    preserve="patterns").accuracy.mean()`. Any heads of any model; ablated ones write nothing even
    where values are preserved. Raises ValueError as the clamps `Preserve` and `AblateHeads` do.
    """
    refuse_no_heads(heads)
    refuse_wrong(model=model, batch=batch, heads=heads, preserve=preserve)
    what = (preserve,) if isinstance(preserve, str) else tuple(preserve)
    named = tuple(
        Head(layer, head) for layer, row in by_layer(heads, model).items() for head in row
    )
    chunk = chunk_size(model, len(batch))
    return evaluate(model, batch, [Preserve(what=what), AblateHeads(heads=named)], chunk=chunk)


@plain_torch()
def direct_path_removed(model: HookedTransformer, batch: Batch, *, layer: int = 0) -> PerSequence:
    """What the heads of a layer do for the output directly: Figure 12 of the paper.

    All of them are ablated while patterns and values of every layer are forced clean, so that only
    what they add to the final residual stream is gone. By name, one number per sequence: `accuracy`
    and `loss` without it, and `accuracy_change`, `loss_change` against the model as it is (0 for a
    layer that writes nothing to the output). For `ih.trace`, too.
    """
    refuse_wrong(model=model, batch=batch, layer=layer)
    heads = [Head(layer, head) for head in range(model.cfg.n_heads)]
    without = preserving_ablation(model, batch, heads, preserve=("patterns", "values"))
    whole = evaluate(model, batch, chunk=chunk_size(model, len(batch)))
    return PerSequence(
        accuracy=without.accuracy,
        loss=without.loss,
        accuracy_change=without.accuracy - whole.accuracy,
        loss_change=without.loss - whole.loss,
    )


def _senders_left(model: HookedTransformer, keep: Keep) -> list[list[int]]:
    """Heads of layer 0 that are left: all, then those of each column of the map."""
    heads = list(range(model.cfg.n_heads))
    columns = [[h] if keep == "one" else [o for o in heads if o != h] for h in heads]
    return [heads, *columns]


def _cells_by_passes(
    model: HookedTransformer, batch: Batch, preserve: Kept, left: list[list[int]]
) -> Float[Tensor, "scale receiver column batch"]:
    """One evaluation a cell."""
    heads = range(model.cfg.n_heads)
    cells: list[Tensor] = []
    for receiver in heads:
        for senders in left:
            silent = [Head(0, h) for h in heads if h not in senders]
            silent += [Head(1, h) for h in heads if h != receiver]
            found = (
                preserving_ablation(model, batch, silent, preserve=preserve)
                if silent
                else evaluate(model, batch, [Preserve(what=(preserve,))], chunk=len(batch))
            )
            cells.append(torch.stack([found.accuracy, found.loss]))
    return torch.stack(cells, dim=1).unflatten(1, (len(heads), len(left)))


def _cells_by_linearity(
    model: HookedTransformer, batch: Batch, preserve: Kept, left: list[list[int]]
) -> Float[Tensor, "scale receiver column batch"]:
    """Layer 0 writes as in the clean pass, so every column is a sum over the heads left."""
    last, heads = LastRow(model), range(model.cfg.n_heads)
    below, point = "blocks.0.hook_resid_pre", "blocks.0.attn.hook_z"
    with recording(model, [below, point]) as kept:
        model(batch.tokens, stop_at_layer=1)
    written = into_stream(model, 0, heads, kept[point])
    chosen = torch.tensor([[float(h in senders) for h in heads] for senders in left]).to(written)
    # The first column has every sender, and is the clean pass.
    by_head = written.movedim(2, 0)
    added = times(chosen, by_head.flatten(start_dim=1)).view(-1, *by_head.shape[1:])
    resid = kept[below] + model.blocks[0].attn.b_O + added
    read = last.read(resid)
    if preserve == "patterns":
        pattern = last.pattern(last.queries(read[:1]), last.keys(read[:1]))
        values = last.values(read)
    else:
        pattern = last.pattern(last.queries(read), last.keys(read))
        values = last.values(read[:1])
    each = last.written(last.z(pattern, values))
    logits = last.logits(resid[..., -1, :] + each + last.attn.b_O)
    return torch.stack([measured(scale, logits, batch) for scale in SCALES])
