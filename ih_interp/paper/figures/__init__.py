"""Every figure and table: the runs it needs, its numbers, its drawing, and the paper's claims."""

from collections.abc import Mapping

from ih_interp.paper.figures import (
    additivity,
    fig03,
    fig04a_13,
    fig04b_17,
    fig05a_09,
    fig05b_10,
    fig06,
    fig11,
    fig14,
    fig15,
    fig16,
    fig18,
    tables2_3,
)
from ih_interp.paper.study import Figure

FIGURES: Mapping[str, Figure] = {
    figure.name: figure
    for module in (
        fig03,
        fig04a_13,
        fig04b_17,
        fig18,
        fig05a_09,
        fig05b_10,
        fig06,
        fig15,
        fig11,
        fig14,
        fig16,
        tables2_3,
        additivity,
    )
    for figure in module.FIGURES
}
"""By name, "3a" or "table 1"."""
