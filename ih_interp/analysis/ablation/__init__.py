"""What heads do alone, together, and for each other, by ablating them.

Single heads
    ablate_each_head: Return metrics with only one head on, and with all but it, beside its
        induction strength.
    add_back: Return metrics as heads of the last layer are added one by one to none of them.
    mistakes_corrected: Return the share of the base head's mistakes, alone, that another head
        alone gets right.
    label_specific_accuracy: Return by true label each head's accuracy alone, and that label's
        share of its mistakes.
Coalitions
    coalitions: Return the mean metric of every subset of heads on, the others of them ablated.
    Coalitions: The value of every subset of heads.
Additivity
    additivity_test: Test how additive the heads are on every scale, with intervals over
        sequences.
    AdditivityReport: The result of `additivity_test`.
Backups
    backup_heads: Return for every head those that do nothing beside it and step in when it is
        off.
    minimal_sufficient: Return the smallest sets of heads that do at least a share of what all of
        them do.
    set_redundancy: Return the share of a set's effect that no member shows alone.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
