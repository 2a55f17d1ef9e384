"""Corruptions, on sequences small enough to read."""

import pytest
import torch
from torch import tensor

import ih_interp as ih
from ih_interp.analysis.patching.corruptions import resample_class, swap_exemplars, swap_labels


def batch_of(tokens, target):
    return ih.Batch(tensor([tokens]), tensor([target]), layout=ih.tasks.Layout.of(len(tokens)))


# Labels are 0 to 4; 10, 11, 12 are exemplars of one class, 20 and 30 of two others.
TWO = batch_of([10, 3, 20, 1, 11], 3)
THREE = batch_of([10, 3, 20, 1, 30, 0, 31], 0)
COPIES = batch_of([10, 3, 20, 1, 11, 3, 12], 3)


@pytest.mark.parametrize(
    ("corrupt", "batch", "tokens", "target"),
    [
        (swap_exemplars, TWO, [20, 3, 10, 1, 11], 1),
        (swap_labels, TWO, [10, 1, 20, 3, 11], 1),
        (swap_exemplars, THREE, [20, 3, 30, 1, 10, 0, 31], 1),
        (swap_labels, THREE, [10, 1, 20, 0, 30, 3, 31], 3),
        # Both copies of the query's class go where its label is not.
        (swap_exemplars, COPIES, [20, 3, 10, 1, 20, 3, 12], 1),
        (swap_labels, COPIES, [10, 1, 20, 3, 11, 1, 12], 1),
    ],
)
def test_by_hand(corrupt, batch, tokens, target):
    found = corrupt(batch)
    assert found.tokens.tolist() == [tokens]
    assert found.target.tolist() == [target]


@pytest.fixture(scope="module", params=[(2, 1), (4, 1), (4, 2), (5, 3)])
def many(request, exemplars):
    n_pairs, n_copies = request.param
    config = ih.TaskConfig(n_train_classes=12, n_pairs=n_pairs, n_copies=n_copies)
    task = ih.FewShotTask(exemplars, config)
    return task, task.sample("train", 200, generator=torch.Generator().manual_seed(0))


def classes(task, tokens):
    return (tokens - task.n_labels) // task.exemplars.n_exemplars


@pytest.mark.parametrize("corrupt", [swap_exemplars, swap_labels])
def test_no_copy_of_the_query_keeps_its_label(corrupt, many):
    task, batch = many
    before = batch.tokens.clone()
    found = corrupt(batch)
    assert torch.equal(batch.tokens, before)
    exemplars = classes(task, found.tokens[:, list(batch.layout.exemplars)])
    matches = exemplars == classes(task, batch.tokens[:, -1:])
    right = found.context_labels == batch.target[:, None]
    assert matches.any(dim=1).all()
    assert not (matches & right).any()
    # And the new target is what every match now says.
    assert torch.equal(matches & (found.context_labels == found.target[:, None]), matches)
    assert torch.equal(found.tokens[:, -1], batch.tokens[:, -1])
    assert (
        torch.equal(
            found.context_labels.sort().values.unique_consecutive(),
            batch.context_labels.sort().values.unique_consecutive(),
        )
        or task.config.n_copies > 1
    )


def test_with_two_pairs_swapping_twice_changes_nothing(task):
    batch = task.sample("train", 50, generator=torch.Generator().manual_seed(0))
    for corrupt in (swap_exemplars, swap_labels):
        twice = corrupt(corrupt(batch))
        assert torch.equal(twice.tokens, batch.tokens)
        assert torch.equal(twice.target, batch.target)


def test_one_label_has_nothing_to_swap():
    for corrupt in (swap_exemplars, swap_labels):
        with pytest.raises(ValueError, match="label"):
            corrupt(batch_of([10, 3, 20, 3, 11], 3))


@pytest.mark.parametrize("which", ["query", "other"])
def test_a_class_is_replaced_by_one_that_is_not_there(which, many):
    task, batch = many
    found = resample_class(task, batch, torch.Generator().manual_seed(1), which=which)
    places = list(batch.layout.exemplars)
    old, new = (classes(task, b.tokens[:, places]) for b in (batch, found))
    changed = old != new
    if which == "query":
        assert torch.equal(changed, batch.correct)
        assert (new.where(changed, -1).amax(1) == new.where(changed, 99).amin(1)).all()
    else:
        assert (changed.sum(dim=1) == 1).all()
        assert not (changed & batch.correct).any()
    assert not (new.where(changed, -1)[:, :, None] == old[:, None, :]).any()
    assert torch.equal(found.context_labels, batch.context_labels)
    assert torch.equal(found.target, batch.target)
    assert torch.equal(found.tokens[:, -1], batch.tokens[:, -1])
    assert set(new[changed].tolist()) == set(range(12))  # every class of the split is drawn


def test_replacements_come_from_the_split(task):
    batch = task.sample("test_exemplars", 100, generator=torch.Generator().manual_seed(0))
    found = resample_class(task, batch, torch.Generator(), split="test_exemplars")
    changed = found.tokens != batch.tokens
    assert (classes(task, found.tokens[changed]) >= 12).all()
    same = resample_class(task, batch, torch.Generator(), split="test_exemplars")
    assert torch.equal(found.tokens, same.tokens)


def test_what_cannot_be_replaced_is_refused(exemplars):
    small = ih.FewShotTask(exemplars, ih.TaskConfig(n_train_classes=2))
    batch = small.sample("train", 3, generator=torch.Generator())
    with pytest.raises(ValueError, match="split='train'"):
        resample_class(small, batch, torch.Generator())
    with pytest.raises(ValueError, match="pairs"):
        resample_class(small, THREE, torch.Generator())
    with pytest.raises(ValueError, match="which='both'"):
        resample_class(small, batch, torch.Generator(), which="both")
