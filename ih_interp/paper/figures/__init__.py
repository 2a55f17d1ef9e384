"""Every figure and table: the runs it needs, its numbers, its drawing, and the paper's claims."""

from collections.abc import Mapping

from ih_interp.paper.figures import emergence, subcircuits
from ih_interp.paper.study import Figure

FIGURES: Mapping[str, Figure] = {
    figure.name: figure for module in (emergence, subcircuits) for figure in module.FIGURES
}
"""By name, "3a" or "table 1"."""
