"""Plots: tables in, matplotlib Axes out. No torch, no global settings, no files except in `save`.

Over training:
    plot_losses                    Plot the loss of each split (Figure 3a).
    plot_strengths                 Plot the induction strength of a layer's heads (Figure 3b).
    plot_clamped_losses            Plot the training loss under each clamp (Figure 5b).
    plot_toy                       Plot the loss of the toy model under its clamps (Figure 5a).
    plot_progress                  Plot clamped losses beside progress measures (Figure 10).
    plot_transition                Plot one network's curve with times marked on it.
    plot_emergence                 Plot when each network learned.
    plot_survival                  Plot the share of networks that have not yet learned.
    plot_wiring_over_training      Plot every sender's edge to one receiver.
    plot_redundancy_over_training  Plot one measure of redundancy.
Single heads:
    plot_head_scores               Plot scores of heads as bars, with their chance levels.
    plot_ablate_each_head          Plot a metric of each head alone and ablated (Figures 4a and 13).
    plot_add_back                  Plot a metric as heads are added back one by one (Figure 14).
    plot_label_accuracy            Plot each head's accuracy or mistakes by label (Figure 16b, c).
    plot_matches                   Plot each head with its match computed and perfect (Figure 16a).
    plot_corrected                 Plot what share of one head's mistakes others correct (Table 2).
Heads together:
    plot_composition               Plot a map of which heads compose (Figure 11).
    plot_wiring                    Plot a map of which head feeds which.
    plot_preserving                Plot a map of accuracy with patterns or values preserved.
    plot_spectrum                  Plot the share of the variance by interaction order.
    plot_additive_fits             Plot how well an additive fit explains each metric.
    plot_first_last                Plot what heads do alone, and what is lost without them.
    plot_interactions              Plot a map of the interaction of every pair.
Others:
    plot_speeds                    Plot the benchmark of training speeds.
    save                           Save a figure as PDF and PNG, and its numbers as CSV.
    style                          Use the package's plot style inside a `with` block.

A plot makes axes in this style unless it gets some. `palette` gives colours, by the names which
the table has for splits, heads or conditions. All further keywords (`look`) are settings of the
artists: of lines (of several networks, the thick ones), bars, marks or, in maps, of `imshow`.
Legends may lie outside the axes: `save`, or `bbox_inches="tight"`, keeps them:

    with ih.plots.style():
        ax = ih.plots.plot_strengths(table, plt.subplots(layout="constrained")[1])
        ax.figure.savefig("strengths.png", bbox_inches="tight")
"""

from ih_interp.plots._style import save as save, style as style
from ih_interp.plots.additivity import (
    plot_additive_fits as plot_additive_fits,
    plot_first_last as plot_first_last,
    plot_spectrum as plot_spectrum,
)
from ih_interp.plots.curves import (
    plot_clamped_losses as plot_clamped_losses,
    plot_losses as plot_losses,
    plot_redundancy_over_training as plot_redundancy_over_training,
    plot_strengths as plot_strengths,
    plot_toy as plot_toy,
    plot_wiring_over_training as plot_wiring_over_training,
)
from ih_interp.plots.emergence import (
    plot_emergence as plot_emergence,
    plot_progress as plot_progress,
    plot_survival as plot_survival,
    plot_transition as plot_transition,
)
from ih_interp.plots.maps import (
    plot_composition as plot_composition,
    plot_interactions as plot_interactions,
    plot_label_accuracy as plot_label_accuracy,
    plot_preserving as plot_preserving,
    plot_wiring as plot_wiring,
)
from ih_interp.plots.single_heads import (
    plot_ablate_each_head as plot_ablate_each_head,
    plot_add_back as plot_add_back,
    plot_corrected as plot_corrected,
    plot_head_scores as plot_head_scores,
    plot_matches as plot_matches,
)
from ih_interp.plots.speed import plot_speeds as plot_speeds
