"""Optimisers against torch's over 100 updates, alone, in a fleet and traced."""

import copy
from typing import Literal

import pytest
import torch
from small_runs import SMALL, make_fleet
from torch.testing import assert_close

import ih_interp as ih
from ih_interp import optimisers, registry
from ih_interp.engine.compiled_forward import traced
from ih_interp.optimisers import AbstractOptimiser, AbstractRate, Constant, Cosine, WarmUp
from ih_interp.training.fleet import trace_key

IN_TORCH = {
    "adam": (ih.Adam(learning_rate=1e-2), lambda p: torch.optim.Adam(p, lr=1e-2)),
    "adam coupled": (
        ih.Adam(learning_rate=1e-2, weight_decay=0.1, decoupled=False),
        lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=0.1),
    ),
    "adam decoupled": (
        ih.Adam(learning_rate=1e-2, weight_decay=0.1, beta1=0.8, beta2=0.9, eps=1e-3),
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-3),
    ),
    "sgd": (ih.SGD(learning_rate=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
    "sgd momentum": (
        ih.SGD(learning_rate=0.01, momentum=0.9, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1),
    ),
    "sgd nesterov": (
        ih.SGD(learning_rate=0.01, momentum=0.9, nesterov=True),
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True),
    ),
}

OTHERS = {"sgd": ih.SGD(learning_rate=0.1)}
"""Where the defaults make no instance."""

RATES = [Constant(), WarmUp(steps=7), Cosine(steps=40, warm_up=5, last=0.1), Cosine(steps=30)]


def made(kind):
    known = registry.kinds(AbstractOptimiser)[kind]
    return OTHERS.get(kind) or known()


