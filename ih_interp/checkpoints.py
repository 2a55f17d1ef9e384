"""Series of checkpoints: a model by step, whoever trained it and however it is stored."""

import gc
import hashlib
import math
import os
import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ih_interp import _hugging_face as hugging_face
from ih_interp._config_base import short
from ih_interp._expect import expect, integer, once_each, with_article
from ih_interp._torch_state import plain_torch
from ih_interp.hooked_model import HookedModel, expect_model, is_bridge
from ih_interp.storage.atomic import PathLike, as_path

Source: TypeAlias = HookedModel | Mapping[str, Tensor] | PathLike
"""A model, its weights by name, or a path: a file of weights, or a Hugging Face folder."""

SHAPE = (
    *("n_layers", "n_heads", "n_key_value_heads", "d_model", "d_head", "d_mlp", "d_vocab"),
    *("d_vocab_out", "act_fn", "normalization_type", "positional_embedding_type", "attn_only"),
    *("parallel_attn_mlp", "gated_mlp"),
)
"""Settings that models of a series share; others, as the longest context, may change meanwhile."""


@runtime_checkable
class Checkpoints(Protocol):
    """The series that `trace` and its like take: steps that have a checkpoint, and their models.

    `Run`, `Pretrained` and `ModelSeries` are such series, and so is any class with these two. Steps
    count updates, from 0. A series that also has `sequences_per_step`, a number, gets a column
    `sequences` beside `step` in its tables; others have `step` alone, and plots and times are then
    in steps.
    """

    @property
    def steps(self) -> Sequence[int]:
        """Return the steps that have a checkpoint."""
        ...

    def model(self, step: int, /) -> HookedModel:
        """Return the model at a step, unclamped."""
        ...


class ModelSeries:
    """A series of your own: models, weights, files of weights, or a function of the step.

        ih.ModelSeries({0: "0.safetensors", 100: "100.pt"}, build=lambda: HookedTransformer(cfg))
        ih.ModelSeries(lambda step: load_mine(step), steps=[0, 100, 1_000])

    At each step stands a model, a state dict or the path of one (`.safetensors`, or what
    `torch.save` wrote, of which only tensors are read), for which `build()` makes the model that it
    is loaded into; or the path of a Hugging Face folder. A function returns any of these. `steps`
    chooses among those there are; a function needs it. `sequences_per_step` is how many sequences
    an update took: tables then say `sequences` too. Where steps count tokens, it is one divided
    by the tokens of a sequence.

    Only one model is in memory at a time, besides those you hold. Raises FileNotFoundError at once
    for files that are missing, and `model` raises ValueError for a file that cannot be read,
    weights that do not fit, and another architecture than that of the first model loaded. It warns
    of two steps with the same weights.
    """

    def __init__(
        self,
        models: Mapping[int, Source] | Callable[[int], Source],
        steps: Iterable[int] | None = None,
        *,
        build: Callable[[], HookedModel] | None = None,
        sequences_per_step: float | None = None,
    ) -> None:
        self._source, self.steps = _sources(models, steps)
        self._are_held = isinstance(models, Mapping)
        if build is not None and (not callable(build) or isinstance(build, HookedModel)):
            came = with_article(type(build).__name__)
            raise TypeError(
                f"build={short(build)}: expected a function that makes a model, got {came}; "
                "write lambda: ..."
            )
        self._build = build
        self._options: dict[str, Any] = {}  # of Hugging Face folders
        self.sequences_per_step = sequences_per_step
        if sequences_per_step is not None and not 0 < sequences_per_step < math.inf:
            raise ValueError(f"sequences_per_step={sequences_per_step}: expected a number above 0.")
        self._step_of: dict[str, int] = {}  # the first step with weights of this digest
        self._first: tuple[int, dict[str, object]] | None = None
        self._last_made: list[weakref.ref[nn.Parameter]] = []

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._span()})"

    def _span(self) -> str:
        return f"{len(self.steps)} checkpoints, steps {self.steps[0]} to {self.steps[-1]}"

    def checkpoint_step(self, step: object) -> int:
        """Return a step that has a checkpoint as an int; TypeError or ValueError for others."""
        wanted = integer(step, f"step={step!r}", "give one of .steps")
        if wanted not in self.steps:
            raise ValueError(f"{self!r} has no checkpoint at step {step}; give one of .steps.")
        return wanted

    @plain_torch()
    def model(self, step: int) -> HookedModel:
        """Return the model at a step, unclamped; ValueError where it cannot be had."""
        step = self.checkpoint_step(step)
        if any(parameter() is not None for parameter in self._last_made):
            gc.collect()  # a model may hold itself, and two would then be in memory
        source: Any = self._source(step)
        model = self._made_of(step, source)
        self._refuse_other_architecture(step, model)
        first = self._step_of.setdefault(weights_digest(model), step)
        if first != step:
            warnings.warn(
                f"{self!r}: steps {first} and {step} have the same weights, to the bit: one may be "
                "a copy of the other, and its numbers count twice. Load it again, or leave it out "
                "of steps=.",
                stacklevel=3,
            )
        if not (self._are_held and model is source):
            self._last_made = [weakref.ref(parameter) for parameter in model.parameters()]
        return model

    def _made_of(self, step: int, source: Any) -> HookedModel:
        """Return the model that stands for a step: given, of a folder, or built of weights."""
        if isinstance(source, HookedModel):
            return source
        where = f"step {step}"
        if isinstance(source, (str, os.PathLike)):
            where, path = f"step {step}, {source}", _existing(step, source)
            try:
                if path.is_dir():
                    return hugging_face.load_folder(path, **self._options)
                source = _read(path)
            except Exception as error:  # whatever libraries raise for foreign bytes
                raise ValueError(f"{where} cannot be loaded: {error}") from error
        state = _as_state(where, source)
        if self._build is None:
            raise ValueError(
                f"build=None: {where} holds weights; give build=, which makes a model."
            )
        model = self._build()
        expect_model(model)
        _load(model, state, where)
        return model

    def _refuse_other_architecture(self, step: int, model: HookedModel) -> None:
        own = _architecture(model)
        first, other = self._first = self._first or (step, own)
        differ = [name for name in {**other, **own} if own.get(name) != other.get(name)]
        if differ:
            words = [f"{name} is {other.get(name)} there, {own.get(name)} here" for name in differ]
            more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
            raise ValueError(
                f"step {step} is another architecture than step {first}: {'; '.join(words[:3])}"
                f"{more}. Expected one model over training; leave it out of steps=."
            )


