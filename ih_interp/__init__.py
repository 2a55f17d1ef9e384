"""Train small transformers under clamps, and ask how a circuit forms.

    import ih_interp as ih

    clamp      ih.clamps, ih.clamped; ih.hooks has plain hook functions
    train      ih.RunConfig, ih.train, ih.Run; what is trained is in ih.tasks
    read       ih.Run, ih.Pretrained, ih.ModelSeries: checkpoints, for ih.trace and its like
    analyse    ih.heads, ih.ablation, ih.patching, ih.dynamics
    plot       ih.plots; ih.report(run) is a page of a run, and ih.track sends metrics elsewhere

`help(ih.heads)`, and so on, lists the functions of a module with a sentence each. Importing costs
nothing: a name is loaded when it is first used.
"""

import lazy_loader

from ih_interp._systems import refuse_other_systems

refuse_other_systems()

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
