import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import ih_interp as ih
from ih_interp import clamps
from ih_interp.batch import Batch, Layout
from ih_interp.config import RunConfig, Seeds
from ih_interp.evaluation import chance, evaluate, evaluation_sets, sequence_metrics
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