class Pretrained(ModelSeries):
    """A language model's checkpoints: TransformerLens's by name, or local Hugging Face folders.

        ih.Pretrained("pythia-70m", steps=[0, 512, 1_000, 143_000])
        ih.Pretrained("runs/lm")  # its folders step0, step512 ..., or checkpoint-512, or 512
        ih.Pretrained("runs/lm/{step}/hf")  # folders that fit a pattern

    `steps` are by default all that there are, as TransformerLens lists them or as folders show. A
    folder here comes before a name. Named models are HookedTransformers with their weights as
    trained, and `options` go to `HookedTransformer.from_pretrained`: `fold_ln=True` folds norms,
    `device`, `dtype`. Folders become TransformerBridges, and `options` go to
    `AutoModelForCausalLM.from_pretrained`: `dtype`, by default float32, `device_map`. Another
    revision or class can be had by a function: `ModelSeries(load, steps=...)`.

    Pythia's updates are of 1,024 sequences: `sequences_per_step=1_024`. Memory, errors and warnings
    are those of `ModelSeries`; a folder that lacks a file is refused at once, with its name. Raises
    ValueError for a model or a step that is not there.
    """

    def __init__(
        self,
        source: PathLike,
        steps: Iterable[int] | None = None,
        *,
        sequences_per_step: float | None = None,
        **options: Any,
    ) -> None:
        path = as_path(source, "The name of a model, or the folder of checkpoints")
        if hugging_face.STEP in str(path) or path.is_dir() or not isinstance(source, str):
            models: Any = hugging_face.folders_by_step(path)
        else:
            labels = hugging_face.steps_of(source)
            steps = labels if steps is None else _chosen(steps, labels, repr(source))
            models = partial(hugging_face.load_named, source, **options)
        super().__init__(models, steps, sequences_per_step=sequences_per_step)
        self._options = options
        self._name = str(source)

    def __repr__(self) -> str:
        return f"Pretrained({self._name!r}, {self._span()})"


