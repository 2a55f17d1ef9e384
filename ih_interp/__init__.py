"""How an induction head forms: train small transformers under clamps, and read their checkpoints.

Names are loaded when they are first used, so that importing this package costs nothing; they stand
below in the order of the work.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ih_interp._systems import refuse_other_systems

refuse_other_systems()

if TYPE_CHECKING:
    from ih_interp import clamps as clamps, hooks as hooks, plots as plots, toy as toy
    from ih_interp.analysis.ablation.additivity import (
        AdditivityReport as AdditivityReport,
        additivity_test as additivity_test,
    )
    from ih_interp.analysis.ablation.backups import (
        backup_heads as backup_heads,
        minimal_sufficient as minimal_sufficient,
        set_redundancy as set_redundancy,
    )
    from ih_interp.analysis.ablation.coalitions import (
        Coalitions as Coalitions,
        coalitions as coalitions,
    )
    from ih_interp.analysis.ablation.single_heads import (
        ablate_each_head as ablate_each_head,
        add_back as add_back,
        label_specific_accuracy as label_specific_accuracy,
        mistakes_corrected as mistakes_corrected,
    )
    from ih_interp.analysis.dynamics.emergence import (
        Crossing as Crossing,
        first_above as first_above,
        first_below as first_below,
        half_of_end as half_of_end,
        learned as learned,
        logistic_midpoint as logistic_midpoint,
        plateau_length as plateau_length,
        steepest_descent as steepest_descent,
    )
    from ih_interp.analysis.dynamics.progress import (
        progress as progress,
        progress_beside_training as progress_beside_training,
    )
    from ih_interp.analysis.dynamics.survival import (
        crossings_by_seed as crossings_by_seed,
        emergence_summary as emergence_summary,
        emergence_table as emergence_table,
        kaplan_meier as kaplan_meier,
        median_time as median_time,
        paired_times as paired_times,
        survival_table as survival_table,
    )
    from ih_interp.analysis.dynamics.trace import trace as trace
    from ih_interp.analysis.heads.attention import (
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
    from ih_interp.analysis.heads.composition import (
        composition_chance as composition_chance,
        composition_scores as composition_scores,
        output_composition as output_composition,
        output_composition_chance as output_composition_chance,
    )
    from ih_interp.analysis.heads.copying import (
        copying_logit_chance as copying_logit_chance,
        copying_score_diag as copying_score_diag,
        copying_score_eig as copying_score_eig,
        copying_score_logit as copying_score_logit,
        label_copying as label_copying,
        label_copying_of_values as label_copying_of_values,
        label_copying_score as label_copying_score,
    )
    from ih_interp.analysis.heads.matching import (
        induction_trace as induction_trace,
        qk_matching as qk_matching,
    )
    from ih_interp.analysis.heads.pattern_scores import (
        head_table as head_table,
        pattern_scores as pattern_scores,
    )
    from ih_interp.analysis.heads.repeated_tokens import (
        induction_chance as induction_chance,
        induction_score as induction_score,
        prefix_matching_chance as prefix_matching_chance,
        prefix_matching_score as prefix_matching_score,
    )
    from ih_interp.analysis.patching.corruptions import (
        resample_class as resample_class,
        swap_exemplars as swap_exemplars,
        swap_labels as swap_labels,
    )
    from ih_interp.analysis.patching.path_patching import path_patch as path_patch
    from ih_interp.analysis.patching.preserving import (
        direct_path_removed as direct_path_removed,
        preserving_ablation as preserving_ablation,
        preserving_map as preserving_map,
    )
    from ih_interp.analysis.patching.redundancy import (
        effective_receivers as effective_receivers,
        effective_senders as effective_senders,
        many_to_many as many_to_many,
        redundancy_over_training as redundancy_over_training,
    )
    from ih_interp.analysis.patching.self_repair import self_repair as self_repair
    from ih_interp.analysis.patching.wiring import (
        Wiring as Wiring,
        wiring_map as wiring_map,
        wiring_over_training as wiring_over_training,
    )
    from ih_interp.clamps.context import clamped as clamped
    from ih_interp.config import (
        AdamConfig as AdamConfig,
        Grid as Grid,
        RunConfig as RunConfig,
        Seeds as Seeds,
    )
    from ih_interp.evaluation import evaluate as evaluate
    from ih_interp.interop.icl_dynamics import load_icl_dynamics as load_icl_dynamics
    from ih_interp.model import ModelConfig as ModelConfig, build_model as build_model
    from ih_interp.runs import Run as Run
    from ih_interp.tasks.exemplars import Exemplars as Exemplars
    from ih_interp.tasks.few_shot import FewShotTask as FewShotTask, TaskConfig as TaskConfig
    from ih_interp.training.state import (
        StopRun as StopRun,
        TrainingFailedError as TrainingFailedError,
    )
    from ih_interp.training.train import train as train
    from ih_interp.types import Batch as Batch, Head as Head, Layout as Layout

_HOME = {
    "Exemplars": "tasks.exemplars",
    "FewShotTask": "tasks.few_shot",
    "TaskConfig": "tasks.few_shot",
    "Batch": "types",
    "Head": "types",
    "Layout": "types",
    "ModelConfig": "model",
    "build_model": "model",
    "hooks": "",
    "clamps": "",
    "clamped": "clamps.context",
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
    "trace": "analysis.dynamics.trace",
    "attention_entropy": "analysis.heads.attention",
    "current_token_chance": "analysis.heads.attention",
    "current_token_score": "analysis.heads.attention",
    "duplicate_token_chance": "analysis.heads.attention",
    "duplicate_token_score": "analysis.heads.attention",
    "entropy_chance": "analysis.heads.attention",
    "induction_strength": "analysis.heads.attention",
    "previous_token_chance": "analysis.heads.attention",
    "previous_token_score": "analysis.heads.attention",
    "induction_chance": "analysis.heads.repeated_tokens",
    "induction_score": "analysis.heads.repeated_tokens",
    "prefix_matching_chance": "analysis.heads.repeated_tokens",
    "prefix_matching_score": "analysis.heads.repeated_tokens",
    "head_table": "analysis.heads.pattern_scores",
    "pattern_scores": "analysis.heads.pattern_scores",
    "composition_chance": "analysis.heads.composition",
    "composition_scores": "analysis.heads.composition",
    "output_composition": "analysis.heads.composition",
    "output_composition_chance": "analysis.heads.composition",
    "copying_logit_chance": "analysis.heads.copying",
    "copying_score_diag": "analysis.heads.copying",
    "copying_score_eig": "analysis.heads.copying",
    "copying_score_logit": "analysis.heads.copying",
    "label_copying": "analysis.heads.copying",
    "label_copying_of_values": "analysis.heads.copying",
    "label_copying_score": "analysis.heads.copying",
    "induction_trace": "analysis.heads.matching",
    "qk_matching": "analysis.heads.matching",
    "Coalitions": "analysis.ablation.coalitions",
    "coalitions": "analysis.ablation.coalitions",
    "AdditivityReport": "analysis.ablation.additivity",
    "additivity_test": "analysis.ablation.additivity",
    "add_back": "analysis.ablation.single_heads",
    "label_specific_accuracy": "analysis.ablation.single_heads",
    "mistakes_corrected": "analysis.ablation.single_heads",
    "ablate_each_head": "analysis.ablation.single_heads",
    "resample_class": "analysis.patching.corruptions",
    "swap_exemplars": "analysis.patching.corruptions",
    "swap_labels": "analysis.patching.corruptions",
    "path_patch": "analysis.patching.path_patching",
    "Wiring": "analysis.patching.wiring",
    "wiring_map": "analysis.patching.wiring",
    "wiring_over_training": "analysis.patching.wiring",
    "direct_path_removed": "analysis.patching.preserving",
    "preserving_ablation": "analysis.patching.preserving",
    "preserving_map": "analysis.patching.preserving",
    "effective_receivers": "analysis.patching.redundancy",
    "effective_senders": "analysis.patching.redundancy",
    "many_to_many": "analysis.patching.redundancy",
    "redundancy_over_training": "analysis.patching.redundancy",
    "backup_heads": "analysis.ablation.backups",
    "minimal_sufficient": "analysis.ablation.backups",
    "set_redundancy": "analysis.ablation.backups",
    "self_repair": "analysis.patching.self_repair",
    "progress": "analysis.dynamics.progress",
    "progress_beside_training": "analysis.dynamics.progress",
    "Crossing": "analysis.dynamics.emergence",
    "first_above": "analysis.dynamics.emergence",
    "first_below": "analysis.dynamics.emergence",
    "half_of_end": "analysis.dynamics.emergence",
    "learned": "analysis.dynamics.emergence",
    "logistic_midpoint": "analysis.dynamics.emergence",
    "plateau_length": "analysis.dynamics.emergence",
    "steepest_descent": "analysis.dynamics.emergence",
    "crossings_by_seed": "analysis.dynamics.survival",
    "emergence_summary": "analysis.dynamics.survival",
    "emergence_table": "analysis.dynamics.survival",
    "kaplan_meier": "analysis.dynamics.survival",
    "median_time": "analysis.dynamics.survival",
    "paired_times": "analysis.dynamics.survival",
    "survival_table": "analysis.dynamics.survival",
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
