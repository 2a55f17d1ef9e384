"""What a trace records instead of TransformerLens's own code: the same values for less work."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformer_lens import HookedTransformer

from ih_interp._stock import not_plain, parts_of
from ih_interp.engine.fast_attention import HeadsInnermost, Known, Lookup, Projection
from ih_interp.model import FewShotEmbed

WORTH_A_TABLE = 2  # rows a token up to which reading a table is less work than token by token


@contextmanager
def substituted(model: HookedTransformer, *, gradient: bool) -> Generator[None]:
    """Inside, passes of the model give the same values to rounding, by way of these.

    What depends on a token alone, the embedding, the first LayerNorm and the first queries, keys
    and values, is computed once a token and read from a table: there are five labels and a few
    dozen exemplars against thousands of positions. Blocks normalise their input once, where
    TransformerLens does so for queries, keys and values each.

    With `gradient` the trace is differentiated; without, sequences may be thousands, and their
    attention lies otherwise in memory (`attention.HeadsInnermost`).

    A model with other code than TransformerLens's own is left as it is.
    """
    if not_plain(model, parts_of(model), while_tracing=True) is not None:
        yield
        return
    with _Replaced() as replaced:
        known = Known()
        if isinstance(model.embed, FewShotEmbed):
            replaced.put(model.embed, "forward", _embed_once(model.embed, known))
        for number, block in enumerate(model.blocks):
            attention: Any = block.attn
            if hasattr(block, "ln1"):
                norm: Any = block.ln1
                reads = number == 0 and model.cfg.normalization_type is not None
                forward = _normalise_once(norm, known) if reads else norm.forward
                replaced.put(norm, "forward", _remembering_last(forward))
            kind = (
                Projection
                if gradient or not HeadsInnermost.suits(attention.cfg)
                else HeadsInnermost
            )
            own = kind(attention, known if number == 0 else None)
            for method, function in own.methods.items():
                replaced.put(attention, method, function)
        yield


class _Replaced:
    """Methods of instances, replaced inside the block; the classes' own are back after it."""

    def __init__(self) -> None:
        self._changed: list[tuple[Any, str]] = []

    def put(self, module: Any, name: str, function: Callable[..., Any]) -> None:
        setattr(module, name, function)
        self._changed.append((module, name))

    def __enter__(self) -> "_Replaced":
        return self

    def __exit__(self, *_: object) -> None:
        for module, name in self._changed:
            delattr(module, name)


def _embed_once(embed: FewShotEmbed, known: Known) -> Callable[[Tensor], Tensor]:
    def embedded(tokens: Tensor) -> Tensor:
        if len(embed.features) > WORTH_A_TABLE * tokens.numel():
            known.embedded = None
            return embed.one_by_one(tokens)
        known.embedded = Lookup.read(embed.W_E, tokens)
        return known.embedded.result

    return embedded


def _normalise_once(norm: Any, known: Known) -> Callable[[Tensor], Tensor]:
    forward = norm.forward

    def normalised(x: Tensor) -> Tensor:
        found, known.normalised = known.embedded, None
        hooked = norm.hook_scale.fwd_hooks or norm.hook_normalized.fwd_hooks
        if found is None or found.result is not x or hooked:  # a hook on the way gives another x
            return forward(x)
        known.normalised = Lookup.read(forward(found.table[None])[0], found.tokens)
        return known.normalised.result

    return normalised


def _remembering_last(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    last: list[Tensor] = []

    def remembering(x: Tensor) -> Tensor:
        if not last or last[0] is not x:
            last[:] = [x, function(x)]
        return last[1]

    return remembering
