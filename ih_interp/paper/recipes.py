"""Every run behind the figures and tables, as a value.

Names of runs end in the seed of their initial weights: `main-5`, `clamp-match-L1H3-5`. Heads are
never typed in: they follow from the main run of the same seed by the rules of `choose_circuit`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

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
from ih_interp.config import AdamConfig, Grid, RunConfig, Seeds
from ih_interp.model import ModelConfig
from ih_interp.paper.circuit import Circuit
from ih_interp.paper.presets import Preset
from ih_interp.tasks.exemplars import ExemplarSource
from ih_interp.types import Head

FIRST_SEED = 5  # the paper's main text; its other networks are 6 to 9

RunSet: TypeAlias = Literal[
    "main", "single", "pairs", "clamped", "data", "grafts", "previous_token", "strengths"
]
"""Runs that figures need together; what they are says the function of that name."""

Evolution: TypeAlias = Literal["normal", "B alone", "C alone", "B and C"]
"""Figure 6's columns: which subcircuits are left to learn."""

EVOLUTIONS: Mapping[Evolution, str] = {
    "normal": "none",
    "B alone": "layer 1 + copy",
    "C alone": "match",
    "B and C": "layer 1",
}
"""Columns of Figure 6, and the condition of Figure 5b that leaves these subcircuits to learn."""

STRENGTHS = (1, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.4, 0.3, 0.2, 0.1, 0)
"""Attention on the correct label in Figure 15."""


class Context(NamedTuple):
    """What a network's runs are made from."""

    preset: Preset
    exemplars: ExemplarSource
    seed: int
    circuit: Circuit | None = None
    """Known once the main run is trained."""
    donors: Mapping[int, str] = {}
    """Folders of trained main runs by their seed, for grafts."""

    @property
    def heads(self) -> Circuit:
        """The circuit; ValueError before it is known."""
        if self.circuit is None:
            raise ValueError("These runs need heads: train the main run, then choose_circuit(run).")
        return self.circuit


def main(context: Context) -> dict[str, RunConfig]:
    """All heads, no clamps: Figures 3, 4a, 11 to 14 and 16, and the tables."""
    return {"main": main_run(context.preset, context.exemplars, context.seed)}


def main_run(preset: Preset, exemplars: ExemplarSource, seed: int) -> RunConfig:
    """The run that all others vary."""
    return RunConfig(
        name=f"main-{seed}",
        exemplars=exemplars,
        task=preset.task,
        optimiser=AdamConfig(learning_rate=preset.learning_rate),
        seeds=Seeds(init=seed),
        sequences=preset.main_sequences,
        evaluations=preset.evaluations,
        evaluation_size=preset.evaluation_size,
        checkpoints=preset.checkpoints,
    )


def single(context: Context) -> dict[str, RunConfig]:
    """Figures 4b and 18: one head of the last layer, each in turn; keys are heads."""
    return {
        str(head): _with_heads(context, [head], name=f"single-{head}-{context.seed}")
        for head in last_layer_heads()
    }


def pairs(context: Context) -> dict[str, RunConfig]:
    """Figure 17: the strongest induction head and one other; keys are the other."""
    first = context.heads.induction
    return {
        str(head): _with_heads(context, [first, head], name=f"pair-{first}-{head}-{context.seed}")
        for head in last_layer_heads()
        if head != first
    }


def clamped(context: Context) -> dict[str, RunConfig]:
    """Figure 5b: one head of the last layer active, and each subcircuit clamped in turn.

    Copying clamps leave the ablation out, as the paper does: their loss does not see it.
    """
    preset, head = context.preset, context.heads.induction
    return {
        condition: _main_run(context).replace(
            name=f"clamp-{condition.replace(' ', '')}-{head}-{context.seed}",
            clamps=clamps,
            sequences=preset.clamped_sequences,
            evaluations=preset.dense_evaluations,
            checkpoints=preset.checkpoints if condition == "none" else Grid(),
        )
        for condition, clamps in _conditions(context).items()
    }


