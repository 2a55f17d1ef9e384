"""Trackers: `ih.train(..., on_metrics=tracker)` sends the metrics of every run somewhere.

    TensorBoard: Write event files, a folder per run.
    WandB: Log to Weights & Biases, offline unless you say otherwise.
    All: Call several trackers, or functions of your own, one after the other.
    AbstractTracker: The base of a tracker of your own.

Every number has the update as its x. Of an evaluation it has each metric, `loss/train/clamped`,
and the gates of the run's clamps, `gate/0_ablate_heads`; of a checkpoint the `measures` given.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
