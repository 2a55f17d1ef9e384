"""Clamps that make whole subcircuits perfect, and the paper's names for them.

The induction circuit has three (Singh et al. 2024, section 4): A, layer 1 of the paper (attend to
the previous token and copy it); B, match (the query finds its copy); C, copy (write the label's
logit). Making the others perfect leaves one alone to learn.
"""

from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ih_interp import hooks
from ih_interp.clamps._active import paused, unclamped
from ih_interp.clamps.attention import InductionAttention, Temperature
from ih_interp.clamps.base import (
    EMBEDDING,
    AbstractClamp,
    GradientMode,
    Hook,
    Setting,
    Shape,
    Site,
    head_mask,
)
from ih_interp.clamps.schedules import ALWAYS, AbstractSchedule
from ih_interp.hooked_model import HookedModel
from ih_interp.hooks import Gate
from ih_interp.types import Head, HeadField, HeadName, Logits, Residual, Scores


def copied(
    setting: Setting,
    candidates: Bool[Tensor, "batch row key"],
    scores: Float[Tensor, "batch row key"],
) -> Float[Tensor, "batch row token"]:
    """Return the scores at the candidates as logits of the tokens that stand there."""
    tokens, n_tokens = setting.sequences.tokens[:, None], setting.model.cfg.d_vocab_out
    return hooks.copied_logits(scores, tokens, n_tokens, candidates)


def logits_point(model: HookedModel) -> str:
    """Return the place of a model's logits: a hook point, or in plain models their module."""
    points = ("unembed.hook_logits", "unembed.hook_out")  # of build_model, and of bridges
    return next((point for point in points if point in model.hook_dict), "unembed")


class CopyFromAttention(AbstractClamp):
    """A query's logit of each token is one head's score where it is a candidate; others are masked.

    In few-shot sequences the candidates are the context's labels. Scores are scaled, before the
    softmax, under whatever else is clamped below that head: the loss asks for the match alone, and
    other heads of that layer, ablated or not, do not matter, nor does any pattern of that layer.
    Tokens at several candidates take the log of their summed exp. Queries without candidates stay
    free.
    """

    kind: Literal["copy_from_attention"] = "copy_from_attention"
    stage, needs_batch, roles = 50, True, ("candidates",)
    head: HeadField
    """The head whose scores the logits are, as `"L1H3"`."""
    gradient: GradientMode = "flow"
    """Whether gradient flows through the scores; "flow" in the paper."""

    def sites(self, shape: Shape) -> frozenset[Site]:
        read = Site("scores read", self.head.layer, self.head.head)
        return frozenset({Site("logits", shape.n_layers), read})

    def voids(self, shape: Shape) -> range:
        return range(self.head.layer + 1, shape.n_layers)

    def tensors(self, shape: Shape) -> dict[str, Tensor]:
        return {"heads": head_mask([self.head], shape)}

    def structure(self) -> Any:
        return {"kind": self.kind, "layer": self.head.layer, "gradient": self.gradient}

    def hooks(self, setting: Setting) -> list[Hook]:
        layer, candidates = self.head.layer, setting.candidates
        chosen = setting.tensors["heads"][layer]
        seen: dict[str, Float[Tensor, "batch row key"]] = {}

        def keep(scores: Scores, hook: Any) -> None:
            rows = scores[:, :, -candidates.shape[1] :]
            picked = torch.where(chosen[:, None, None].to(scores.device), rows, 0.0).sum(dim=1)
            seen["scores"] = picked.detach() if self.gradient == "block" else picked

        def write(logits: Logits, hook: Any, gate: Gate = None) -> Logits:
            value = copied(setting, candidates, seen["scores"])
            return hooks.query_logits(logits, hook, value=value, gate=gate)

        return [
            (f"blocks.{layer}.attn.hook_attn_scores", keep),
            (logits_point(setting.model), write),
        ]


