import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import ih_interp as ih
from ih_interp import clamps
from ih_interp.batch import NOT_ASKED, Batch, Layout
from ih_interp.config import RunConfig, Seeds
from ih_interp.evaluation import (
    at_asked,
    chance,
    evaluate,
    evaluation_sets,
    measured,
    sequence_metrics,
)
from ih_interp.tasks.few_shot import FewShotTask, TaskConfig


@pytest.fixture
def two_sequences():
    """Contexts with the labels (0, 2) and (3, 1); targets 0 and 1."""
    return Batch(
        torch.tensor([[5, 0, 6, 2, 5], [7, 3, 8, 1, 8]]), torch.tensor([0, 1]), layout=Layout(2)
    )


def test_metrics_worked_out_by_hand(two_sequences):
    # softmax of (ln 4, 0, ln 2, 0) is (4, 1, 2, 1) / 8; in the context (4, 2) / 6.
    # softmax of (ln 4, 0, 0, ln 2) is the same set; the target, label 1, has 1/8, in context 1/3.
    logits = torch.tensor([[4.0, 1.0, 2.0, 1.0], [4.0, 1.0, 1.0, 2.0]]).log()
    found = sequence_metrics(logits[:, None], two_sequences)
    assert_close(found.loss, torch.tensor([math.log(2), math.log(8)]))
    assert_close(found.accuracy, torch.tensor([1.0, 0.0]))
    assert_close(found.in_context_accuracy, torch.tensor([1.0, 0.0]))
    assert_close(found.probability, torch.tensor([1 / 2, 1 / 8]))
    assert_close(found.in_context_probability, torch.tensor([2 / 3, 1 / 3]))
    assert_close(found.context_probability, torch.tensor([6 / 8, 3 / 8]))


def test_guessing_between_the_two_labels_scores_ln_2(two_sequences):
    logits = torch.full((2, 4), -1e9)
    logits.scatter_(1, two_sequences.context_labels, 0.0)
    loss = sequence_metrics(logits[:, None], two_sequences).loss
    assert_close(loss, torch.full((2,), math.log(2)))


def test_equal_logits_score_chance(task, batch):
    found = sequence_metrics(torch.zeros(len(batch), 1, task.n_labels), batch)
    expected = chance(task)
    for name in ("loss", "probability", "in_context_probability", "context_probability"):
        assert_close(float(getattr(found, name).mean()), expected[name])


def test_chunks_do_not_matter(model, batch):
    ablate = clamps.AblateHeads(heads=["L1H0"])
    whole = evaluate(model, batch, [ablate])
    parts = evaluate(model, batch, [ablate], chunk=5)
    assert_close(dict(whole), dict(parts))
    assert whole.mean()["loss"] == pytest.approx(float(whole.loss.mean()))


def test_sequences_of_other_exemplars_are_refused_everywhere(model, task, batch):
    """Their tokens are the same numbers and mean other drawings to the model."""
    other = ih.FewShotTask(ih.Exemplars.gaussian(30, 3, 16, seed=9), task.config)
    theirs = other.sample("train", 20, generator=torch.Generator().manual_seed(0))
    words = "other exemplars than the model embeds"
    with pytest.raises(ValueError, match=words):
        evaluate(model, theirs[:5])
    with pytest.raises(ValueError, match=words):
        ih.induction_strength(model, ih.patching.swap_labels(theirs).to("cpu"))
    with pytest.raises(ValueError, match=words), ih.clamped(model, [], theirs):
        pass
    same = ih.FewShotTask(ih.Exemplars.gaussian(30, 3, 16), task.config)
    assert task.exemplars is not same.exemplars
    evaluate(model, same.sample("train", 20, generator=torch.Generator().manual_seed(0)))


def test_clamps_are_in_force_and_gone_after(model, batch):
    free = evaluate(model, batch)
    teacher = clamps.InductionAttention(heads=["L1H3"])
    assert not torch.equal(evaluate(model, batch, [teacher]).loss, free.loss)
    assert torch.equal(evaluate(model, batch).loss, free.loss)


def test_evaluation_sets_depend_on_their_own_seed_only(task):
    config = RunConfig(evaluation_size=50)
    first = evaluation_sets(task, config)
    same = evaluation_sets(task, config.replace(seeds=Seeds(init=9, data=9)))
    other = evaluation_sets(task, config.replace(seeds=Seeds(evaluation=2)))
    assert list(first) == ["train", "test_exemplars", "test_relabel", "other_exemplars"]
    for split in first:
        assert len(first[split]) == 50
        assert torch.equal(first[split].tokens, same[split].tokens)
        assert not torch.equal(first[split].tokens, other[split].tokens)


