"""Drawings: tables in, Axes out. No torch, no files but in `save`, no global settings."""

from ih_interp.plots.curves import (
    plot_clamped_losses as plot_clamped_losses,
    plot_losses as plot_losses,
    plot_strengths as plot_strengths,
    plot_toy as plot_toy,
)
from ih_interp.plots.speed import plot_speeds as plot_speeds
from ih_interp.plots.style import save as save, style as style
