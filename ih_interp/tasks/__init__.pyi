from .base import AbstractTask as AbstractTask
from .exemplars import (
    Exemplars as Exemplars,
    FileSource as FileSource,
    GaussianSource as GaussianSource,
)
from .few_shot import FewShotTask as FewShotTask, Layout as Layout, TaskConfig as TaskConfig
from .repeated_tokens import RepeatedTokens as RepeatedTokens
