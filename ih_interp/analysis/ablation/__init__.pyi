from .additivity import AdditivityReport as AdditivityReport, additivity_test as additivity_test
from .coalitions import (
    Coalitions as Coalitions,
    backup_heads as backup_heads,
    coalitions as coalitions,
    minimal_sufficient as minimal_sufficient,
    set_redundancy as set_redundancy,
)
from .matched_sets import MatchedSets as MatchedSets, matched_random_sets as matched_random_sets
from .single_heads import (
    ablate_each_head as ablate_each_head,
    add_back as add_back,
    label_specific_accuracy as label_specific_accuracy,
    mistakes_corrected as mistakes_corrected,
)
