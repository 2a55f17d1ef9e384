from .emergence import (
    Crossing as Crossing,
    emergence_table as emergence_table,
    first_above as first_above,
    first_below as first_below,
    half_of_end as half_of_end,
    learned as learned,
    logistic_midpoint as logistic_midpoint,
    plateau_length as plateau_length,
    steepest_descent as steepest_descent,
)
from .progress import progress as progress, progress_beside_training as progress_beside_training
from .survival import (
    crossings_by_seed as crossings_by_seed,
    emergence_summary as emergence_summary,
    kaplan_meier as kaplan_meier,
    median_time as median_time,
    paired_times as paired_times,
    survival_table as survival_table,
)
from .trace import trace as trace
