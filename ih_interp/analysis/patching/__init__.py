"""Connections between heads: path patching, wiring, redundancy and self-repair.

Path patching
    path_patch: Return the effect of all edges from senders to receivers, patched jointly.
Wiring
    wiring_map: Return the effect of every edge from a head of one layer to a head of another.
    wiring_maps: Return `wiring_map` for pairs of layers, all by default.
    wiring_over_training: Return the wiring at every checkpoint of a run, under the run's clamps.
    Wiring: Effects of the edges between two layers, and how they were measured.
    Wirings: The wiring of pairs of layers, by the layers of senders and receivers.
Edge attribution
    edge_attribution: Return a first-order estimate of every edge's effect, by one backward pass.
    EdgeAttribution: Estimates of effects, and exact effects of a sample of edges beside them.
Corruptions
    swap_exemplars: Move the exemplars of the context to the pair before.
    swap_labels: Move the labels of the context to the pair before.
    resample_class: Replace a class of the context by one that is not in it.
Preserving
    preserving_ablation: Return metrics with heads ablated and patterns or values forced clean.
    preserving_map: Return accuracy and loss for each head of layer 1 and each sender below.
    direct_path_removed: Return metrics without the direct path of a layer to the output.
Redundancy
    effective_senders: Return how many senders feed each receiver.
    effective_receivers: Return how many receivers each sender serves.
    many_to_many: Return how far a wiring is from one to one, in [0, 1].
    redundancy_over_training: Return the redundancy of the wiring at every checkpoint.
Self repair
    self_repair: Return the change of the target's logit when heads are ablated, split by cause.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
