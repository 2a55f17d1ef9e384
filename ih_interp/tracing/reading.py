"""Reading activations of many sequences and checkpoints: a compiled pass instead of the model's.

It is a trace of the model's own forward pass, and serves only where nobody else looks: a model with
any hook on it, a clamp's or a user's, runs as it is.
"""

import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.func import functional_call, functionalize
from transformer_lens import HookedTransformer

from ih_interp.clamps.active import active
from ih_interp.model import ATTENTION_BIASES, FewShotEmbed
from ih_interp.tracing.forward import (
    Tensors,
    compile_graph,
    compiler_found,
    named_for_model,
    traced,
)
from ih_interp.tracing.graph import drop_zero_biases
from ih_interp.tracing.narrow import narrow
from ih_interp.tracing.rows import Rows
from ih_interp.tracing.substitutes import substituted
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
    hooked = active(model) or any(point.fwd_hooks for point in model.hook_dict.values())
    if reader is None or hooked:
        return None
    return reader.read(tokens, (tuple(names), last_query))


class _Reader:
    """Graphs of a model's pass, one for each thing to read; of sequences as many as first."""

    def __init__(self, model: HookedTransformer, tokens: Tokens) -> None:
        assert isinstance(model.embed, FewShotEmbed)
        self._model = model
        self._rows = Rows.of_tokens(model.embed.features.cpu(), model.embed.n_labels, tokens)
        self._graphs: dict[_What, tuple[int, Callable[..., Any]] | None] = {}

    def read(self, tokens: Tokens, what: _What) -> list[Tensor] | None:
        tokens = self._rows.renumber[tokens]
        if what not in self._graphs:
            self._graphs[what] = self._compiled(tokens, what)
        graph = self._graphs[what]
        if graph is None or len(tokens) > graph[0] or bool((tokens < 0).any()):
            return None
        size, compiled = graph
        missing = tokens[:1].expand(size - len(tokens), -1)
        with torch.no_grad():
            found = compiled(*self._weights().values(), torch.cat([tokens, missing]))
        return [activation[: len(tokens)] for activation in found]

    def _weights(self) -> Tensors:
        """All but attention's biases, which are constants of the trace."""
        return {
            name: parameter.detach()
            for name, parameter in self._model.named_parameters()
            if not (".attn." in name and name.endswith(ATTENTION_BIASES))
        }

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
