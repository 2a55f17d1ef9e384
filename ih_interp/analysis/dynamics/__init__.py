"""Measures over checkpoints, and the times at which networks learned.

Trace
    trace: Apply a measure to a run's checkpoints.
Progress
    progress: Apply a measure to a run's checkpoints under clamps that it was not trained under.
    progress_beside_training: Return the loss under clamps in training beside progress measures.
Emergence
    learned: Return when the loss first falls below 0.4 ln 2, the paper's time of learning.
    first_below: Return sequences at which a curve first falls below a level, or infinity.
    first_above: Return sequences at which a curve first rises above a level.
    half_of_end: Return when a strength first rises above half of its last value.
    steepest_descent: Return where a line through neighbouring points of a curve falls fastest.
    logistic_midpoint: Return when half of a logistic rise is done.
    plateau_length: Return how long a loss stays within a band.
    Crossing: The time at which a run got there, or its length if it did not.
Survival
    emergence_table: Return when each run got there.
    emergence_summary: Return Kaplan-Meier medians and restricted means of each condition.
    survival_table: Return `kaplan_meier` of each condition, for drawing.
    kaplan_meier: Return the share of networks that have not yet got there, in [0, 1].
    median_time: Return sequences after which half of the networks have got there, or infinity.
    paired_times: Compare the times of two conditions over the same seeds, each by seed.
    crossings_by_seed: Return one condition's rows of an `emergence_table` for `paired_times`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
