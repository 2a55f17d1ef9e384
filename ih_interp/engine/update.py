"""One optimiser update of a fleet: the model's own forward pass, differentiated, then Adam.

`eager_step` goes run by run and is the plain, slow truth. `traced_step` maps the forward pass
(`engine.compiled_forward`) over the runs, traces the whole update and compiles the trace.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.fx import GraphModule
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_leaves, tree_map, tree_structure, tree_unflatten

from ih_interp.config import AdamConfig
from ih_interp.engine.compiled_forward import (
    ClampedModel,
    Sequences,
    Tensors,
    compile_graph,
    trace_forward,
    traced,
)
from ih_interp.model import named_for_model

Losses: TypeAlias = Float[Tensor, " run"]


class FleetState(NamedTuple):
    """The tensors that training changes, in place. Axis 0 is the run."""

    parameters: Tensors
    first_moments: Tensors
    second_moments: Tensors
    count: Float[Tensor, "*run"]  # pyright: ignore[reportIncompatibleMethodOverride]
    """Updates done, run by run."""

    @property
    def flat(self) -> list[Tensor]:
        """The tensors in one list, as a graph takes them: the leaves of the tree, in order."""
        groups = (self.parameters, self.first_moments, self.second_moments)
        return [tensor for group in groups for tensor in group.values()] + [self.count]

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


def asked_loss(
    logits: Float[Tensor, "batch pos token"], targets: Int[Tensor, "*shape"]
) -> Float[Tensor, ""]:
    """Return the mean cross-entropy over the positions that are asked, in nats."""
    return cross_entropy(logits.flatten(end_dim=1), targets.flatten())


def eager_step(clamped: ClampedModel, adam: AdamConfig) -> Step:
    """Return an update that goes through one run after the other, with nothing traced."""

    def step(state: FleetState, inputs: FleetInputs) -> Losses:
        losses: list[Tensor] = []
        for run in range(len(inputs.learning_rate)):
            one = state.map(operator.itemgetter(run))
            weights = {n: w.detach().requires_grad_() for n, w in one.parameters.items()}
            named = named_for_model(weights, inputs.buffers)
            logits = functional_call(clamped, named, inputs.of_run(run))
            loss = asked_loss(logits, inputs.sequences.targets[run])
            gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
            _adam(one, dict(zip(weights, gradients, strict=True)), inputs.learning_rate[run], adam)
            losses.append(loss.detach())
        return torch.stack(losses)

    return step


def traced_step(
    clamped: ClampedModel, adam: AdamConfig, state: FleetState, inputs: FleetInputs
) -> Step:
    """Return the whole update as a compiled graph, for state and inputs of these shapes."""
    graph = trace_update(clamped, adam, state, inputs)
    compiled = compile_graph(graph, *state.map(torch.clone).flat, *inputs.flat)

    def step(state: FleetState, inputs: FleetInputs) -> Losses:
        with torch.no_grad():
            return compiled(*state.flat, *inputs.flat)

    return step


def trace_update(
    clamped: ClampedModel, adam: AdamConfig, state: FleetState, inputs: FleetInputs
) -> GraphModule:
    """Return the update of a fleet as a graph from `state.flat` and `inputs.flat` to the losses."""
    n_state, structures = len(state.flat), (tree_structure(state), tree_structure(inputs))
    weights = {name: tensor[0] for name, tensor in state.parameters.items()}
    logits = trace_forward(clamped, weights, inputs.buffers, *inputs.of_run(0))

    def loss(weights: Tensors, buffers: Tensors, *given: Any) -> Tensor:
        return asked_loss(logits(weights, buffers, *given), given[0].targets)

    per_run = vmap(grad_and_value(loss), in_dims=(0, None, 0, 0, 0))

    def update(*flat: Tensor) -> Losses:
        now: FleetState = tree_unflatten(flat[:n_state], structures[0])
        given: FleetInputs = tree_unflatten(flat[n_state:], structures[1])
        of_runs = (given.sequences, given.clamps, given.gates)
        gradients, losses = per_run(now.parameters, given.buffers, *of_runs)
        _adam(now, gradients, given.learning_rate, adam)
        return losses

    # Tracing runs the update: on a clone, so that nothing is trained by it.
    return traced(update, *state.map(torch.clone).flat, *inputs.flat)


def _adam(state: FleetState, gradients: Tensors, rate: Tensor, adam: AdamConfig) -> None:
    """Do one step of Kingma and Ba's Adam, as optax and torch write it, in place.

    `count` and `rate` have a run axis for a fleet, and none for one run.
    """
    state.count.add_(1)
    bias1 = 1 - adam.beta1**state.count
    bias2 = 1 - adam.beta2**state.count
    groups = (state.parameters, state.first_moments, state.second_moments)
    for name, gradient in gradients.items():
        weight, m, v = (group[name] for group in groups)
        over_runs = (-1,) + (1,) * (weight.ndim - 1)
        m.copy_(adam.beta1 * m + (1 - adam.beta1) * gradient)
        v.copy_(adam.beta2 * v + (1 - adam.beta2) * gradient * gradient)
        scale = (rate / bias1).reshape(over_runs)
        spread = (v / bias2.reshape(over_runs)).sqrt()
        weight.copy_(weight - scale * m / (spread + adam.eps))
