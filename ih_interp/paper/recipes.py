"""Every run behind the figures, as a value.

Names of runs end in their seed: `main-5`, `clamp-match-L1H3-5`. Heads are arguments: which ones the
figures take follows from the main run of the same seed by the rules in `choose_circuit`.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

from ih_interp.analysis.attention import induction_strength, previous_token_score
from ih_interp.clamps import (
    AblateHeads,
    AbstractClamp,
    PreviousTokenAttention,
    copy,
    keep_only,
    layer_one,
    match,
)
from ih_interp.config import AdamConfig, Grid, RunConfig, Seeds
from ih_interp.exemplars import ExemplarSource, GaussianSource
from ih_interp.frozen import Frozen
from ih_interp.runs import Run
from ih_interp.task import TaskConfig
from ih_interp.types import Batch, Head

PresetName: TypeAlias = Literal["smoke", "quick", "paper"]

FIRST_SEED = 5  # the paper's main text; its other networks are 6 to 9


class Preset(Frozen):
    """How long and how densely the paper's runs are repeated."""

    learning_rate: float
    main_sequences: int
    clamped_sequences: int
    main_evaluations: Grid
    clamped_evaluations: Grid
    main_checkpoints: Grid
    clamped_checkpoints: Grid
    """Of the run without clamps; the others keep their ends."""
    evaluation_size: int = 1_000
    task: TaskConfig = TaskConfig()
    exemplars: ExemplarSource = GaussianSource()
    """Where no others are given."""


PRESETS: Mapping[PresetName, Preset] = {
    # Seconds: everything runs, nothing is learned.
    "smoke": Preset(
        learning_rate=1e-3,
        main_sequences=1_280,
        clamped_sequences=640,
        main_evaluations=Grid(every=320),
        clamped_evaluations=Grid(every=160),
        main_checkpoints=Grid(every=320),
        clamped_checkpoints=Grid(),
        evaluation_size=64,
        task=TaskConfig(n_train_classes=12),
        exemplars=GaussianSource(n_classes=30, n_exemplars=3, n_features=32),
    ),
    # Minutes: a fifth of the paper's updates, each six times as large.
    "quick": Preset(
        learning_rate=6e-5,
        main_sequences=192_000,
        clamped_sequences=160_000,
        main_evaluations=Grid(every=4_000),
        clamped_evaluations=Grid(every=2_000),
        main_checkpoints=Grid(every=4_000),
        clamped_checkpoints=Grid(),
    ),
    # The paper's schedule.
    "paper": Preset(
        learning_rate=1e-5,
        main_sequences=1_000_000,
        clamped_sequences=600_000,
        main_evaluations=Grid(every=5_000),
        clamped_evaluations=Grid(every=1_000),
        main_checkpoints=Grid(every=1_000),
        clamped_checkpoints=Grid(every=1_000),
    ),
}


class Circuit(NamedTuple):
    """The heads that a network's clamps are about."""

    previous_token: Head
    induction: Head


def main_run(preset: Preset, exemplars: ExemplarSource, seed: int) -> RunConfig:
    """All heads, no clamps (Figures 3a and 3b)."""
    return RunConfig(
        name=f"main-{seed}",
        exemplars=exemplars,
        task=preset.task,
        optimiser=AdamConfig(learning_rate=preset.learning_rate),
        seeds=Seeds(init=seed),
        sequences=preset.main_sequences,
        evaluations=preset.main_evaluations,
        evaluation_size=preset.evaluation_size,
        checkpoints=preset.main_checkpoints,
    )


def clamped_runs(
    preset: Preset, exemplars: ExemplarSource, seed: int, circuit: Circuit
) -> dict[str, RunConfig]:
    """Figure 5b: one head of the last layer active, and each subcircuit clamped in turn.

    Keys are the figure's conditions. Copying clamps leave the ablation out, as the paper does:
    their loss does not see it.
    """
    head = circuit.induction
    main = main_run(preset, exemplars, seed)
    others = AblateHeads(heads=keep_only(head, n_heads=main.model.n_heads))
    previous = PreviousTokenAttention(heads=(circuit.previous_token,))
    conditions: dict[str, tuple[AbstractClamp, ...]] = {
        "none": (others,),
        "previous token": (previous, others),
        "layer 1": (layer_one(), others),
        "match": (match(head), others),
        "copy": (copy(head),),
        "layer 1 + copy": (layer_one(), copy(head)),
    }
    return {
        condition: main.replace(
            name=f"clamp-{condition.replace(' ', '')}-{head}-{seed}",
            clamps=clamps,
            sequences=preset.clamped_sequences,
            evaluations=preset.clamped_evaluations,
            checkpoints=preset.clamped_checkpoints if condition == "none" else Grid(),
        )
        for condition, clamps in conditions.items()
    }


def choose_circuit(run: Run, batch: Batch | None = None) -> Circuit:
    """The heads that clamps are about, at the end of a run and over every training sequence.

    The head of layer 0 with most previous-token attention at labels, and the head of the last layer
    with the largest induction strength; `batch` takes other sequences.
    """
    model = run.model()
    batch = run.task.enumerate("train") if batch is None else batch
    previous = previous_token_score(model, batch, rows="labels")
    strength = induction_strength(model, batch)
    last = model.cfg.n_layers - 1
    return Circuit(
        previous_token=Head(0, int(previous[0].argmax())),
        induction=Head(last, int(strength[last].argmax())),
    )
