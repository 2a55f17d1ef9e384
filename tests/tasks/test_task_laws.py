"""Laws that every registered task obeys; a new kind needs an example here, and is tested."""

import pandas as pd
import pytest
import torch

import ih_interp as ih
from ih_interp import registry
from ih_interp.config import Grid
from ih_interp.evaluation import metric_names
from ih_interp.tasks import (
    AbstractTask,
    FixedLabels,
    GaussianSource,
    MarkovChains,
    RepeatedTokens,
    TaskConfig,
)
from ih_interp.tasks.base import drawn
from ih_interp.training.fleet import trace_key

SOURCE = GaussianSource(n_classes=14, n_exemplars=3, n_features=6)
EXAMPLES: dict[str, list[AbstractTask]] = {
    "few_shot": [
        TaskConfig(exemplars=SOURCE, n_train_classes=8),
        TaskConfig(exemplars=SOURCE, n_train_classes=8, n_pairs=4, n_copies=2, n_train_exemplars=2),
    ],
    "fixed_labels": [
        FixedLabels(exemplars=SOURCE, n_train_classes=8),
        FixedLabels(exemplars=SOURCE, n_train_classes=9, n_pairs=5, burstiness=2, zipf=1.0),
    ],
    "repeated_tokens": [
        RepeatedTokens(),
        RepeatedTokens(n_tokens=9, length=11, min_period=2, max_period=5, asked="all"),
    ],
    "markov_chains": [MarkovChains(length=20), MarkovChains(n_states=4, length=11, n_chains=3)],
}
ANSWERS_HOLD_THE_TARGET = ("few_shot", "fixed_labels", "repeated_tokens")
BUILT_IN = [
    kind for kind, cls in registry.kinds(AbstractTask).items() if cls.__module__.startswith("ih_")
]
EVERY = pytest.mark.parametrize(
    "task", [pytest.param(task, id=str(task)) for kind in BUILT_IN for task in EXAMPLES[kind]]
)


@pytest.mark.parametrize("kind", BUILT_IN)
def test_every_kind_has_an_example(kind):
    assert EXAMPLES.get(kind), f"add an example of the task {kind!r} to EXAMPLES in this file"


@EVERY
def test_json_gives_the_task_back(task):
    config = ih.RunConfig(task=task)
    again = ih.RunConfig.load(config.save())
    assert again.task == task
    assert type(again.task) is type(task)
    assert again.fingerprint == config.fingerprint
    assert registry.read(AbstractTask, task.model_dump(mode="json")) == task


@EVERY
def test_every_split_samples_what_the_task_declares(task):
    built = task.build()
    assert built.splits
    assert set(built.splits) <= set(task.splits)
    for name in ("d_vocab", "d_vocab_out", "n_ctx", "asks_last"):
        assert getattr(built, name) == getattr(task, name)
    for split in built.splits:
        batch = drawn(built, split, 50, generator=torch.Generator().manual_seed(3))
        again = task.sample(split, 50, seed=3)
        assert torch.equal(batch.tokens, again.tokens)
        assert torch.equal(batch.targets, again.targets)
        assert not torch.equal(batch.tokens, task.sample(split, 50, seed=4).tokens)
        assert len(task.sample(split, 0, seed=0)) == 0


@pytest.mark.untyped
@EVERY
def test_samples_need_a_split_a_number_and_one_source_of_chance(task):
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(ValueError, match="split"):
        task.sample("no such split", 3, seed=0)
    for wrong, error in ((-1, ValueError), (2.5, TypeError), ("3", TypeError)):
        with pytest.raises(error, match="n="):
            task.sample("train", wrong, seed=0)
    for given in ({}, {"seed": 0, "generator": generator}, {"seed": 0.5}, {"generator": 3}):
        with pytest.raises(TypeError, match=r"seed|generator"):
            task.sample("train", 3, **given)


@EVERY
def test_answers_are_candidates_seen_by_an_asked_query(task):
    built = task.build()
    for split in built.splits:
        batch = built.sample(split, 30, seed=0)
        n = batch.tokens.shape[1]
        for keys in (batch.answers, batch.candidates):
            assert keys.dtype == torch.bool
            assert keys.shape == (30, n, n)
            assert torch.equal(keys, keys.tril())
            assert not keys[~batch.asked].any()
        assert not (batch.answers & ~batch.candidates).any()
        if task.asks_last:
            assert not batch.asked[:, :-1].any()
    train = built.sample("train", 30, seed=0)
    assert bool(train.answers.any(dim=(1, 2)).all())


