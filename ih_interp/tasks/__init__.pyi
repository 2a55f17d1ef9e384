from .base import AbstractTask as AbstractTask, NextTokenTask as NextTokenTask
from .exemplars import (
    Exemplars as Exemplars,
    FileSource as FileSource,
    GaussianSource as GaussianSource,
)
from .few_shot import FewShotTask as FewShotTask, TaskConfig as TaskConfig
from .fixed_labels import FixedLabels as FixedLabels, FixedLabelsTask as FixedLabelsTask
from .markov_chains import MarkovChains as MarkovChains
from .pairs import Layout as Layout
from .repeated_tokens import RepeatedTokens as RepeatedTokens
