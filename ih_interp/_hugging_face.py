"""Checkpoints of language models: Hugging Face's folders, and models that TransformerLens names."""

import contextlib
import io
import json
import re
from collections.abc import Generator
from importlib import import_module
from pathlib import Path
from typing import Any

from ih_interp._config_base import short
from ih_interp.hooked_model import HAS_HOOKED_TRANSFORMERS, HookedModel, HookedTransformer
from ih_interp.storage.atomic import PathLike, as_path

STEP = "{step}"
"""What stands for the number in a pattern of folders."""

NAME = re.compile(r"(?:step|checkpoint)?[-_]?(\d+)")
"""The name of a step's folder where no pattern is given: 512, step512, checkpoint-512."""

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Files of weights; of several shards, `.index.json` after the name lists them."""

LABELS = (
    "transformer_lens.loading_from_pretrained"
    if HAS_HOOKED_TRANSFORMERS
    else "transformer_lens.tools.model_registry.checkpoints"
)
"""The module of TransformerLens that knows the steps of published models."""

TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def folders_by_step(source: PathLike) -> dict[int, Path]:
    """Return the folders of a series by step: those in a folder, or those that fit a pattern.

    Raises FileNotFoundError where there is none, ValueError for two of one step.
    """
    path = as_path(source, "The folders of checkpoints")
    place = next((i for i, part in enumerate(path.parts) if STEP in part), None)
    parent, inner, named = path, (), NAME
    if place is not None:
        parent, inner = Path(*path.parts[:place]), path.parts[place + 1 :]
        before, after = map(re.escape, path.parts[place].split(STEP, 1))
        named = re.compile(f"{before}(\\d+){after}")
    found: dict[int, Path] = {}
    for child in sorted(parent.iterdir() if parent.is_dir() else ()):
        if child.is_dir() and (match := named.fullmatch(child.name)):
            step, folder = int(match[1]), child.joinpath(*inner)
            if step in found:
                raise ValueError(
                    f"{folder} and {found[step]} are both of step {step}: expected one; move one "
                    f"away, or give a pattern such as {parent}/checkpoint-{STEP}."
                )
            found[step] = folder
    if not found:
        raise FileNotFoundError(
            f"{path} has no folder per step: expected step512, checkpoint-512 or 512; give a "
            f'pattern, "runs/lm-{STEP}", or one model by ih.ModelSeries({{512: folder}}).'
        )
    return found


def missing_files(folder: Path) -> list[str]:
    """Return the files that a model's folder lacks: its settings, its weights, shards of them."""
    missing = [] if (folder / CONFIG).is_file() else [CONFIG]
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return missing
        if index.is_file():
            shards = sorted({*_weight_map(index).values()})
            return missing + [shard for shard in shards if not (folder / shard).is_file()]
    return [*missing, WEIGHTS[0]]


def refuse_missing_files(folder: Path, step: int) -> None:
    """Raise FileNotFoundError for a folder that is not there or not whole, naming the files."""
    if not folder.is_dir():
        raise FileNotFoundError(f"step {step}: {folder} is not there.")
    if missing := missing_files(folder):
        raise FileNotFoundError(
            f"step {step}: {folder} lacks {', '.join(missing)}. Copy it again, or leave the step "
            "out of steps=."
        )


def _weight_map(index: Path) -> dict[str, str]:
    try:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{index} is no list of shards ({error!r}); copy it again.") from error


def load_folder(folder: Path, **options: Any) -> HookedModel:
    """Return a local Hugging Face model as a TransformerBridge, float32 unless `dtype` says else.

    `options` are those of `AutoModelForCausalLM.from_pretrained`. Raises ValueError for a folder
    that lacks weights of its own model: Hugging Face would draw them at random.
    """
    import torch  # all of these take seconds to import, and only this function needs them
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformers import AutoModelForCausalLM

    given = {"dtype": torch.float32, "attn_implementation": "eager", **options}
    with _quietly():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(folder), output_loading_info=True, local_files_only=True, **given
        )
        model, info = loaded
        if lacking := sorted(info["missing_keys"]):
            raise ValueError(
                f"expected every weight of its config.json, and {short(lacking)} are missing; copy "
                "the folder again"
            )
        if any((folder / name).is_file() for name in TOKENIZERS):
            return TransformerBridge.boot_transformers(
                str(folder), hf_model=model, dtype=model.dtype
            )
        # Without files of one, TransformerLens would make a tokenizer that knows no word.
        return build_bridge_from_module(
            model, model.config.architectures[0], hf_config=model.config, model_name=folder.name
        )


def steps_of(name: str) -> list[int]:
    """Return the steps of a model that TransformerLens knows by name; ValueError for others."""
    try:
        labels, unit = import_module(LABELS).get_checkpoint_labels(name)
    except (ValueError, IndexError):
        raise ValueError(
            f"{name!r} is no folder here, and no model of which TransformerLens knows checkpoints: "
            'expected one, such as "pythia-70m", or a folder with a folder per step. For others '
            "write a function of the step: ih.ModelSeries(load, steps=[...])."
        ) from None  # which lists every model
    if unit != "step":
        raise ValueError(
            f"{name!r} counts its checkpoints in {unit}s: expected updates; write a function of "
            "the step, ih.ModelSeries(load, steps=[...])."
        )
    return sorted(labels)


def load_named(name: str, step: int, **options: Any) -> HookedModel:
    """Return a model of TransformerLens's at a step, with its weights as they were trained.

    `options` are those of `from_pretrained`, as `fold_ln=True`. TransformerLens 4 has no
    HookedTransformer; its TransformerBridge takes those of `boot_transformers`.
    """
    with _quietly():
        if HAS_HOOKED_TRANSFORMERS:
            load = HookedTransformer.from_pretrained_no_processing
            return load(name, checkpoint_value=step, **options)
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(name, checkpoint_value=step, **options)


@contextlib.contextmanager
def _quietly() -> Generator[None]:
    """Return a block in which loading shows no bar and prints nothing; warnings stay."""
    from transformers.utils import logging

    had_bar = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        if had_bar:
            logging.enable_progress_bar()
