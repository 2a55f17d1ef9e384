"""How an induction head forms: train small transformers under clamps, and read their checkpoints.

Names are loaded when they are first used, so that importing this package costs nothing; they stand
below in the order of the work.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ih_interp.systems import refuse_other_systems

refuse_other_systems()

if TYPE_CHECKING:
    from ih_interp import clamps as clamps, hooks as hooks, plots as plots, toy as toy
    from ih_interp.analysis.additivity import (
        AdditivityReport as AdditivityReport,
        additivity_test as additivity_test,
    )
    from ih_interp.analysis.attention import (
        attention_entropy as attention_entropy,
        current_token_chance as current_token_chance,
        current_token_score as current_token_score,
        duplicate_token_chance as duplicate_token_chance,
        duplicate_token_score as duplicate_token_score,
        entropy_chance as entropy_chance,
        induction_strength as induction_strength,
        previous_token_chance as previous_token_chance,
        previous_token_score as previous_token_score,
    )
    from ih_interp.analysis.backups import (
        backup_heads as backup_heads,
        minimal_sufficient as minimal_sufficient,
        set_redundancy as set_redundancy,
    )
    from ih_interp.analysis.coalitions import (
        Coalitions as Coalitions,
        coalitions as coalitions,
    )
    from ih_interp.analysis.composition import (
        composition_chance as composition_chance,
        composition_scores as composition_scores,
        wo_composition as wo_composition,
        wo_composition_chance as wo_composition_chance,
    )
    from ih_interp.analysis.copying import (
        copying_logit_chance as copying_logit_chance,
        copying_score_diag as copying_score_diag,
        copying_score_eig as copying_score_eig,
        copying_score_logit as copying_score_logit,
    )
    from ih_interp.analysis.corruptions import (
        resample_class as resample_class,
        swap_exemplars as swap_exemplars,
        swap_labels as swap_labels,
    )
    from ih_interp.analysis.emergence import (
        Crossing as Crossing,
        first_above as first_above,
        first_below as first_below,
        half_of_end as half_of_end,
        learned as learned,
        logistic_midpoint as logistic_midpoint,
        plateau_length as plateau_length,
        steepest_descent as steepest_descent,
        time_on_plateau as time_on_plateau,
    )
    from ih_interp.analysis.label_copying import (
        label_copying as label_copying,
        label_copying_of_values as label_copying_of_values,
        label_copying_score as label_copying_score,
    )
    from ih_interp.analysis.matching import (
        induction_trace as induction_trace,
        qk_matching as qk_matching,
    )
    from ih_interp.analysis.only_heads import (
        add_back as add_back,
        label_specific_accuracy as label_specific_accuracy,
        mistakes_corrected as mistakes_corrected,
        only_and_without as only_and_without,
    )
    from ih_interp.analysis.path_patching import (
        path_patch as path_patch,
    )
    from ih_interp.analysis.preserving import (
        direct_path_removed as direct_path_removed,
        preserving_ablation as preserving_ablation,
        preserving_map as preserving_map,
    )
    from ih_interp.analysis.progress import (
        progress as progress,
        progress_beside_training as progress_beside_training,
    )
    from ih_interp.analysis.redundancy import (
        effective_receivers as effective_receivers,
        effective_senders as effective_senders,
        many_to_many as many_to_many,
        redundancy_over_training as redundancy_over_training,
    )
    from ih_interp.analysis.repeated import (
        induction_chance as induction_chance,
        induction_score as induction_score,
        prefix_matching_chance as prefix_matching_chance,
        prefix_matching_score as prefix_matching_score,
    )
    from ih_interp.analysis.scores import (
        head_table as head_table,
        pattern_scores as pattern_scores,
    )
    from ih_interp.analysis.self_repair import (
        self_repair as self_repair,
    )
    from ih_interp.analysis.survival import (
        crossings_by_seed as crossings_by_seed,
        emergence_summary as emergence_summary,
        emergence_table as emergence_table,
        kaplan_meier as kaplan_meier,
        median_time as median_time,
        paired_times as paired_times,
        survival_table as survival_table,
    )
    from ih_interp.analysis.trace import (
        trace as trace,
    )
    from ih_interp.analysis.wiring import (
        Wiring as Wiring,
        wiring_map as wiring_map,
        wiring_over_training as wiring_over_training,
    )
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
    from ih_interp.training.state import (
        StopRun as StopRun,
        TrainingFailedError as TrainingFailedError,
    )
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
    "StopRun": "training.state",
    "TrainingFailedError": "training.state",
    "Run": "runs",
    "load_icl_dynamics": "interop.icl_dynamics",
    "trace": "analysis.trace",
    "attention_entropy": "analysis.attention",
    "current_token_chance": "analysis.attention",
    "current_token_score": "analysis.attention",
    "duplicate_token_chance": "analysis.attention",
    "duplicate_token_score": "analysis.attention",
    "entropy_chance": "analysis.attention",
    "induction_strength": "analysis.attention",
    "previous_token_chance": "analysis.attention",
    "previous_token_score": "analysis.attention",
    "induction_chance": "analysis.repeated",
    "induction_score": "analysis.repeated",
    "prefix_matching_chance": "analysis.repeated",
    "prefix_matching_score": "analysis.repeated",
    "head_table": "analysis.scores",
    "pattern_scores": "analysis.scores",
    "composition_chance": "analysis.composition",
    "composition_scores": "analysis.composition",
    "wo_composition": "analysis.composition",
    "wo_composition_chance": "analysis.composition",
    "copying_logit_chance": "analysis.copying",
    "copying_score_diag": "analysis.copying",
    "copying_score_eig": "analysis.copying",
    "copying_score_logit": "analysis.copying",
    "label_copying": "analysis.label_copying",
    "label_copying_of_values": "analysis.label_copying",
    "label_copying_score": "analysis.label_copying",
    "induction_trace": "analysis.matching",
    "qk_matching": "analysis.matching",
    "Coalitions": "analysis.coalitions",
    "coalitions": "analysis.coalitions",
    "AdditivityReport": "analysis.additivity",
    "additivity_test": "analysis.additivity",
    "add_back": "analysis.only_heads",
    "label_specific_accuracy": "analysis.only_heads",
    "mistakes_corrected": "analysis.only_heads",
    "only_and_without": "analysis.only_heads",
    "resample_class": "analysis.corruptions",
    "swap_exemplars": "analysis.corruptions",
    "swap_labels": "analysis.corruptions",
    "path_patch": "analysis.path_patching",
    "Wiring": "analysis.wiring",
    "wiring_map": "analysis.wiring",
    "wiring_over_training": "analysis.wiring",
    "direct_path_removed": "analysis.preserving",
    "preserving_ablation": "analysis.preserving",
    "preserving_map": "analysis.preserving",
    "effective_receivers": "analysis.redundancy",
    "effective_senders": "analysis.redundancy",
    "many_to_many": "analysis.redundancy",
    "redundancy_over_training": "analysis.redundancy",
    "backup_heads": "analysis.backups",
    "minimal_sufficient": "analysis.backups",
    "set_redundancy": "analysis.backups",
    "self_repair": "analysis.self_repair",
    "progress": "analysis.progress",
    "progress_beside_training": "analysis.progress",
    "Crossing": "analysis.emergence",
    "first_above": "analysis.emergence",
    "first_below": "analysis.emergence",
    "half_of_end": "analysis.emergence",
    "learned": "analysis.emergence",
    "logistic_midpoint": "analysis.emergence",
    "plateau_length": "analysis.emergence",
    "steepest_descent": "analysis.emergence",
    "time_on_plateau": "analysis.emergence",
    "crossings_by_seed": "analysis.survival",
    "emergence_summary": "analysis.survival",
    "emergence_table": "analysis.survival",
    "kaplan_meier": "analysis.survival",
    "median_time": "analysis.survival",
    "paired_times": "analysis.survival",
    "survival_table": "analysis.survival",
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
