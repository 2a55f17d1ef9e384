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
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.hook_points import HookPoint
from transformer_lens.HookedRootModule import HookedRootModule
from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES
from transformer_lens.utilities.typed_module_list import TypedModuleList

from ih_interp.model import FewShotEmbed, FewShotTransformer, UnembedWithHook

_LENS: Any = transformer_lens.components
NORMS: dict[str | None, type[nn.Module]] = {
    "LN": _LENS.LayerNorm,
    "LNPre": _LENS.LayerNormPre,
    "RMS": _LENS.RMSNorm,
    "RMSPre": _LENS.RMSNormPre,
    None: nn.Identity,
}
"""The module that each `cfg.normalization_type` names."""

_C: Any = torch._C  # pyright: ignore[reportPrivateUsage]
_MODULE: Any = torch.nn.modules.module


def not_plain(
    model: HookedTransformer,
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
    cfg: Any = model.cfg
    unusual = {} if while_tracing else _unusual_process(cfg)
    unusual["a hook for all modules is registered in torch"] = _MODULE._has_any_global_hook()
    unusual[f"its weights are {cfg.dtype}"] = cfg.dtype not in (torch.float32, torch.float64)
    unusual |= _unusual_config(model, after_z=after_z)
    if any(unusual.values()):
        return next(reason for reason, applies in unusual.items() if applies)
    skipped = [model, *modules]
    of_class = {kind: _other_class(kind) for kind in {*map(type, skipped)}}
    for module in skipped:
        reason = of_class[type(module)] or _other_instance(model, module)
        norms = [vars(module)["_modules"].get(name) for name in ("ln1", "ln_final")]
        if reason is None and any(wrong_norm(norm, cfg) for norm in norms):
            reason = f"has another norm than cfg.normalization_type={cfg.normalization_type!r}"
        if reason is None and is_hooked(module) and module not in may_be_hooked:
            reason = "is hooked"
        if reason:
            return f"{_name(model, module)} {reason}"
    return None


def other_module(model: HookedTransformer, module: nn.Module) -> str | None:
    """Return why a module is not TransformerLens's own, hooks aside; None if it is."""
    return _other_class(type(module)) or _other_instance(model, module)


def _other_class(kind: type[nn.Module]) -> str | None:
    if kind not in _METHODS:
        return f"has the type {kind.__name__}, which is not one of TransformerLens"
    for name, function in _METHODS[kind].items():
        if getattr(kind, name, None) is not function:
            return f"has another {kind.__name__}.{name} than TransformerLens's"
    return None


def _other_instance(model: HookedTransformer, module: nn.Module) -> str | None:
    own, methods = vars(module), _CALLABLE[type(module)]
    if not methods.isdisjoint(own):
        return f"has another {min(methods & own.keys())} than its class"
    return _other_settings(model, own)


def refuse_unfit_weights(model: HookedTransformer) -> None:
    """Refuse missing weights, and those of another precision than `cfg` says (ValueError)."""
    first, cfg = next(model.parameters()), cast(Any, model.cfg)
    if first.is_meta:
        raise ValueError("The model is on the device 'meta', without weights: load some first.")
    if first.dtype in (torch.float16, torch.bfloat16) and cfg.dtype != first.dtype:
        raise ValueError(
            f"The model's weights are {first.dtype} and cfg.dtype is {cfg.dtype}, as after "
            f"model.half(): expected the same; write model.to({first.dtype}), which changes both."
        )


def refuse_other_names(model: HookedTransformer) -> None:
    """Refuse a model whose hook points are others than `hook_dict` names (ValueError).

    TransformerLens puts hooks by that table. After a module was replaced, moved or taken out, hooks
    would act elsewhere or nowhere, in silence.
    """
    n_layers, n_blocks = model.cfg.n_layers, len({*model.blocks})
    if not len(model.blocks) == n_blocks == n_layers:
        raise ValueError(
            f"cfg.n_layers={n_layers}: expected as many different blocks, got {n_blocks}; make a "
            "model of that shape."
        )
    for name, point in model.hook_dict.items():
        here: Any = model
        for part in name.split("."):
            here = None if here is None else vars(here)["_modules"].get(part)
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


def is_hooked(module: nn.Module) -> bool:
    """Return whether any hook, of TransformerLens or of PyTorch, is on this module."""
    return n_hooks(module) > 0


def n_hooks(module: nn.Module) -> int:
    """Return how many hooks are on a module."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(vars(module)[kind]) for kind in kinds)


def runs_own_code(module: nn.Module, *methods: str) -> bool:
    """Return whether a module's methods of these names are TransformerLens's."""
    found = (getattr(module, method) for method in methods)
    return all(_is_of_library(getattr(method, "__func__", method)) for method in found)


def wrong_norm(norm: nn.Module | None, cfg: HookedTransformerConfig) -> bool:
    """Return whether a norm is another than `cfg.normalization_type` says."""
    return norm is not None and type(norm) is not NORMS.get(cfg.normalization_type)


def _unusual_config(model: HookedTransformer, *, after_z: bool) -> dict[str, bool]:
    """Return the options that no fast path computes, in words, and whether they are in use."""
    cfg: Any = model.cfg
    after = {
        "output_logits_soft_cap": cfg.output_logits_soft_cap > 0,
        "use_normalization_before_and_after": bool(cfg.use_normalization_before_and_after),
        "load_in_4bit": bool(cfg.load_in_4bit),
        "norms after layers": cfg.original_architecture in POST_NORM_ARCHITECTURES,
    }
    before = {
        f"positional_embedding_type={cfg.positional_embedding_type!r}": (
            cfg.positional_embedding_type not in ("standard", "rotary")
        ),
        "attn_scores_soft_cap": cfg.attn_scores_soft_cap > 0,
        f"attention_dir={cfg.attention_dir!r}": cfg.attention_dir != "causal",
        "n_key_value_heads": cfg.n_key_value_heads is not None,
        "original_architecture": cfg.original_architecture is not None,
        "padding on the left": getattr(model.tokenizer, "padding_side", "") == "left",
        "clip_qkv": cfg.clip_qkv is not None,
    }
    flags = ("use_attn_result", "use_local_attn", "use_qk_norm", "use_logn_attn")
    flags += ("use_attention_sinks", "use_attn_in", "use_split_qkv_input")
    before |= {flag: bool(getattr(cfg, flag)) for flag in flags}
    found = after if after_z else after | before
    return {f"its cfg has {name}": in_use for name, in_use in found.items()}


def _unusual_process(cfg: HookedTransformerConfig) -> dict[str, bool]:
    """Return the states of a process in which torch computes otherwise, and whether they hold."""
    dtype, device = torch.get_default_dtype(), str(cfg.device or "cpu").split(":")[0]
    # A default device, ours included, changes where tensors are made and no number.
    modes = [m for m in _get_current_function_mode_stack() if not isinstance(m, DeviceContext)]
    transformed = _C._functorch.maybe_current_level() is not None
    mode = bool(modes) or _C._len_torch_dispatch_stack() > 0 or transformed
    return {
        f"torch's default dtype is {dtype}": dtype != torch.float32,
        "autocast is on": torch.is_autocast_enabled(device),
        "a mode or transform of torch is on": mode,
    }


def _other_settings(model: HookedTransformer, own: dict[str, Any]) -> str | None:
    """Return why a module's code was not written for its attributes; None if it was."""
    cfg: Any = model.cfg
    if own.get("cfg", cfg) is not cfg:
        return "has a cfg of its own"
    if any(isinstance(value, Tensor) for value in own.values()):
        return "has a tensor that is not a parameter"
    device = model.unembed.W_U.device
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


def _name(model: nn.Module, module: nn.Module) -> str:
    names = (name for name, one in model.named_modules() if one is module)
    return next(names, "") or "the model"


def _is_of_library(function: object) -> bool:
    code = getattr(function, "__code__", None)
    return code is not None and code.co_filename.startswith(_LIBRARY)


def _methods(kind: type[nn.Module]) -> dict[str, object]:
    """Return the methods that a module of this class runs; None for one that is already replaced.

    For the largest classes these are only those that a pass calls.
    """
    found: dict[str, object] = {}
    for base in kind.__mro__:
        functions = [name for name, value in vars(base).items() if isinstance(value, FunctionType)]
        for name in _CALLED.get(base, functions) if issubclass(base, nn.Module) else ():
            if name in functions:
                of_lens = base.__module__.startswith("transformer_lens.")
                if of_lens and not _is_of_library(vars(base)[name]):
                    found[name] = None
                found.setdefault(name, getattr(kind, name))
    return found


_LIBRARY = str(Path(transformer_lens.__file__).parent)

_OF_ROOT = ("forward", "input_to_embed", "get_pos_offset", "get_residual")
_CALLED: dict[type, tuple[str, ...]] = {
    nn.Module: ("__call__", "_call_impl", "_wrapped_call_impl"),
    **dict.fromkeys((HookedRootModule, HookedTransformer, FewShotTransformer), _OF_ROOT),
}
"""The methods that a pass calls of classes that have many more."""

_STOCK: tuple[type[nn.Module], ...] = (
    *(FewShotEmbed, UnembedWithHook, FewShotTransformer, HookedTransformer, HookPoint),
    *(_LENS.TransformerBlock, _LENS.Attention, _LENS.GroupedQueryAttention, _LENS.MLP),
    *(_LENS.GatedMLP, _LENS.Embed, _LENS.PosEmbed, _LENS.Unembed, *NORMS.values()),
    *(TypedModuleList, nn.Module),
)

_METHODS = {kind: _methods(kind) for kind in _STOCK}  # as they were at the import of this module

_CALLABLE = {  # names of methods, which no instance may set for itself
    kind: frozenset({"_compiled_call_impl"} | {n for n in dir(kind) if callable(getattr(kind, n))})
    for kind in _STOCK
}
