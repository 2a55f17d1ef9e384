"""Clamps that silence: heads that write nothing, an embedding of zeros."""

from functools import partial
from typing import Literal

from ih_interp import hooks
from ih_interp.clamps.base import EMBEDDING, AbstractClamp, HeadClamp, Hook, Setting, Shape, Site


class AblateHeads(HeadClamp):
    """The heads' values are 0 at every position, so they write nothing; their patterns stay.

    Where heads share values (grouped-query attention), their z is 0 instead. Clamps on the patterns
    of these heads remain in force, to no effect on the logits.
    """

    kind: Literal["ablate_heads"] = "ablate_heads"
    sets = "v"

    def hooks(self, setting: Setting) -> list[Hook]:
        shared = setting.model.cfg.n_key_value_heads is not None
        return self.at_each_layer(setting, "hook_z" if shared else "hook_v", hooks.zero_heads)


class AblateEmbedding(AbstractClamp):
    """The token embedding is 0, which silences all that `preserve` does not hold."""

    kind: Literal["ablate_embedding"] = "ablate_embedding"

    def sites(self, shape: Shape) -> frozenset[Site]:
        return frozenset({Site("embed", EMBEDDING)})

    def hooks(self, setting: Setting) -> list[Hook]:
        return [("hook_embed", partial(hooks.zero, gate=setting.gate))]
