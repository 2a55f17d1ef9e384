"""Putting clamps on a model for one batch, and taking them off again."""

import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformer_lens import HookedTransformer

from ih_interp.clamps._active import (
    Active,
    Placed,
    activated,
    active,
    are_same,
    is_like,
    is_paused,
    refuse_removed,
    version,
    weights_of,
)
from ih_interp.clamps._conflicts import refuse_conflicts
from ih_interp.clamps.base import EMBEDDING, AbstractClamp, Hook, Setting, Shape, Site, hooks_of
from ih_interp.clamps.schedules import Metrics
from ih_interp.model import refuse_other_exemplars
from ih_interp.types import Batch, expect, integer, values_are_known

ORDER = (
    "preserve",
    "perfect_layer_one",
    "graft_in",
    "ablate_embedding",
    "ablate_heads",
    "previous_token_attention",
    "induction_attention",
    "match_attention",
    "attention_temperature",
    "forbid_previous_token",
    "attend_labels_only",
    "copy_from_attention",
    "perfect_match_and_copy",
    "graft_out",
)
"""Who comes first at one hook point; what sets the same thing twice is refused, not ordered."""


class ClampUnchangedWarning(UserWarning):
    """A clamp was applied and every activation that it set was that already."""


def in_order(clamps: Sequence[AbstractClamp]) -> tuple[AbstractClamp, ...]:
    """Return clamps in the order in which their hooks are added: a user's own kinds come last."""
    place = {kind: number for number, kind in enumerate(ORDER)}
    return tuple(sorted(clamps, key=lambda clamp: place.get(clamp.kind, len(ORDER))))


def check(model: HookedTransformer, clamps: Sequence[AbstractClamp]) -> None:
    """Refuse clamps that the model cannot take, or that cannot act together (ValueError)."""
    shape = Shape.of(model)
    for clamp in clamps:
        if not isinstance(clamp, AbstractClamp):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(
                f"{clamp!r} is no clamp: clamps come as a list, [ih.clamps.match('L1H3')]; "
                "a_alone, b_alone and c_alone give several, to be unpacked with a star; JSON is "
                "read with ih.clamps.parse."
            )
        clamp.tensors(shape)
        clamp.prepare(model)
        if clamp.is_own:
            _refuse_sites(clamp, shape)
    refuse_conflicts(clamps, shape)


def _refuse_sites(clamp: AbstractClamp, shape: Shape) -> None:
    sites: Any = clamp.sites(shape)
    if not isinstance(sites, Iterable) or not all(isinstance(site, Site) for site in sites):
        raise TypeError(
            f"sites() of {clamp} gives {sites!r}: expected a set of ih.clamps.Site(what, layer, "
            "head), or an empty one."
        )
    for site in sorted(sites, key=str):
        is_layer = EMBEDDING <= site.layer <= shape.n_layers
        if not (is_layer and (site.head is None or 0 <= site.head < shape.n_heads)):
            raise ValueError(
                f"{clamp} sets {site}: expected layers and heads of a model of {shape.n_layers} "
                f"layers x {shape.n_heads} heads, from 0 (the embedding is layer {EMBEDDING})."
            )