def test_a_split_has_the_same_set_whichever_others_there_are(exemplars, task):
    fewer = FewShotTask(exemplars, TaskConfig(n_train_classes=12, n_test_classes=0))
    assert fewer.splits == ("train", "test_relabel", "other_exemplars")
    config = RunConfig(evaluation_size=20)
    whole, part = evaluation_sets(task, config), evaluation_sets(fewer, config)
    for split in fewer.splits:
        assert torch.equal(part[split].tokens, whole[split].tokens)


def test_splits_are_drawn_from_the_seeds_they_always_had(task):
    """Seeds are (evaluation, place among all four splits): the numbers of finished runs hold."""
    sets = evaluation_sets(task, RunConfig(evaluation_size=20))
    for place, split in enumerate(task.splits):
        seed = int(np.random.SeedSequence((1, place)).generate_state(1)[0])
        generator = torch.Generator().manual_seed(seed)
        assert torch.equal(sets[split].tokens, task.sample(split, 20, generator=generator).tokens)


def test_nothing_cannot_be_evaluated(model, batch):
    with pytest.raises(ValueError, match="no sequences in this batch"):
        evaluate(model, batch[:0])


@pytest.fixture
def prompts():
    """Logits at every position of two sequences, asked at one and at three positions."""
    logits = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.full((2, 5), NOT_ASKED)
    targets[0, 2] = 4
    targets[1, 0], targets[1, 3], targets[1, 4] = 1, 5, 0
    foils = torch.tensor([[0, 2], [3, NOT_ASKED]])
    return logits, Batch(torch.zeros(2, 5, dtype=torch.int64), targets, foils=foils)


@pytest.mark.parametrize("metric", ["logit", "loss", "probability", "accuracy", "logit_difference"])
def test_metrics_are_means_over_what_is_asked_of_each_sequence(metric, prompts):
    logits, batch = prompts
    expected = []
    for row in range(2):
        values = []
        for place in range(5):
            if (target := int(batch.targets[row, place])) == NOT_ASKED:
                continue
            z = logits[row, place]
            foils = [int(f) for f in batch.foils[row] if f != NOT_ASKED]
            values.append(
                {
                    "logit": z[target],
                    "loss": -z.log_softmax(0)[target],
                    "probability": z.softmax(0)[target],
                    "accuracy": (z.argmax() == target).float(),
                    "logit_difference": z[target] - z[foils].mean(),
                }[metric]
            )
        expected.append(torch.stack(values).mean())
    found = measured(metric, at_asked(logits, batch), batch)
    torch.testing.assert_close(found, torch.stack(expected))


def test_the_last_position_asked_by_either_shape_of_targets_is_the_same(prompts):
    logits, batch = prompts
    last = Batch(batch.tokens, torch.tensor([1, 2]))
    spelt = Batch(batch.tokens, last.targets)
    for metric in ("loss", "logit", "accuracy"):
        one = measured(metric, at_asked(logits, last), last)
        assert torch.equal(one, measured(metric, at_asked(logits, spelt), spelt))


def test_a_function_of_ones_own_gives_a_number_per_asked_position(prompts):
    logits, batch = prompts
    rows = at_asked(torch.stack([logits, 2 * logits]), batch)
    assert rows.shape == (2, 4, 6)
    own = measured(lambda z, given: z[:, 0] * given.asked_rows[1], rows, batch)
    by_hand = [2 * logits[0, 2, 0], (3 * logits[1, 3, 0] + 4 * logits[1, 4, 0]) / 3]
    torch.testing.assert_close(own, torch.stack([torch.stack(by_hand), 2 * torch.stack(by_hand)]))
    with pytest.raises(ValueError, match=r"asked position, \[4\]"):
        measured(lambda z, given: z[:2, 0], rows, batch)


def test_a_sequence_of_which_nothing_is_asked_has_no_metric(prompts):
    logits, batch = prompts
    targets = batch.targets.clone()
    targets[0] = NOT_ASKED
    nothing = Batch(batch.tokens, targets)
    with pytest.raises(ValueError, match="sequence 0"):
        measured("loss", at_asked(logits, nothing), nothing)


def test_logits_of_other_positions_are_refused(prompts):
    logits, batch = prompts
    with pytest.raises(ValueError, match="at_asked"):
        measured("loss", logits[:, -1], batch)
