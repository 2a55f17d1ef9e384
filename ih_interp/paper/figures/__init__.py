"""Every figure and table: the runs it needs, its numbers, its drawing, and the paper's claims."""

from collections.abc import Mapping

from ih_interp.paper.figures import (
    added_heads,
    additivity,
    branches,
    copied_labels,
    data,
    emergence,
    mistakes,
    single_heads,
    strength_alone,
    subcircuits,
    toy_model,
    trained_apart,
    wiring,
)
from ih_interp.paper.study import Figure

FIGURES: Mapping[str, Figure] = {
    figure.name: figure
    for module in (
        emergence,
        single_heads,
        trained_apart,
        strength_alone,
        toy_model,
        subcircuits,
        data,
        branches,
        wiring,
        added_heads,
        copied_labels,
        mistakes,
        additivity,
    )
    for figure in module.FIGURES
}
"""By name, "3a" or "table 1"."""
