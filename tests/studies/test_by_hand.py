"""The studies' networks in plain torch compute what the package's do, under every clamp."""

import pytest
import studies_by_hand as by_hand
import torch
from torch.nn.functional import cross_entropy

import ih_interp as ih
from ih_interp.tasks.exemplars import GaussianSource
from ih_interp.tasks.few_shot import TaskConfig

SOURCE = GaussianSource(n_classes=80, n_exemplars=2, n_features=16)
CLAMPS = {
    "": (),
    "A alone": ih.clamps.a_alone(),
    "B alone": ih.clamps.b_alone("L1H0"),
    "C alone": ih.clamps.c_alone("L1H0"),
    "layer 1": (ih.clamps.layer_one(),),
    "match": (ih.clamps.match("L1H0"),),
    "copy": (ih.clamps.copy("L1H0"),),
}


@pytest.mark.parametrize("n_pairs", [2, 4])
@pytest.mark.parametrize("clamp", CLAMPS)
def test_losses_and_gradients_are_the_package_s(clamp, n_pairs):
    task = TaskConfig(exemplars=SOURCE, n_pairs=n_pairs, n_labels=6).build()
    model = ih.build_model(task, seed=3)
    batch = task.sample("train", 12, seed=1)
    weights = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    found = by_hand.forward(weights, model.embed.features, batch, clamp)
    with ih.clamped(model, CLAMPS[clamp], batch):
        logits = model(batch.tokens)[:, -1]
    losses = [cross_entropy(each, batch.target) for each in (found, logits)]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-6)
    losses[0].backward()
    losses[1].backward()
    assert weights["embed.W_in"].grad.abs().max() > 0
    for name, parameter in model.named_parameters():
        own, expected = (
            torch.zeros_like(one) if one.grad is None else one.grad
            for one in (weights[name], parameter)
        )
        torch.testing.assert_close(own, expected, rtol=0, atol=1e-5)


def test_times_are_read_between_evaluations():
    task = TaskConfig(exemplars=SOURCE).build()
    given = {"rate": 3e-2, "longest": 3_200}
    time = by_hand.time_to_learn(task, 5, **given, clamp="B alone")
    assert 0 < time < 3_200
    assert by_hand.time_to_learn(task, 5, **{**given, "longest": 64}) == 64
