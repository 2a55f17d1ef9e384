"""Self-repair: what later components and the final norm make good when heads are ablated."""

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp._reprs import short_repr
from ih_interp._stock import other_module, wrong_norm
from ih_interp._torch_state import plain_torch
from ih_interp.analysis._passes import (
    HeadName,
    HeadsOf,
    by_layer,
    into_stream,
    refuse_cuts,
    refuse_unequal,
    set_heads,
    whole_blocks,
    written_at,
    written_by,
    written_points,
)
from ih_interp.analysis.checks import refuse_no_heads, refuse_wrong
from ih_interp.analysis.patching._last_layer import final_norm
from ih_interp.analysis.patching.path_patching import Ablation, Means, Pair, Seen
from ih_interp.analysis.statistics import Estimate, bootstrap
from ih_interp.clamps._active import active
from ih_interp.evaluation import measured
from ih_interp.types import Batch

LinearScale: TypeAlias = Literal["logit", "logit_difference"]
"""Scales on which direct effects add up."""

SCALE = "ln_final.hook_scale"


@short_repr
class SelfRepair(NamedTuple):
    """Changes of the logit upon ablation, `[batch]`: ablated minus whole.

    `total = direct + heads + mlps + norm`, to rounding.
    """

    total: Float[Tensor, " batch"]
    """As the model gives it."""
    direct: Float[Tensor, " batch"]
    """Of the ablated heads' own output, with the final norm's scale as in the whole pass."""
    heads: Float[Tensor, " batch"]
    """Of what all other heads then write, with that scale."""
    mlps: Float[Tensor, " batch"]
    """Of what MLPs then write, with that scale."""
    norm: Float[Tensor, " batch"]
    """The rest: the final norm's scale is another. 0 without one."""

    @property
    def repair(self) -> Float[Tensor, " batch"]:
        """`total - direct`: of the other sign than `direct` where damage is made good."""
        return self.total - self.direct


@plain_torch()
def self_repair(
    model: HookedTransformer,
    batch: Batch,
    heads: Iterable[HeadName],
    *,
    ablation: Ablation = "zero",
    corrupted: Batch | None = None,
    scale: LinearScale = "logit",
) -> SelfRepair:
    """The change of the target's logit when heads are ablated, told apart by who makes it.

    Rushing and Nanda (2024): the direct effect is that of the heads' own output on the logit, with
    the final norm's scale frozen; what the whole change is short of it has been repaired, by later
    heads, by MLPs, or by the norm alone, whose scale shrinks with the stream. Any real numbers;
    heads of the last layer of an attention-only model are repaired by the norm alone, and without
    a norm by nothing. `ablation` as in `path_patch`, of all that the heads write. By name, for
    `ih.trace`. Raises ValueError for other scales, and clamps that set the stream or the logits.
    """
    refuse_no_heads(heads)
    refuse_wrong(
        model=model, batch=batch, heads=heads, ablation=ablation, corrupted=corrupted, scale=scale
    )
    if scale not in get_args(LinearScale):
        raise ValueError(f"scale={scale!r}; direct effects add on {get_args(LinearScale)} only.")
    chosen = by_layer(heads, model)
    if not chosen:
        raise ValueError("No heads to ablate; name at least one.")
    refuse_cuts(model, min(chosen), model.cfg.n_layers)
    refuse_other_logits(model)
    if any("unembed.hook_logits" in one.points for one in active(model)):
        raise ValueError("A clamp sets the logits: heads have no direct effect on them.")
    pair = Pair.of(model, batch, corrupted, "noise", ablation)
    means = pair.means(chosen)
    with whole_blocks(model, min(chosen), model.cfg.n_layers):
        parts = [_part(one, chosen, means, scale) for one in pair.split()]
    return SelfRepair(*(torch.cat(column) for column in zip(*parts, strict=True)))


@plain_torch()
def repaired_share(found: SelfRepair, **options: Any) -> Estimate:
    """`1 - total / direct`, of means over sequences, with a bootstrap interval.

    0 where nothing is repaired, 1 where all is, above 1 where too much is, below 0 where later
    components make it worse. `options` are those of `bootstrap`.
    """
    values = torch.stack([found.total, found.direct], dim=1).double().cpu().numpy()
    return bootstrap(values, lambda mean: 1 - mean[0] / mean[1], **options)


