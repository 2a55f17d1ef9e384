from ._style import save as save, style as style
from .additivity import (
    plot_additive_fits as plot_additive_fits,
    plot_first_last as plot_first_last,
    plot_spectrum as plot_spectrum,
)
from .curves import (
    plot_clamped_losses as plot_clamped_losses,
    plot_losses as plot_losses,
    plot_redundancy_over_training as plot_redundancy_over_training,
    plot_strengths as plot_strengths,
    plot_toy as plot_toy,
    plot_wiring_over_training as plot_wiring_over_training,
)
from .emergence import (
    plot_emergence as plot_emergence,
    plot_progress as plot_progress,
    plot_survival as plot_survival,
    plot_transition as plot_transition,
)
from .maps import (
    plot_composition as plot_composition,
    plot_interactions as plot_interactions,
    plot_label_accuracy as plot_label_accuracy,
    plot_preserving as plot_preserving,
    plot_wiring as plot_wiring,
)
from .single_heads import (
    plot_ablate_each_head as plot_ablate_each_head,
    plot_add_back as plot_add_back,
    plot_corrected as plot_corrected,
    plot_head_scores as plot_head_scores,
    plot_matches as plot_matches,
)
from .speed import plot_speeds as plot_speeds
