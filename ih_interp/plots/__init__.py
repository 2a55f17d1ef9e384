"""Drawings: tables in, Axes out. No torch, no files but in `save`, no global settings.

The house's look, and a file that has the legends beside the axes in it (`save` writes them too):

    with ih.plots.style():
        ax = ih.plots.plot_strengths(table, plt.subplots(layout="constrained")[1])
        ax.figure.savefig("strengths.png", bbox_inches="tight")
"""

from ih_interp.plots._style import save as save, style as style
from ih_interp.plots.additivity import (
    plot_first_last as plot_first_last,
    plot_interactions as plot_interactions,
    plot_spectrum as plot_spectrum,
)
from ih_interp.plots.curves import (
    plot_clamped_losses as plot_clamped_losses,
    plot_losses as plot_losses,
    plot_strengths as plot_strengths,
    plot_toy as plot_toy,
)
from ih_interp.plots.emergence import (
    plot_emergence as plot_emergence,
    plot_progress as plot_progress,
    plot_survival as plot_survival,
    plot_transition as plot_transition,
)
from ih_interp.plots.heads import (
    plot_additive_fits as plot_additive_fits,
    plot_composition as plot_composition,
    plot_corrected as plot_corrected,
    plot_head_scores as plot_head_scores,
    plot_matches as plot_matches,
)
from ih_interp.plots.single_heads import (
    plot_ablate_each_head as plot_ablate_each_head,
    plot_add_back as plot_add_back,
    plot_label_accuracy as plot_label_accuracy,
)
from ih_interp.plots.speed import plot_speeds as plot_speeds
from ih_interp.plots.wiring import (
    plot_preserving as plot_preserving,
    plot_redundancy_over_training as plot_redundancy_over_training,
    plot_wiring as plot_wiring,
    plot_wiring_over_training as plot_wiring_over_training,
)