@EVERY
def test_the_token_at_an_answer_is_the_target(task):
    if task.kind not in ANSWERS_HOLD_THE_TARGET:
        pytest.skip("its answers are evidence, of which not all need be right")
    for split in task.build().splits:
        batch = task.sample(split, 50, seed=1)
        row, query, key = batch.answers.nonzero(as_tuple=True)
        assert torch.equal(batch.tokens[row, key], batch.targets[row, query])


@EVERY
def test_evaluation_gives_every_metric_of_the_task(task):
    model = ih.build_model(task)
    assert (model.cfg.d_vocab, model.cfg.d_vocab_out) == (task.d_vocab, task.d_vocab_out)
    batch = task.sample("train", 10, seed=0)
    metrics = ih.evaluate(model, batch)
    assert tuple(metrics) == metric_names(task) == metric_names(task.build())
    assert all(values.shape == (10,) for values in metrics.values())
    asked = batch.asked
    losses = -model(batch.tokens).log_softmax(-1).gather(-1, batch.targets.clamp(min=0)[..., None])
    of_each = (losses[..., 0] * asked).sum(dim=1) / asked.sum(dim=1)
    assert torch.allclose(metrics["loss"], of_each, atol=1e-5)
    strength = ih.induction_strength(model, batch, per_sequence=True)
    assert bool((strength.abs() <= 1).all())


@pytest.mark.slow
@pytest.mark.parametrize("task", [EXAMPLES[kind][-1] for kind in BUILT_IN], ids=str)
def test_three_updates_are_the_same_eager_and_compiled(task, tmp_path):
    config = ih.RunConfig(
        task=task,
        # Rounding of gradients near 0 would be as large as the step, with a smaller eps.
        optimiser=ih.Adam(learning_rate=1e-3, eps=1e-3),
        sequences=3 * 4,
        batch_size=4,
        evaluations=Grid(),
        evaluation_size=20,
        checkpoints=Grid(),
    )
    runs = {
        engine: ih.train([config], tmp_path / engine, engine=engine, progress=False, workers=1)[0]
        for engine in ("eager", "compiled")
    }
    eager, compiled = (runs[engine].model(3).state_dict() for engine in ("eager", "compiled"))
    for name, weight in eager.items():
        assert torch.allclose(weight, compiled[name], atol=1e-5), name
    assert runs["compiled"].engine == "compiled"
    for name in metric_names(task):
        columns = (run.metrics[name].tolist() for run in runs.values())
        assert next(columns) == pytest.approx(next(columns), abs=1e-4, nan_ok=True)


@pytest.mark.parametrize(
    ("one", "changes"),
    [
        (RepeatedTokens(n_tokens=9, length=9, max_period=5), {"asked": "all", "min_period": 2}),
        (MarkovChains(n_states=4, length=9), {"n_chains": 2, "alpha": 0.5}),
        (EXAMPLES["fixed_labels"][0], {"burstiness": 0, "labels": "copy_available", "zipf": 1.0}),
    ],
    ids=str,
)
def test_runs_that_draw_other_sequences_train_together_as_alone(one, changes, tmp_path):
    configs = [
        ih.RunConfig(name=name, task=task, sequences=64, evaluation_size=10, checkpoints=Grid())
        for name, task in (("one", one), ("other", one.replace(**changes)))
    ]
    assert trace_key(configs[0]) == trace_key(configs[1])
    together = ih.train(configs, tmp_path / "together", progress=False, workers=1)
    for config, run in zip(configs, together, strict=True):
        (alone,) = ih.train([config], tmp_path / "alone", progress=False, workers=1)
        pd.testing.assert_frame_equal(run.metrics, alone.metrics)


def test_the_strength_of_a_perfect_head_is_the_mean_share_of_an_answer():
    task = RepeatedTokens(n_tokens=9, length=9, min_period=3, max_period=3)
    batch = task.sample("train", 20, seed=0)
    model = ih.build_model(task)
    n_answers = batch.answers.sum(dim=-1, keepdim=True)

    def attend(pattern, hook):
        share = (batch.answers / n_answers.clamp(min=1))[:, None]
        return torch.where(n_answers[:, None] > 0, share, pattern)

    with model.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", attend)]):
        strength = ih.induction_strength(model, batch)
    # Queries 3 to 5 have one answer, and 6 to 8 have two.
    assert strength[1].tolist() == pytest.approx([0.75] * 8, abs=1e-6)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.W_Q.zero_()
    assert ih.induction_strength(model, batch).abs().max() < 1e-6  # even attention