@contextmanager
def clamped(
    model: HookedTransformer,
    clamps: Sequence[AbstractClamp],
    batch: Batch | None = None,
    *,
    step: int | None = None,
    metrics: Metrics | None = None,
) -> Generator[HookedTransformer]:
    """Run `model` on `batch.tokens` under clamps inside this block; leaving it restores the model.

    Gradients flow. Hooks of others stay, and caches made inside see clamped values. A copy of the
    model made inside is free, and `model.reset_hooks` takes off hooks of others only. `step`
    places clamps with a schedule in time; `from_level` also reads `metrics`, the rows of a run's
    metrics, `run.metrics.to_dict("records")`. Passes that a clamp reads from run first, without any
    clamps. Blocks may be nested, and then act as one block with the clamps of all.

    Raises ValueError, before anything is changed, for heads or layers that the model lacks, clamps
    that set the same thing or make each other void, in this block and those around it, a missing
    batch, step or metrics; during the block, where a clamp depends on the sequences, for others
    than the batch's; at its end for a clamp whose hooks never fired, or were taken off before.
    Warns (`ClampUnchangedWarning`) of a clamp that changed nothing.
    """
    expect(model, HookedTransformer, "The model", "a run's is run.model(step)")
    if not isinstance(clamps, AbstractClamp):  # of which `check` says more
        expect(clamps, Sequence, "Clamps", "write a list, [ih.clamps.match('L1H3')]")
    if step is not None:
        step = integer(step, f"step={step!r}")
    if batch is not None:
        expect(batch, Batch, "The batch", "give the Batch itself, not its tokens")
    if metrics is not None:
        expect(metrics, Sequence, "Metrics", "give rows, run.metrics.to_dict('records')")
    outer = active(model)
    refuse_removed(model)
    check(model, [*(one.clamp for one in outer), *clamps])
    clamps = in_order(clamps)
    if batch is not None:
        _check_batch(model, clamps, batch)
    watches = [_watch(clamp, model, batch, step, metrics) for clamp in clamps]
    points = [frozenset(name for name, _ in watch.given) for watch in watches]
    _refuse_wrong_order(outer, [Active(*pair) for pair in zip(clamps, points, strict=True)])
    with ExitStack() as stack:
        inner = [
            Active(watch.clamp, names, *watch.place(stack, batch))
            for watch, names in zip(watches, points, strict=True)
        ]
        stack.enter_context(activated(model, inner))
        yield model
        refuse_removed(model)
    for watch in watches:
        watch.report()


def _watch(
    clamp: AbstractClamp,
    model: HookedTransformer,
    batch: Batch | None,
    step: int | None,
    metrics: Metrics | None,
) -> "_Watch":
    gate: float | None = None
    if clamp.is_scheduled:
        if step is None:
            raise ValueError(f"{clamp} has a schedule: pass the step that it is at, step=...")
        gate = clamp.schedule.gate(step, metrics)
    if clamp.is_own and gate not in (None, 0.0, 1.0):
        raise ValueError(
            f"{clamp} has the gate {gate} at step {step}: expected 0 or 1, as nothing says whether "
            "a clamp of your own blends by it; use during, pulses or from_level."
        )
    tensors = {n: t.to(model.W_U.device) for n, t in clamp.tensors(Shape.of(model)).items()}
    watch = _Watch(model, clamp, hooks_of(clamp, Setting(model, batch, tensors, gate)))
    watch.is_off = clamp.is_own and gate == 0
    return watch


def _refuse_wrong_order(outer: Sequence[Active], inner: Sequence[Active]) -> None:
    """Hooks of an outer block come first: refuse what one block would have put before them."""
    for early, late in itertools.product(inner, outer):
        shared = sorted(early.points & late.points)
        if shared and in_order([late.clamp, early.clamp])[0] is early.clamp:
            raise ValueError(
                f"{early.clamp} comes before {late.clamp}, which is on the model already, at "
                f"{shared[0]}; give both to one clamped()."
            )


def _check_batch(model: HookedTransformer, clamps: Sequence[AbstractClamp], batch: Batch) -> None:
    if batch.layout.n_positions > model.cfg.n_ctx:
        raise ValueError(
            f"Sequences have {batch.layout.n_positions} tokens; the model takes {model.cfg.n_ctx}."
        )
    refuse_other_exemplars(model, batch)
    for clamp in clamps:
        clamp.refuse_batch(batch)


class _Off:
    """What a copy of a clamped model has instead of the clamp's hooks: nothing."""

    def __call__(self, *called: Any) -> None:
        del called


class _OurHook(ABC):
    """A hook of PyTorch's on one module; not on copies of it, pickled or not.

    It is none of TransformerLens's, which `model.reset_hooks` would take off, and which act on
    copies too.
    """

    module: nn.Module

    def place(self, stack: ExitStack, model: HookedTransformer, name: str) -> Placed:
        """Put it on the module of this name until the stack is closed."""
        try:
            self.module = model.get_submodule(name)
        except AttributeError as error:
            raise ValueError(
                f"{name!r}: expected the name of a hook point of the model."
            ) from error
        handle = self.register()
        stack.callback(handle.remove)
        return Placed(name, self.module, handle)

    def register(self) -> Any:
        return self.module.register_forward_hook(self)

    @abstractmethod
    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """What PyTorch calls it with."""

    def __reduce__(self) -> tuple[type[_Off], tuple[()]]:
        return (_Off, ())


