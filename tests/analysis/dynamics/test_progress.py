"""Progress measures against evaluations of single checkpoints, and the paper's table."""

import shutil

import pytest

import ih_interp as ih
from ih_interp import clamps
from ih_interp.analysis.dynamics.progress import progress, progress_beside_training
from ih_interp.config import Grid, RunConfig, Seeds
from ih_interp.evaluation import evaluate
from ih_interp.storage import run_files
from ih_interp.tasks.exemplars import GaussianSource

OTHERS = clamps.AblateHeads(heads=clamps.keep_only("L1H3", n_heads=8))
MATCH = clamps.match("L1H3")
FREE = RunConfig(
    name="none",
    task=ih.TaskConfig(
        exemplars=GaussianSource(n_classes=20, n_exemplars=2, n_features=16), n_train_classes=8
    ),
    clamps=[OTHERS],
    sequences=32,
    batch_size=8,
    evaluations=Grid(every=16),
    evaluation_size=10,
    checkpoints=Grid(every=16),
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    configs = [
        FREE,
        FREE.replace(name="match", clamps=[MATCH, OTHERS], checkpoints=Grid()),
        FREE.replace(name="copy", clamps=[clamps.copy("L1H3")], checkpoints=Grid()),
        FREE.replace(name="other", seeds=Seeds(init=6), sequences=16),
    ]
    found = ih.train(configs, tmp_path_factory.mktemp("runs"), progress=False)
    return {config.name: run for config, run in zip(configs, found, strict=True)}


def losses(table):
    return table[table["name"] == "loss"]["value"].to_list()


def by_hand(run, step, clamps, batch):
    return evaluate(run.model(step), batch, clamps).mean()["loss"]


def test_every_checkpoint_under_exactly_the_clamps_given(runs):
    run, batch = runs["none"], runs["none"].task.enumerate("train")[:40]
    for given in ([], [MATCH], [MATCH, *run.clamps]):
        table = progress(run, given, batch=batch)
        expected = [by_hand(run, step, given, batch) for step in (0, 2, 4)]
        assert losses(table) == pytest.approx(expected, abs=1e-6)
    assert losses(progress(run, [], batch=batch)) != losses(progress(run, run.clamps, batch=batch))


def test_the_clamps_name_stands_in_the_table(runs):
    run, batch = runs["none"], runs["none"].task.enumerate("train")[:4]
    table = progress(run, [MATCH], name="match", batch=batch, steps=[2])
    assert set(table["clamp"]) == {"match"}
    assert list(table.columns) == ["step", "sequences", "name", "value", "clamp"]
    assert set(progress(run, [], batch=batch, steps=[0])["clamp"]) == {"none"}
    unnamed = progress(run, [MATCH, OTHERS], batch=batch, steps=[0])["clamp"].iloc[0]
    assert unnamed == f"{MATCH} + {OTHERS}"
    strengths = progress(
        run,
        [clamps.InductionAttention(heads=["L1H3"], strength=1.0)],
        measure=ih.induction_strength,
        batch=batch,
        steps=[4],
    )
    assert strengths.query("name == 'L1H3'")["value"].item() == pytest.approx(1, abs=1e-6)


def test_progress_stands_beside_training(runs):
    free = runs["none"]
    table = progress_beside_training(free, {name: runs[name] for name in ("none", "match", "copy")})
    assert list(table.columns) == ["sequences", "clamp", "when", "loss", "seed"]
    assert set(table["seed"]) == {5}
    assert len(table) == 3 * (3 + 3)
    every = free.task.enumerate("train")
    for name in ("none", "match", "copy"):
        rows = table[table["clamp"] == name]
        training = rows[rows["when"] == "training"]
        own = runs[name].metrics.query("split == 'train'")
        assert training["loss"].to_list() == own["loss"].to_list()
        assert training["sequences"].to_list() == [0, 16, 32]
        inference = rows[rows["when"] == "inference"]
        expected = [by_hand(free, step, runs[name].clamps, every) for step in (0, 2, 4)]
        assert inference["loss"].to_list() == pytest.approx(expected, abs=1e-5)


def test_before_training_the_two_are_the_same_network(runs):
    """On the same sequences a clamped run's first evaluation is the free run's, clamped."""
    free = runs["none"]
    from ih_interp.evaluation import evaluation_sets

    batch = evaluation_sets(free.task, free.config)["train"]
    table = progress_beside_training(free, {"match": runs["match"]}, batch=batch, steps=[0])
    first = table[table["sequences"] == 0].set_index("when")["loss"]
    assert first["training"] == pytest.approx(first["inference"], abs=1e-5)


def test_other_splits(runs):
    table = progress_beside_training(
        runs["none"], {"match": runs["match"]}, split="test_relabel", steps=[4]
    )
    batch = runs["none"].task.enumerate("test_relabel")
    expected = by_hand(runs["none"], 4, runs["match"].clamps, batch)
    assert table[table["when"] == "inference"]["loss"].item() == pytest.approx(expected, abs=1e-5)


def test_another_network_is_refused(runs):
    with pytest.raises(ValueError, match="'other' differs from the free run in seeds"):
        progress_beside_training(runs["none"], {"other": runs["other"]})
    with pytest.raises(ValueError, match="clamped"):
        progress_beside_training(runs["none"], {})
    with pytest.raises(TypeError, match="'match'"):
        progress_beside_training(runs["none"], {"match": "runs/match"})


def test_unfinished_runs_are_told(runs, tmp_path):
    free, match = runs["none"], runs["match"]
    shutil.copytree(match.folder, tmp_path / "killed")
    killed = ih.Run(tmp_path / "killed")
    run_files.checkpoint_path(killed.folder, 4).unlink()
    batch = free.task.enumerate("train")[:4]
    with pytest.warns(UserWarning, match="killed is not finished"):
        progress_beside_training(free, {"match": killed}, batch=batch)
    (killed.folder / run_files.METRICS).unlink()
    with pytest.raises(ValueError, match="'match' has no metrics"):
        progress_beside_training(free, {"match": killed}, batch=batch)
    with pytest.raises(TypeError, match="clamped"):
        progress_beside_training(free, [match])


def test_clamps_that_cannot_act_together_are_refused(runs):
    batch = runs["none"].task.enumerate("train")[:4]
    weaker = clamps.InductionAttention(heads=["L1H3"], strength=0.5)
    with pytest.raises(ValueError, match="Two clamps set the pattern of L1H3"):
        progress(runs["none"], [weaker, weaker.replace(strength=0.7)], batch=batch)
