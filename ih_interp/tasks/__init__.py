"""Tasks: what models are trained on, and exemplars for those of exemplars and labels.

Exemplars
    Exemplars: Frozen features of a few images (exemplars) of each of many characters (classes).
    GaussianSource: The recipe of `Exemplars.gaussian`.
    FileSource: Features in an `.h5`, `.npz` or `.npy` file.
Few shot
    FewShotTask: Sequences of a `TaskConfig` over given exemplars.
    TaskConfig: The few-shot task, whose labels are sampled anew for every sequence.
    FixedLabels: The few-shot task in which a class has one label, to be known by heart.
    FixedLabelsTask: Sequences of `FixedLabels` over given exemplars.
    Layout: Where exemplars, labels and the query stand in a sequence.
Next token
    RepeatedTokens: Blocks of random tokens, said again until the sequence is full.
    MarkovChains: Chains whose transitions the context tells; `reference_losses` of predictors.
Your own
    AbstractTask: The base of a task of your own.
    NextTokenTask: The base of tasks that ask for the next token.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
