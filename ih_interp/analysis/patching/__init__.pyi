from .corruptions import (
    resample_class as resample_class,
    swap_exemplars as swap_exemplars,
    swap_labels as swap_labels,
)
from .edge_attribution import (
    EdgeAttribution as EdgeAttribution,
    edge_attribution as edge_attribution,
)
from .path_patching import path_patch as path_patch
from .preserving import (
    direct_path_removed as direct_path_removed,
    preserving_ablation as preserving_ablation,
    preserving_map as preserving_map,
)
from .redundancy import (
    effective_receivers as effective_receivers,
    effective_senders as effective_senders,
    many_to_many as many_to_many,
    redundancy_over_training as redundancy_over_training,
)
from .self_repair import self_repair as self_repair
from .wiring import (
    Wiring as Wiring,
    Wirings as Wirings,
    wiring_map as wiring_map,
    wiring_maps as wiring_maps,
    wiring_over_training as wiring_over_training,
)