def data(context: Context) -> dict[str, RunConfig]:
    """Figure 6: `clamped` with more classes or labels; keys are those of `data_key`.

    The figure's clamped runs with fewest classes and labels are those of `clamped`.
    """
    preset, seed = context.preset, context.seed
    fewest = (preset.n_classes[0], preset.n_labels[0])
    sizes = [(n_classes, fewest[1]) for n_classes in preset.n_classes]
    sizes += [(fewest[0], n_labels) for n_labels in preset.n_labels[1:]]
    conditions = _conditions(context)
    return {
        data_key(evolution, n_classes, n_labels): _main_run(context).replace(
            name=f"data-{evolution.replace(' ', '')}-{n_classes}-{n_labels}"
            f"-{context.heads.induction}-{seed}",
            task=preset.task.replace(n_train_classes=n_classes, n_labels=n_labels),
            clamps=conditions[condition],
            sequences=preset.long_sequences if evolution == "normal" else preset.data_sequences,
            evaluations=preset.evaluations if evolution == "normal" else preset.dense_evaluations,
            checkpoints=Grid(),
        )
        for evolution, condition in EVOLUTIONS.items()
        for n_classes, n_labels in sizes
        if evolution == "normal" or (n_classes, n_labels) != fewest
    }


def data_key(evolution: Evolution, n_classes: int, n_labels: int) -> str:
    """The name of one of Figure 6's conditions."""
    return f"{evolution}, {n_classes} classes, {n_labels} labels"


def grafts(context: Context) -> dict[str, RunConfig]:
    """Figure 7: embedding and first layer are a trained network's; keys are seeds of donors."""
    main = _main_run(context)
    return {
        str(donor): main.replace(
            name=f"graft-{donor}-{context.seed}",
            clamps=[GraftIn(run=folder, step=main.n_steps, layer=0)],
            sequences=context.preset.branch_sequences,
            evaluations=context.preset.dense_evaluations,
            checkpoints=Grid(),
        )
        for donor, folder in context.donors.items()
    }


def previous_token(context: Context) -> dict[str, RunConfig]:
    """Figure 8: which and how many heads of layer 0 attend to the previous token, perfectly."""
    circuit, preset = context.heads, context.preset
    n_heads = ModelConfig().n_heads
    conditions: dict[str, tuple[Head, ...]] = {
        "best": circuit.previous_token[:1],
        "unlike": (circuit.unlike,),
        "like": circuit.previous_token,
        "all": tuple(Head(0, head) for head in range(n_heads)),
    }
    return {
        condition: _main_run(context).replace(
            name=f"previous-{condition}-{circuit.induction}-{context.seed}",
            clamps=[PreviousTokenAttention(heads=heads), _only(circuit.induction)],
            sequences=preset.branch_sequences,
            evaluations=preset.evaluations,
            checkpoints=Grid(),
        )
        for condition, heads in conditions.items()
    }


def strengths(context: Context) -> dict[str, RunConfig]:
    """Figure 15: the induction head's attention clamped at each of `STRENGTHS`, all heads on."""
    head = context.heads.induction
    return {
        str(strength): _main_run(context).replace(
            name=f"strength-{strength}-{head}-{context.seed}",
            clamps=[InductionAttention(heads=(head,), strength=strength)],
            sequences=context.preset.clamped_sequences,
            checkpoints=Grid(),
        )
        for strength in STRENGTHS
    }


RECIPES: Mapping[RunSet, Callable[[Context], dict[str, RunConfig]]] = {
    "main": main,
    "single": single,
    "pairs": pairs,
    "clamped": clamped,
    "data": data,
    "grafts": grafts,
    "previous_token": previous_token,
    "strengths": strengths,
}

NEED_NO_CIRCUIT: frozenset[RunSet] = frozenset({"main", "single"})
assert set(RECIPES) == set(get_args(RunSet))


def last_layer_heads() -> list[Head]:
    """Heads of the paper's last layer."""
    model = ModelConfig()
    return [Head(model.n_layers - 1, head) for head in range(model.n_heads)]


def _conditions(context: Context) -> dict[str, tuple[AbstractClamp, ...]]:
    """What Figure 5b clamps, by condition."""
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


def _main_run(context: Context) -> RunConfig:
    return main_run(context.preset, context.exemplars, context.seed)


def _only(*heads: Head) -> AblateHeads:
    """All heads of the last layer but these are ablated."""
    return AblateHeads(heads=keep_only(*heads, n_heads=ModelConfig().n_heads))


def _with_heads(context: Context, heads: Sequence[Head], *, name: str) -> RunConfig:
    return _main_run(context).replace(name=name, clamps=[_only(*heads)], checkpoints=Grid())
