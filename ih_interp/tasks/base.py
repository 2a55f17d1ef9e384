"""The base of tasks: values that sample sequences and say what is asked of them."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, TypeAlias, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from ih_interp._config_base import short
from ih_interp._expect import expect, integer
from ih_interp._torch_state import plain_torch
from ih_interp.batch import NOT_ASKED, Answers, Batch
from ih_interp.registry import Kinded
from ih_interp.tasks.sampling import MAX_ENUMERATED
from ih_interp.types import Tokens

SequenceMetric: TypeAlias = Callable[[Float[Tensor, "batch pos token"], Batch], Tensor]
"""A number per sequence, `[batch]`, from the logits at every position and the batch."""


@runtime_checkable
class Task(Protocol):
    """The part of a task, an `AbstractTask` or a few-shot task, that all else uses.

    See `AbstractTask` for what each means.
    """

    @property
    def splits(self) -> tuple[str, ...]: ...
    @property
    def d_vocab(self) -> int: ...
    @property
    def d_vocab_out(self) -> int: ...
    @property
    def n_ctx(self) -> int: ...
    @property
    def asks_last(self) -> bool: ...
    @property
    def metrics(self) -> Mapping[str, SequenceMetric]: ...
    def sample(self, split: Any, n: int, *, generator: torch.Generator) -> Batch: ...
    def answers(self, tokens: Tensor, targets: Tensor) -> Answers: ...
    def candidates(self, tokens: Tensor, targets: Tensor) -> Answers: ...
    def enumerate(self, split: Any) -> Batch: ...


def _sampled_by(own: Callable[..., Any]) -> Callable[..., Batch]:
    """Return a task's `sample` with the checks and the seed that all tasks have."""

    @plain_torch()
    def sample(
        self: "AbstractTask",
        split: str,
        n: int,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
    ) -> Batch:
        refuse_other_split(self, split)
        batch = own(self, split, sample_size(n), generator=as_generator(generator, seed))
        is_plain = isinstance(batch, Batch) and batch.task is None
        return batch.replace(task=self) if is_plain else batch

    sample.__doc__ = own.__doc__
    return sample


class AbstractTask(Kinded):
    """A task as data: its fields are JSON, and `sample` draws sequences.

        class LastSeen(ih.tasks.AbstractTask):
            kind: Literal["last_seen"] = "last_seen"
            n_tokens: int = 16

    A subclass has a `kind` of its own, `d_vocab`, `n_ctx` and `sample`. `answers` and `candidates`
    serve the clamps and scores that look for the answer in the context; `metrics` are measured
    beside loss and accuracy. The loss is the mean cross-entropy over all asked positions.
    """

    family: ClassVar[str] = "task"
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    """The names of its sets of sequences; the first is trained on."""
    asks_last: ClassVar[bool] = False
    """Whether only the last position is ever asked; the others are then not computed."""

    @property
    @abstractmethod
    def d_vocab(self) -> int:
        """The number of tokens."""

    @property
    def d_vocab_out(self) -> int:
        """The number of tokens that can be answers; by default all."""
        return self.d_vocab

    @property
    @abstractmethod
    def n_ctx(self) -> int:
        """The number of positions of the longest sequence."""

    @property
    def metrics(self) -> Mapping[str, SequenceMetric]:
        """Metrics beside loss and accuracy, by name: logits `[batch, pos, token]` to `[batch]`."""
        return {}

    @abstractmethod
    def sample(self, split: str, n: int, *, generator: torch.Generator) -> Batch:
        """Draw `n` sequences of a split, all of one length, with the generator alone.

        Callers may give a seed in its place, `seed=0`. The library checks split and number, and
        tells the batch its task.
        """

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        if (own := cls.__dict__.get("sample")) is not None:
            cls.sample = _sampled_by(own)

    def answers(self, tokens: Tensor, targets: Tensor) -> Answers:  # noqa: ARG002
        """Return the keys that hold the answer to each query; ValueError where there are none."""
        raise ValueError(_no_roles(self, "answers"))

    def candidates(self, tokens: Tensor, targets: Tensor) -> Answers:  # noqa: ARG002
        """Return the keys among which the answer is to be found; ValueError where there are none.

        The logits of the copy clamp are the scores at these keys, for the tokens that stand there.
        """
        raise ValueError(_no_roles(self, "candidates"))

    def enumerate(self, split: str) -> Batch:
        """Return every sequence of the split once; ValueError where the task does not list them."""
        raise not_listed(self, split)

    def build(self) -> "Task":
        """Return the task with its inputs loaded, where they are files; by default itself."""
        return cast(Task, self)  # whose splits are the class's

    def structure(self) -> Any:
        """Return what must be equal for two runs to train in one graph; JSON."""
        return self.model_dump(mode="json")

    @property
    def identity(self) -> "AbstractTask":
        """Return what the numbers depend on, without the paths of files whose digests it has."""
        return self


