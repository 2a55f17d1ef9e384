"""Clamps that set where heads attend: on the pattern, or on the scores before the softmax."""

from functools import partial
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ih_interp import hooks
from ih_interp.clamps.base import ROLES, Claim, HeadClamp, Hook, Role, Setting, Shape, rows_of
from ih_interp.types import Batch

Queries: TypeAlias = Literal["all", "labels"]
"""Rows that a clamp sets: all of them, or those of the labels, which the circuit uses."""


class PreviousTokenClamp(HeadClamp):
    """Rows shared by the two clamps on attention to the previous token."""

    queries: Queries = "all"

    @property
    def rows(self) -> tuple[Role, ...]:
        return ROLES if self.queries == "all" else ("labels",)

    def positions(self, setting: Setting) -> list[int] | None:
        """The rows as positions; None is all of them, in sequences of any kind."""
        if self.queries == "all":
            return None
        return rows_of(self.rows, setting.sequences.layout)


class PreviousTokenAttention(PreviousTokenClamp):
    """Row i of the pattern: `strength` on i-1, the rest on i; row 0 on itself."""

    kind: Literal["previous_token_attention"] = "previous_token_attention"
    strength: float = Field(default=1.0, ge=0, le=1)

    def claims(self, shape: Shape) -> frozenset[Claim]:
        del shape
        return self.head_claims("pattern", self.rows)

    def tensors(self, shape: Shape) -> dict[str, Tensor]:
        return super().tensors(shape) | {"strength": torch.tensor(self.strength)}

    def hooks(self, setting: Setting) -> list[Hook]:
        return [
            (
                f"blocks.{layer}.attn.hook_pattern",
                partial(
                    hooks.previous_token_attention,
                    heads=setting.tensors["heads"][layer],
                    strength=setting.tensors["strength"],
                    rows=self.positions(setting),
                    gate=setting.gate,
                ),
            )
            for layer in self.layers
        ]


class ForbidPreviousToken(PreviousTokenClamp):
    """Scores at (i, i-1) are masked; the softmax shares their weight among the others."""

    kind: Literal["forbid_previous_token"] = "forbid_previous_token"

    def claims(self, shape: Shape) -> frozenset[Claim]:
        del shape
        return self.head_claims("scores:previous", self.rows)

    def hooks(self, setting: Setting) -> list[Hook]:
        return [
            (
                f"blocks.{layer}.attn.hook_attn_scores",
                partial(
                    hooks.forbid_previous_token,
                    heads=setting.tensors["heads"][layer],
                    rows=self.positions(setting),
                    gate=setting.gate,
                ),
            )
            for layer in self.layers
        ]


class QueryClamp(HeadClamp):
    """A clamp on the query's row of the pattern, which shares the weight among the labels."""

    needs_batch: ClassVar[bool] = True

    def claims(self, shape: Shape) -> frozenset[Claim]:
        del shape
        return self.head_claims("pattern", ("query",))

    def weights(self, setting: Setting) -> Float[Tensor, "batch pair"]:
        """Attention to the label of every pair."""
        raise NotImplementedError

    def hooks(self, setting: Setting) -> list[Hook]:
        weights = hooks.at_labels(self.weights(setting), setting.sequences.layout.n_positions)
        return [
            (
                f"blocks.{layer}.attn.hook_pattern",
                partial(
                    hooks.query_attention,
                    heads=setting.tensors["heads"][layer],
                    weights=weights,
                    gate=setting.gate,
                ),
            )
            for layer in self.layers
        ]


class InductionAttention(QueryClamp):
    """The query attends with `strength` to the correct labels and with the rest to the others.

    A teacher: it looks at the target. The induction strength it sets is 2 * strength - 1 with two
    pairs.
    """

    kind: Literal["induction_attention"] = "induction_attention"
    strength: float = Field(default=1.0, ge=0, le=1)

    def tensors(self, shape: Shape) -> dict[str, Tensor]:
        return super().tensors(shape) | {"strength": torch.tensor(self.strength)}

    def weights(self, setting: Setting) -> Float[Tensor, "batch pair"]:
        return hooks.induction_weights(setting.sequences.correct, setting.tensors["strength"])


class MatchAttention(QueryClamp):
    """The query attends to labels by how alike their exemplar and the query are.

    Softmax over the pairs of cos(raw exemplar, raw query) / temperature; 0 takes the largest.
    """

    kind: Literal["match_attention"] = "match_attention"
    temperature: float = Field(default=0.0, ge=0)

    def tensors(self, shape: Shape) -> dict[str, Tensor]:
        return super().tensors(shape) | {"temperature": torch.tensor(self.temperature)}

    def structure(self) -> Any:
        return {"kind": self.kind, "layers": self.layers, "hard": self.temperature == 0}

    def weights(self, setting: Setting) -> Float[Tensor, "batch pair"]:
        return hooks.match_weights(
            similarity(setting, setting.sequences),
            setting.tensors["temperature"],
            hard=self.temperature == 0,
        )


class AttentionTemperature(HeadClamp):
    """The heads' scores are divided by `temperature`: below 1 sharper, above 1 flatter."""

    kind: Literal["attention_temperature"] = "attention_temperature"
    temperature: float = Field(gt=0)

    def claims(self, shape: Shape) -> frozenset[Claim]:
        del shape
        return self.head_claims("scores:temperature", ROLES)

    def tensors(self, shape: Shape) -> dict[str, Tensor]:
        return super().tensors(shape) | {"temperature": torch.tensor(self.temperature)}

    def structure(self) -> Any:
        return {"kind": self.kind, "layers": self.layers}

    def hooks(self, setting: Setting) -> list[Hook]:
        return [
            (
                f"blocks.{layer}.attn.hook_attn_scores",
                partial(
                    hooks.attention_temperature,
                    heads=setting.tensors["heads"][layer],
                    temperature=setting.tensors["temperature"],
                    gate=setting.gate,
                ),
            )
            for layer in self.layers
        ]


class AttendLabelsOnly(HeadClamp):
    """The query's scores are masked except at the labels."""

    needs_batch: ClassVar[bool] = True
    kind: Literal["attend_labels_only"] = "attend_labels_only"

    def claims(self, shape: Shape) -> frozenset[Claim]:
        del shape
        return self.head_claims("scores:labels", ("query",))

    def hooks(self, setting: Setting) -> list[Hook]:
        return [
            (
                f"blocks.{layer}.attn.hook_attn_scores",
                partial(
                    hooks.attend_only,
                    heads=setting.tensors["heads"][layer],
                    keys=setting.sequences.layout.labels,
                    gate=setting.gate,
                ),
            )
            for layer in self.layers
        ]


def similarity(setting: Setting, batch: Batch) -> Float[Tensor, "batch pair"]:
    """Cosine of every context exemplar's raw features with the query's, in [-1, 1]."""
    embed, layout = setting.embed, batch.layout
    context = embed.rows(batch.tokens[:, list(layout.exemplars)])
    query = embed.rows(batch.tokens[:, layout.query])
    return cosine_similarity(context, query[:, None], dim=-1)
