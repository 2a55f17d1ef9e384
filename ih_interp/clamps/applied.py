"""Putting clamps on a model for one batch, and taking them off again."""

import itertools
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp.clamps.active import Active, activated, active, is_paused
from ih_interp.clamps.base import AbstractClamp, Hook, HookFunction, Setting, Shape
from ih_interp.clamps.conflicts import refuse_conflicts
from ih_interp.clamps.schedules import Metrics
from ih_interp.model import refuse_other_exemplars
from ih_interp.types import Batch, expect

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
    """Clamps in the order in which their hooks are added."""
    return tuple(sorted(clamps, key=lambda clamp: ORDER.index(clamp.kind)))


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
    refuse_conflicts(clamps, shape)


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

    Gradients flow. Hooks of others stay, and caches made inside see clamped values. `step` places
    clamps with a schedule in time; `from_level` also reads `metrics`, the rows of a run's metrics,
    `run.metrics.to_dict("records")`. Passes that a clamp reads from run first, without any clamps.
    Blocks may be nested, and then act as one block with the clamps of all.

    Raises ValueError, before anything is changed, for heads or layers that the model lacks, clamps
    that set the same thing or make each other void, in this block and those around it, a missing
    batch, step or metrics; during the block, where a clamp depends on the sequences, for others
    than the batch's; at its end for a clamp whose hooks never fired. Warns
    (`ClampUnchangedWarning`) of a clamp that changed nothing.
    """
    expect(model, HookedTransformer, "The model", "a run's is run.model(step)")
    if not isinstance(clamps, AbstractClamp):  # of which `check` says more
        expect(clamps, Sequence, "Clamps", "write a list, [ih.clamps.match('L1H3')]")
    if step is not None:
        expect(step, int, f"step={step!r}")
    if batch is not None:
        expect(batch, Batch, "The batch", "give the Batch itself, not its tokens")
    if metrics is not None:
        expect(metrics, Sequence, "Metrics", "give rows, run.metrics.to_dict('records')")
    outer = active(model)
    check(model, [*(one.clamp for one in outer), *clamps])
    clamps = in_order(clamps)
    if batch is not None:
        _check_batch(model, clamps, batch)
    watches = [
        _Watch(model, clamp, _hooks_at(clamp, model, batch, step, metrics)) for clamp in clamps
    ]
    inner = [Active(watch.clamp, frozenset(name for name, _ in watch.given)) for watch in watches]
    _refuse_wrong_order(outer, inner)
    with ExitStack() as stack:
        if batch is not None and any(clamp.needs_batch for clamp in clamps):
            handle = model.embed.register_forward_pre_hook(_same_tokens_as(batch))
            stack.callback(handle.remove)
        stack.enter_context(model.hooks(fwd_hooks=[h for watch in watches for h in watch.hooks]))
        stack.enter_context(activated(model, inner))
        yield model
    for watch in watches:
        watch.report()


def _hooks_at(
    clamp: AbstractClamp,
    model: HookedTransformer,
    batch: Batch | None,
    step: int | None,
    metrics: Metrics | None,
) -> list[Hook]:
    gate: float | None = None
    if clamp.is_scheduled:
        if step is None:
            raise ValueError(f"{clamp} has a schedule: pass the step that it is at, step=...")
        gate = clamp.schedule.gate(step, metrics)
    tensors = {n: t.to(model.W_U.device) for n, t in clamp.tensors(Shape.of(model)).items()}
    return clamp.hooks(Setting(model, batch, tensors, gate))


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


def _same_tokens_as(batch: Batch) -> Callable[[torch.nn.Module, tuple[Any, ...]], None]:
    def compare(module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        del module
        (tokens,) = inputs
        if tokens.shape != batch.tokens.shape or not torch.equal(tokens, batch.tokens):
            raise ValueError(
                "These clamps were made for another batch: inside clamped(model, clamps, batch) "
                "run the model on batch.tokens."
            )

    return compare


@dataclass
class _Watch:
    """Whether a clamp's hooks fired, and whether any of them changed its activation."""

    model: HookedTransformer
    clamp: AbstractClamp
    given: list[Hook]

    def __post_init__(self) -> None:
        self.fired: set[str] = set()
        self.changed = False

    @property
    def hooks(self) -> list[Hook]:
        return [(name, self._watched(name, function)) for name, function in self.given]

    def _watched(self, name: str, function: HookFunction) -> HookFunction:
        def watched(activation: Tensor, hook: Any) -> Tensor | None:
            if is_paused(self.model):
                return None
            result = function(activation, hook=hook)
            self.fired.add(name)
            if result is not None and not self.changed:
                self.changed = not torch.equal(result.detach(), activation.detach())
            return result

        return watched

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
