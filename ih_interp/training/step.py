"""One optimiser update of a fleet: the model's own forward pass, differentiated, then Adam.

The model is defined once, by `HookedTransformer.forward` with hooks. `eager_step` runs it run by
run and is the plain, slow truth. `traced_step` maps it over the runs, traces the whole update and
compiles the trace; `torch.compile` alone would skip TransformerLens's hook frames.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, functionalize, grad_and_value, vmap
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import cross_entropy
from transformer_lens import HookedTransformer

from ih_interp.clamps import AbstractClamp, Setting
from ih_interp.config import AdamConfig
from ih_interp.training.graph import drop_zero_biases, spell_out_tiny_products
from ih_interp.training.narrow import narrow
from ih_interp.training.substitutes import substituted
from ih_interp.types import Batch, Residual

Tensors: TypeAlias = dict[str, Tensor]
"""Tensors by name, each with a leading run axis."""

Losses: TypeAlias = Float[Tensor, " run"]


@dataclass(frozen=True)
class FleetState:
    """What training changes; updated in place. Axis 0 is the run."""

    parameters: Tensors
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


CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"

Step: TypeAlias = Callable[[FleetState, FleetInputs], Losses]
"""Updates a state in place and returns the loss of every run before the update."""


class ClampedModel(nn.Module):
    """The query's logits under clamps; `functional_call` gives it weights and features."""

    def __init__(self, model: HookedTransformer, clamps: Sequence[AbstractClamp]) -> None:
        super().__init__()
        self.model = model
        self.clamps = clamps

    def forward(
        self,
        tokens: Int[Tensor, "batch pos"],
        target: Int[Tensor, " batch"],
        tensors: Sequence[Tensors],
        gates: Sequence[Tensor],
    ) -> Float[Tensor, "batch label"]:
        batch = Batch(tokens, target)
        scheduled = iter(gates)
        hooks = [
            hook
            for clamp, given in zip(self.clamps, tensors, strict=True)
            for hook in clamp.hooks(
                Setting(self.model, batch, given, next(scheduled) if clamp.is_scheduled else None)
            )
        ]
        last = f"blocks.{self.model.cfg.n_layers - 1}.hook_resid_post"
        with self.model.hooks(fwd_hooks=[*hooks, (last, _query_row)]):
            return self.model(tokens)[:, -1]


def _query_row(resid: Residual, hook: Any) -> Float[Tensor, "batch 1 d_model"]:
    """Only the query is read out: spares the other rows' final LayerNorm and unembedding."""
    del hook
    return resid[:, -1:]


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


def compile_graph(
    graph: GraphModule, *example: Tensor, options: dict[str, Any] | None = None
) -> Callable[..., Tensor]:
    """The graph compiled for tensors of these shapes; it is run on them once.

    `options` are the compiler's (`torch._inductor.config`). None are set for updates: with some, a
    run alone and the same run in a fleet no longer have the same bytes.
    """
    spell_out_tiny_products(graph)
    compiled = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
    with torch.no_grad():
        compiled(*example)
    return compiled


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
    query_logits = trace_forward(model, clamps, weights, inputs.features, *of_run)

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
    return make_fx(update)(*state.clone().flat, *flat_inputs(inputs))


def trace_forward(
    model: HookedTransformer,
    clamps: Sequence[AbstractClamp],
    weights: Tensors,
    features: Float[Tensor, "row feature"],
    *given: Any,
) -> GraphModule:
    """One run's forward pass as a graph of (weights, features, tokens, target, clamps, gates).

    It gives the query's logits `[batch, label]`, and computes nothing that they do not depend on.
    """
    clamped = ClampedModel(model, clamps)

    def forward(weights: Tensors, features: Tensor, *given: Any) -> Tensor:
        return functional_call(clamped, named_for_model(weights, features), given)

    with substituted(model), torch.no_grad():
        graph = make_fx(functionalize(forward))(weights, features, *given)
    narrow(graph)
    drop_zero_biases(graph)
    return graph


def use_lasting_cache() -> None:
    """Keep compiled graphs where they outlive this process, unless the user chose a place.

    `$XDG_CACHE_HOME/ih_interp` or `~/.cache/ih_interp`; deleting that folder clears it.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    if os.environ.get(CACHE_VARIABLE) in (None, default_cache_dir()):  # torch sets its own early
        os.environ[CACHE_VARIABLE] = str(home / "ih_interp")


def compiler_found() -> bool:
    """Whether there is a C++ compiler, without which graphs cannot be compiled."""
    from torch._inductor import config

    return any(name and shutil.which(name) for name in config.cpp.cxx)


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


def named_for_model(weights: Tensors, features: Tensor) -> Tensors:
    """Weights and features under the names that `ClampedModel` has for them."""
    named = {f"model.{name}": tensor for name, tensor in weights.items()}
    return {**named, "model.embed.features": features}


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
