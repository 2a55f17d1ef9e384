"""One update: the traced against the eager one, fleets against runs alone."""

import pytest
import torch
from small_runs import SMALL, make_fleet
from torch.testing import assert_close

import ih_interp as ih
from ih_interp import clamps
from ih_interp.config import AdamConfig, Seeds
from ih_interp.engine.compiled_forward import ClampedModel, compiler_found, spell_out_tiny_products
from ih_interp.engine.update import trace_update
from ih_interp.tasks.exemplars import GaussianSource
from ih_interp.training.fleet import trace_key
from ih_interp.training.state import training_sequences

pytestmark = pytest.mark.slow

EVERY_KIND = {
    "none": [],
    "ablate_heads": [clamps.AblateHeads(heads=["L0H1", "L1H0"])],
    "previous_token": [clamps.PreviousTokenAttention(heads=["L0H2"], strength=0.6)],
    "previous_token_labels": [clamps.PreviousTokenAttention(heads=["L0H2"], queries="labels")],
    "forbid": [clamps.ForbidPreviousToken(heads=["L0H2", "L0H3"])],
    "induction": [clamps.InductionAttention(heads=["L1H3"], strength=0.9)],
    "match": [clamps.SimilarityAttention(heads=["L1H3"], temperature=0.5)],
    "match_hard": [clamps.SimilarityAttention(heads=["L1H3"])],
    "temperature": [clamps.AttentionTemperature(heads=["L1H3"], temperature=0.5)],
    "labels_only": [clamps.AttendLabelsOnly(heads=["L1H3"])],
    "copy": [clamps.copy("L1H3")],
    "layer_one": [clamps.layer_one()],
    "layer_one_and_copy": [*clamps.b_alone("L1H3")],
    "a_alone": [*clamps.a_alone()],
    "a_alone_for_a_time": [*clamps.a_alone(schedule=clamps.during(3, 8))],
    "preserve": [clamps.Preserve(what=["patterns"]), clamps.AblateHeads(heads=["L0H1"])],
    "ablate_embedding": [
        clamps.Preserve(what=["values", "queries"]),
        clamps.AblateEmbedding(schedule=clamps.ramp(0, 10, high=0.5)),
    ],
    "scheduled": [
        clamps.InductionAttention(heads=["L1H3"], schedule=clamps.ramp(2, 9)),
        clamps.ForbidPreviousToken(heads=["L0H1"], schedule=clamps.during(3, 6)),
        clamps.AttentionTemperature(heads=["L1H1"], temperature=2, schedule=clamps.pulses(4)),
        clamps.AblateHeads(heads=["L1H0"]),
    ],
}


def graph_step(fleet):
    """The traced update, run as it is: what the compiler is given."""
    config = fleet.runs[0].config
    model = ih.build_model(fleet.runs[0].task, config.model)
    inputs = fleet.inputs()
    clamped = ClampedModel(model, clamps.in_order(config.clamps), fleet.runs[0].task)
    graph = trace_update(clamped, config.optimiser, fleet.state, inputs)
    spell_out_tiny_products(graph)
    return lambda state, inputs: graph(*state.flat, *inputs.flat)


def losses_together_and_apart(tmp_path, configs, *, updates):
    """Losses `[update, run]` of a traced fleet, and of its runs trained eagerly, each alone."""
    fleet = make_fleet(tmp_path / "fleet", configs)
    fleet._step = graph_step(fleet)
    alone = [make_fleet(tmp_path / "alone", [config]) for config in configs]
    with torch.no_grad():
        together = torch.stack([fleet.advance() for _ in range(updates)])
    apart = [torch.stack([one.advance() for _ in range(updates)]) for one in alone]
    return together, torch.cat(apart, dim=1)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_traced_fleet_trains_as_each_run_alone(kind, tmp_path):
    chosen = EVERY_KIND[kind]
    configs = [
        SMALL.replace(
            name=f"run-{seed}", clamps=chosen, seeds=Seeds(init=seed, data=seed, evaluation=1)
        )
        for seed in (5, 6, 7)
    ]
    together, apart = losses_together_and_apart(tmp_path, configs, updates=12)
    assert_close(together, apart, rtol=0, atol=1e-5)
    assert (apart[-1] < apart[0]).any() or kind in ("preserve", "ablate_embedding")