class PerfectLayerOne(AbstractClamp):
    """The input of layer 1 is what perfect previous-token heads in layer 0 would give it.

    Keys and queries read the embedding of the previous token; at the first position, and where
    something is asked, queries read their own, and so do keys which are no query's candidates.
    Values and the residual stream read the raw embedding. Learned positions belong to
    the embedding, and are copied with it. (The published code's docstring says that exemplars'
    slots are emptied; its code does this.)
    """

    kind: Literal["perfect_layer_one"] = "perfect_layer_one"
    stage, needs_batch, reads_pass, roles = 1, True, True, ("candidates",)
    gradient: GradientMode = "flow"
    """Whether gradient flows into the embedding that layer 1 then reads; "flow" in the paper."""

    def sites(self, shape: Shape) -> frozenset[Site]:
        what = ("resid_pre", "preserved q", "preserved k", "preserved v", "scores:from layer 0")
        return frozenset(Site(name, 1) for name in what)

    def voids(self, shape: Shape) -> range:
        return range(EMBEDDING, 1)  # it reads the embedding of an unclamped pass

    def prepare(self, model: HookedModel) -> None:
        if model.cfg.n_layers < 2:
            raise ValueError(f"{self} sets the input of layer 1, and this model has one layer.")

    def hooks(self, setting: Setting) -> list[Hook]:
        with paused(setting.model):  # the raw embedding, with positions where they are learned
            raw: Residual = setting.model(setting.sequences.tokens, stop_at_layer=0)
        raw = raw.detach() if self.gradient == "block" else raw
        names, batch = ["blocks.1.attn.hook_q", "blocks.1.attn.hook_k"], setting.sequences
        if batch.is_few_shot:  # queries and keys read the same
            inputs = [(hooks.previous_token_input(raw), names)]
        else:
            own = (batch.asked, batch.asked & ~batch.candidates.any(dim=1))
            shifted = (hooks.previous_token_input(raw, mask) for mask in own)
            inputs = [(resid, [name]) for resid, name in zip(shifted, names, strict=True)]
        read: dict[str, Tensor] = {}
        for resid, of_them in inputs:
            given = (setting.model, batch.tokens, of_them, self.gradient)
            read |= unclamped(*given, resid_pre=(1, resid))
        values = {"blocks.1.hook_resid_pre": raw, **read}
        return [(name, partial(hooks.replace, value=value)) for name, value in values.items()]


class PerfectMatchAndCopy(AbstractClamp):
    """B and C are perfect, so that A learns alone (not in the paper).

    A query's logit of a token is the cosine between what layer 0's heads wrote where it is a
    candidate (in few-shot sequences a label) and the query's embedding, divided by `temperature`;
    other tokens are masked. Only layer 0 and the embeddings get gradient.
    """

    kind: Literal["perfect_match_and_copy"] = "perfect_match_and_copy"
    stage, needs_batch, roles = 51, True, ("candidates",)
    temperature: Temperature = Field(default=0.1, gt=0)
    """Divides cosines, which makes them logits."""

    def sites(self, shape: Shape) -> frozenset[Site]:
        return frozenset({Site("logits", shape.n_layers)})

    def voids(self, shape: Shape) -> range:
        return range(1, shape.n_layers)

    def prepare(self, model: HookedModel) -> None:
        most = -hooks.lowest(model.W_U) / 2  # beyond it, a bad match would pass for no match
        if 1 / self.temperature > most:
            raise ValueError(
                f"temperature={self.temperature:g} gives logits up to {1 / self.temperature:g} in "
                f"a model of {model.W_U.dtype}: expected at least {1 / most:.2g}."
            )

    def hooks(self, setting: Setting) -> list[Hook]:
        candidates = setting.candidates
        seen: dict[str, Tensor] = {}

        def keep_query(resid: Residual, hook: Any) -> None:
            seen["query"] = resid[:, -candidates.shape[1] :]

        def keep_written(written: Residual, hook: Any) -> None:
            seen["written"] = written

        def write(logits: Logits, hook: Any, gate: Gate = None) -> Logits:
            written, query = (hooks.widened(seen[name]) for name in ("written", "query"))
            match = cosine_similarity(written[:, None], query[:, :, None], dim=-1)
            value = copied(setting, candidates, (match / self.temperature).to(logits))
            return hooks.query_logits(logits, hook, value=value, gate=gate)

        return [
            ("blocks.0.hook_resid_pre", keep_query),
            ("blocks.0.hook_attn_out", keep_written),
            (logits_point(setting.model), write),
        ]


def layer_one(*, schedule: AbstractSchedule = ALWAYS) -> PerfectLayerOne:
    """Return the clamp that makes subcircuit A perfect: the paper's "1,2"."""
    return PerfectLayerOne(schedule=schedule)


def match(*heads: HeadName, schedule: AbstractSchedule = ALWAYS) -> InductionAttention:
    """Return the clamp that makes A and B perfect: the paper's "1,2,3qk,4".

    The heads attend to the correct label. A match by likeness is `SimilarityAttention`.
    """
    return InductionAttention(heads=tuple(map(Head.parse, heads)), schedule=schedule)


def copy(head: HeadName, *, schedule: AbstractSchedule = ALWAYS) -> CopyFromAttention:
    """Return the clamp that makes subcircuit C perfect: the paper's "3v,5"."""
    return CopyFromAttention(head=Head.parse(head), schedule=schedule)


def a_alone(*, schedule: AbstractSchedule = ALWAYS) -> tuple[AbstractClamp, ...]:
    """Return the clamps under which only layer 0 learns."""
    return (PerfectMatchAndCopy(schedule=schedule),)


def b_alone(head: HeadName, *, schedule: AbstractSchedule = ALWAYS) -> tuple[AbstractClamp, ...]:
    """Return the clamps under which only the match learns: the paper's "1,2,3v,5"."""
    return (layer_one(schedule=schedule), copy(head, schedule=schedule))


def c_alone(*heads: HeadName, schedule: AbstractSchedule = ALWAYS) -> tuple[AbstractClamp, ...]:
    """Return the clamps under which only copying and layer 0 learn: the paper's "1,2,3qk,4"."""
    return (match(*heads, schedule=schedule),)
