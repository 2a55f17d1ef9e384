"""The layers from the receivers on, for many edges at once.

With one edge patched, a pass differs from the base run in the receiver's attention and behind it.
Heads of a layer do not read each other, so that one run of attention per sender and input gives
what every receiver then writes. Only asked positions need the last MLP and the unembedding. The
model's own modules compute all this, and the result is the model's only where nothing else acts on
them: elsewhere the model must run.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ih_interp._stock import not_plain, parts_of
from ih_interp.analysis import _passes as passes
from ih_interp.analysis._passes import Input
from ih_interp.analysis.patching._last_layer import final_norm
from ih_interp.batch import Batch
from ih_interp.evaluation import at_asked
from ih_interp.hooked_model import HookedModel

POSITIONS, LOGITS = 2_048, 2**24
"""How many positions, and how many logits, are computed at once."""

Streams: TypeAlias = Float[Tensor, "run batch pos d_model"]


def run_alone(model: HookedModel, layer: int) -> bool:
    """Return whether the layers from this one on can run by themselves, without hooks."""
    cfg: Any = model.cfg
    return (
        not_plain(
            model, parts_of(*model.blocks[layer:], *final_norm(model), model.unembed), after_z=True
        )
        is None
        and not (cfg.use_split_qkv_input or cfg.use_attn_in)
        and cfg.positional_embedding_type != "shortformer"
        and getattr(model.tokenizer, "padding_side", "") != "left"
        and cfg.n_devices == 1
    )


@dataclass(frozen=True)
class UpperLayers:
    """The layers of a model from that of the receivers on, and activations of base runs there."""

    model: HookedModel
    layer: int
    batch: Batch
    base: Mapping[str, Float[Tensor, "run batch ..."]]

    @staticmethod
    def points(model: HookedModel, layer: int) -> list[str]:
        """Return the points which base runs have to record."""
        kinds = ("resid_pre", "resid_post" if _is_done(model) else "resid_mid")
        return [passes.written_at(model, layer), *(f"blocks.{layer}.hook_{k}" for k in kinds)]

    def logits(self, letter: Input, change: Streams) -> Iterator[Float[Tensor, "edge asked token"]]:
        """Yield logits with each edge through one input patched, for each sender every receiver.

        `change` is what each sender's edges add to the receivers' input, in the base run of its
        place or the only one. The edges come in order, in parts.
        """
        n_asked = int(self.batch.asked.sum())
        n_logits = n_asked * self.model.cfg.d_vocab_out
        most = max(1, min(POSITIONS // self.batch.tokens.numel(), LOGITS // n_logits))
        receivers = torch.arange(len(self._shares(letter)))
        for senders in torch.arange(len(change)).split(most):
            written = self._written(letter, senders, change[senders])
            places = torch.arange(len(senders))
            for edges in torch.cartesian_prod(places, receivers).split(most):
                yield self._to_end(self._after_receivers(letter, senders, written, edges))

    def _of(self, name: str, senders: Tensor) -> Tensor:
        """Return an activation of the senders' base runs."""
        kept = self.base[name]
        return kept[senders] if len(kept) > 1 else kept.expand(len(senders), *kept.shape[1:])

    def _shares(self, letter: Input) -> Int[Tensor, "receiver head"]:
        """Return which heads read each of the layer's queries, keys or values."""
        shared = 1 if letter == "q" else passes.heads_per_key(self.model)
        return torch.arange(self.model.cfg.n_heads).view(-1, shared)

    def _written(self, letter: Input, senders: Tensor, change: Streams) -> Tensor:
        """Return how what heads write changes where all of them read this input patched."""
        block: Any = self.model.blocks[self.layer]
        point = passes.written_at(self.model, self.layer)
        resid = self._of(f"blocks.{self.layer}.hook_resid_pre", senders)
        base, patched = (block.ln1(x.flatten(end_dim=1)) for x in (resid, resid + change))
        read = {n: patched if n == letter else base for n in get_args(Input)}
        with passes.recording(self.model, [point]) as kept:
            block.attn(query_input=read["q"], key_input=read["k"], value_input=read["v"])
        return kept[point].unflatten(0, resid.shape[:2]) - self._of(point, senders)

    def _after_receivers(
        self, letter: Input, senders: Tensor, written: Tensor, edges: Tensor
    ) -> Streams:
        """Return the stream that the receivers' attention leaves, before the MLP, per edge."""
        heads = self._shares(letter)[edges[:, 1]]
        of_heads = written.movedim(3, 1)[edges[:, :1], heads]
        if not self.model.cfg.use_attn_result:
            w_o = self.model.blocks[self.layer].attn.W_O[heads]
            of_heads = of_heads.flatten(start_dim=2, end_dim=3) @ w_o
        point = self.points(self.model, self.layer)[-1]
        stream = self._of(point, senders)[edges[:, 0]]
        return stream + of_heads.sum(dim=1).view(stream.shape)

    def _to_end(self, stream: Streams) -> Float[Tensor, "edge asked token"]:
        """Return the logits that follow from the stream behind the receivers' attention."""
        model, top = self.model, self.model.cfg.n_layers - 1
        n_edges, blocks = len(stream), list[Any](model.blocks)
        top_block, rows = blocks[top], at_asked(stream, self.batch)
        if self.layer < top:
            read = self._mlp(blocks[self.layer], stream.flatten(end_dim=1))
            for block in blocks[self.layer + 1 : top]:
                read = block(read)
            normed = top_block.ln1(read)
            added = top_block.attn(query_input=normed, key_input=normed, value_input=normed)
            read, added = (x.unflatten(0, (n_edges, -1)) for x in (read, added))
            rows = at_asked(read + added, self.batch)
            if model.cfg.parallel_attn_mlp:
                below = at_asked(read, self.batch).flatten(end_dim=1)[:, None]
                rows = rows + top_block.apply_mlp(top_block.ln2(below)).view(rows.shape)
        rows = self._mlp(top_block, rows.flatten(end_dim=1)[:, None])
        for norm in final_norm(model):
            rows = norm(rows)
        return model.unembed(rows).view(n_edges, -1, model.cfg.d_vocab_out)

    def _mlp(self, block: Any, resid: Tensor) -> Tensor:
        """Return the stream behind a block's MLP that reads what its attention left."""
        return resid if _is_done(self.model) else resid + block.apply_mlp(block.ln2(resid))


def _is_done(model: HookedModel) -> bool:
    """Return whether attention changes what a layer gives only by what it adds."""
    return model.cfg.attn_only or bool(model.cfg.parallel_attn_mlp)
