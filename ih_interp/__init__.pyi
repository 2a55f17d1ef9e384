from . import (
    clamps as clamps,
    hooks as hooks,
    optimisers as optimisers,
    plots as plots,
    start as start,
    tasks as tasks,
    track as track,
)
from .analysis import (
    ablation as ablation,
    dynamics as dynamics,
    heads as heads,
    patching as patching,
)
from .analysis.ablation.additivity import additivity_test as additivity_test
from .analysis.ablation.coalitions import coalitions as coalitions
from .analysis.dynamics.progress import progress as progress
from .analysis.dynamics.trace import trace as trace
from .analysis.heads.attention import induction_strength as induction_strength
from .analysis.heads.repeated_tokens import induction_score as induction_score
from .analysis.patching.path_patching import path_patch as path_patch
from .analysis.patching.wiring import wiring_map as wiring_map
from .batch import Batch as Batch
from .checkpoints import (
    Checkpoints as Checkpoints,
    ModelSeries as ModelSeries,
    Pretrained as Pretrained,
)
from .clamps.context import clamped as clamped
from .config import Grid as Grid, RunConfig as RunConfig, Seeds as Seeds
from .engine.compile_step import compile_step as compile_step
from .evaluation import evaluate as evaluate
from .interop.icl_dynamics import load_icl_dynamics as load_icl_dynamics
from .model import ModelConfig as ModelConfig, build_model as build_model
from .optimisers import SGD as SGD, Adam as Adam
from .page.report import report as report
from .runs import Run as Run
from .tasks.exemplars import Exemplars as Exemplars
from .tasks.few_shot import FewShotTask as FewShotTask, TaskConfig as TaskConfig
from .training.cluster import Slurm as Slurm
from .training.state import StopRun as StopRun
from .training.train import train as train
from .types import Head as Head
