"""Repeated tokens against a slow literal reading of what they are."""

import math

import pytest
import torch

import ih_interp as ih
from ih_interp.tasks import RepeatedTokens

TASKS = [
    RepeatedTokens(),
    RepeatedTokens(n_tokens=5, length=9, min_period=2, max_period=5),
    RepeatedTokens(n_tokens=20, length=13, min_period=3, max_period=3, asked="all"),
]


def period_of(sequence: list[int]) -> int:
    """How many tokens come before the first one that was said already, or all of them."""
    seen: set[int] = set()
    for token in sequence:
        if token in seen:
            break
        seen.add(token)
    return len(seen)


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_sequences_repeat_a_block_of_different_tokens(task):
    batch = task.sample("train", 300, seed=0)
    periods = [period_of(sequence) for sequence in batch.tokens.tolist()]
    assert set(periods) <= set(range(task.min_period, task.max_period + 1))
    assert len(set(periods)) == task.max_period - task.min_period + 1
    for sequence, targets, period in zip(
        batch.tokens.tolist(), batch.targets.tolist(), periods, strict=True
    ):
        for place in range(task.length):
            assert sequence[place] == sequence[place % period]
            determined = place >= period  # the query's token was said before, with its successor
            if determined or task.asked == "all":
                expected = sequence[(place + 1) % period] if place >= period - 1 else None
                assert targets[place] == (targets[place] if expected is None else expected)
                assert determined or targets[place] not in sequence[1 : place + 1]
            else:
                assert targets[place] == -100


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_answers_follow_the_earlier_copies(task):
    batch = task.sample("test", 40, seed=1)
    asked = batch.asked.tolist()
    answers, candidates = batch.answers.tolist(), batch.candidates.tolist()
    for row, sequence in enumerate(batch.tokens.tolist()):
        for query in range(task.length):
            for key in range(task.length):
                is_candidate = asked[row][query] and 1 <= key <= query
                follows = key >= 1 and sequence[key - 1] == sequence[query]
                assert candidates[row][query][key] == is_candidate
                assert answers[row][query][key] == (is_candidate and follows)


def test_reading_the_answers_leaves_no_loss_and_guessing_leaves_chance():
    task = RepeatedTokens()
    batch = task.sample("train", 50, seed=0)
    share = batch.answers / batch.answers.sum(dim=-1, keepdim=True).clamp(min=1)
    said = torch.nn.functional.one_hot(batch.tokens, task.n_tokens).float()
    perfect = ih.evaluation.sequence_metrics(30 * share @ said, batch)
    assert float(perfect["loss"].max()) < 1e-6
    assert float(perfect["accuracy"].min()) == 1
    guess = ih.evaluation.sequence_metrics(torch.zeros(50, task.length, task.n_tokens), batch)
    assert guess["loss"].tolist() == pytest.approx([math.log(task.n_tokens)] * 50)


def test_what_is_not_determined_costs_at_least_the_tokens_not_yet_said():
    """Of a block that is certainly not over, the next token is uniform over those not yet said."""
    task = RepeatedTokens(n_tokens=7, length=5, min_period=4, max_period=4, asked="all")
    batch = task.sample("train", 20_000, seed=0)
    for place in range(3):
        seen: dict[tuple[int, ...], list[int]] = {}
        for sequence, target in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
            seen.setdefault(tuple(sorted(sequence[: place + 1])), []).append(target[place])
        told, targets = max(seen.items(), key=lambda one: len(one[1]))
        left = [token for token in range(task.n_tokens) if token not in told]
        assert set(targets) == set(left)
        p, n = 1 / len(left), len(targets)
        for token in left:
            assert abs(targets.count(token) - p * n) < 5 * math.sqrt(n * p * (1 - p))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"min_period": 5, "max_period": 4}, "max_period"),
        ({"n_tokens": 8}, "n_tokens"),
        ({"length": 12}, "length"),
        ({"asked": "sometimes"}, "asked"),
    ],
)
def test_impossible_periods_are_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        RepeatedTokens(**fields)
