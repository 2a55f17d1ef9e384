"""Tasks: the sequences that models are trained on, and their exemplars.

Exemplars
    Exemplars: Frozen features of a few images (exemplars) of each of many characters (classes).
    GaussianSource: The recipe of `Exemplars.gaussian`.
    FileSource: Features in a file, with the digest by which other features are refused.
Few shot
    FewShotTask: Sequences of a `TaskConfig` over given exemplars.
    TaskConfig: The sequences to sample.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
