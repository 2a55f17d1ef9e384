from .exemplars import (
    Exemplars as Exemplars,
    FileSource as FileSource,
    GaussianSource as GaussianSource,
)
from .few_shot import FewShotTask as FewShotTask, TaskConfig as TaskConfig