class NextTokenTask(AbstractTask):
    """The base of tasks that ask for the next token; each position sees those before it.

    `answers` are the tokens that followed the query's token earlier, to which an induction head
    attends; `candidates` are all tokens up to the query's but the first.
    """

    length: int = Field(default=32, ge=3)
    """Tokens of a sequence."""

    @property
    def n_ctx(self) -> int:
        return self.length

    def structure(self) -> Any:
        return {"kind": self.kind, "d_vocab": self.d_vocab, "length": self.length}

    @abstractmethod
    def _draw(
        self, n: int, generator: torch.Generator
    ) -> tuple[Tokens, Bool[Tensor, "batch query"]]:
        """Draw one token more than `length`, and where the next one is asked."""

    def sample(self, split: str, n: int, *, generator: torch.Generator) -> Batch:  # noqa: ARG002
        """Draw `n` sequences; splits are drawn alike."""
        said, asked = self._draw(n, generator)
        return Batch(said[:, :-1], torch.where(asked, said[:, 1:], NOT_ASKED))

    def answers(self, tokens: Tensor, targets: Tensor) -> Answers:
        """Return the keys that follow an earlier copy of the query's token."""
        copies = tokens[:, :, None] == tokens[:, None, :]
        follows = torch.nn.functional.pad(copies, (1, -1))
        return follows & self.candidates(tokens, targets)

    def candidates(self, tokens: Tensor, targets: Tensor) -> Answers:
        """Return every key but the first, up to the query."""
        n_positions = tokens.shape[1]
        seen = torch.ones(n_positions, n_positions, dtype=torch.bool, device=tokens.device).tril()
        seen[:, 0] = False
        return seen & (targets != NOT_ASKED)[:, :, None]


def not_listed(task: object, split: object) -> ValueError:
    """Return the error of a task that cannot list all sequences of a split."""
    return ValueError(
        f"{task} does not list the sequences of {short(split)}; draw some, "
        "task.sample(split, 1_000, seed=0)."
    )


def _no_roles(task: AbstractTask, name: str) -> str:
    return (
        f"The task {task.kind!r} does not say where its {name} stand, which a clamp or a score "
        f"needs: define {name}(tokens, targets) in {type(task).__name__}."
    )


@plain_torch()
def drawn(task: Task, split: str, n: int, *, generator: torch.Generator) -> Batch:
    """Draw sequences; ValueError for those that do not fit what the task says of itself."""
    batch = task.sample(split, n, generator=generator)
    expect(batch, Batch, f"sample({split!r}, {n}) of {task}", "return ih.Batch(tokens, targets)")
    if len(batch) != n:
        raise ValueError(f"sample({split!r}, {n}) of {task} gave {len(batch)} sequences.")
    refuse_unfit(task, batch)
    return batch if batch.task is not None else batch.replace(task=task)


def refuse_unfit(task: Task, batch: Batch) -> None:
    """Raise ValueError for tokens, targets or lengths that the task has not declared."""
    tokens, targets = batch.tokens, batch.given_targets
    if tokens.shape[1] > task.n_ctx:
        raise ValueError(
            f"{task}: its sequences have {tokens.shape[1]} tokens: expected n_ctx={task.n_ctx} at "
            "most."
        )
    asked = targets[targets != NOT_ASKED]
    for name, values, high in (("tokens", tokens, "d_vocab"), ("targets", asked, "d_vocab_out")):
        size: int = getattr(task, high)
        if values.numel() and not (int(values.min()) >= 0 and int(values.max()) < size):
            raise ValueError(
                f"{task}: its {name} go from {int(values.min())} to {int(values.max())}: expected "
                f"0 to {size - 1}, below {high}={size}"
                f"{f', or {NOT_ASKED} where nothing is asked' if name == 'targets' else ''}."
            )
    if len(tokens) and not len(asked):
        raise ValueError(f"{task}: nothing is asked of its sequences, all targets are {NOT_ASKED}.")
    if task.asks_last and targets.ndim == 2 and bool((targets[:, :-1] != NOT_ASKED).any()):
        raise ValueError(
            f"{task}: asks_last=True, and other positions than the last have targets: expected "
            f"{NOT_ASKED} there, or asks_last=False."
        )


def as_generator(generator: torch.Generator | None, seed: int | None) -> torch.Generator:
    """Return the generator to sample from; TypeError where neither it nor a seed came, or both."""
    if (generator is None) == (seed is None):
        raise TypeError(
            "Sequences are sampled from a seed or a generator: give seed=0 or, to sample several "
            "times, generator=torch.Generator().manual_seed(0)."
        )
    if generator is not None:
        expect(generator, torch.Generator, "generator", "use torch.Generator().manual_seed(0)")
        return generator
    seed = integer(seed, f"seed={seed!r}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed={seed}: expected a whole number from 0 to 2^63 - 1.")
    return torch.Generator().manual_seed(seed)


def sample_size(n: object) -> int:
    """Return the number of sequences to sample; TypeError and ValueError for what is none."""
    n = integer(n, f"n={n!r}")
    if not 0 <= n <= MAX_ENUMERATED:
        raise ValueError(f"n={n}: expected 0 to {MAX_ENUMERATED:,} sequences.")
    return n


def refuse_other_split(task: "Task | AbstractTask", split: object) -> None:
    """Raise ValueError for a split that the task does not have."""
    if split not in task.splits:
        raise ValueError(f"split={short(split)}: choose from {', '.join(task.splits)}.")
