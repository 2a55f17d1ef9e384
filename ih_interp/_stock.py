"""A check that a model runs TransformerLens's own code and nothing else.

A fast path computes what modules of a model would compute. That is known only for modules of
TransformerLens's own types, with no method replaced on an instance or a class, no hook of
TransformerLens or of PyTorch, the norms that `cfg` names, no soft cap, weights of one type and
device, and a process without autocast, modes or another default dtype. `not_plain` checks all of
them; where it names a reason, the model itself must run.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from types import FunctionType
from typing import Any, cast

import torch
import transformer_lens
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack  # pyright: ignore[reportPrivateUsage]
from torch.utils._device import DeviceContext
from transformer_lens.hook_points import HookPoint
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES
from transformer_lens.utilities.typed_module_list import TypedModuleList

from ih_interp.hooked_model import HAS_HOOKED_TRANSFORMERS, HookedModel, is_bridge
from ih_interp.model import FewShotEmbed

NORMS: dict[str | None, type[nn.Module]] = {None: nn.Identity}
"""The module that each `cfg.normalization_type` of a HookedTransformer names."""

_STOCK: list[type[nn.Module]] = [FewShotEmbed, HookPoint, TypedModuleList, nn.Module]

if HAS_HOOKED_TRANSFORMERS:
    from ih_interp._few_shot_transformer import FewShotTransformer, UnembedWithHook

    _LENS: Any = transformer_lens.components
    NORMS.update(LN=_LENS.LayerNorm, LNPre=_LENS.LayerNormPre)
    NORMS.update(RMS=_LENS.RMSNorm, RMSPre=_LENS.RMSNormPre)
    _STOCK.extend([UnembedWithHook, FewShotTransformer, transformer_lens.HookedTransformer])
    _STOCK.extend([_LENS.TransformerBlock, _LENS.Attention, _LENS.GroupedQueryAttention])
    _STOCK.extend([_LENS.MLP, _LENS.GatedMLP, _LENS.Embed, _LENS.PosEmbed, _LENS.Unembed])
    _STOCK.extend(NORMS.values())

AFTER_Z = ("output_logits_soft_cap", "use_normalization_before_and_after", "load_in_4bit")
BEFORE_Z = (
    *("attn_scores_soft_cap", "attention_dir", "n_key_value_heads", "original_architecture"),
    *("clip_qkv", "use_attn_result", "use_local_attn", "use_qk_norm", "use_logn_attn"),
    *("use_attention_sinks", "use_attn_in", "use_split_qkv_input"),
)
"""Options of `cfg` that no fast path computes."""
UNUSED = (None, False, 0, -1, "causal")  # their values where they are not in use

_C: Any = torch._C  # pyright: ignore[reportPrivateUsage]
_MODULE: Any = torch.nn.modules.module


def not_plain(
    model: HookedModel,
    modules: Iterable[nn.Module],
    *,
    may_be_hooked: Collection[nn.Module] = (),
    after_z: bool = False,
    while_tracing: bool = False,
) -> str | None:
    """Return why these modules cannot be computed by hand, as a clause; None where they can.

    `modules` are all those that a fast path skips, submodules too; the model itself is always
    checked. `may_be_hooked` names those whose hooks a fast path still runs. With `after_z` only
    what follows the heads' `z` in attention is skipped. `while_tracing` leaves out the state of the
    process, which differs while torch traces.
    """
    if other := _other_class(type(model)):
        return f"a {type(model).__name__} {other}"
    if not while_tracing and _is_unusual_process(model.cfg):
        return "torch computes otherwise in this process"
    if _MODULE._has_any_global_hook():
        return "a hook for all modules is registered in torch"
    unusual = _unusual_options(model, after_z=after_z)
    if unusual:
        return f"its cfg has {unusual[0]}"
    skipped = [model, *modules]
    of_class = {kind: _other_class(kind) for kind in {*map(type, skipped)}}
    for module in skipped:
        reason = of_class[type(module)] or _other_instance(model, module)
        norms = [vars(module)["_modules"].get(name) for name in ("ln1", "ln_final")]
        if any(wrong_norm(norm, model.cfg) for norm in norms):
            reason = f"has another norm than cfg.normalization_type={model.cfg.normalization_type}"
        if n_hooks(module) and module not in may_be_hooked:
            reason = "is hooked"
        if reason:
            return f"a {type(module).__name__} {reason}"
    return None


def other_module(model: HookedModel, module: nn.Module) -> str | None:
    """Return why a module is not TransformerLens's own, hooks aside; None if it is."""
    return _other_class(type(module)) or _other_instance(model, module)


def _other_class(kind: type[nn.Module]) -> str | None:
    if kind not in _METHODS:
        return f"has the type {kind.__name__}, which no HookedTransformer has"
    for name, function in _METHODS[kind].items():
        if getattr(kind, name, None) is not function:
            return f"has another {kind.__name__}.{name} than TransformerLens's"
    return None


def _other_instance(model: HookedModel, module: nn.Module) -> str | None:
    own, cfg, device = vars(module), cast(Any, model.cfg), model.unembed.W_U.device
    if own.get("_compiled_call_impl") or not own.keys().isdisjoint(_METHODS[type(module)]):
        return "has other methods than its class"
    if own.get("cfg", cfg) is not cfg:
        return "has a cfg of its own"
    if any(isinstance(value, Tensor) for value in own.values()):
        return "has a tensor that is not a parameter"
    for name, parameter in own["_parameters"].items():
        if parameter is not None and (
            type(parameter) not in (nn.Parameter, Tensor)
            or parameter.dtype != cfg.dtype
            or parameter.device != device
        ):
            return f"has {name} of another type or device than the other weights"
    if own.get("attn_type", "global") != "global" or own.get("_attention_dir_override") is not None:
        return "attends to other positions than cfg says"
    return None