@pytest.mark.parametrize("n_classes", [8, 60, 90])
def test_a_fleet_can_have_more_classes_than_positions(n_classes, tmp_path):
    """40 positions an update: a table of all exemplars is read, or each is embedded by itself."""
    config = SMALL.replace(
        task=ih.TaskConfig(
            exemplars=GaussianSource(n_classes=120, n_exemplars=2, n_features=16),
            n_train_classes=n_classes,
        ),
        clamps=[clamps.AblateHeads(heads=["L1H0"])],
    )
    configs = [config.replace(name=f"run-{seed}", seeds=Seeds(init=seed)) for seed in (5, 6)]
    together, apart = losses_together_and_apart(tmp_path, configs, updates=8)
    assert_close(together, apart, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [clamps.GraftIn, clamps.GraftOut])
def test_donors_differ_between_runs_of_a_fleet(kind, tmp_path):
    """More classes than positions: no trace can ask which of them a batch shows."""
    base = SMALL.replace(
        task=ih.TaskConfig(
            exemplars=GaussianSource(n_classes=120, n_exemplars=2, n_features=16),
            n_train_classes=90,
        )
    )
    donors = [
        base.replace(
            name=f"donor-{n}",
            seeds=Seeds(init=n),
            clamps=[clamps.PreviousTokenAttention(heads=[f"L0H{n}"], strength=n / 10)],
        )
        for n in (5, 6)
    ]
    ih.train(donors, tmp_path, progress=False)
    configs = [
        base.replace(
            name=d.name + "-grafted", clamps=[kind(run=str(tmp_path / d.name), step=24, layer=0)]
        )
        for d in donors
    ]
    assert len(set(map(trace_key, configs))) == 1
    together, apart = losses_together_and_apart(tmp_path, configs, updates=8)
    assert_close(together, apart, rtol=0, atol=1e-5)
    assert not torch.allclose(apart[:, 0], apart[:, 1], atol=1e-3)


def test_clamp_parameters_differ_between_runs_of_a_fleet(tmp_path):
    configs = [
        SMALL.replace(
            name=f"s{strength}",
            clamps=[clamps.InductionAttention(heads=[head], strength=strength)],
            optimiser=AdamConfig(learning_rate=rate),
        )
        for strength, head, rate in ((1.0, "L1H3", 1e-3), (0.2, "L1H5", 1e-4))
    ]
    assert len(set(map(trace_key, configs))) == 1
    together, apart = losses_together_and_apart(tmp_path, configs, updates=10)
    assert_close(together, apart, rtol=0, atol=1e-5)
    assert not torch.allclose(apart[:, 0], apart[:, 1])


@pytest.mark.skipif(not compiler_found(), reason="no C++ compiler")
def test_compiled_and_eager_give_the_same_losses_over_200_updates(tmp_path):
    config = SMALL.replace(
        sequences=200 * 8,
        clamps=[
            clamps.PreviousTokenAttention(heads=["L0H2"], schedule=clamps.ramp(50, 150)),
            clamps.AblateHeads(heads=["L1H0", "L1H1"]),
        ],
        optimiser=AdamConfig(learning_rate=1e-4),
    )
    eager = make_fleet(tmp_path / "eager", [config])
    compiled = make_fleet(tmp_path / "compiled", [config])
    compiled._compiled = True
    slow = torch.cat([eager.advance() for _ in range(200)])
    fast = torch.cat([compiled.advance() for _ in range(200)])
    assert_close(fast, slow, rtol=0, atol=1e-5)
    assert slow[-20:].mean() < slow[:20].mean()


def test_eager_training_is_torch_adam_on_the_clamped_model(tmp_path):
    """Against the plainest loop: `clamped`, cross-entropy, backward, `torch.optim.Adam`."""
    config = SMALL.replace(clamps=[clamps.InductionAttention(heads=["L1H3"], strength=0.7)])
    fleet = make_fleet(tmp_path, [config])
    found = torch.cat([fleet.advance() for _ in range(20)])
    task = config.task.build()
    model = ih.build_model(task, seed=5)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=1e-3, foreach=False)
    chunk = training_sequences(task, config, 0)
    losses = []
    for step in range(20):
        batch = chunk[step * 8 : (step + 1) * 8]
        with ih.clamped(model, config.clamps, batch):
            logits = model(batch.tokens)[:, -1]
        loss = torch.nn.functional.cross_entropy(logits, batch.target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    assert_close(found, torch.stack(losses), rtol=1e-5, atol=1e-6)
