"""`compile_step`: the engine's compiled update, for a training loop of one's own."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._pytree import tree_map

from ih_interp._expect import expect
from ih_interp._sequences import refuse_other_sequences
from ih_interp.batch import Batch, Layout
from ih_interp.clamps import AbstractClamp, Shape, check, in_order
from ih_interp.clamps.base import flat_tensors
from ih_interp.clamps.schedules import Metrics
from ih_interp.engine.compiled_forward import ClampedModel, Sequences, compiler_found
from ih_interp.engine.update import FleetInputs, FleetState, Step, asked_loss, traced_step
from ih_interp.hooked_model import HookedModel, expect_hooked_transformers, expect_model
from ih_interp.model import trained_parameters
from ih_interp.optimisers import AbstractOptimiser, Adam

Loss: TypeAlias = Callable[[Float[Tensor, "batch pos token"], Batch], Float[Tensor, ""]]
"""One number from the logits at every position and the batch."""


class _Asked(NamedTuple):
    """The facts of a batch's task that the engine needs."""

    asks_last: bool
    layout: Layout | None


def compile_step(
    model: HookedModel,
    loss: Loss | None = None,
    clamps: Sequence[AbstractClamp] = (),
    *,
    optimiser: AbstractOptimiser = Adam(),  # noqa: B008  a frozen value
) -> "CompiledStep":
    """Return a function of a batch that makes one compiled update of the model, in place.

        step = ih.compile_step(model, clamps=[ih.clamps.match("L1H3")])
        for batch in batches:
            loss = step(batch)  # under the clamps, before the update

    `loss(logits, batch)` is by default the mean cross-entropy over the positions that are asked, in
    nats. Parameters that require no gradient stay what they are. Schedules are at `step.updates`;
    those that wait for a level read `step(batch, metrics=rows)`. The first batch of a shape takes
    most of a minute, less where the same graph was compiled before.

    Raises ValueError for clamps that the model cannot take or that cannot act together, and where
    no C++ compiler is found; TypeError for a TransformerBridge, ImportError with TransformerLens 4.
    """
    expect_model(model)
    expect_hooked_transformers("compile_step", model)
    expect(optimiser, AbstractOptimiser, "optimiser", "write ih.Adam(learning_rate=1e-3)")
    check(model, clamps)
    if not compiler_found():
        raise ValueError("compile_step needs a C++ compiler, such as g++, and found none.")
    return CompiledStep(model, loss, in_order(clamps), optimiser)


class CompiledStep:
    """A compiled update of one model, with the optimiser's moments; `compile_step` makes it."""

    def __init__(
        self,
        model: HookedModel,
        loss: Loss | None,
        clamps: Sequence[AbstractClamp],
        optimiser: AbstractOptimiser,
    ) -> None:
        self.model, self.clamps, self.optimiser = model, clamps, optimiser
        self.updates = 0
        """The number of updates that were made."""
        self._loss = loss
        weights = trained_parameters(model)
        self._moments = tuple(
            {name: torch.zeros_like(w)[None] for name, w in weights.items()}
            for _ in range(optimiser.n_moments)
        )
        self._names = list(weights)
        self._steps: dict[object, Step] = {}

    def __call__(self, batch: Batch, *, metrics: Metrics | None = None) -> Float[Tensor, ""]:
        """Make one update and return the loss before it; ValueError for sequences that do not fit.

        `metrics` are rows as of a run, for clamps that wait for a level.
        """
        expect(batch, Batch, "The batch", "write ih.Batch(tokens, targets)")
        refuse_other_sequences(self.model, batch)
        for clamp in self.clamps:
            clamp.refuse_batch(batch)
        weights = trained_parameters(self.model)
        if list(weights) != self._names:
            raise ValueError("Other parameters require gradients now: make a new compile_step.")
        one = {name: weight.data[None] for name, weight in weights.items()}
        device = self.model.W_U.device
        count = torch.full((1,), float(self.updates), device=device)
        state = FleetState(one, self._moments, count)
        is_last = self._loss is None and batch.given_targets.ndim == 1
        asked = _Asked(is_last, batch.given_layout)
        gates = [c.gate(self.updates, metrics) for c in self.clamps if c.is_scheduled]
        inputs = FleetInputs(
            sequences=tree_map(lambda t: t[None], Sequences.of(batch, asked, self.clamps)),
            learning_rate=torch.tensor([self.optimiser.rate(self.updates)], device=device),
            clamps=[t[None].to(device) for t in flat_tensors(self.clamps, Shape.of(self.model))],
            gates=[torch.tensor([gate], device=device) for gate in gates],
            buffers={},
        )
        loss = self._compiled(asked, state, inputs)(state, inputs)
        self.updates += 1
        return loss[0]

    def _compiled(self, asked: _Asked, state: FleetState, inputs: FleetInputs) -> Step:
        """Return the graph for tensors of these shapes, and for what the model holds beside."""
        own = self._loss
        held = [(id(t), t._version) for t in self._held()]
        key = (asked, *((t.shape, t.dtype) for t in inputs.flat), *held)
        if key not in self._steps:
            clamped = ClampedModel(self.model, self.clamps, asked)

            def of_batch(logits: Tensor, sequences: Sequences) -> Tensor:
                assert own is not None
                return own(logits, sequences.batch(asked.layout))

            loss = asked_loss if own is None else of_batch
            self._steps[key] = traced_step(clamped, self.optimiser, state, inputs, loss)
        return self._steps[key]

    def _held(self) -> list[Tensor]:
        """Return the tensors of the model that the graph holds as constants."""
        frozen = [p for p in self.model.parameters() if not p.requires_grad]
        return frozen + list(self.model.buffers())
