"""Every figure and table: the runs it needs, its numbers, its drawing, and the paper's claims."""

from collections.abc import Mapping
from importlib import import_module

from ih_interp.paper.study import Figure

_MODULES = (
    "fig03", "fig04_13_17_18", "fig05_09_10", "fig06", "fig07_08_15", "fig11", "fig12_table1",
    "fig14_16_tables2_3",
)  # fmt: skip

FIGURES: Mapping[str, Figure] = {
    figure.name: figure
    for module in _MODULES
    for figure in import_module(f"{__name__}.{module}").FIGURES
}
"""By name, "3a" or "table 1"."""
