from .additivity import AdditivityReport as AdditivityReport, additivity_test as additivity_test
from .backups import (
    backup_heads as backup_heads,
    minimal_sufficient as minimal_sufficient,
    set_redundancy as set_redundancy,
)
from .coalitions import Coalitions as Coalitions, coalitions as coalitions
from .single_heads import (
    ablate_each_head as ablate_each_head,
    add_back as add_back,
    label_specific_accuracy as label_specific_accuracy,
    mistakes_corrected as mistakes_corrected,
)
