"""The runs behind the figures and tables, as values.

Names of runs end in the seed of their initial weights: `main-5`, `clamp-match-L1H3-5`. Heads are
never typed in: they follow from the main run of the same seed by the rules of `choose_circuit`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ih_interp.analysis.heads import attention
from ih_interp.batch import Batch
from ih_interp.clamps import (
    AblateHeads,
    AbstractClamp,
    GraftIn,
    InductionAttention,
    PreviousTokenAttention,
    copy,
    keep_only,
    layer_one,
    match,
)
from ih_interp.config import Grid, RunConfig, Seeds
from ih_interp.model import ModelConfig
from ih_interp.optimisers import Adam
from ih_interp.paper.presets import Preset
from ih_interp.runs import Run
from ih_interp.tasks.exemplars import ExemplarSource
from ih_interp.types import Head

FIRST_SEED = 5  # the paper's main text; its other networks are 6 to 9

EVOLUTIONS: Mapping[str, str] = {
    "normal": "none",
    "B alone": "layer 1 + copy",
    "C alone": "match",
    "B and C": "layer 1",
}
"""Columns of Figure 6, and the condition of Figure 5b that leaves these subcircuits to learn."""

STRENGTHS = (1, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.4, 0.3, 0.2, 0.1, 0)
"""Attention on the correct label in Figure 15."""

LIKE_THE_FIRST = 0.5
"""The share of the best previous-token score above chance that makes a previous-token head."""


class Circuit(NamedTuple):
    """The heads of one network, chosen by `choose_circuit`."""

    induction: Head
    """The head of the last layer with the largest induction strength."""
    previous_token: tuple[Head, ...]
    """The heads of layer 0 that attend to the previous token at labels, the strongest first."""
    unlike: Head
    """The head of layer 0 that attends there the least."""

    def __str__(self) -> str:
        previous = ", ".join(map(str, self.previous_token))
        return (
            f"{self.induction} is the strongest induction head; {previous} attend to the previous "
            f"token, {self.unlike} the least"
        )


def choose_circuit(run: Run, batch: Batch | None = None) -> Circuit:
    """Return the heads of a network at the end of its run, over every training sequence or `batch`.

    Previous-token heads are those whose `previous_token_score` at labels, less chance, is at least
    half of the best one's; in the paper's network these are its L1H1, L1H2 and L1H5.
    """
    model = run.model()
    batch = run.task.enumerate("train") if batch is None else batch
    last = model.cfg.n_layers - 1
    strength = attention.induction_strength(model, batch)[last]
    chance = attention.previous_token_chance(batch.tokens.shape[1], "labels")
    above = attention.previous_token_score(model, batch, rows="labels")[0] - chance
    if bool(strength.isnan().any() or above.isnan().any()):
        raise ValueError(f"{run.folder}: expected scores of heads at its end, got NaN.")
    order = above.argsort(descending=True).tolist()
    like = [head for head in order if above[head] >= LIKE_THE_FIRST * above[order[0]]]
    return Circuit(
        induction=Head(last, int(strength.argmax())),
        previous_token=tuple(Head(0, head) for head in like or order[:1]),
        unlike=Head(0, order[-1]),
    )


class Context(NamedTuple):
    """The values that one network's runs are made from."""

    preset: Preset
    exemplars: ExemplarSource
    seed: int
    circuit: Circuit | None = None
    """Known once the main run is trained."""
    donors: Mapping[int, str] = {}
    """Folders of trained main runs by their seed, for grafts."""

    @property
    def heads(self) -> Circuit:
        """The circuit; raises ValueError before it is known."""
        if self.circuit is None:
            raise ValueError("circuit=None: train the main run first, then choose_circuit(run).")
        return self.circuit


def main(context: Context) -> dict[str, RunConfig]:
    """Return the run with all heads and no clamps: Figures 3, 4a, 11 to 14, 16, and the tables."""
    return {"main": main_run(context.preset, context.exemplars, context.seed)}


def main_run(preset: Preset, exemplars: ExemplarSource, seed: int) -> RunConfig:
    """Return the run that all others vary."""
    return RunConfig(
        name=f"main-{seed}",
        task=preset.task.replace(exemplars=exemplars),
        optimiser=Adam(learning_rate=preset.learning_rate),
        seeds=Seeds(init=seed),
        sequences=preset.main_sequences,
        evaluations=preset.evaluations,
        evaluation_size=preset.evaluation_size,
        checkpoints=preset.checkpoints,
    )


def single(context: Context) -> dict[str, RunConfig]:
    """Return the runs of Figures 4b and 18: one head of the last layer; keys are heads."""
    return {
        str(head): _vary(context, f"single-{head}", [_only(head)]) for head in last_layer_heads()
    }


def pairs(context: Context) -> dict[str, RunConfig]:
    """Return the runs of Figure 17: the strongest induction head and one other, the key."""
    first = context.heads.induction
    return {
        str(head): _vary(context, f"pair-{first}-{head}", [_only(first, head)])
        for head in last_layer_heads()
        if head != first
    }


