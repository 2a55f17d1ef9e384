"""Every figure and table: the runs it needs, its numbers, its drawing, and the paper's claims."""

from collections.abc import Mapping
from importlib import import_module

from ih_interp.paper.study import Figure

_MODULES = (
    "fig03", "fig04a_13", "fig04b_17", "fig18", "fig05a_09", "fig05b_10", "fig06", "fig07",
    "fig08", "fig15", "fig11", "fig11_init", "fig12", "table1", "fig14", "fig16", "tables2_3",
    "fig_additivity",
)  # fmt: skip

FIGURES: Mapping[str, Figure] = {
    figure.name: figure
    for module in _MODULES
    for figure in import_module(f"{__name__}.{module}").FIGURES
}
"""By name, "3a" or "table 1"."""
