"""Markov chains and their reference losses against Python loops."""

import itertools
import math

import pytest
import torch

from ih_interp.tasks import MarkovChains

FRESH = MarkovChains(n_states=3, length=12)
SKEWED = MarkovChains(n_states=4, length=9, alpha=0.3)
FIXED = MarkovChains(n_states=3, length=10, n_chains=4, chains_seed=2)
TASKS = pytest.mark.parametrize("task", [FRESH, SKEWED, FIXED], ids=str)


def brute_losses(task: MarkovChains, states: list[int]) -> dict[str, float]:
    """The mean loss of every predictor, with counts made anew at every position."""
    n, a = task.n_states, task.alpha
    losses: dict[str, list[float]] = {"unigram": [], "bigram": [], "optimal": []}
    chains = None if task.n_chains is None else task.chains.tolist()
    for now in range(len(states) - 1):
        state, following, seen = states[now], states[now + 1], states[: now + 1]
        losses["unigram"].append((seen.count(following) + a) / (len(seen) + n * a))
        moves = list(itertools.pairwise(seen))
        left = sum(one == state for one, _ in moves)
        losses["bigram"].append((moves.count((state, following)) + a) / (left + n * a))
        if chains is None:
            losses["optimal"].append(losses["bigram"][-1])
            continue
        likelihoods = [math.prod(chain[i][j] for i, j in moves) for chain in chains]
        weights = [one / sum(likelihoods) for one in likelihoods]
        p = sum(w * chain[state][following] for w, chain in zip(weights, chains, strict=True))
        losses["optimal"].append(p)
    return {name: -sum(map(math.log, p)) / len(p) for name, p in losses.items()}


@TASKS
def test_reference_losses_equal_brute_force(task):
    batch = task.sample("train", 30, seed=0)
    found = task.reference_losses(batch)
    for row, tokens in enumerate(batch.tokens.tolist()):
        expected = brute_losses(task, [*tokens, int(batch.target[row])])
        for name, loss in expected.items():
            assert float(found[name][row]) == pytest.approx(loss, abs=1e-6)


def test_the_bigram_is_the_posterior_mean_under_the_prior():
    """Its prediction equals the mean of many chains from the prior, weighted by likelihood."""
    states = [0, 1, 1, 0, 1, 2, 1]
    many = MarkovChains(n_states=3, length=6, n_chains=10_000, chains_seed=1)
    tokens, targets = torch.tensor([states[:-1]]), torch.tensor([states[1:]])
    batch = FRESH.sample("train", 1, seed=0).replace(tokens=tokens, targets=targets)
    optimal, bigram = (
        float(task.reference_losses(batch)["optimal"])
        for task in (many, MarkovChains(n_states=3, length=6))
    )
    assert optimal == pytest.approx(bigram, abs=0.02)


@pytest.mark.parametrize("n_chains", [None, 6])
def test_the_optimal_predictor_is_the_best_on_average(n_chains):
    task = MarkovChains(n_states=4, length=40, n_chains=n_chains)
    losses = task.reference_losses(task.sample("test", 2_000, seed=3))
    means = {name: float(values.mean()) for name, values in losses.items()}
    assert means["optimal"] <= means["bigram"] < means["unigram"] < math.log(4) + 0.1


def test_moves_are_as_frequent_as_the_chain_says():
    task = MarkovChains(n_states=4, length=60, n_chains=1)
    batch = task.sample("train", 1_000, seed=0)
    (chain,) = task.chains.tolist()
    starts = batch.tokens[:, 0].tolist()
    for state in range(4):
        assert abs(starts.count(state) - 250) < 5 * math.sqrt(1_000 * 0.25 * 0.75)
        after = batch.targets[batch.tokens == state].tolist()
        for following in range(4):
            p, n = chain[state][following], len(after)
            assert abs(after.count(following) - p * n) < 5 * math.sqrt(n * p * (1 - p)) + 1


def test_rows_have_the_moments_of_the_dirichlet_distribution():
    for alpha in (0.05, 1.0, 20.0):
        chains = MarkovChains(n_states=5, n_chains=2_000, alpha=alpha).chains
        assert chains.sum(dim=-1).allclose(torch.ones(()).double())
        variance = 0.2 * 0.8 / (5 * alpha + 1)
        assert float(chains.mean(dim=(0, 1)).sub(0.2).abs().max()) < 5 * math.sqrt(variance / 1e4)
        assert float(chains.var()) == pytest.approx(variance, rel=0.1)


@TASKS
def test_answers_follow_earlier_visits(task):
    batch = task.sample("test", 20, seed=1)
    answers, candidates = batch.answers.tolist(), batch.candidates.tolist()
    for row, states in enumerate(batch.tokens.tolist()):
        for query, key in itertools.product(range(task.length), repeat=2):
            seen = 1 <= key <= query
            assert candidates[row][query][key] == seen
            assert answers[row][query][key] == (seen and states[key - 1] == states[query])


def test_sequences_of_another_task_have_no_reference_losses():
    batch = FRESH.sample("train", 5, seed=0)
    for wrong in (
        batch.replace(targets=batch.tokens),
        batch.replace(targets=batch.target),
        MarkovChains(n_states=9, length=12).sample("train", 50, seed=0),
    ):
        with pytest.raises(ValueError, match="batch"):
            FRESH.reference_losses(wrong)


def test_matrices_that_are_fixed_are_the_same_for_all_splits_and_seeds():
    assert torch.equal(FIXED.chains, FIXED.replace(length=20).chains)
    assert not torch.equal(FIXED.chains, FIXED.replace(chains_seed=3).chains)
    with pytest.raises(ValueError, match="n_chains"):
        _ = FRESH.chains
