"""A package of somebody else's: a task, a clamp and a schedule that `ih_interp` has never seen."""

from typing import ClassVar, Literal

import torch

import ih_interp as ih


class LastSeen(ih.tasks.AbstractTask):
    """The last token was seen before; what followed it then is asked."""

    kind: Literal["last_seen"] = "last_seen"
    asks_last: ClassVar[bool] = True
    n_tokens: int = 16
    length: int = 12

    @property
    def d_vocab(self):
        return self.n_tokens

    @property
    def n_ctx(self):
        return self.length

    def sample(self, split, n, *, generator):
        tokens = torch.rand(n, self.n_tokens, generator=generator).argsort(1)[:, : self.length]
        place = torch.randint(self.length - 2, (n, 1), generator=generator)
        tokens[:, -1:] = tokens.gather(1, place)
        return ih.Batch(tokens, tokens.gather(1, place + 1)[:, 0])

    def answers(self, tokens, targets):
        return self.candidates(tokens, targets) & (tokens[:, None] == targets[..., None])

    def candidates(self, tokens, targets):
        keys = torch.zeros(*tokens.shape, tokens.shape[1], dtype=torch.bool)
        keys[:, -1, 1:-1] = True
        return keys


class SinkAttention(ih.clamps.HeadClamp):
    """The heads attend to the first token."""

    kind: Literal["sink_attention"] = "sink_attention"
    sets = "pattern"

    def hooks(self, setting):
        return self.at_each_layer(setting, "hook_pattern", to_the_first)


def to_the_first(pattern, hook, heads):
    is_first = torch.arange(pattern.shape[-1], device=pattern.device) == 0
    return torch.where(heads[:, None, None], is_first.to(pattern), pattern)


class Fade(ih.clamps.AbstractSchedule):
    """A clamp that is taken off little by little."""

    kind: Literal["fade"] = "fade"
    updates: int = 100

    def gate(self, step, metrics=None):
        return max(0.0, 1 - step / self.updates)
