"""Clamps that set where heads attend: on the pattern, or on the scores before the softmax."""

from typing import Annotated, Any, Literal, TypeAlias

from jaxtyping import Float
from pydantic import AfterValidator, Field
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ih_interp import hooks
from ih_interp.batch import Batch, Layout
from ih_interp.clamps.base import AbstractClamp, HeadClamp, Hook, HookFunction, Setting, Shape, Site
from ih_interp.hooks import Gate

Queries: TypeAlias = Literal["all", "labels"]
"""Rows that a clamp sets: all of them, or those of the labels, which the circuit uses."""


def _quotients_are_finite(temperature: float) -> float:
    if temperature and not hooks.COLDEST <= temperature <= hooks.HOTTEST:
        raise ValueError(
            f"temperature={temperature:g}: expected {hooks.COLDEST:g} to {hooks.HOTTEST:g}, "
            "beyond which float32 does not hold the quotients."
        )
    return temperature


Temperature: TypeAlias = Annotated[float, AfterValidator(_quotients_are_finite)]


class PreviousTokenClamp(HeadClamp):
    """The rows of the two clamps on attention to the previous token."""

    needs_batch = False
    queries: Queries = "all"
    """Which rows of the pattern it sets: all of them, or those of the labels alone."""

    def sites(self, shape: Shape) -> frozenset[Site]:
        row = None if self.queries == "all" else "labels"
        return frozenset(site._replace(row=row) for site in super().sites(shape))

    def refuse_batch(self, batch: Batch) -> None:
        if self.queries == "labels":
            _refuse_plain(self, batch)

    def on_rows(self, function: HookFunction) -> HookFunction:
        """Return the hook function on the rows that the clamp sets, for sequences of any length."""
        if self.queries == "all":
            return function

        def on_labels(
            activation: Tensor, hook: Any, gate: Gate = None, **given: Any
        ) -> Tensor | None:
            labels = Layout(n_pairs=activation.shape[-1] // 2).labels
            return function(activation, hook, rows=labels, gate=gate, **given)

        return on_labels


class PreviousTokenAttention(PreviousTokenClamp):
    """Row i of the pattern: `strength` on i-1, the rest on i; row 0 on itself."""

    kind: Literal["previous_token_attention"] = "previous_token_attention"
    stage, sets, numbers = 30, "pattern", ("strength",)
    strength: float = Field(default=1.0, ge=0, le=1)
    """Attention weight on the previous token."""

    def hooks(self, setting: Setting) -> list[Hook]:
        hook = self.on_rows(hooks.previous_token_attention)
        return self.at_each_layer(
            setting, "hook_pattern", hook, strength=setting.tensors["strength"]
        )


class ForbidPreviousToken(PreviousTokenClamp):
    """Scores at (i, i-1) are masked; the softmax shares their weight among the others."""

    kind: Literal["forbid_previous_token"] = "forbid_previous_token"
    stage, sets = 41, "scores:previous"

    def hooks(self, setting: Setting) -> list[Hook]:
        hook = self.on_rows(hooks.forbid_previous_token)
        return self.at_each_layer(setting, "hook_attn_scores", hook)


class InductionAttention(HeadClamp):
    """Queries attend with `strength` to their answers and with the rest to the other candidates.

    In few-shot sequences the answers are the correct labels among those of the context. A teacher:
    it looks at the target. The induction strength it sets is 2 * strength - 1 with two pairs. At
    strength 1 it is the paper's perfect match, `match()`. Queries without an answer, or without
    another candidate for the rest, stay free.
    """

    needs_batch, roles, sets, rows = True, ("answers", "candidates"), "pattern", "asked"

    kind: Literal["induction_attention"] = "induction_attention"
    stage, numbers = 31, ("strength",)
    strength: float = Field(default=1.0, ge=0, le=1)
    """Attention weight on all correct labels together."""

    def refuse_batch(self, batch: Batch) -> None:
        super().refuse_batch(batch)
        if not batch.is_few_shot:
            return
        correct = batch.correct.sum(dim=1)
        lonely = ((correct == 0) | (correct == batch.layout.n_pairs)).nonzero()
        if len(lonely):
            raise ValueError(
                f"{self} needs a correct label and another one in every context; sequence "
                f"{int(lonely[0])} has {int(correct[lonely[0]])} correct of {batch.layout.n_pairs}."
            )

    def hooks(self, setting: Setting) -> list[Hook]:
        answers, strength = setting.sequences.answers, setting.tensors["strength"]
        given = (setting.at_queries(answers), strength, setting.candidates)
        weights = hooks.induction_weights(*given)
        return self.at_each_layer(setting, "hook_pattern", hooks.query_attention, weights=weights)


class SimilarityAttention(HeadClamp):
    """The query attends to labels by how alike their exemplar and the query are.

    Softmax over the pairs of cos(raw exemplar, raw query) / temperature; 0 takes the largest. It
    sees features, never the target; the paper's perfect match is another clamp, `match()`.
    """

    kind: Literal["match_attention"] = "match_attention"
    stage, needs_batch, sets, rows, numbers = 32, True, "pattern", "asked", ("temperature",)
    temperature: Temperature = Field(default=0.0, ge=0)
    """Divides cosines before the softmax; 0 takes the most alike alone."""

    def structure(self) -> Any:
        return {**super().structure(), "hard": self.temperature == 0}

    def refuse_batch(self, batch: Batch) -> None:
        _refuse_plain(self, batch)

    def hooks(self, setting: Setting) -> list[Hook]:
        alike = similarity(setting, setting.sequences)
        temperature, hard = setting.tensors["temperature"], self.temperature == 0
        of_pairs = hooks.match_weights(alike, temperature, hard=hard)
        weights = hooks.at_labels(of_pairs, setting.sequences.tokens.shape[1])
        return self.at_each_layer(setting, "hook_pattern", hooks.query_attention, weights=weights)


class AttentionTemperature(HeadClamp):
    """The heads' scores are divided by `temperature`: below 1 sharper, above 1 flatter."""

    kind: Literal["attention_temperature"] = "attention_temperature"
    stage, needs_batch, sets, numbers = 40, False, "scores:temperature", ("temperature",)
    temperature: Temperature = Field(gt=0)
    """Divides scores; very large ones make attention uniform."""

    def hooks(self, setting: Setting) -> list[Hook]:
        function, temperature = hooks.attention_temperature, setting.tensors["temperature"]
        return self.at_each_layer(setting, "hook_attn_scores", function, temperature=temperature)


class AttendLabelsOnly(HeadClamp):
    """Queries' scores are masked except at their candidates, the labels of few-shot sequences."""

    kind: Literal["attend_labels_only"] = "attend_labels_only"
    stage, needs_batch, roles = 42, True, ("candidates",)
    sets, rows = "scores:candidates", "asked"

    def hooks(self, setting: Setting) -> list[Hook]:
        keys = setting.candidates
        return self.at_each_layer(setting, "hook_attn_scores", hooks.attend_only, keys=keys)


def _refuse_plain(clamp: AbstractClamp, batch: Batch) -> None:
    if not batch.is_few_shot:
        raise ValueError(f"{clamp} acts on labels: expected few-shot sequences, got plain tokens.")


def similarity(setting: Setting, batch: Batch) -> Float[Tensor, "batch pair"]:
    """Return the cosine of every context exemplar's raw features with the query's, in [-1, 1].

    It is at least float32: with the digits of half precision, different exemplars would tie.
    """
    embed, layout = setting.embed, batch.layout
    context = hooks.widened(embed.rows(batch.tokens[:, list(layout.exemplars)]))
    query = hooks.widened(embed.rows(batch.tokens[:, layout.query]))
    return cosine_similarity(context, query[:, None], dim=-1)