def _part(pair: Pair, chosen: HeadsOf, means: Means, scale: LinearScale) -> SelfRepair:
    model, clean = pair.model, pair.clean
    names = _names(model)
    whole = pair.run(clean, names)
    if pair.ablation == "resample":
        seen = pair.run(pair.corrupted, written_points(model, chosen))
        new = written_by(model, seen.kept, chosen)
        means = {layer: (chosen[layer], new[layer]) for layer in chosen}
    with set_heads(model, means):
        ablated = pair.run(clean, names)
    own, others, mlps = _changes(model, whole, ablated, chosen)
    resid, after = (run.kept[names[0]][:, -1] for run in (whole, ablated))
    refuse_unequal(
        resid + own + others + mlps, after, "Heads and MLPs do not add up to the residual stream"
    )
    refuse_unequal(
        _frozen_logits(model, whole, resid),
        whole.logits,
        "The final norm and unembedding do not give the model's logits",
    )

    def frozen(stream: Tensor) -> Tensor:
        return measured(scale, _frozen_logits(model, whole, stream), clean)

    before, now = (measured(scale, run.logits, clean) for run in (whole, ablated))
    same_scale, start = frozen(after), frozen(resid)
    direct, heads, of_mlps = (frozen(resid + part) - start for part in (own, others, mlps))
    what = "The effects of heads and MLPs on the logits do not add up"
    refuse_unequal(start + direct + heads + of_mlps, same_scale, what)
    return SelfRepair(
        total=now - before,
        direct=direct,
        heads=heads,
        mlps=of_mlps,
        norm=(now - before) - (same_scale - start),
    )


def _names(model: HookedTransformer) -> list[str]:
    layers = range(model.cfg.n_layers)
    names = [f"blocks.{layers[-1]}.hook_resid_post", *written_points(model, layers)]
    if not model.cfg.attn_only:
        names += [f"blocks.{layer}.hook_mlp_out" for layer in layers]
    return names + ([SCALE] if final_norm(model) else [])


def refuse_other_logits(model: HookedTransformer) -> None:
    """Raise ValueError where logits are no sum of direct effects, whatever the norm's scale."""
    if model.cfg.output_logits_soft_cap > 0:
        raise ValueError(
            f"output_logits_soft_cap={model.cfg.output_logits_soft_cap}: capped logits are no sum "
            "of what heads write, and no head has a direct effect of its own on them."
        )
    reasons = [other_module(model, module) for module in (*final_norm(model), model.unembed)]
    wrong = any(wrong_norm(norm, model.cfg) for norm in final_norm(model))
    reason = next(filter(None, reasons), "is another norm than cfg says" if wrong else None)
    if reason:
        raise ValueError(f"Direct effects are not known: the final norm or unembedding {reason}.")


def _changes(
    model: HookedTransformer, whole: Seen, ablated: Seen, chosen: HeadsOf
) -> tuple[Tensor, Tensor, Tensor]:
    """Ablated minus whole in the last position's stream: chosen heads, other heads, MLPs."""
    own = others = mlps = torch.zeros_like(whole.kept[_names(model)[0]][:, -1])
    for layer in range(model.cfg.n_layers):
        point = written_at(model, layer)
        change = ablated.kept[point][:, -1:] - whole.kept[point][:, -1:]
        each = into_stream(model, layer, range(model.cfg.n_heads), change)[:, 0]
        mine = torch.zeros(model.cfg.n_heads, dtype=torch.bool, device=each.device)
        mine[list(chosen.get(layer, ()))] = True
        own, others = own + each[:, mine].sum(dim=1), others + each[:, ~mine].sum(dim=1)
        mlp = f"blocks.{layer}.hook_mlp_out"
        if mlp in whole.kept:
            mlps = mlps + (ablated.kept[mlp] - whole.kept[mlp])[:, -1]
    return own, others, mlps


def _frozen_logits(model: HookedTransformer, whole: Seen, stream: Tensor) -> Tensor:
    """Logits of a last position's stream, the final norm dividing by the whole pass's scale."""
    value = stream[:, None]
    with ExitStack() as stack:
        if SCALE in whole.kept:
            scale = whole.kept[SCALE][:, -1:]
            hooks: list[Any] = [(SCALE, partial(_replaced, scale=scale))]
            stack.enter_context(model.hooks(fwd_hooks=hooks))
        for norm in final_norm(model):
            value = norm(value)
        return model.unembed(value)[:, -1]


def _replaced(value: Tensor, hook: Any, *, scale: Tensor) -> Tensor:
    del value, hook
    return scale
