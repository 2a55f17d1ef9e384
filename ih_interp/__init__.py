"""How an induction head forms: train small transformers under clamps, and read their checkpoints.

Names are loaded when they are first used, so that importing this package costs nothing; they stand
below in the order of the work.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ih_interp import clamps as clamps, hooks as hooks, plots as plots, toy as toy
    from ih_interp.analysis.attention import (
        attention_entropy as attention_entropy,
        entropy_chance as entropy_chance,
        induction_strength as induction_strength,
        prefix_matching_chance as prefix_matching_chance,
        prefix_matching_score as prefix_matching_score,
        previous_token_chance as previous_token_chance,
        previous_token_score as previous_token_score,
    )
    from ih_interp.analysis.emergence import (
        first_below as first_below,
        time_on_plateau as time_on_plateau,
    )
    from ih_interp.analysis.trace import trace as trace
    from ih_interp.clamps.applied import clamped as clamped
    from ih_interp.config import (
        AdamConfig as AdamConfig,
        Grid as Grid,
        RunConfig as RunConfig,
        Seeds as Seeds,
    )
    from ih_interp.evaluation import evaluate as evaluate
    from ih_interp.exemplars import Exemplars as Exemplars
    from ih_interp.interop.icl_dynamics import load_icl_dynamics as load_icl_dynamics
    from ih_interp.model import ModelConfig as ModelConfig, build_model as build_model
    from ih_interp.runs import Run as Run
    from ih_interp.task import FewShotTask as FewShotTask, TaskConfig as TaskConfig
    from ih_interp.training.state import TrainingFailedError as TrainingFailedError
    from ih_interp.training.train import train as train
    from ih_interp.types import Batch as Batch, Head as Head, Layout as Layout

_HOME = {
    "Exemplars": "exemplars",
    "FewShotTask": "task",
    "TaskConfig": "task",
    "Batch": "types",
    "Head": "types",
    "Layout": "types",
    "ModelConfig": "model",
    "build_model": "model",
    "hooks": "",
    "clamps": "",
    "clamped": "clamps.applied",
    "RunConfig": "config",
    "AdamConfig": "config",
    "Grid": "config",
    "Seeds": "config",
    "evaluate": "evaluation",
    "train": "training.train",
    "TrainingFailedError": "training.state",
    "Run": "runs",
    "load_icl_dynamics": "interop.icl_dynamics",
    "trace": "analysis.trace",
    "induction_strength": "analysis.attention",
    "previous_token_score": "analysis.attention",
    "previous_token_chance": "analysis.attention",
    "attention_entropy": "analysis.attention",
    "entropy_chance": "analysis.attention",
    "prefix_matching_score": "analysis.attention",
    "prefix_matching_chance": "analysis.attention",
    "first_below": "analysis.emergence",
    "time_on_plateau": "analysis.emergence",
    "toy": "",
    "plots": "",
}
"""Every public name and the module that holds it; "" for a module of the package itself."""


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ih_interp' has no attribute {name!r}")
    home = _HOME[name]
    value = (
        getattr(import_module(f"ih_interp.{home}"), name)
        if home
        else import_module(f"ih_interp.{name}")
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOME)