def refuse_unfit_weights(model: HookedModel) -> None:
    """Refuse missing weights, and those of another precision than `cfg` says (ValueError)."""
    first, cfg = next(model.parameters()), cast(Any, model.cfg)
    if first.is_meta:
        raise ValueError("The model is on the device 'meta', without weights: load some first.")
    if first.dtype in (torch.float16, torch.bfloat16) and cfg.dtype != first.dtype:
        raise ValueError(
            f"The model's weights are {first.dtype} and cfg.dtype is {cfg.dtype}, as after "
            f"model.half(): expected the same; write model.to({first.dtype}), which changes both."
        )
    if is_bridge(model) and _drops_out(cast(Any, model).original_model):
        raise ValueError(
            "The model is in training mode and has dropout, which would draw its numbers at "
            "random: expected evaluation mode; call model.eval()."
        )


def _drops_out(original: nn.Module) -> bool:
    """Return whether a model of another library leaves out activations at random now."""
    settings = vars(getattr(original, "config", object)).items()
    shares = [v for name, v in settings if "drop" in name and isinstance(v, float)]
    modules = [part.p for part in original.modules() if isinstance(part, nn.Dropout)]
    return original.training and any(share > 0 for share in (*shares, *modules))


def refuse_other_names(model: HookedModel) -> None:
    """Refuse a model whose hook points are others than `hook_dict` names (ValueError).

    TransformerLens puts hooks by that table. After a module was replaced, moved or taken out, hooks
    would act elsewhere or nowhere, in silence. A bridge's table has several names for a point, of
    which one, the point's own, is its place in the model.
    """
    n_layers, n_blocks = model.cfg.n_layers, len({*model.blocks})
    if not len(model.blocks) == n_blocks == n_layers:
        raise ValueError(
            f"cfg.n_layers={n_layers}: expected as many different blocks, got {n_blocks}; make a "
            "model of that shape."
        )
    for name, point in model.hook_dict.items():
        here: Any = model
        for part in (point.name or name).split("."):
            if here is not None:  # a bridge may know a point by an alias alone, an attribute
                here = vars(here)["_modules"].get(part) or getattr(here, part, None)
        if here is not point:
            raise ValueError(
                f"model.hook_dict has another {name} than the model, as after a module was "
                "replaced: hooks would miss it. Call model.setup()."
            )


def parts_of(*modules: nn.Module) -> list[nn.Module]:
    """Return these modules and all in them; `modules()` of torch takes five times as long."""
    found = list(modules)
    for module in found:
        found += [part for part in vars(module)["_modules"].values() if part is not None]
    return found


def n_hooks(module: nn.Module) -> int:
    """Return how many hooks, of TransformerLens or of PyTorch, are on a module."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(vars(module)[kind]) for kind in kinds)


def runs_own_code(module: nn.Module, *methods: str) -> bool:
    """Return whether a module's methods of these names are TransformerLens's."""
    found = (getattr(module, method) for method in methods)
    return all(_is_of_library(getattr(method, "__func__", method)) for method in found)


def wrong_norm(norm: nn.Module | None, cfg: Any) -> bool:
    """Return whether a norm is another than `cfg.normalization_type` says."""
    return norm is not None and type(norm) is not NORMS.get(cfg.normalization_type)


def _unusual_options(model: HookedModel, *, after_z: bool) -> list[str]:
    """Return the options of a model that are in use, and that no fast path computes."""
    cfg: Any = model.cfg
    found = [name for name in AFTER_Z if getattr(cfg, name) not in UNUSED]
    if cfg.original_architecture in POST_NORM_ARCHITECTURES:
        found += ["norms after layers"]
    if cfg.dtype not in (torch.float32, torch.float64):
        found += ["weights in half precision"]
    if after_z:
        return found
    found += [name for name in BEFORE_Z if getattr(cfg, name) not in UNUSED]
    if cfg.positional_embedding_type not in ("standard", "rotary"):
        found += ["positional_embedding_type"]
    if getattr(model.tokenizer, "padding_side", "") == "left":
        found += ["padding on the left"]
    return found


def _is_unusual_process(cfg: Any) -> bool:
    """Return whether torch computes otherwise in this process."""
    # A default device, ours included, changes where tensors are made and no number.
    modes = [m for m in _get_current_function_mode_stack() if not isinstance(m, DeviceContext)]
    transformed = _C._functorch.maybe_current_level() is not None
    return (
        torch.get_default_dtype() != torch.float32
        or torch.is_autocast_enabled(str(cfg.device or "cpu").split(":")[0])
        or bool(modes)
        or _C._len_torch_dispatch_stack() > 0
        or transformed
    )


def _is_of_library(function: object) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename.startswith(_LIBRARY)


def _methods(kind: type[nn.Module]) -> dict[str, object]:
    """Return the methods that a pass may call of this class; None for one already replaced."""
    found: dict[str, object] = {name: getattr(kind, name) for name in _CALLED}
    for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        of_lens = base.__module__.startswith("transformer_lens.")
        for name, value in vars(base).items():
            if isinstance(value, FunctionType) and name not in _DECORATED:
                if of_lens and not _is_of_library(value):
                    found[name] = None
                found.setdefault(name, getattr(kind, name))
    return found


_LIBRARY = str(Path(transformer_lens.__file__).parent)

_CALLED = ("__call__", "_call_impl", "_wrapped_call_impl")  # of torch's modules, in a pass
_DECORATED = ("generate", "generate_stream", "hooks")  # code of others, which no pass calls

_METHODS = {kind: _methods(kind) for kind in _STOCK}  # as they were at the import of this module
