"""Reading activations of many sequences and checkpoints: a compiled pass instead of the model's.

It is a trace of the model's own forward pass, and serves only where nobody else looks and nothing
but weights has changed since: a model with any hook on it, a clamp's or a user's, or with code or
settings of somebody's own, runs as it is.
"""

import operator
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.func import functional_call, functionalize
from transformer_lens import HookedTransformer

from ih_interp._stock import not_plain, parts_of
from ih_interp.engine.compiled_forward import (
    Tensors,
    compile_graph,
    compiler_found,
    named_for_model,
    traced,
)
from ih_interp.engine.fast_layers import substituted
from ih_interp.engine.feature_table import Rows
from ih_interp.engine.graph_passes import drop_zero_biases
from ih_interp.engine.query_only import narrow
from ih_interp.model import ATTENTION_BIASES, FewShotEmbed
from ih_interp.types import Tokens

_What: TypeAlias = tuple[tuple[str, ...], bool]
"""Names of hook points, and whether the last row of their patterns is enough."""

_READERS: "WeakKeyDictionary[HookedTransformer, _Reader]" = WeakKeyDictionary()


@contextmanager
def compiled_reading(model: HookedTransformer, tokens: Tokens) -> Generator[None]:
    """Inside, `read` takes activations of this model from a compiled pass.

    For sequences that show no other exemplars than `tokens` do. The model's weights may change in
    place meanwhile. Nothing changes where there is no compiler, or the model is not a few-shot one.
    """
    if isinstance(model.embed, FewShotEmbed) and compiler_found():
        _READERS[model] = _Reader(model, tokens)
    try:
        yield
    finally:
        _READERS.pop(model, None)


def read(
    model: HookedTransformer, tokens: Tokens, names: Sequence[str], *, last_query: bool = False
) -> list[Tensor] | None:
    """Activations at these hook points, or None where the model has to run to give them.

    With `last_query` of patterns `[batch, head, query, key]` the last row alone, its axis kept.
    """
    reader = _READERS.get(model)
    if reader is None or not_plain(model, parts_of(model)) is not None:
        return None
    return reader.read(tokens, (tuple(names), last_query))


class _State(NamedTuple):
    """A model as a trace of it sees it."""

    parameters: list[nn.Parameter]
    constants: list[Tensor]
    """What may not change: attention's biases, buffers, features of the exemplars shown."""
    settings: list[Any]
    """Nor these."""

    def is_as(self, then: "_State") -> bool:
        """Whether a graph that was traced then gives what the model gives now."""
        return (
            len(self.parameters) == len(then.parameters)
            and all(map(operator.is_, self.parameters, then.parameters))
            and self.settings == then.settings
            and len(self.constants) == len(then.constants)
            and all(map(torch.equal, self.constants, then.constants))
        )

    def copied(self) -> "_State":
        """The same, with constants that nobody else changes."""
        return self._replace(constants=[tensor.clone() for tensor in self.constants])


class _Reader:
    """Graphs of a model's pass, one for each thing to read; of sequences as many as first."""

    def __init__(self, model: HookedTransformer, tokens: Tokens) -> None:
        assert isinstance(model.embed, FewShotEmbed)
        self._model = model
        self._rows = Rows.of_tokens(model.embed.features.cpu(), model.embed.n_labels, tokens)
        self._graphs: dict[_What, tuple[int, Callable[..., Any]] | None] = {}
        shown = tokens[tokens >= model.embed.n_labels].unique() - model.embed.n_labels
        self._shown = shown.to(model.embed.features.device)
        self._named = dict(model.named_parameters())
        self._biases = {id(p) for name, p in self._named.items() if _is_constant(name)}
        self._then = self._state().copied()

    def read(self, tokens: Tokens, what: _What) -> list[Tensor] | None:
        now = self._state()
        if not now.is_as(self._then):
            return None
        tokens = self._rows.renumber[tokens]
        if what not in self._graphs:
            self._graphs[what] = self._compiled(tokens, what)
        graph = self._graphs[what]
        if graph is None or len(tokens) > graph[0] or bool((tokens < 0).any()):
            return None
        size, compiled = graph
        missing = tokens[:1].expand(size - len(tokens), -1)
        weights = self._weights()
        with torch.no_grad():
            found = compiled(*weights.values(), torch.cat([tokens, missing]))
        return [activation[: len(tokens)] for activation in found]

    def _weights(self) -> Tensors:
        """All but attention's biases, which are constants of the trace."""
        return {name: p.detach() for name, p in self._named.items() if not _is_constant(name)}

    def _state(self) -> _State:
        model: Any = self._model
        modules = [vars(part) for part in parts_of(model)]
        parameters = [p for own in modules for p in own["_parameters"].values() if p is not None]
        biases = [p for p in parameters if id(p) in self._biases]
        buffers = [
            buffer
            for own in modules
            for name, buffer in own["_buffers"].items()
            if name != "features"
        ]
        shown = model.embed.features[self._shown]
        numbers = [own[name] for own in modules for name in ("attn_scale", "eps") if name in own]
        strides = [p.stride() for p in parameters]
        return _State(
            parameters,
            [tensor.detach() for tensor in (*biases, *buffers, shown)],
            [dict(vars(model.cfg)), model.embed.n_labels, *numbers, *strides],
        )

    def _compiled(
        self, tokens: Int[Tensor, "batch pos"], what: _What
    ) -> tuple[int, Callable[..., Any]] | None:
        weights, features = self._weights(), self._rows.features
        capturing = _Capturing(self._model, *what)

        def forward(*given: Tensor) -> tuple[Tensor, ...]:
            *values, tokens = given
            named = named_for_model(dict(zip(weights, values, strict=True)), features)
            return functional_call(capturing, named, (tokens,))

        example = (*weights.values(), tokens)
        try:
            with substituted(self._model, gradient=False), torch.no_grad():
                graph = traced(functionalize(forward), *example)
            narrow(graph)
            drop_zero_biases(graph)
            return len(tokens), compile_graph(graph, *example)
        except Exception as error:  # whatever a tracer or a compiler may raise
            warnings.warn(
                f"Passes of this model cannot be traced and compiled ({type(error).__name__}: "
                f"{error}); it runs as it is, which is slower.",
                stacklevel=2,
            )
            return None


def _is_constant(name: str) -> bool:
    return ".attn." in name and name.endswith(ATTENTION_BIASES)


class _Capturing(nn.Module):
    """A pass up to the last layer that gives activations instead of logits."""

    def __init__(self, model: HookedTransformer, names: tuple[str, ...], last_query: bool) -> None:
        super().__init__()
        self.model = model
        self._names, self._last_query = names, last_query

    def forward(self, tokens: Int[Tensor, "batch pos"]) -> tuple[Tensor, ...]:
        kept: dict[str, Tensor] = {}

        def keep(activation: Tensor, hook: Any) -> None:
            kept[hook.name] = activation[:, :, -1:] if self._last_query else activation

        with self.model.hooks(fwd_hooks=[(name, keep) for name in self._names]):
            self.model(tokens, stop_at_layer=self.model.cfg.n_layers)
        return tuple(kept[name] for name in self._names)
