"""Optimisers and schedules of their learning rate: values with a `kind`, JSON both ways.

    ih.Adam(learning_rate=3e-4, weight_decay=0.01, clip=1.0)
    ih.SGD(learning_rate=0.1, momentum=0.9, schedule=ih.optimisers.Cosine(steps=10_000))

An optimiser of your own is a subclass of `AbstractOptimiser` with a `kind` and `update_one`.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, TypeAlias

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from ih_interp.registry import AnyOf, Kinded

Named: TypeAlias = Mapping[str, Tensor]
"""Tensors by the name of the parameter; for a fleet axis 0 is the run."""


class AbstractRate(Kinded):
    """A schedule of the learning rate: a factor for every update, counted from 0."""

    family: ClassVar[str] = "rate"

    @abstractmethod
    def factor(self, step: int) -> float:
        """Return what the learning rate is multiplied by, after `step` updates."""


class Constant(AbstractRate):
    """A learning rate that stays the same."""

    kind: Literal["constant"] = "constant"

    def factor(self, step: int) -> float:  # noqa: ARG002
        return 1.0


class WarmUp(AbstractRate):
    """A learning rate that rises in a straight line, from `1 / steps` of it at update 0.

    Update `steps - 1` is the first with all of it.
    """

    kind: Literal["warm_up"] = "warm_up"
    steps: int = Field(ge=1)
    """Updates of the rise."""

    def factor(self, step: int) -> float:
        return min(1.0, (step + 1) / self.steps)


class Cosine(AbstractRate):
    """A learning rate that rises in a straight line, then falls along half a cosine."""

    kind: Literal["cosine"] = "cosine"
    steps: int = Field(ge=1)
    """Updates until it has fallen, those of the rise included; it stays there afterwards."""
    warm_up: int = Field(default=0, ge=0)
    """Updates of the rise."""
    last: float = Field(default=0.0, ge=0, le=1)
    """The share of the learning rate that is left after `steps`."""

    @model_validator(mode="after")
    def _falls(self) -> "Cosine":
        if self.warm_up >= self.steps:
            raise ValueError(f"warm_up={self.warm_up}: expected less than steps={self.steps}.")
        return self

    def factor(self, step: int) -> float:
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        share = min(1.0, (step - self.warm_up) / (self.steps - self.warm_up))
        return self.last + (1 - self.last) * (1 + math.cos(math.pi * share)) / 2


class AbstractOptimiser(Kinded):
    """An optimiser: how an update follows from gradients."""

    family: ClassVar[str] = "optimiser"

    learning_rate: float = Field(gt=0)
    """Step size, which `schedule` multiplies."""
    schedule: AnyOf[AbstractRate] = Constant()
    """How it changes: `Constant()`, `WarmUp(...)` or `Cosine(...)` of `ih.optimisers`."""
    clip: float | None = Field(default=None, gt=0)
    """The largest norm of a run's gradients, all parameters together; None for none."""

    @property
    def n_moments(self) -> int:
        """The number of tensors that it keeps per parameter, which begin at 0; none by default."""
        return 0

    @abstractmethod
    def update_one(
        self, weight: Tensor, gradient: Tensor, moments: Sequence[Tensor], *numbers: Tensor
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Return a parameter and its moments after an update; nothing is changed in place.

        The numbers are those of `shared`: by default `count`, of this update from 1, and `rate`. A
        fleet has an axis in front of each, the run, over which they are broadcast: element by
        element nothing need be done for it.
        """

    def shared(self, count: Tensor, rate: Tensor) -> tuple[Tensor, ...]:
        """Return the numbers of an update that are the same for all parameters."""
        return count, rate

    def rate(self, step: int) -> float:
        """Return the learning rate of the update after `step` others."""
        return self.learning_rate * self.schedule.factor(step)

    def update(
        self,
        parameters: Named,
        moments: Sequence[Named],
        gradients: Named,
        count: Float[Tensor, "*run"],
        rate: Float[Tensor, "*run"],
    ) -> tuple[dict[str, Tensor], tuple[dict[str, Tensor], ...]]:
        """Return parameters and moments after update number `count`, counted from 1."""
        if self.clip is not None:
            gradients = clipped(gradients, self.clip, axes=count.ndim)
        shared = self.shared(count, rate)
        new: dict[str, Tensor] = {}
        kept: tuple[dict[str, Tensor], ...] = tuple({} for _ in moments)
        for name, gradient in gradients.items():
            weight, own = parameters[name], [group[name] for group in moments]
            over_runs = (-1,) + (1,) * (weight.ndim - 1) if count.ndim else ()
            numbers = [number.reshape(over_runs) for number in shared]
            new[name], after = self.update_one(weight, gradient, own, *numbers)
            for group, moment in zip(kept, after, strict=True):
                group[name] = moment
        return new, kept


def clipped(gradients: Named, most: float, *, axes: int) -> Named:
    """Return gradients scaled to a norm of at most `most`, by run where `axes` is 1."""
    squares = [g.square().flatten(start_dim=axes).sum(dim=-1) for g in gradients.values()]
    scale = (most / (torch.stack(squares).sum(dim=0).sqrt() + 1e-6)).clamp(max=1)
    return {
        n: g * scale.reshape(scale.shape + (1,) * (g.ndim - axes)) for n, g in gradients.items()
    }


class Adam(AbstractOptimiser):
    """Kingma and Ba's Adam, or AdamW; defaults are the paper's: no decay, warm-up or clipping."""

    kind: Literal["adam"] = "adam"
    learning_rate: float = Field(default=1e-5, gt=0)
    """Step size, which `schedule` multiplies."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the running mean of gradients, from one update to the next."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the running mean of squared gradients."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the mean square, by which a step is divided."""
    weight_decay: float = Field(default=0.0, ge=0)
    """How much a weight loses per update: its share of the learning rate, if `decoupled`."""
    decoupled: bool = True
    """True decays weights beside the step, as AdamW; false adds the decay to the gradient."""

    @property
    def n_moments(self) -> int:
        return 2

    def shared(self, count: Tensor, rate: Tensor) -> tuple[Tensor, ...]:
        """Return the rate, the rate for unbiased means, and the share seen of mean squares."""
        return rate, rate / (1 - self.beta1**count), 1 - self.beta2**count

    def update_one(
        self, weight: Tensor, gradient: Tensor, moments: Sequence[Tensor], *numbers: Tensor
    ) -> tuple[Tensor, Sequence[Tensor]]:
        (m, v), (rate, scale, share) = moments, numbers
        if self.weight_decay and self.decoupled:
            weight = weight * (1 - rate * self.weight_decay)
        elif self.weight_decay:
            gradient = gradient + self.weight_decay * weight
        m = self.beta1 * m + (1 - self.beta1) * gradient
        v = self.beta2 * v + (1 - self.beta2) * gradient * gradient
        spread = (v / share).sqrt()
        return weight - scale * m / (spread + self.eps), (m, v)


class SGD(AbstractOptimiser):
    """Gradient descent, with momentum if asked for, as torch writes it."""

    kind: Literal["sgd"] = "sgd"
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the running sum of gradients; 0 keeps none."""
    nesterov: bool = False
    """True steps along the gradient and the sum after it; it needs momentum."""
    weight_decay: float = Field(default=0.0, ge=0)
    """This share of a weight is added to its gradient."""

    @model_validator(mode="after")
    def _has_momentum(self) -> "SGD":
        if self.nesterov and not self.momentum:
            raise ValueError(f"nesterov={self.nesterov}: expected momentum above 0 with it.")
        return self

    @property
    def n_moments(self) -> int:
        return int(self.momentum > 0)

    def update_one(
        self, weight: Tensor, gradient: Tensor, moments: Sequence[Tensor], *numbers: Tensor
    ) -> tuple[Tensor, Sequence[Tensor]]:
        _, rate = numbers
        if self.weight_decay:
            gradient = gradient + self.weight_decay * weight
        if not moments:
            return weight - rate * gradient, ()
        total = self.momentum * moments[0] + gradient
        step = gradient + self.momentum * total if self.nesterov else total
        return weight - rate * step, (total,)
