"""Clamps that silence: heads that write nothing, an embedding of zeros."""

from functools import partial
from typing import Literal

from ih_interp import hooks
from ih_interp.clamps.base import (
    EMBEDDING,
    AbstractClamp,
    Claim,
    HeadClamp,
    Hook,
    Setting,
    Shape,
)


class AblateHeads(HeadClamp):
    """The heads' values are 0 at every position, so they write nothing; their patterns stay."""

    kind: Literal["ablate_heads"] = "ablate_heads"

    def claims(self, shape: Shape) -> frozenset[Claim]:
        del shape
        return self.head_claims("v")

    def hooks(self, setting: Setting) -> list[Hook]:
        heads = setting.tensors["heads"]
        return [
            (
                f"blocks.{layer}.attn.hook_v",
                partial(hooks.zero_heads, heads=heads[layer], gate=setting.gate),
            )
            for layer in self.layers
        ]


class AblateEmbedding(AbstractClamp):
    """The token embedding is 0: silences all that `preserve` does not hold."""

    kind: Literal["ablate_embedding"] = "ablate_embedding"

    def claims(self, shape: Shape) -> frozenset[Claim]:
        del shape
        return frozenset({Claim("embed", EMBEDDING)})

    def hooks(self, setting: Setting) -> list[Hook]:
        return [("hook_embed", partial(hooks.zero, gate=setting.gate))]
