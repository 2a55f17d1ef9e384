"""The lengths at which the paper's runs are repeated, and how densely they are evaluated."""

from collections.abc import Mapping

from ih_interp._config_base import Frozen
from ih_interp.config import Grid
from ih_interp.tasks.exemplars import ExemplarSource, GaussianSource
from ih_interp.tasks.few_shot import TaskConfig


class Preset(Frozen):
    """Lengths of runs in sequences, and how often they are evaluated; by default the paper's."""

    learning_rate: float = 1e-5
    """The learning rate of Adam in every run."""
    main_sequences: int = 1_000_000
    """Length of runs without clamps or with ablations only: all heads, one head, pairs of heads."""
    clamped_sequences: int = 600_000
    """Length of Figure 5b's conditions, and of the strengths of Figure 15."""
    long_sequences: int = 2_000_000
    """Length of Figure 6's runs without clamps."""
    data_sequences: int = 300_000
    """Length of Figure 6's runs under clamps."""
    branch_sequences: int = 800_000
    """Length of grafts (Figure 7) and of previous-token clamps (Figure 8)."""
    evaluations: Grid = Grid(every=5_000)
    """The points at which metrics are measured."""
    dense_evaluations: Grid = Grid(every=1_000)
    """The same in the runs of Figures 5b to 8 that learn early."""
    checkpoints: Grid = Grid(every=1_000)
    """The checkpoints of networks with all heads, and of Figure 5b's run without clamps; other
    runs keep the first and the last."""
    evaluation_size: int = 1_000
    """The number of sequences of each evaluation set."""
    task: TaskConfig = TaskConfig()
    """The few-shot task of every figure but 6, which varies it."""
    n_classes: tuple[int, int, int] = (50, 100, 200)
    """Numbers of training classes in Figure 6; the first is that of every other figure."""
    n_labels: tuple[int, int, int] = (5, 10, 15)
    """Numbers of labels in Figure 6; the first is that of every other figure."""
    exemplars: ExemplarSource = GaussianSource(n_classes=300)
    """The exemplars if none are given: 200 classes for Figure 6, and 100 more to test on."""
    seeds: int = 1
    """The number of networks of requests that name none."""


PRESETS: Mapping[str, Preset] = {
    # Seconds: everything runs, nothing is learned.
    "smoke": Preset(
        learning_rate=1e-3,
        main_sequences=640,
        clamped_sequences=320,
        long_sequences=320,
        data_sequences=160,
        branch_sequences=320,
        evaluations=Grid(every=320),
        dense_evaluations=Grid(every=160),
        checkpoints=Grid(every=320),
        evaluation_size=64,
        task=TaskConfig(n_train_classes=12),
        n_classes=(12, 16, 20),
        exemplars=GaussianSource(n_classes=30, n_exemplars=3, n_features=32),
    ),
    # Minutes: a fifth of the paper's updates, each six times as large.
    "quick": Preset(
        learning_rate=6e-5,
        main_sequences=192_000,
        clamped_sequences=160_000,
        long_sequences=384_000,
        data_sequences=64_000,
        branch_sequences=160_000,
        evaluations=Grid(every=4_000),
        dense_evaluations=Grid(every=2_000),
        checkpoints=Grid(every=4_000),
    ),
    "paper": Preset(seeds=5),
}