def clamped(context: Context) -> dict[str, RunConfig]:
    """Return the runs of Figure 5b: one head of the last layer, subcircuits clamped in turn.

    Copying clamps leave the ablation out, as the paper does: their loss does not see it.
    """
    preset = context.preset
    return {
        condition: _vary(
            context,
            f"clamp-{condition.replace(' ', '')}-{context.heads.induction}",
            clamps,
            sequences=preset.clamped_sequences,
            evaluations=preset.dense_evaluations,
            checkpoints=preset.checkpoints if condition == "none" else Grid(),
        )
        for condition, clamps in _conditions(context).items()
    }


def data(context: Context) -> dict[str, RunConfig]:
    """Return the runs of Figure 6: `clamped` with more classes or labels; keys as in `data_key`.

    The figure's clamped runs with fewest classes and labels are those of `clamped`.
    """
    preset = context.preset
    few_classes, few_labels = preset.n_classes[0], preset.n_labels[0]
    sizes = [(n_classes, few_labels) for n_classes in preset.n_classes]
    sizes += [(few_classes, n_labels) for n_labels in preset.n_labels[1:]]
    conditions = _conditions(context)
    return {
        data_key(evolution, n_classes, n_labels): _vary(
            context,
            f"data-{evolution.replace(' ', '')}-{n_classes}-{n_labels}-{context.heads.induction}",
            conditions[condition],
            task=preset.task.replace(n_train_classes=n_classes, n_labels=n_labels),
            sequences=preset.long_sequences if evolution == "normal" else preset.data_sequences,
            evaluations=preset.evaluations if evolution == "normal" else preset.dense_evaluations,
        )
        for evolution, condition in EVOLUTIONS.items()
        for n_classes, n_labels in sizes
        if evolution == "normal" or (n_classes, n_labels) != (few_classes, few_labels)
    }


def data_key(evolution: str, n_classes: int, n_labels: int) -> str:
    """Return the name of one of Figure 6's conditions."""
    return f"{evolution}, {n_classes} classes, {n_labels} labels"


def grafts(context: Context) -> dict[str, RunConfig]:
    """Return the runs of Figure 7: a trained network's first layer; keys are the donors' seeds."""
    step = main(context)["main"].n_steps
    return {
        str(donor): _vary(
            context,
            f"graft-{donor}",
            [GraftIn(run=folder, step=step, layer=0)],
            sequences=context.preset.branch_sequences,
            evaluations=context.preset.dense_evaluations,
        )
        for donor, folder in context.donors.items()
    }


def previous_token(context: Context) -> dict[str, RunConfig]:
    """Return the runs of Figure 8: perfect previous-token heads in layer 0, one, several or all."""
    circuit = context.heads
    conditions: dict[str, tuple[Head, ...]] = {
        "best": circuit.previous_token[:1],
        "unlike": (circuit.unlike,),
        "like": circuit.previous_token,
        "all": tuple(Head(0, head) for head in range(ModelConfig().n_heads)),
    }
    return {
        condition: _vary(
            context,
            f"previous-{condition}-{circuit.induction}",
            [PreviousTokenAttention(heads=heads), _only(circuit.induction)],
            sequences=context.preset.branch_sequences,
        )
        for condition, heads in conditions.items()
    }


def strengths(context: Context) -> dict[str, RunConfig]:
    """Return the runs of Figure 15: the induction head clamped at each of `STRENGTHS`."""
    head = context.heads.induction
    return {
        str(strength): _vary(
            context,
            f"strength-{strength}-{head}",
            [InductionAttention(heads=(head,), strength=strength)],
            sequences=context.preset.clamped_sequences,
        )
        for strength in STRENGTHS
    }


RECIPES: Mapping[str, Callable[[Context], dict[str, RunConfig]]] = {
    recipe.__name__: recipe
    for recipe in (main, single, pairs, clamped, data, grafts, previous_token, strengths)
}
"""Sets of runs that figures use together, by name."""
NEED_NO_CIRCUIT = frozenset({"main", "single"})


def last_layer_heads() -> list[Head]:
    """Return the heads of the paper's last layer."""
    model = ModelConfig()
    return [Head(model.n_layers - 1, head) for head in range(model.n_heads)]


def _conditions(context: Context) -> dict[str, tuple[AbstractClamp, ...]]:
    """Return the clamps of Figure 5b, by condition."""
    circuit = context.heads
    head, others = circuit.induction, _only(circuit.induction)
    return {
        "none": (others,),
        "previous token": (PreviousTokenAttention(heads=circuit.previous_token[:1]), others),
        "layer 1": (layer_one(), others),
        "match": (match(head), others),
        "copy": (copy(head),),
        "layer 1 + copy": (layer_one(), copy(head)),
    }


def _only(*heads: Head) -> AblateHeads:
    """Return the ablation of all heads of the last layer but these."""
    return AblateHeads(heads=keep_only(*heads, n_heads=ModelConfig().n_heads))


def _vary(
    context: Context, name: str, clamps: Sequence[AbstractClamp], **changes: object
) -> RunConfig:
    """Return the main run under clamps; of its checkpoints the first and the last are kept."""
    return main(context)["main"].replace(
        **{"name": f"{name}-{context.seed}", "clamps": clamps, "checkpoints": Grid(), **changes}
    )
