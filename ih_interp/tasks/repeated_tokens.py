"""Repeated random tokens: a block of different tokens, said again until the sequence is full."""

from typing import Literal

import torch
from jaxtyping import Bool
from pydantic import Field, model_validator
from torch import Tensor

from ih_interp.tasks.base import NextTokenTask
from ih_interp.types import Tokens


class RepeatedTokens(NextTokenTask):
    """Sequences that repeat a block of different random tokens, as in Olsson et al. (2022).

    The block's length is drawn per sequence: with one length and learned positions, a single layer
    could answer by position alone. The next token is asked where the context determines it, from
    the block's second copy on. `answers` are the tokens that followed the token's earlier copies.

    With the paper's model, batches of 16 and a learning rate of 3e-3 the loss waits between 3.1 and
    2.6 nats, and falls below 1 after 420 to 500 updates; with 1e-3 after 950 to 1,150.
    """

    kind: Literal["repeated_tokens"] = "repeated_tokens"
    n_tokens: int = Field(default=64, ge=2)
    """Tokens to draw from."""
    min_period: int = Field(default=4, ge=2)
    """The shortest block."""
    max_period: int = Field(default=12, ge=2)
    """The longest block."""
    asked: Literal["repeats", "all"] = "repeats"
    """Where the next token is asked: where the context determines it, or everywhere."""

    @model_validator(mode="after")
    def _fits(self) -> "RepeatedTokens":
        if not self.min_period <= self.max_period <= min(self.n_tokens, self.length - 1):
            raise ValueError(
                f"max_period={self.max_period}: expected at least min_period={self.min_period}, at "
                f"most n_tokens={self.n_tokens}, and less than length={self.length}."
            )
        return self

    @property
    def d_vocab(self) -> int:
        return self.n_tokens

    def _draw(
        self, n: int, generator: torch.Generator
    ) -> tuple[Tokens, Bool[Tensor, "batch query"]]:
        periods = (self.min_period, self.max_period + 1)
        period = torch.randint(*periods, (n, 1), generator=generator)
        block = torch.rand(n, self.n_tokens, generator=generator).argsort(dim=1)
        place = torch.arange(self.length + 1)
        asked = (place[1:] > period) | (self.asked == "all")
        return block.gather(1, place % period), asked
