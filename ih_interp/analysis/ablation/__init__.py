"""Measures by ablation: what heads do alone, together, and in place of each other.

Single heads
    ablate_each_head: Return metrics with one head on, and with all but it, and its strength.
    add_back: Return metrics as heads of the last layer are added one by one.
    mistakes_corrected: Return the share of the base head's mistakes that another head gets right.
    label_specific_accuracy: Return each head's accuracy and mistakes by true label.
Coalitions
    coalitions: Return the mean metric of every subset of heads on, the others of them ablated.
    Coalitions: The value of every subset of heads.
Matched sets
    matched_random_sets: Return the effect of ablating heads together, beside matched random sets.
    MatchedSets: The effect of a set of heads, and those of random sets of the same layers.
Additivity
    additivity_test: Test how additive the heads are on every scale.
    AdditivityReport: The result of `additivity_test`.
Backups
    backup_heads: Return for every head those that step in when it is off.
    minimal_sufficient: Return the smallest sets of heads that do at least a share of the whole.
    set_redundancy: Return the share of a set's effect that no member shows alone.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
