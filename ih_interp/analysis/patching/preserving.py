"""The paper's wiring analysis: heads of layer 0 are ablated while patterns or values stay clean.

A pass without ablation gives the patterns or the values of all layers, which are then forced (Singh
et al. 2024, appendix E, Figures 11 and 12, Table 1). With patterns preserved, ablated heads of
layer 0 no longer reach the values of layer 1; with values preserved, its queries and keys; in both
cases, the output directly. Layers count from 0 here, from 1 in the paper.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Literal, TypeAlias

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ih_interp._reprs import short_repr
from ih_interp._stock import not_plain, parts_of
from ih_interp.analysis._passes import into_stream, recording
from ih_interp.analysis.ablation._subset_passes import times
from ih_interp.analysis.checks import Within, checked_in_plain_torch
from ih_interp.analysis.patching._last_layer import LastRow
from ih_interp.batch import Batch
from ih_interp.clamps import AblateHeads, Preserve
from ih_interp.clamps._active import rows_per_pass
from ih_interp.evaluation import SequenceMetrics, evaluate, measured
from ih_interp.hooked_model import HookedModel
from ih_interp.types import Head, HeadName, parse_heads

Kept: TypeAlias = Literal["patterns", "values"]
"""The activations of a clean pass that are forced."""

Keep: TypeAlias = Literal["all_but_one", "one"]
"""Which senders are left: all but the sender of a cell (column 1), or only it (column 2)."""

FAST_CHUNK = 128
"""Sequences at once where only the last row is computed: nine times as many fill the cache."""

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
    """With every sender and one receiver left; column 1 of the figure subtracts it."""
    unablated_loss: Float[Tensor, "*batch receiver"]

    @property
    def accuracy_change(self) -> Float[Tensor, "*batch receiver sender"]:
        """In [-1, 1]; negative where the ablation harms. Column 1 of Figure 11."""
        return self.accuracy - self.unablated_accuracy[..., None]

    def table(self) -> pd.DataFrame:
        """Return one row per cell: `receiver`, `sender`, `accuracy`, `loss`, and their changes."""
        shape = self.accuracy.shape[-2:]
        columns = {
            "accuracy": self.accuracy,
            "loss": self.loss,
            "accuracy_change": self.accuracy_change,
            "loss_change": self.loss - self.unablated_loss[..., None],
        }
        places = [(str(Head(1, i)), str(Head(0, j))) for i, j in product(*map(range, shape))]
        table = pd.DataFrame(places, columns=["receiver", "sender"])
        for name, column in columns.items():
            table[name] = column.reshape(-1, shape.numel()).double().mean(dim=0).tolist()
        return table


@short_repr
class PerSequence(dict[str, Float[Tensor, " batch"]]):
    """Numbers of every sequence, by name."""


@checked_in_plain_torch()
def preserving_map(
    model: HookedModel,
    batch: Batch,
    *,
    preserve: Kept,
    keep: Keep = "all_but_one",
    per_sequence: bool = False,
) -> Preserving:
    """Return accuracy and loss with one head of layer 1 left, for each head and sender below.

    Cell `[i, j]` ablates all heads of layer 1 but i, and of layer 0 only j (`keep="all_but_one"`,
    column 1 of Figure 11) or all but j (`keep="one"`, column 2), with `preserve` forced from a
    clean pass, as by `evaluate(model, batch, [Preserve, AblateHeads])`. Without hooks, layer 0
    writes as in the clean pass, so that one pass and one reading of layer 1 per sender give every
    receiver; under hooks and clamps each cell is a pass. For 784 sequences of the paper's model
    that takes 0.08 s and 5 s. Raises ValueError for models of other than two layers, or with MLPs,
    for which the paper does not define "the layer below".
    """
    if model.cfg.n_layers != 2 or not model.cfg.attn_only:
        raise ValueError(
            f"n_layers={model.cfg.n_layers}, attn_only={model.cfg.attn_only}: expected two layers "
            "of attention without MLPs; use preserving_ablation or wiring_map."
        )
    alone = batch.asks_last and not_plain(model, parts_of(model)) is None
    cells = _cells_by_linearity if alone else _cells_by_passes
    size = min(rows_per_pass(model, batch.tokens), FAST_CHUNK) if alone else len(batch)
    heads = list(range(model.cfg.n_heads))
    columns = ([h] if keep == "one" else [o for o in heads if o != h] for h in heads)
    left = [heads, *columns]  # senders that are left: all, then those of every column of the map
    parts = [cells(model, part, preserve, left) for part in batch.split(size)]
    accuracy, loss = torch.cat(parts, dim=-1).movedim(-1, 1)
    if not per_sequence:
        accuracy, loss = (value.double().mean(dim=0).float() for value in (accuracy, loss))
    return Preserving(accuracy[..., 1:], loss[..., 1:], accuracy[..., 0], loss[..., 0])


@checked_in_plain_torch()
def preserving_ablation(
    model: HookedModel, batch: Batch, heads: Iterable[HeadName], *, preserve: Kept | Sequence[Kept]
) -> SequenceMetrics:
    """Return metrics of every sequence with heads ablated and patterns or values forced clean.

    Table 1 of the paper: `preserving_ablation(model, batch, ["L0H1", "L0H2", "L0H5"],
    preserve="patterns").accuracy.mean()`. Any heads of any model; ablated ones write nothing even
    where values are preserved. Raises ValueError as the clamps `Preserve` and `AblateHeads` do.
    """
    what = (preserve,) if isinstance(preserve, str) else tuple(preserve)
    clamps = [Preserve(what=what), AblateHeads(heads=parse_heads(heads))]
    return evaluate(model, batch, clamps, chunk=rows_per_pass(model, batch.tokens))


@checked_in_plain_torch()
def direct_path_removed(
    model: HookedModel, batch: Batch, *, layer: Annotated[int, Within(0)] = 0
) -> PerSequence:
    """Return metrics without the direct path of a layer's heads to the output (Figure 12).

    All of them are ablated while patterns and values of every layer are forced clean, so that only
    their part of the final residual stream is gone. By name, one number per sequence: `accuracy`
    and `loss` without it, and `accuracy_change`, `loss_change` from the model as it is (0 for a
    layer that writes nothing to the output). A measure for `ih.trace`.
    """
    heads = [Head(layer, head) for head in range(model.cfg.n_heads)]
    without = preserving_ablation(model, batch, heads, preserve=("patterns", "values"))
    whole = evaluate(model, batch, chunk=rows_per_pass(model, batch.tokens))
    found = {name: getattr(without, name) for name in SCALES}
    return PerSequence(found | {f"{n}_change": found[n] - getattr(whole, n) for n in SCALES})


def _cells_by_passes(
    model: HookedModel, batch: Batch, preserve: Kept, left: list[list[int]]
) -> Float[Tensor, "scale receiver column batch"]:
    """Evaluate the model once per cell."""
    heads, cells = range(model.cfg.n_heads), list[Tensor]()
    for receiver, senders in product(heads, left):
        silent = [Head(0, h) for h in heads if h not in senders]
        silent += [Head(1, h) for h in heads if h != receiver]
        ablated = [AblateHeads(heads=tuple(silent))] if silent else []
        clamps = [Preserve(what=(preserve,)), *ablated]
        found = evaluate(model, batch, clamps, chunk=rows_per_pass(model, batch.tokens))
        cells.append(torch.stack([found.accuracy, found.loss]))
    return torch.stack(cells, dim=1).unflatten(1, (len(heads), len(left)))


def _cells_by_linearity(
    model: HookedModel, batch: Batch, preserve: Kept, left: list[list[int]]
) -> Float[Tensor, "scale receiver column batch"]:
    """Sum over the heads left: without hooks, layer 0 writes as in the clean pass."""
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
    attending, moved = (read[:1], read) if preserve == "patterns" else (read, read[:1])
    pattern = last.pattern(last.project(attending, "q"), last.project(attending, "k"))
    each = last.written(last.z(pattern, last.project(moved, "v")))
    logits = last.logits(resid[..., -1, :] + each + last.attn.b_O)
    return torch.stack([measured(scale, logits, batch) for scale in SCALES])
