"""Markov chains whose transitions only the context tells, and the losses of ideal predictors."""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from ih_interp._torch_state import plain_torch
from ih_interp.batch import Batch
from ih_interp.tasks.base import NextTokenTask
from ih_interp.types import Tokens


class MarkovChains(NextTokenTask):
    """Sequences of Markov chains, as in Edelman et al. (2024): the next state is asked everywhere.

    Every sequence has a transition matrix of its own, each row from a Dirichlet distribution, or
    one of `n_chains` fixed matrices, drawn so once. The first state is uniform. `answers` are the
    states that followed earlier visits of the query's state, over which a statistical induction
    head averages: not all of them equal the target. `reference_losses` are those of ideal
    predictors.

    With 5 states, length 32 and `alpha=0.3`, the paper's model in batches of 32 at a learning rate
    of 3e-3 passes the unigram's 1.48 nats in 100 updates, and comes within 5% of the bigram's 1.17
    in 300. With 10 states, length 64 and `alpha=1` a uniform guess is already that near.
    """

    kind: Literal["markov_chains"] = "markov_chains"
    n_states: int = Field(default=10, ge=2, le=100)
    """States, which are the tokens."""
    length: int = Field(default=64, ge=3)
    """Tokens of a sequence."""
    n_chains: int | None = Field(default=None, ge=1, le=10_000)
    """How many transition matrices there are; None draws a new one for every sequence."""
    alpha: float = Field(default=1.0, gt=0, le=1e6)
    """Concentration of the Dirichlet distribution; 1 is uniform over all rows."""
    chains_seed: int = Field(default=0, ge=0, lt=2**32)
    """The seed of the fixed transition matrices."""

    @property
    def d_vocab(self) -> int:
        return self.n_states

    @property
    def chains(self) -> Float[Tensor, "chain state state"]:
        """The fixed transition matrices, from row to column; ValueError where there are none."""
        if self.n_chains is None:
            raise ValueError("n_chains=None: expected a number, for matrices that are fixed.")
        return self._transitions(self.n_chains, self.chains_seed)

    def _transitions(self, n: int, seed: int) -> Float[Tensor, "chain state state"]:
        drawn = np.random.default_rng(seed).dirichlet(
            np.full(self.n_states, self.alpha), size=(n, self.n_states)
        )
        return torch.from_numpy(drawn)

    def _draw(
        self, n: int, generator: torch.Generator
    ) -> tuple[Tokens, Bool[Tensor, "batch query"]]:
        if self.n_chains is None:
            seed = int(torch.randint(2**62, (1,), generator=generator))
            chains = self._transitions(n, seed)
        else:
            chains = self.chains[torch.randint(self.n_chains, (n,), generator=generator)]
        below = chains.cumsum(dim=-1)
        below = below / below[..., -1:]
        draws = torch.rand(n, 1, self.length, dtype=torch.float64, generator=generator)
        # Where each place would lead from every state, so that only looking up goes by place.
        leads = torch.searchsorted(below, draws.repeat(1, self.n_states, 1), right=True)
        visited = [torch.randint(self.n_states, (n, 1), generator=generator)]
        for place in range(self.length):
            visited.append(leads[:, :, place].gather(1, visited[-1]))
        return torch.cat(visited, dim=1), torch.ones(n, self.length, dtype=torch.bool)

    @plain_torch()
    def reference_losses(self, batch: Batch) -> dict[str, Float[Tensor, " batch"]]:
        """Return the loss of ideal predictors per sequence, in nats, as a model's loss is.

        With counts over the tokens up to the query, n states and a = `alpha`:

            unigram  (visits of the next state + a) / (tokens + n a)
            bigram   (moves from the query's state to the next + a) / (moves from it + n a)
            optimal  the best that a predictor can do who knows how the task draws: of `n_chains`
                     fixed chains, the mean of their transitions under the posterior over chains;
                     the bigram where every sequence has a chain of its own

        Raises ValueError for sequences that this task does not draw.
        """
        tokens, targets = batch.tokens, batch.targets
        if not bool((targets[:, :-1] == tokens[:, 1:]).all()) or not bool(
            ((targets >= 0) & (tokens >= 0) & (tokens.maximum(targets) < self.n_states)).all()
        ):
            raise ValueError(f"batch: expected sequences of {self}, each state the target before.")
        prior, n_seen = self.n_states * self.alpha, torch.arange(1, tokens.shape[1] + 1)
        following = targets[:, :, None]
        visits = (following == tokens[:, None, :]).tril().sum(dim=-1)
        left = (tokens[:, :, None] == tokens[:, None, :]).tril(diagonal=-1)
        moves = (left & (following == targets[:, None, :])).sum(dim=-1)
        given = {
            "unigram": (visits.double() + self.alpha) / (n_seen.to(tokens.device) + prior),
            "bigram": (moves.double() + self.alpha) / (left.sum(dim=-1) + prior),
        }
        losses = {name: -p.log().mean(dim=1) for name, p in given.items()}
        return losses | {"optimal": self._optimal_loss(batch, losses["bigram"])}

    def _optimal_loss(
        self, batch: Batch, bigram: Float[Tensor, " batch"]
    ) -> Float[Tensor, " batch"]:
        if self.n_chains is None:
            return bigram
        log_p = self.chains.log().to(batch.tokens.device)
        # The predictions of the posterior multiply to the probability of the whole sequence.
        moves = zip(batch.tokens.T, batch.targets.T, strict=True)
        of_chains = sum(log_p[:, start, end] for start, end in moves)
        assert isinstance(of_chains, Tensor)
        whole = of_chains.logsumexp(dim=0) - np.log(self.n_chains)
        return -whole / batch.tokens.shape[1]
