"""The words of the page: what each figure and table shows, its unit and its chance level."""

from collections.abc import Mapping, Sequence

from ih_interp.page.ablation import Ablations
from ih_interp.page.heads import COST, EDGE_REACH, EDGE_SHARE, NOISE, ROLE, TIMES_NOISE
from ih_interp.page.patterns import Patterns
from ih_interp.page.subject import Subject
from ih_interp.page.wiring import INPUTS as INPUTS, patched_batch

HEADS = {
    "head": "head",
    "role": "role",
    "score": "score",
    "chance": "chance",
    "since": "since (sequences)",
    "fed_by": "fed by",
    "feeds": "feeds",
    "cost": "cost (nats)",
    "clamped": "clamped by",
}
"""Columns of the table of heads that matter, as the page calls them."""

SINGLE = {
    "head": "head",
    "without": "loss without it",
    "low": "from",
    "high": "to",
    "cost": "cost",
    "only": "loss with it alone",
}

SETS = {
    "set": "set",
    "heads": "heads",
    "joint": "cost together",
    "sum": "sum of single costs",
    "redundancy": "redundancy",
}

ADDITIVE = {
    "metric": "metric",
    "part": "part",
    "r_squared": "R squared (95% interval)",
    "r_squared_per_sequence": "R squared per sequence (95% interval)",
}

BY_HEAD = {
    "head": "head",
    "first_in": "first in",
    "last_in": "last in",
    "redundancy": "redundancy",
    "shapley": "Shapley value",
}

REDUNDANCY = {"name": "measure", "via": "through", "value": "value", "interval": "95% interval"}

NO_HEADS = (
    f"No head has come {ROLE:.0%} of the way from chance to 1 in any score, and none costs "
    f"{COST:.0%} of what all heads cost together."
)


def heads(subject: Subject) -> str:
    """Return the caption of the table of heads that matter."""
    unit, _ = subject.patched
    return (
        f"Heads at the last checkpoint that have come {ROLE:.0%} of the way from chance to 1 in "
        f"a score, their role, or without which the loss rises by {COST:.0%} of what it rises "
        "without all heads; by layer, the best wired first. Since: the last time at which "
        "score - chance rose above half of its last value, 0 where it was never below. Cost: "
        "the rise of the loss with the head ablated by zero. Fed by, feeds: edges with at least "
        f"{EDGE_SHARE:.0%} of the head's use, {EDGE_REACH:.0%} of the strongest edge's and "
        f"{TIMES_NOISE} times the size of the lowest {NOISE:.0%} of all, if that is below 0, in "
        f"{unit}. Chance is the score of even attention."
    )


def losses(level: float, of_guess: str, ideal: str, *, has_clamps: bool) -> str:
    """Return the caption of the losses; `ideal` are those of ideal predictors in words, or none."""
    others = (
        f" The other grey lines are ideal predictors' on the sequences measured below: {ideal}."
    )
    strip = (
        " The strip below shows each clamp's gate, from 0 (free) to 1 (clamped, the strongest "
        "colour), as its schedule sets it."
        if has_clamps
        else ""
    )
    return (
        "The mean loss of each split, in nats, over the sequences seen; the dotted line is "
        f"{level:.3f}, {of_guess}.{others if ideal else ''}{strip}"
    )


def compared(guesses: Mapping[float, str]) -> str:
    """Return the caption of the losses of several runs, of losses of guesses, each in words."""
    lines = "line is" if len(guesses) == 1 else "lines are"
    levels = "; ".join(f"{level:.3f}, {of_guess}" for level, of_guess in guesses.items())
    return (
        "The mean loss of each run on one split, in nats, over the sequences seen, a colour per "
        f"run, dotted with every clamp off. The grey dotted {lines} {levels}."
    )


def score(name: str, words: str, chance: float) -> str:
    """Return what a score is, and its chance level."""
    return f"{name.capitalize()}: {words}; chance {chance:.3f} (dotted)."


def scores(subject: Subject, n_steps: int) -> str:
    """Return the caption of the scores, without that of the score which is shown."""
    return (
        f"One line per head, on {subject.said}, at {n_steps} of {len(subject.run.steps)} "
        "checkpoints; heads that matter are thick and have colours, layers differ in their dashes."
    )


def wiring(subject: Subject, steps: Sequence[int]) -> str:
    """Return the caption of the wiring."""
    unit, patch = subject.patched
    n = len(patched_batch(subject))
    return (
        f"Path patching: how much worse the model becomes, in {unit}, when the edge from a sender "
        f"to one input of a receiver carries {patch}; mean over {n} of these sequences, 0 for an "
        f"edge that carries nothing (chance), above 0 for one that serves the answer. Measured at "
        f"{len(steps)} of {len(subject.run.steps)} checkpoints, with even spaces between them. "
        "Cells have two digits that count, and 0 below a hundredth of the colours' end."
    )


def patterns(subject: Subject, found: Patterns) -> str:
    """Return the caption of the attention patterns."""
    return (
        "Attention weights of one head on one sequence, from 0 to 1; each row is a query and sums "
        "to 1, and a head that attends evenly gives 1 / (position + 1), chance. Under the run's "
        f"clamps, at {len(found.steps)} of {len(subject.run.steps)} checkpoints."
    )


def single(subject: Subject, found: Ablations) -> str:
    """Return the caption of the ablations of single heads."""
    return (
        f"The loss in nats at the last checkpoint with each head ablated by zero (with its 95% "
        f"interval over sequences) and with it alone, on {subject.said}: {found.everything:.3f} "
        f"with all heads, {found.nothing:.3f} with none of them."
    )


def sets() -> str:
    """Return the caption of the ablations of sets."""
    return (
        "What sets of heads cost together and one by one, in nats; redundancy is 1 - sum / "
        "together: 0 where costs add (chance), 1 where only all together matter, below 0 where "
        "heads need each other."
    )


def additive(chosen: Sequence[str]) -> str:
    """Return the caption of the test of additivity."""
    n = len(chosen)
    return (
        f"Additivity of {', '.join(chosen)} over all {2**n} subsets: R squared of the best "
        "additive fit, of the mean and of each sequence, in [0, 1]; 1 is additive, "
        f"{n / (2**n - 1):.3f} a random game (chance). Frozen: with the final norm's scale held."
    )


def by_head() -> str:
    """Return the caption of the measures of single heads among the others."""
    return (
        "The change of the loss in nats by each of these heads: added to none, added to all "
        "others, and on average; redundancy is above 0 where a head can do more alone than is "
        "missed without it, and 0 where heads add up (chance)."
    )


def redundancy(subject: Subject) -> str:
    """Return the caption of the redundancy of the wiring."""
    last = subject.run.config.model.n_layers - 1
    return (
        f"How evenly edges from layer 0 to layer {last} share their use at the last checkpoint, "
        "from 0 (one to one; one sender per receiver; one receiver per sender) to 1 (all to all). "
        "Pure noise looks like 1: read it beside the wiring itself."
    )
