"""One optimiser update of a fleet: the model's own forward pass, differentiated, then Adam.

The model is defined once, by `HookedTransformer.forward` with hooks. `eager_step` runs it run by
run and is the plain, slow truth. `traced_step` maps it over the runs, traces the whole update and
compiles the trace (`engine.compiled_forward`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap
from torch.fx import GraphModule
from torch.nn.functional import cross_entropy
from transformer_lens import HookedTransformer

from ih_interp.clamps import AbstractClamp
from ih_interp.config import AdamConfig
from ih_interp.engine.compiled_forward import (
    ClampedModel,
    Tensors,
    compile_graph,
    named_for_model,
    trace_forward,
    traced,
)

Losses: TypeAlias = Float[Tensor, " run"]


@dataclass(frozen=True)
class FleetState:
    """What training changes; updated in place. Axis 0 is the run."""

    parameters: Tensors
    """Each with a leading run axis, and so the moments."""
    first_moments: Tensors
    second_moments: Tensors
    count: Float[Tensor, "*run"]
    """Updates done, run by run."""

    @property
    def flat(self) -> list[Tensor]:
        groups = (self.parameters, self.first_moments, self.second_moments)
        return [tensor for group in groups for tensor in group.values()] + [self.count]

    def clone(self) -> "FleetState":
        """A copy that shares nothing."""
        return self.map(torch.clone)

    def map(self, function: Callable[[Tensor], Tensor]) -> "FleetState":
        """The function of every tensor."""
        return FleetState(
            *(
                {name: function(tensor) for name, tensor in group.items()}
                for group in (self.parameters, self.first_moments, self.second_moments)
            ),
            count=function(self.count),
        )


@dataclass(frozen=True)
class FleetInputs:
    """What an update reads. Axis 0 is the run; features are shared."""

    tokens: Int[Tensor, "run batch pos"]
    target: Int[Tensor, "run batch"]
    learning_rate: Float[Tensor, " run"]
    clamps: Sequence[Tensors]
    """Of every clamp, what differs between runs: head masks, strengths."""
    gates: Sequence[Float[Tensor, " run"]]
    """Of every clamp with a schedule, in order."""
    features: Float[Tensor, "row feature"]


Step: TypeAlias = Callable[[FleetState, FleetInputs], Losses]
"""Updates a state in place and returns the loss of every run before the update."""


def eager_step(model: HookedTransformer, clamps: Sequence[AbstractClamp], adam: AdamConfig) -> Step:
    """One run after the other, nothing traced."""
    clamped = ClampedModel(model, clamps)

    def step(state: FleetState, inputs: FleetInputs) -> Losses:
        losses: list[Tensor] = []
        for run in range(len(inputs.target)):
            weights = {
                name: tensor[run].detach().requires_grad_()
                for name, tensor in state.parameters.items()
            }
            logits = functional_call(
                clamped,
                named_for_model(weights, inputs.features),
                (inputs.tokens[run], inputs.target[run], *_of_run(inputs, run)),
            )
            loss = cross_entropy(logits, inputs.target[run])
            gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
            one = state.map(lambda tensor, run=run: tensor[run])
            _adam(one, dict(zip(weights, gradients, strict=True)), inputs.learning_rate[run], adam)
            losses.append(loss.detach())
        return torch.stack(losses)

    return step


def traced_step(
    model: HookedTransformer,
    clamps: Sequence[AbstractClamp],
    adam: AdamConfig,
    state: FleetState,
    inputs: FleetInputs,
) -> Step:
    """The whole update as one compiled graph, for fleets of this state's and inputs' shapes."""
    graph = trace_update(model, clamps, adam, state, inputs)
    compiled = compile_graph(graph, *state.clone().flat, *flat_inputs(inputs))

    def step(state: FleetState, inputs: FleetInputs) -> Losses:
        with torch.no_grad():
            return compiled(*state.flat, *flat_inputs(inputs))

    return step


def trace_update(
    model: HookedTransformer,
    clamps: Sequence[AbstractClamp],
    adam: AdamConfig,
    state: FleetState,
    inputs: FleetInputs,
) -> GraphModule:
    """The update of a fleet as a graph from `state.flat` and the flat inputs to the losses."""
    names = list(state.parameters)
    n_state = len(state.flat)
    weights = {name: tensor[0] for name, tensor in state.parameters.items()}
    of_run = (inputs.tokens[0], inputs.target[0], *_of_run(inputs, 0))
    query_logits = trace_forward(model, clamps, weights, inputs.features, *of_run, gradient=True)

    def loss(weights: Tensors, features: Tensor, *given: Any) -> Tensor:
        _, target, _, _ = given
        return cross_entropy(query_logits(weights, features, *given), target)

    per_run = vmap(grad_and_value(loss), in_dims=(0, None, 0, 0, 0, 0))

    def update(*flat: Tensor) -> Losses:
        now, given = _unflatten(flat[:n_state], names), flat[n_state:]
        gradients, losses = per_run(now.parameters, *_loss_arguments(given, inputs))
        _adam(now, gradients, given[0], adam)
        return losses

    # Tracing runs the update: on a clone, so that nothing is trained by it.
    return traced(update, *state.clone().flat, *flat_inputs(inputs))


def _adam(state: FleetState, gradients: Tensors, rate: Tensor, adam: AdamConfig) -> None:
    """Kingma and Ba's Adam, as optax and torch write it, in place on a fleet or on one run."""
    state.count.add_(1)
    bias1 = 1 - adam.beta1**state.count
    bias2 = 1 - adam.beta2**state.count
    for name, gradient in gradients.items():
        weight, m, v = (
            group[name] for group in (state.parameters, state.first_moments, state.second_moments)
        )
        over_runs = (-1,) + (1,) * (weight.ndim - 1) if state.count.ndim else ()
        m.copy_(adam.beta1 * m + (1 - adam.beta1) * gradient)
        v.copy_(adam.beta2 * v + (1 - adam.beta2) * gradient * gradient)
        scale = (rate / bias1).reshape(over_runs) if over_runs else rate / bias1
        spread = (v / (bias2.reshape(over_runs) if over_runs else bias2)).sqrt()
        weight.copy_(weight - scale * m / (spread + adam.eps))


def _of_run(inputs: FleetInputs, run: int) -> tuple[list[Tensors], list[Tensor]]:
    tensors = [{name: t[run] for name, t in given.items()} for given in inputs.clamps]
    return tensors, [gate[run] for gate in inputs.gates]


def flat_inputs(inputs: FleetInputs) -> list[Tensor]:
    """The inputs as a graph takes them: rates, tokens, targets, features, clamp tensors, gates."""
    clamp_tensors = [tensor for given in inputs.clamps for tensor in given.values()]
    return [
        inputs.learning_rate,
        inputs.tokens,
        inputs.target,
        inputs.features,
        *clamp_tensors,
        *inputs.gates,
    ]


def _loss_arguments(flat: Sequence[Tensor], like: FleetInputs) -> tuple[Any, ...]:
    """Features, tokens, targets, clamp tensors and gates, from a flat list."""
    _, tokens, target, features, *rest = flat
    remaining = iter(rest)
    tensors = [{name: next(remaining) for name in given} for given in like.clamps]
    return features, tokens, target, tensors, list(remaining)


def _unflatten(flat: Sequence[Tensor], names: Sequence[str]) -> FleetState:
    n = len(names)
    groups = [dict(zip(names, flat[i * n : (i + 1) * n], strict=True)) for i in range(3)]
    return FleetState(*groups, count=flat[3 * n])
