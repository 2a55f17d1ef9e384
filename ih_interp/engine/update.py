"""One optimiser update of a fleet: the model's own forward pass, its gradient, the optimiser.

`eager_step` goes run by run and is the plain, slow truth. `traced_step` maps the forward pass
(`engine.compiled_forward`) over the runs, traces the whole update and compiles the trace.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.fx import GraphModule
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_leaves, tree_map, tree_structure, tree_unflatten

from ih_interp._torch_state import seeded
from ih_interp.engine.compiled_forward import (
    ClampedModel,
    Sequences,
    Tensors,
    compile_graph,
    trace_forward,
    traced,
)
from ih_interp.model import named_for_model
from ih_interp.optimisers import AbstractOptimiser

Losses: TypeAlias = Float[Tensor, " run"]


class FleetState(NamedTuple):
    """The tensors that training changes, in place. Axis 0 is the run."""

    parameters: Tensors
    moments: tuple[Tensors, ...]
    """As many as the optimiser keeps."""
    count: Float[Tensor, "*run"]  # pyright: ignore[reportIncompatibleMethodOverride]
    """Updates done, run by run."""

    @property
    def flat(self) -> list[Tensor]:
        """The tensors in one list, as a graph takes them: the leaves of the tree, in order."""
        return tree_leaves(self)

    def map(self, function: Callable[[Tensor], Tensor]) -> "FleetState":
        return tree_map(function, self)


class FleetInputs(NamedTuple):
    """The inputs of an update. Axis 0 is the run; the buffers are shared."""

    sequences: Sequences
    learning_rate: Float[Tensor, " run"]
    clamps: Sequence[Shaped[Tensor, "run ..."]]
    """`flat_tensors` of each run's clamps, such as head masks and strengths, stacked."""
    gates: Sequence[Float[Tensor, " run"]]
    """One per clamp with a schedule, in order."""
    buffers: Tensors
    """What the model holds and training leaves alone, by name: the exemplars' features."""

    @property
    def flat(self) -> list[Tensor]:
        """The tensors in one list, as a graph takes them: the leaves of the tree, in order."""
        return tree_leaves(self)

    def of_run(self, run: int) -> tuple[Sequences, list[Tensor], list[Tensor]]:
        """Return one run's sequences, clamp tensors and gates, for `ClampedModel`."""
        given = (self.sequences, list(self.clamps), list(self.gates))
        return tree_map(operator.itemgetter(run), given)


Step: TypeAlias = Callable[[FleetState, FleetInputs], Losses]
"""Updates a state in place and returns the loss of every run before the update."""


Loss: TypeAlias = Callable[[Float[Tensor, "batch pos token"], Sequences], Float[Tensor, ""]]
"""The number that an update makes smaller."""


def asked_loss(logits: Float[Tensor, "batch pos token"], sequences: Sequences) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over the positions that are asked, in nats."""
    return cross_entropy(logits.flatten(end_dim=1), sequences.targets.flatten())


def eager_step(clamped: ClampedModel, optimiser: AbstractOptimiser, seeds: Sequence[int]) -> Step:
    """Return an update that goes through one run after the other, with nothing traced.

    A clamp may draw random numbers: they follow from `seeds` and the number of updates.
    """

    def step(state: FleetState, inputs: FleetInputs) -> Losses:
        losses: list[Tensor] = []
        for run in range(len(inputs.learning_rate)):
            one = state.map(operator.itemgetter(run))
            weights = {n: w.detach().requires_grad_() for n, w in one.parameters.items()}
            named = named_for_model(weights, inputs.buffers)
            given = inputs.of_run(run)
            with seeded(seeds[run], int(one.count)):
                loss = asked_loss(functional_call(clamped, named, given), given[0])
            gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
            by_name = dict(zip(weights, gradients, strict=True))
            frozen = clamped.frozen(*given[1:])
            advance(one, by_name, inputs.learning_rate[run], optimiser, frozen)
            losses.append(loss.detach())
        return torch.stack(losses)

    return step


def traced_step(
    clamped: ClampedModel,
    optimiser: AbstractOptimiser,
    state: FleetState,
    inputs: FleetInputs,
    loss: Loss = asked_loss,
) -> Step:
    """Return the whole update as a compiled graph, for state and inputs of these shapes."""
    graph = trace_update(clamped, optimiser, state, inputs, loss)
    compiled = compile_graph(graph, *state.map(torch.clone).flat, *inputs.flat)

    def step(state: FleetState, inputs: FleetInputs) -> Losses:
        with torch.no_grad():
            return compiled(*state.flat, *inputs.flat)

    return step


def trace_update(
    clamped: ClampedModel,
    optimiser: AbstractOptimiser,
    state: FleetState,
    inputs: FleetInputs,
    loss: Loss = asked_loss,
) -> GraphModule:
    """Return the update of a fleet as a graph from `state.flat` and `inputs.flat` to the losses."""
    n_state, structures = len(state.flat), (tree_structure(state), tree_structure(inputs))
    weights = {name: tensor[0] for name, tensor in state.parameters.items()}
    logits = trace_forward(clamped, weights, inputs.buffers, *inputs.of_run(0))

    def of_weights(weights: Tensors, buffers: Tensors, *given: Any) -> Tensor:
        return loss(logits(weights, buffers, *given), given[0])

    per_run = vmap(grad_and_value(of_weights), in_dims=(0, None, 0, 0, 0))

    def update(*flat: Tensor) -> Losses:
        now: FleetState = tree_unflatten(flat[:n_state], structures[0])
        given: FleetInputs = tree_unflatten(flat[n_state:], structures[1])
        of_runs = (given.sequences, given.clamps, given.gates)
        gradients, losses = per_run(now.parameters, given.buffers, *of_runs)
        of_clamps = (given.clamps, given.gates)  # without any, one mask serves all runs
        frozen = (vmap(clamped.frozen) if any(of_clamps) else clamped.frozen)(*of_clamps)
        advance(now, gradients, given.learning_rate, optimiser, frozen)
        return losses

    # Tracing runs the update: on a clone, so that nothing is trained by it.
    return traced(update, *state.map(torch.clone).flat, *inputs.flat)


def advance(
    state: FleetState,
    gradients: Tensors,
    rate: Tensor,
    optimiser: AbstractOptimiser,
    frozen: Tensors,
) -> None:
    """Do one step of the optimiser in place, but for what is frozen and its moments.

    `count` and `rate` have a run axis for a fleet, and none for one run.
    """
    state.count.add_(1)
    for name, mask in frozen.items():
        gradients[name] = torch.where(mask, torch.zeros_like(gradients[name]), gradients[name])
    after = optimiser.update(state.parameters, state.moments, gradients, state.count, rate)
    before = (state.parameters, state.moments)
    for old, new in zip((before[0], *before[1]), (after[0], *after[1]), strict=True):
        new |= {name: torch.where(mask, old[name], new[name]) for name, mask in frozen.items()}
        for name, tensor in new.items():
            old[name].copy_(tensor)