def weights_digest(model: HookedModel) -> str:
    """Return the SHA-256 of a model's parameters, their names and types."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name}:{parameter.dtype}:{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().reshape(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def _architecture(model: HookedModel) -> dict[str, object]:
    """Return what models of a series share: settings, and the shapes of parameters."""
    settings: dict[str, object] = {name: getattr(model.cfg, name, None) for name in SHAPE}
    return settings | {name: tuple(p.shape) for name, p in model.named_parameters()}


def _sources(models: object, steps: Iterable[int] | None) -> tuple[Callable[[int], Any], list[int]]:
    """Return a function of the step, and the steps; refuse what is no series and missing files."""
    is_model = isinstance(models, HookedModel)
    if callable(models) and not is_model:
        if steps is None:
            raise ValueError("steps=None: expected the steps of the function; give steps=[...].")
        return models, _chosen(steps)
    remedy = "write {0: ..., 100: ...} by step, or give a function and steps="
    expect(models, Mapping, "models", remedy)
    given: Mapping[Any, Any] = models  # pyright: ignore[reportAssignmentType]
    by_step = dict(zip(_chosen(given, sort=False), given.values(), strict=True))
    chosen = _chosen(by_step if steps is None else steps, list(by_step), "models")
    for step in chosen:
        if isinstance(source := by_step[step], (str, os.PathLike)):
            _existing(step, source)
    return by_step.__getitem__, chosen


def _chosen(
    steps: Iterable[int], there: Sequence[int] | None = None, of: str = "", *, sort: bool = True
) -> list[int]:
    """Return steps as ints, ascending; refuse no steps, one twice, and one that is not there."""
    expect(steps, Iterable, f"steps={steps!r}", "write steps=[0, 100]")
    remedy = "a step is an update, a whole number from 0"
    found = [integer(step, f"steps[{i}]={step!r}", remedy) for i, step in enumerate(steps)]
    if not found or min(found) < 0:
        raise ValueError(f"steps={short(found)}: expected at least one, and whole numbers from 0.")
    once_each(found, "steps")
    missing = [] if there is None else [step for step in found if step not in set(there)]
    if missing and there is not None:
        raise ValueError(
            f"steps: {of} has no checkpoint at {short(missing)}; it has {short(sorted(there))}."
        )
    return sorted(found) if sort else found


def _existing(step: int, source: PathLike) -> Path:
    """Return the path of a step's weights; FileNotFoundError for what is missing there."""
    path = as_path(source, f"step {step}")
    if not path.exists():
        raise FileNotFoundError(f"step {step}: {path} is not there; leave it out of steps=.")
    if path.is_dir():
        hugging_face.refuse_missing_files(path, step)
    return path


def _read(path: Path) -> Any:
    """Return what a file of weights holds; nothing in it runs as code."""
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251


def _as_state(where: str, source: Any) -> Mapping[str, Tensor]:
    """Return weights by name; TypeError for what is neither weights nor a model."""
    wanted = "a model, its weights by name, or a path of them"
    if not isinstance(source, Mapping):
        came = with_article(type(source).__name__)
        raise TypeError(f"{where}: expected {wanted}, got {came}.")
    others = [name for name, value in source.items() if not isinstance(value, Tensor)]
    if others or not source:
        raise TypeError(
            f"{where}: expected {wanted}, got a mapping with {short(list(source))}, of which "
            f"{short(others)} are no tensors; where weights stand under a name, give them by a "
            "function of the step."
        )
    return source


def _load(model: HookedModel, state: Mapping[str, Tensor], where: str) -> None:
    """Write weights into a model; ValueError unless they are all of its parameters and no more."""
    try:
        # A bridge knows other names of its weights, and says itself what is missing.
        result = model.load_state_dict(state, strict=is_bridge(model))
    except RuntimeError as error:
        words = " ".join(str(error).split())
        raise ValueError(f"{where} does not fit the model that build() makes: {words}") from error
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    lacking = [] if is_bridge(model) else sorted(parameters & {*result.missing_keys})
    unknown = sorted(result.unexpected_keys)
    if lacking or unknown:
        raise ValueError(
            f"{where}: expected the weights of the model that build() makes; {_few(lacking)} are "
            f"missing, and {_few(unknown)} are not known there. Build that model, or rename them."
        )


def _few(names: Sequence[str]) -> str:
    """Return the first three of many names, and how many there are."""
    more = f" ... ({len(names)} in all)" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "none") + more
