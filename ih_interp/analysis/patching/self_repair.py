"""Self-repair: when heads are ablated, later components and the final norm make up for them."""

import warnings
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from ih_interp._reprs import short_repr
from ih_interp.analysis import _passes as passes
from ih_interp.analysis._passes import EDITED, SCALE, Ablation, HeadsOf, Means
from ih_interp.analysis.checks import checked_in_plain_torch
from ih_interp.analysis.patching._last_layer import final_norm
from ih_interp.analysis.patching.path_patching import Pair, Seen
from ih_interp.batch import Batch
from ih_interp.clamps._active import active
from ih_interp.evaluation import at_asked
from ih_interp.hooked_model import HookedModel
from ih_interp.types import HeadName

Rows: TypeAlias = Float[Tensor, "asked d_model"]
"""The residual stream at asked positions."""

LinearScale: TypeAlias = Literal["logit", "logit_difference"]
"""Scales on which direct effects add up."""


@short_repr
class SelfRepair(NamedTuple):
    """The changes of the logit upon ablation, `[batch]`: ablated minus whole.

    `total = direct + heads + mlps + norm`, to rounding.
    """

    total: Float[Tensor, " batch"]
    direct: Float[Tensor, " batch"]
    """By the ablated heads' own output, with the final norm's scale of the whole pass."""
    heads: Float[Tensor, " batch"]
    """By all other heads, with that scale."""
    mlps: Float[Tensor, " batch"]
    """By MLPs, with that scale."""
    norm: Float[Tensor, " batch"]
    """By another scale of the final norm: the rest; 0 without a norm."""

    @property
    def repair(self) -> Float[Tensor, " batch"]:
        """`total - direct`, whose sign is opposite to that of `direct` if damage is repaired."""
        return self.total - self.direct


@checked_in_plain_torch()
def self_repair(
    model: HookedModel,
    batch: Batch,
    heads: Iterable[HeadName],
    *,
    ablation: Ablation = "zero",
    corrupted: Batch | None = None,
    scale: LinearScale = "logit",
) -> SelfRepair:
    """Return the change of the target's logit when heads are ablated, split by cause.

    Rushing and Nanda (2024): the direct effect is that of the heads' own output on the logit, with
    the final norm's scale frozen; later heads, MLPs and the norm, whose scale shrinks with the
    stream, repair the difference from the whole change. Any real numbers, the mean over a
    sequence's asked positions; only the norm repairs heads of the last layer of an attention-only
    model. `ablation` is as in `path_patch`, of all that the heads write. A measure for `ih.trace`.
    Raises ValueError for clamps that set the stream or the logits, and where direct effects do not
    add up on the logits, as behind a soft cap and in half precision.
    """
    chosen = passes.by_layer(heads, model)
    if not chosen:
        raise ValueError("heads=[]: expected at least one head to ablate.")
    if any("unembed.hook_logits" in one.points for one in active(model)):
        raise ValueError("A clamp sets the logits: heads have no direct effect on them.")
    pair = Pair(model, batch, corrupted, "noise", ablation, scale)
    means = pair.means(chosen)
    with passes.whole_blocks(model, min(chosen), model.cfg.n_layers):
        parts = [_part(one, chosen, means) for one in pair.split()]
    return SelfRepair(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _part(pair: Pair, chosen: HeadsOf, means: Means) -> SelfRepair:
    model, names = pair.model, _names(pair.model)
    whole = pair.run("clean", names)
    if (dtype := whole.logits.dtype) in (torch.float16, torch.bfloat16):
        raise ValueError(
            f"The model computes in {dtype}, in which effects on the logits do not add up: "
            "expected float32; write model.to(torch.float32)."
        )
    if pair.ablation == "resample":
        seen = pair.run("corrupted", passes.written_points(model, chosen))
        new = passes.written_by(model, seen.kept, chosen)
        means = {layer: (chosen[layer], new[layer]) for layer in chosen}
    with passes.set_heads(model, means):
        ablated = pair.run("clean", names)
    own, others, mlps = _changes(pair, whole, ablated, chosen)
    resid, after = (at_asked(run.kept[names[0]], pair.clean) for run in (whole, ablated))
    what = "Heads and MLPs do not add up to the residual stream"
    passes.refuse_unequal(resid + own + others + mlps, after, what)
    cap = f"output_logits_soft_cap={model.cfg.output_logits_soft_cap}"
    what = f"With {cap}, the final norm and unembedding do not give the model's logits"
    passes.refuse_unequal(_frozen_logits(pair, whole, resid), whole.logits, what)
    before, now = (pair.measured(run.logits) for run in (whole, ablated))
    streams = (after, resid, resid + own, resid + others, resid + mlps)
    frozen = [pair.measured(_frozen_logits(pair, whole, stream)) for stream in streams]
    same_scale, start = frozen[:2]
    direct, heads, of_mlps = (each - start for each in frozen[2:])
    what = "The effects of heads and MLPs on the logits do not add up"
    passes.refuse_unequal(start + direct + heads + of_mlps, same_scale, what)
    return SelfRepair(now - before, direct, heads, of_mlps, (now - before) - (same_scale - start))


def _names(model: HookedModel) -> list[str]:
    """Return the points to record: the last stream first, what is added to it, the norm's scale."""
    layers = range(model.cfg.n_layers)
    mlps = [] if model.cfg.attn_only else [f"blocks.{layer}.hook_mlp_out" for layer in layers]
    names = [f"blocks.{layers[-1]}.hook_resid_post", *passes.written_points(model, layers), *mlps]
    return names + [SCALE] * (SCALE in model.hook_dict)


def _changes(pair: Pair, whole: Seen, ablated: Seen, chosen: HeadsOf) -> tuple[Rows, Rows, Rows]:
    """Return ablated minus whole in the last stream, of chosen heads, of other heads, of MLPs."""
    model, n_heads = pair.model, pair.model.cfg.n_heads
    change = {name: ablated.kept[name] - seen for name, seen in whole.kept.items()}
    own = others = mlps = torch.zeros_like(at_asked(change[_names(model)[0]], pair.clean))
    heads = torch.arange(n_heads, device=own.device)
    for layer in range(model.cfg.n_layers):
        written = change[passes.written_at(model, layer)]
        rows = at_asked(written.flatten(start_dim=2), pair.clean).unflatten(1, (n_heads, -1))
        each = passes.into_stream(model, layer, range(n_heads), rows[:, None])[:, 0]
        mine = torch.isin(heads, torch.tensor([*chosen.get(layer, ())], device=heads.device))
        own, others = own + each[:, mine].sum(dim=1), others + each[:, ~mine].sum(dim=1)
        if (mlp := f"blocks.{layer}.hook_mlp_out") in change:
            mlps = mlps + at_asked(change[mlp], pair.clean)
    return own, others, mlps


def _frozen_logits(pair: Pair, whole: Seen, stream: Rows) -> Float[Tensor, "asked token"]:
    """Return the logits of a stream, the final norm dividing by the whole pass's scale."""
    value = stream[:, None]
    with ExitStack() as stack:
        if SCALE in whole.kept:
            scale = at_asked(whole.kept[SCALE], pair.clean)[:, None]
            stack.enter_context(pair.model.hooks(fwd_hooks=[(SCALE, lambda *_, **__: scale)]))
            # A bridge warns that it then computes the norm itself, not its own model's code.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message=EDITED)
        for norm in final_norm(pair.model):
            value = norm(value)
        return pair.model.unembed(value)[:, -1]
