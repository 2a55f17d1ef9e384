"""What is learned on tasks that are not the paper's: induction heads, and a chain's transitions."""

import pandas as pd
import pytest
import torch

import ih_interp as ih

LAYER_0 = [f"L0H{head}" for head in range(8)]
CLAMPS = {
    "none": (),
    "previous token": (ih.clamps.PreviousTokenAttention(heads=LAYER_0),),
    "match": (ih.clamps.match("L1H0"),),
}
UPDATES = {"none": 600, "previous token": 280, "match": 280}
SEEDS = {"none": range(5), "previous token": range(3), "match": range(3)}


@pytest.fixture(scope="module")
def repeated(tmp_path_factory):
    """Networks on repeated tokens by condition: five free, and three of them under each clamp."""
    configs = {
        name: [
            ih.RunConfig(
                name=f"{name.split()[0]}-{seed}",
                task=ih.tasks.RepeatedTokens(),
                clamps=clamps,
                optimiser=ih.Adam(learning_rate=3e-3),
                batch_size=16,
                sequences=16 * UPDATES[name],
                evaluations=ih.Grid(every=16 * 20),
                evaluation_size=64,
                checkpoints=ih.Grid(),
                seeds=ih.Seeds(init=seed, data=seed),
            )
            for seed in SEEDS[name]
        ]
        for name, clamps in CLAMPS.items()
    }
    every = [config for of_clamp in configs.values() for config in of_clamp]
    root = tmp_path_factory.mktemp("repeated")
    runs = iter(ih.train(every, root, engine="compiled", progress=False))
    return {name: [next(runs) for _ in of_clamp] for name, of_clamp in configs.items()}


def curve_of(run):
    return run.metrics.query("split == 'test'").set_index("step")["loss"]


@pytest.mark.slow
def test_an_induction_head_forms_after_a_plateau(repeated):
    curves = [curve_of(run) for run in repeated["none"]]
    for curve in curves:
        assert curve.loc[180:300].between(2.3, 3.2).all()  # tokens of the context, and not which
        assert curve.iloc[-1] < 0.2
    scores = [
        ih.heads.prefix_matching_score(
            run.model(), generator=torch.Generator().manual_seed(0), period=16
        )[1].max()
        for run in repeated["none"]
    ]
    assert sum(float(score) > 0.6 for score in scores) >= 4


@pytest.mark.slow
def test_perfect_parts_bring_the_head_forward(repeated):
    curves = pd.concat(
        run.metrics.query("split == 'test'").assign(clamp=name, seed=run.config.seeds.init)
        for name, runs in repeated.items()
        for run in runs
    )
    times = ih.dynamics.emergence_table(curves, lambda x, y: ih.dynamics.learned(x, y, level=1.0))
    assert times["observed"].all()
    time = times.pivot(index="seed", columns="clamp", values="time")
    for name in ("previous token", "match"):
        assert time[name].median() < 0.7 * time["none"].median()
        assert (time[name] < time["none"])[: len(SEEDS[name])].all()


@pytest.mark.slow
def test_a_network_learns_the_transitions_of_each_chain(tmp_path):
    task = ih.tasks.MarkovChains(n_states=5, length=32, alpha=0.3)
    config = ih.RunConfig(
        task=task,
        optimiser=ih.Adam(learning_rate=3e-3),
        sequences=32 * 600,
        evaluations=ih.Grid(),
        evaluation_size=500,
        checkpoints=ih.Grid(),
    )
    (run,) = ih.train([config], tmp_path, engine="compiled", progress=False)
    batch = task.sample("test", 2_000, seed=3)
    loss = ih.evaluate(run.model(), batch).mean()["loss"]
    ideal = {name: float(each.mean()) for name, each in task.reference_losses(batch).items()}
    assert ideal["bigram"] < loss < 1.05 * ideal["bigram"] < ideal["unigram"]
