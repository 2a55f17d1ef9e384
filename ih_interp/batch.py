"""Sequences, what is asked of them, and where their parts stand."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ih_interp._expect import as_indices, expect, integer, values_are_known


@dataclass(frozen=True)
class Layout:
    """The places of exemplars, labels and the query in `x1 l1 x2 l2 ... xq`.

    >>> Layout(n_pairs=2).labels, Layout(n_pairs=2).query
    ((1, 3), 4)
    """

    n_pairs: int

    @classmethod
    def of(cls, n_positions: int) -> "Layout":
        """Return the layout of few-shot sequences with so many positions; ValueError for others."""
        if n_positions < 3 or n_positions % 2 == 0:
            raise ValueError(
                f"{n_positions} positions are not pairs and a query: expected an odd number of at "
                "least 3, x1 l1 ... xq."
            )
        return cls(n_pairs=n_positions // 2)

    @property
    def exemplars(self) -> tuple[int, ...]:
        """Positions of the exemplars in the context."""
        return tuple(range(0, 2 * self.n_pairs, 2))

    @property
    def labels(self) -> tuple[int, ...]:
        """Positions of their labels."""
        return tuple(range(1, 2 * self.n_pairs, 2))

    @property
    def query(self) -> int:
        """Position of the query, the last one."""
        return 2 * self.n_pairs

    @property
    def n_positions(self) -> int:
        return 2 * self.n_pairs + 1

    def answers(self, tokens: Tensor, targets: Tensor) -> "Answers":
        """Return the labels of the context that equal the query's target."""
        return self.candidates(tokens, targets) & (tokens[:, None, :] == targets[:, :, None])

    def candidates(self, tokens: Tensor, targets: Tensor) -> "Answers":  # noqa: ARG002
        """Return the labels of the context, for the query."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        is_query, is_label = places == self.query, places % 2 == 1
        return (is_query[:, None] & is_label).expand(len(tokens), -1, -1)


Answers: TypeAlias = Bool[Tensor, "batch query key"]
"""True at the keys that hold the answer to a query (or are its candidates); all False where nothing
is asked."""


class Roles(Protocol):
    """An object that knows where answers stand: a task, or the `Layout` of few-shot sequences."""

    def answers(self, tokens: Tensor, targets: Tensor) -> Answers:
        """Return the keys that hold the answer to each query."""
        ...

    def candidates(self, tokens: Tensor, targets: Tensor) -> Answers:
        """Return the keys among which the answer to each query has to be found."""
        ...


NOT_ASKED = -100
"""The target of a position at which nothing is asked, as in torch's `cross_entropy`."""


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Batch:
    """Sequences and what is asked of them: the token that should come at each asked position.

    A batch that a task drew knows the task: it says where the answers stand, and functions refuse a
    model that embeds other exemplars. Plain tokens have no layout: what needs few-shot sequences
    refuses them.

    Args:
        tokens: `[batch, pos]`, whole numbers of any width, which become int64.
        targets: `[batch, pos]`, -100 where nothing is asked, or `[batch]`, asked at the last
            position only.
        lengths: `[batch]`, where sequences of different lengths are padded at their ends; means
            over positions then leave the padding out. Nothing may be asked there.
        foils: `[batch, foil]`, the tokens with which `logit_difference` compares the target; -100
            fills rows that have fewer.
        answers: `[batch, query, key]`; by default those of the task.
        candidates: `[batch, query, key]`; by default those of the task.
        layout: where the parts of few-shot sequences stand; by default the task's.
        task: the task that drew them.
    """

    tokens: Int[Tensor, "batch pos"]
    given_targets: Tensor
    given_lengths: Tensor | None
    foils: Tensor | None
    given_layout: Layout | None
    task: Any
    given_roles: tuple[Tensor | None, Tensor | None]

    def __init__(
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        lengths: Tensor | None = None,
        foils: Tensor | None = None,
        answers: Tensor | None = None,
        candidates: Tensor | None = None,
        layout: Layout | None = None,
        task: Any = None,
    ) -> None:
        for name, value in (("tokens", tokens), ("targets", targets)):
            expect(value, Tensor, name, "use torch.tensor(...)")
        tokens, targets = as_indices(tokens, "tokens"), as_indices(targets, "targets")
        if tokens.device != targets.device:
            raise ValueError(
                f"tokens are on {tokens.device} and targets on {targets.device}: expected one "
                "device, tokens.to(device) and targets.to(device)."
            )
        if tokens.ndim != 2 or targets.shape not in (tokens.shape, tokens.shape[:1]):
            raise ValueError(
                f"tokens have shape {tuple(tokens.shape)} and targets {tuple(targets.shape)}: "
                "expected [batch, pos] and [batch, pos], or [batch] for the last position."
            )
        if foils is not None:
            foils = _foils(foils, tokens)
        if lengths is not None:
            lengths = _lengths(lengths, tokens, targets)
        for name, keys in (("answers", answers), ("candidates", candidates)):
            _refuse_keys(name, keys, tokens)
        layout = getattr(task, "layout", None) if layout is None else layout
        if layout is not None:
            expect(layout, Layout, "layout", "use ih.tasks.Layout(n_pairs)")
        if layout is not None and layout.n_positions != tokens.shape[1]:
            raise ValueError(f"{layout}: expected {tokens.shape[1]} positions, as tokens have.")
        fields = {"tokens": tokens, "given_targets": targets, "given_layout": layout, "task": task}
        fields |= {"given_lengths": lengths, "foils": foils, "given_roles": (answers, candidates)}
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __repr__(self) -> str:
        shape = list(self.tokens.shape)
        return f"Batch(tokens=Tensor{shape}, targets=Tensor{shape})"

    @property
    def targets(self) -> Int[Tensor, "batch pos"]:
        """Return the token asked at every position; -100 where none is asked."""
        if self.given_targets.ndim == 2:
            return self.given_targets
        nothing = torch.full_like(self.tokens[:, :-1], NOT_ASKED)
        return torch.cat([nothing, self.given_targets[:, None]], dim=1)

    @property
    def target(self) -> Int[Tensor, " batch"]:
        """Return the token asked at the last position."""
        return self.given_targets if self.given_targets.ndim == 1 else self.given_targets[:, -1]

    @property
    def asked(self) -> Bool[Tensor, "batch pos"]:
        """Return at which positions a token is asked."""
        return self.targets != NOT_ASKED

    @property
    def asks_last(self) -> bool:
        """Return whether targets came as `[batch]`, asked at the last position only."""
        return self.given_targets.ndim == 1

    @property
    def asked_rows(self) -> tuple[Int[Tensor, " asked"], Int[Tensor, " asked"]]:
        """Return the sequence and the position of each target, sequence by sequence."""
        sequences, positions = self.asked.nonzero(as_tuple=True)
        return sequences, positions

    @property
    def present(self) -> Bool[Tensor, "batch pos"]:
        """Return which positions hold a token of the sequence, and no padding."""
        if self.given_lengths is None:
            return torch.ones_like(self.tokens, dtype=torch.bool)
        positions = torch.arange(self.tokens.shape[1], device=self.tokens.device)
        return positions < self.given_lengths[:, None]

    @property
    def answers(self) -> Answers:
        """Keys that hold the answer to each query; ValueError where no task says."""
        return self._keys(0, "answers")

    @property
    def candidates(self) -> Answers:
        """Keys among which the answer has to be found; ValueError where no task says."""
        return self._keys(1, "candidates")

    def _keys(self, place: int, name: str) -> Answers:
        given, roles = self.given_roles[place], self.task or self.given_layout
        if given is None and roles is None:
            raise ValueError(
                f"These sequences do not say where their {name} stand: draw them with a task's "
                f"sample, or give Batch(tokens, targets, {name}=...) a [batch, query, key]."
            )
        return getattr(roles, name)(self.tokens, self.targets) if given is None else given

    @property
    def is_few_shot(self) -> bool:
        """Return whether the sequences are known to be `x1 l1 ... xq`."""
        return self.given_layout is not None

    @property
    def layout(self) -> Layout:
        """The layout of few-shot sequences; ValueError for any others."""
        if self.given_layout is None:
            raise ValueError(
                "These are plain tokens: expected few-shot sequences, drawn by a FewShotTask, or "
                "Batch(tokens, targets, layout=ih.tasks.Layout(n_pairs))."
            )
        return self.given_layout

    @property
    def context_labels(self) -> Int[Tensor, "batch pair"]:
        """The labels of the context; a label token is the label itself."""
        return self.tokens[:, list(self.layout.labels)]

    @property
    def correct(self) -> Bool[Tensor, "batch pair"]:
        """True for the context labels that equal the target."""
        return self.context_labels == self.target[:, None]

    def replace(self, **changes: Any) -> "Batch":
        """Return the batch with other tokens or targets, or another of its arguments."""
        answers, candidates = self.given_roles
        now: dict[str, Any] = {
            "lengths": self.given_lengths,
            "foils": self.foils,
            "tokens": self.tokens,
            "targets": self.given_targets,
            "layout": self.given_layout,
        }
        now |= {"task": self.task, "answers": answers, "candidates": candidates}
        return Batch(**{**now, **changes})

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with a function applied to each of its tensors."""
        answers, candidates = self.given_roles
        tensors = {"lengths": self.given_lengths, "foils": self.foils}
        tensors |= {"answers": answers, "candidates": candidates}
        changed = {name: None if t is None else function(t) for name, t in tensors.items()}
        tokens, targets = function(self.tokens), function(self.given_targets)
        return self.replace(tokens=tokens, targets=targets, **changed)

    def to(self, device: str) -> "Batch":
        return self.map(lambda tensor: tensor.to(device))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: "slice | Tensor") -> "Batch":
        try:
            return self.map(lambda tensor: tensor[rows])
        except IndexError as error:
            what = f"a slice, or rows of {len(self)} as int64 or bool"
            raise IndexError(f"batch[rows]: expected {what}: {error}.") from error

    def split(self, size: int) -> "list[Batch]":
        """Return consecutive batches of at most `size` sequences; ValueError if there are none."""
        if integer(size, "size") < 1:
            raise ValueError(f"size={size}: expected at least 1.")
        if len(self) == 0:
            raise ValueError("There are no sequences in this batch; give at least one.")
        return [self[start : start + size] for start in range(0, len(self), size)]


def _foils(foils: Tensor, tokens: Tensor) -> Int[Tensor, "batch foil"]:
    """Return foils as int64; ValueError unless every sequence has one at least."""
    expect(foils, Tensor, "foils", "use torch.tensor(...)")
    foils = as_indices(foils, "foils")
    is_fit = foils.ndim == 2 and len(foils) == len(tokens) and foils.device == tokens.device
    if not is_fit or (values_are_known() and not bool((foils != NOT_ASKED).any(dim=1).all())):
        raise ValueError(
            f"foils have shape {tuple(foils.shape)} on {foils.device}: expected [{len(tokens)}, "
            f"foil] on {tokens.device}, with a token in every row; -100 fills shorter ones."
        )
    return foils


def _lengths(lengths: Tensor, tokens: Tensor, targets: Tensor) -> Int[Tensor, " batch"]:
    """Return lengths as int64; ValueError for other numbers and for a target behind the end."""
    expect(lengths, Tensor, "lengths", "use torch.tensor(...)")
    lengths, n_positions = as_indices(lengths, "lengths"), tokens.shape[1]
    if lengths.shape != tokens.shape[:1] or lengths.device != tokens.device:
        raise ValueError(
            f"lengths have shape {tuple(lengths.shape)} on {lengths.device}: expected "
            f"[{len(tokens)}] on {tokens.device}."
        )
    if not values_are_known() or lengths.numel() == 0:
        return lengths
    low, high = int(lengths.min()), int(lengths.max())
    if low < 1 or high > n_positions:
        raise ValueError(f"lengths: expected 1 to {n_positions}, got {low} to {high}.")
    if targets.ndim == 1:
        last = torch.full_like(lengths, n_positions)
    else:
        places = torch.arange(1, n_positions + 1, device=tokens.device)
        last = (places * (targets != NOT_ASKED)).amax(dim=1)
    if bool((last > lengths).any()):
        raise ValueError(
            "targets: expected none behind a sequence's length, where padding stands; give "
            "[batch, pos] with the target at the last token of each."
        )
    return lengths


def _refuse_keys(name: str, keys: Any, tokens: Tensor) -> None:
    """Refuse answers or candidates other than a bool `[batch, query, key]` of these tokens."""
    if keys is None:
        return
    expect(keys, Tensor, name, "use torch.tensor(...)")
    shape = (*tokens.shape, tokens.shape[1])
    if keys.dtype != torch.bool or keys.shape != shape or keys.device != tokens.device:
        raise ValueError(
            f"{name} have dtype {keys.dtype} and shape {tuple(keys.shape)} on {keys.device}: "
            f"expected torch.bool, {shape}, on {tokens.device}."
        )