def problem(seed, dtype=torch.float64):
    """Parameters of three shapes, and a quadratic loss of them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (3, 4), "b": (5,), "c": (2, 2, 2)}
    weights = {n: torch.randn(s, generator=generator, dtype=dtype) for n, s in shapes.items()}
    goals = {n: 3 * torch.randn(s, generator=generator, dtype=dtype) for n, s in shapes.items()}
    return weights, goals


def trained(optimiser, weights, goals, updates):
    """Parameters after so many updates, as the engine calls an optimiser."""
    moments = tuple(
        {n: torch.zeros_like(w) for n, w in weights.items()} for _ in range(optimiser.n_moments)
    )
    runs = next(iter(weights.values())).shape[:1] if weights["b"].ndim == 2 else ()
    for step in range(updates):
        gradients = {n: 2 * (w - goals[n]) for n, w in weights.items()}
        count = torch.full(runs, step + 1.0, dtype=torch.float64)
        rate = torch.full(runs, optimiser.rate(step), dtype=torch.float64)
        weights, moments = optimiser.update(weights, moments, gradients, count, rate)
    return weights


def trained_by_torch(make, weights, goals, updates, *, clip=None, rate=None):
    parameters = {n: w.clone().requires_grad_() for n, w in weights.items()}
    optimiser = make([*parameters.values()])
    by_step = torch.optim.lr_scheduler.LambdaLR(optimiser, rate or (lambda step: 1.0))
    for _ in range(updates):
        optimiser.zero_grad()
        sum((p - goals[n]).square().sum() for n, p in parameters.items()).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_([*parameters.values()], clip)
        optimiser.step()
        by_step.step()
    return {name: p.detach() for name, p in parameters.items()}


@pytest.mark.parametrize("name", IN_TORCH)
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("rate", RATES, ids=str)
def test_optimisers_are_torchs(name, clip, rate):
    ours, make = IN_TORCH[name]
    weights, goals = problem(0)
    found = trained(ours.replace(clip=clip, schedule=rate), weights, goals, 100)
    expected = trained_by_torch(make, weights, goals, 100, clip=clip, rate=rate.factor)
    assert_close(found, expected, rtol=1e-6, atol=0)


def test_schedules_are_what_they_say():
    rise = [WarmUp(steps=4).factor(step) for step in range(6)]
    assert rise == [0.25, 0.5, 0.75, 1, 1, 1]
    cosine = [Cosine(steps=6, warm_up=2, last=0.1).factor(step) for step in (0, 1, 2, 4, 6, 99)]
    assert cosine == pytest.approx([0.5, 1, 1, 0.55, 0.1, 0.1])
    with pytest.raises(ValueError, match="warm_up"):
        Cosine(steps=5, warm_up=5)


@pytest.mark.parametrize("kind", registry.kinds(AbstractOptimiser))
def test_an_optimiser_obeys_the_laws(kind):
    """A fleet is its runs, clipped each by itself; tracing changes nothing; JSON brings it back."""
    optimiser = made(kind).replace(clip=0.7, schedule=WarmUp(steps=3))
    alone = [trained(optimiser, *problem(seed), 5) for seed in (0, 1)]
    weights, goals = (
        {n: torch.stack([one[n], two[n]]) for n in one}
        for one, two in zip(problem(0), problem(1), strict=True)
    )
    together = trained(optimiser, weights, goals, 5)
    for place, expected in enumerate(alone):
        assert_close({n: w[place] for n, w in together.items()}, expected, rtol=1e-12, atol=0)
    goals = {n: g + 0 for n, g in goals.items()}
    graph = traced(
        lambda *flat: [
            *trained(optimiser, dict(zip(weights, flat, strict=True)), goals, 2).values()
        ],
        *weights.values(),
    )
    assert_close(graph(*weights.values()), [*trained(optimiser, weights, goals, 2).values()])
    config = SMALL.replace(optimiser=optimiser)
    assert ih.RunConfig.load(config.save()) == config


@pytest.mark.parametrize("kind", registry.kinds(AbstractRate))
def test_a_rate_is_a_share(kind):
    rate = (
        next((one for one in RATES if one.kind == kind), None)
        or registry.kinds(AbstractRate)[kind]()
    )
    assert all(0 <= rate.factor(step) <= 1 for step in range(100))


@pytest.mark.slow
@pytest.mark.parametrize("kind", registry.kinds(AbstractOptimiser))
def test_runs_of_an_optimiser_resume_to_the_same_bytes(kind, tmp_path):
    optimiser = made(kind).replace(learning_rate=1e-3, schedule=WarmUp(steps=20), clip=1.0)
    config = SMALL.replace(optimiser=optimiser)
    (straight,) = ih.train(config, tmp_path / "straight", progress=False)

    def stop(run, row):
        if row["step"] == 8:
            raise OSError("stop")

    with pytest.raises(OSError, match="stop"):
        ih.train(config, tmp_path / "resumed", progress=False, on_metrics=stop)
    (resumed,) = ih.train(config, tmp_path / "resumed", progress=False)
    assert resumed.metrics.equals(straight.metrics)
    assert resumed.metrics.loss.nunique() > 4


def test_runs_whose_rates_differ_share_a_trace(tmp_path):
    rates = [1e-3, 1e-4]
    configs = [
        SMALL.replace(
            name=f"r{n}", optimiser=ih.Adam(learning_rate=rate, schedule=WarmUp(steps=n + 1))
        )
        for n, rate in enumerate(rates)
    ]
    assert len(set(map(trace_key, configs))) == 1
    fleet = make_fleet(tmp_path, configs)
    assert fleet.inputs().learning_rate.tolist() == pytest.approx([1e-3, 0.5e-4])
    other = SMALL.replace(optimiser=ih.Adam(clip=1.0))
    assert trace_key(other) != trace_key(configs[0])


def test_an_optimiser_of_ones_own_trains(tmp_path):
    class Sign(AbstractOptimiser):
        kind: Literal["sign_of_test"] = "sign_of_test"

        @property
        def n_moments(self):
            return 0

        def update_one(self, weight, gradient, moments, count, rate):
            return weight - rate * gradient.sign(), ()

    try:
        fleet = make_fleet(tmp_path, [SMALL.replace(optimiser=Sign(learning_rate=1e-4))])
        before = copy.deepcopy(fleet.state.parameters)
        fleet.advance()
        for name, weight in fleet.state.parameters.items():
            assert float((weight - before[name]).abs().max()) <= 1.01e-4
    finally:
        registry._KINDS["optimiser"].pop("sign_of_test")


@pytest.mark.parametrize(
    ("fields", "word"),
    [({"nesterov": True}, "nesterov"), ({"clip": 0}, "clip"), ({"schedule": 3}, "schedule")],
)
def test_what_no_optimiser_can_do_is_refused(fields, word):
    with pytest.raises(ValueError, match=word):
        optimisers.SGD(learning_rate=0.1, **fields)
