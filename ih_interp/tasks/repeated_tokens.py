"""Repeated random tokens: a block of different tokens, said again until the sequence is full."""

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ih_interp.tasks.base import AbstractTask, as_generator, refuse_other_split
from ih_interp.types import NOT_ASKED, Answers, Batch


class RepeatedTokens(AbstractTask):
    """Sequences that repeat a block of different random tokens, as in Olsson et al. (2022).

    The block's length is drawn per sequence: with one length and learned positions, a single layer
    could answer by position alone. The next token is asked where the context determines it, from
    the block's second copy on. `answers` are the tokens that followed the token's earlier copies.
    """

    kind: Literal["repeated_tokens"] = "repeated_tokens"
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    n_tokens: int = Field(default=64, ge=2)
    """Tokens to draw from."""
    length: int = Field(default=32, ge=3)
    """Tokens of a sequence."""
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

    @property
    def n_ctx(self) -> int:
        return self.length

    def sample(
        self,
        split: str,
        n: int,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> Batch:
        """Draw `n` sequences; both splits have one distribution."""
        refuse_other_split(self, split)
        generator = as_generator(generator, seed)
        periods = (self.min_period, self.max_period + 1)
        period = torch.randint(*periods, (n, 1), generator=generator)
        block = torch.rand(n, self.n_tokens, generator=generator).argsort(dim=1)
        place = torch.arange(self.length + 1)
        said = block.gather(1, place % period)
        asked = (place[1:] > period) | (self.asked == "all")
        return Batch(said[:, :-1], torch.where(asked, said[:, 1:], NOT_ASKED), task=self)

    def answers(self, tokens: Tensor, targets: Tensor) -> Answers:
        """Return the keys that follow an earlier copy of the query's token."""
        earlier = tokens[:, :, None] == tokens[:, None, :]
        follows = torch.nn.functional.pad(earlier, (1, -1))
        return follows & self.candidates(tokens, targets)

    def candidates(self, tokens: Tensor, targets: Tensor) -> Answers:
        """Return every key but the first, up to the query."""
        n_positions = tokens.shape[1]
        seen = torch.ones(n_positions, n_positions, dtype=torch.bool, device=tokens.device).tril()
        seen[:, 0] = False
        return seen & (targets != NOT_ASKED)[:, :, None]
