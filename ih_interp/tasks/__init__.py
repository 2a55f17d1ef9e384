"""Tasks: what models are trained on, and exemplars for the few-shot task.

Exemplars
    Exemplars: Frozen features of a few images (exemplars) of each of many characters (classes).
    GaussianSource: The recipe of `Exemplars.gaussian`.
    FileSource: Features in an `.h5`, `.npz` or `.npy` file.
Few shot
    FewShotTask: Sequences of a `TaskConfig` over given exemplars.
    TaskConfig: The sequences to sample.
    Layout: Where exemplars, labels and the query stand in a sequence.
Others
    RepeatedTokens: Blocks of random tokens, said again until the sequence is full.
    AbstractTask: The base of a task of your own.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