@dataclass(eq=False)
class _SameTokens(_OurHook):
    """Refuses other sequences than the batch's at the embedding, and other weights."""

    batch: Batch
    weights: Sequence[tuple[Tensor, int]] | None
    """Those of the pass that the clamp has read, where it reads one."""
    model: HookedTransformer

    def register(self) -> Any:
        return self.module.register_forward_pre_hook(self)

    def __call__(self, module: nn.Module, inputs: Any, output: Any = None) -> None:
        del output
        (tokens,), own = inputs, self.batch.tokens
        if module is not self.module:
            return
        if self.weights is not None and not are_same(self.weights, weights_of(self.model)):
            raise ValueError(
                "A clamp has read a pass with the weights that the model had when clamped() was "
                "entered, and now it has others: enter clamped() anew after every change."
            )
        if torch._C._functorch.is_functorch_wrapped_tensor(tokens):  # pyright: ignore
            raise ValueError(
                "These clamps were made for a batch, and inside vmap its tokens cannot be compared "
                "with it: map over weights alone, and run the model on batch.tokens."
            )
        if tokens.shape != own.shape or not torch.equal(tokens.to(own.device).long(), own):
            raise ValueError(
                "These clamps were made for another batch: inside clamped(model, clamps, batch) "
                "run the model on batch.tokens."
            )


@dataclass(eq=False)
class _Watched(_OurHook):
    """One hook function of a clamp, in force."""

    watch: "_Watch"
    hook: Hook

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        del inputs
        watch, (name, function) = self.watch, self.hook
        if module is not self.module or is_paused(watch.model):
            return None
        watch.fired.add(name)
        if watch.is_off:
            return None
        before = version(output)
        result = function(output, hook=module)
        if version(output) != before:
            watch.changed = True
        if result is None:
            return None
        if not is_like(result, output):
            shape = getattr(result, "shape", ())
            raise ValueError(
                f"{watch.clamp} gives {getattr(result, 'dtype', type(result).__name__)} of shape "
                f"{tuple(shape)} at {name}: expected None, or a floating-point tensor like the "
                f"activation, of shape {tuple(output.shape)} on {output.device}."
            )
        if not watch.changed:
            watch.changed = not values_are_known() or not torch.equal(
                result.detach(), output.detach()
            )
        return result


@dataclass
class _Watch:
    """Whether a clamp's hooks fired, and whether any of them changed its activation."""

    model: HookedTransformer
    clamp: AbstractClamp
    given: list[Hook]
    fired: set[str] = field(default_factory=set[str])
    changed: bool = False
    is_off: bool = False
    """Whether a clamp of the user's own is off now, by its schedule."""

    def place(self, stack: ExitStack, batch: Batch | None) -> tuple[bool, tuple[Placed, ...]]:
        """Put the hooks on; return whether the clamp is bound to the batch, and what is placed.

        A clamp of the user's own may have read the batch without saying so.
        """
        is_bound = batch is not None and (self.clamp.needs_batch or self.clamp.is_own)
        hooks = [(name, _Watched(self, (name, function))) for name, function in self.given]
        placed = [hook.place(stack, self.model, name) for name, hook in hooks]
        if batch is not None and is_bound:
            weights = weights_of(self.model) if self.clamp.reads_pass else None
            guard = _SameTokens(batch, weights, self.model)
            placed.append(guard.place(stack, self.model, "embed"))
        return is_bound, tuple(placed)

    def report(self) -> None:
        """Refuse a clamp that never fired; warn of one that changed nothing."""
        silent = [name for name, _ in self.given if name not in self.fired]
        if silent:
            raise ValueError(
                f"{self.clamp} never fired: no pass inside clamped() reached {', '.join(silent)}. "
                "Run the whole model inside the block, or drop the clamp."
            )
        if not self.changed and not self.clamp.is_scheduled:
            warnings.warn(
                f"{self.clamp} changed nothing: what it set was so already.",
                ClampUnchangedWarning,
                stacklevel=4,
            )
