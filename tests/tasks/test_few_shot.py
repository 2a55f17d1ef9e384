"""The few-shot task against a slow literal listing of what its sequences are."""

import inspect
import itertools
from collections import Counter
from functools import cache

import pytest
import torch

from ih_interp.batch import Batch
from ih_interp.tasks.exemplars import Exemplars
from ih_interp.tasks.few_shot import SPLITS, FewShotTask, TaskConfig
from ih_interp.tasks.pairs import features_by_token
from ih_interp.tasks.sampling import label_split


def small_task(n_classes: int = 5, n_exemplars: int = 2, **config) -> FewShotTask:
    exemplars = Exemplars.gaussian(n_classes=n_classes, n_exemplars=n_exemplars, n_features=3)
    return FewShotTask(exemplars, TaskConfig(**{"n_train_classes": 3, "n_labels": 4, **config}))


TWO_PAIRS = small_task()
THREE_PAIRS = small_task(n_pairs=3)
TWO_COPIES = small_task(n_pairs=3, n_copies=2, n_classes=6)
TWO_DRAWINGS = small_task(n_exemplars=3, n_train_exemplars=2)
TASKS = pytest.mark.parametrize(
    "task",
    [TWO_PAIRS, THREE_PAIRS, TWO_COPIES, TWO_DRAWINGS],
    ids=["two pairs", "three pairs", "two copies", "two drawings"],
)


@cache
def parts_of(task: FewShotTask, split: str) -> tuple[range, range, set[frozenset[int]]]:
    """Classes, drawings and label sets of a split, from the words of its definition."""
    config, n_classes = task.config, task.exemplars.n_classes
    classes, drawings = range(config.n_train_classes), range(config.n_train_exemplars)
    sets = task.train_label_sets
    if split == "test_exemplars":
        classes = range(n_classes - task.n_test_classes, n_classes)
    if split == "other_exemplars":
        drawings = range(config.n_train_exemplars, task.exemplars.n_exemplars)
    if split == "test_relabel":
        sets = task.test_label_sets
    return classes, drawings, {frozenset(labels) for labels in sets.tolist()}


def is_of_the_split(task: FewShotTask, split: str, tokens: list[int], target: int) -> bool:
    """Whether a sequence may occur, item by item."""
    classes, drawings, label_sets = parts_of(task, split)
    shown, labels = tokens[0::2], tokens[1::2]
    if not all(0 <= label < task.n_labels for label in labels):
        return False
    rows = [divmod(token - task.n_labels, task.exemplars.n_exemplars) for token in shown]
    if not all(c in classes and e in drawings for c, e in rows):
        return False
    *context, query = [c for c, _ in rows]
    if context.count(query) != task.config.n_copies:
        return False
    if any(context.count(c) != 1 for c in context if c != query):
        return False
    meaning = dict(zip(context, labels, strict=True))
    consistent = [meaning[c] for c in context] == labels and meaning[query] == target
    distinct = len(set(meaning.values())) == len(meaning)
    return consistent and distinct and frozenset(labels) in label_sets


def every_sequence(task: FewShotTask, split: str) -> set[tuple[int, ...]]:
    """All sequences, by trying every string of tokens."""
    n_exemplars = task.exemplars.n_exemplars
    classes, drawings, _ = parts_of(task, split)
    shown = [task.n_labels + c * n_exemplars + e for c in classes for e in drawings]
    items = [shown, range(task.n_labels)] * task.config.n_pairs + [shown]
    return {
        (*tokens, target)
        for tokens in itertools.product(*items)
        for target in set(tokens[1::2])
        if is_of_the_split(task, split, list(tokens), target)
    }


def rows(batch: Batch) -> list[tuple[int, ...]]:
    return [tuple(row) for row in torch.cat([batch.tokens, batch.target[:, None]], dim=1).tolist()]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@TASKS
def test_enumerate_lists_every_sequence_once(task):
    for split in task.splits:
        listed = rows(task.enumerate(split))
        assert len(set(listed)) == len(listed)
        assert set(listed) == every_sequence(task, split)


@TASKS
def test_samples_are_of_their_split(task):
    for split in task.splits:
        for *tokens, target in rows(task.sample(split, 200, generator=seeded())):
            assert is_of_the_split(task, split, tokens, target)


def test_the_tasks_above_show_every_split():
    assert TWO_PAIRS.splits == SPLITS
    assert THREE_PAIRS.splits == ("train", "other_exemplars")
    assert TWO_COPIES.splits == SPLITS


@TASKS
def test_samples_are_uniform_over_the_listing(task):
    """Pearson's statistic within 4 standard deviations, sqrt(2 k), of its mean, k degrees."""
    listed = rows(task.enumerate("train"))
    n = 40 * len(listed)
    counts = Counter(rows(task.sample("train", n, generator=seeded())))
    assert set(counts) <= set(listed)
    statistic = sum((counts[row] - 40) ** 2 / 40 for row in listed)
    degrees = len(listed) - 1
    assert abs(statistic - degrees) < 4 * (2 * degrees) ** 0.5


@pytest.fixture(scope="module")
def paper() -> FewShotTask:
    """The paper's sizes; what the features are does not matter."""
    exemplars = Exemplars.gaussian(n_classes=150, n_exemplars=5, n_features=2)
    return FewShotTask(exemplars)


def test_the_paper_has_78_400_training_sequences(paper):
    batch = paper.enumerate()
    assert batch.tokens.shape == (78_400, 5)
    assert len(torch.unique(torch.cat([batch.tokens, batch.target[:, None]], 1), dim=0)) == 78_400
    # One drawing a class: the query is bit for bit its copy in the context.
    assert torch.equal((batch.tokens[:, [0, 2]] == batch.tokens[:, 4:]), batch.correct)
    assert (batch.correct.sum(dim=1) == 1).all()
    assert batch.correct[:, 0].float().mean() == 0.5


def test_label_marginals_of_the_paper(paper):
    """8 training pairs; label 4 stands in four of them, the others in three."""
    marginals = torch.bincount(paper.enumerate().target) / 78_400
    assert marginals.tolist() == [3 / 16, 3 / 16, 3 / 16, 3 / 16, 4 / 16]


def test_splits_of_the_paper(paper):
    assert paper.splits == SPLITS
    assert (paper.n_labels, paper.n_test_classes, paper.layout.n_positions) == (5, 100, 5)
    assert paper.d_vocab == 5 + 750
    assert paper.test_label_sets.tolist() == [[1, 3], [0, 2]]


def test_tokens_are_labels_then_exemplars(exemplars, task):
    every = torch.cartesian_prod(torch.arange(30), torch.arange(3))
    tokens = task.token(every[:, 0], every[:, 1])
    assert tokens.tolist() == list(range(5, task.d_vocab))
    rows = features_by_token(exemplars)
    assert torch.equal(rows[tokens - 5], exemplars.features[every[:, 0], every[:, 1]])


def test_batch_writes_sequences_out(task):
    batch = task.batch(
        class_index=torch.tensor([[7, 2, 7], [0, 29, 29]]),
        exemplar_index=torch.tensor([[0, 1, 2], [1, 0, 0]]),
        label=torch.tensor([[4, 0, 4], [1, 2, 2]]),
    )
    # Token 5 + 3 class + exemplar.
    assert batch.tokens.tolist() == [[26, 4, 12, 0, 28], [6, 1, 92, 2, 92]]
    assert batch.target.tolist() == [4, 2]


@pytest.mark.parametrize("split", SPLITS)
def test_same_generator_same_sequences(task, split):
    one, other = (task.sample(split, 50, generator=seeded(3)) for _ in range(2))
    assert rows(one) == rows(other)
    assert rows(one) != rows(task.sample(split, 50, generator=seeded(4)))


def test_sampling_leaves_global_randomness_alone(task):
    before = torch.get_rng_state()
    task.sample("train", 10, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_no_sequences_are_a_batch(task):
    assert task.sample("train", 0, generator=seeded()).tokens.shape == (0, 5)


def test_splits_share_no_class_drawing_or_label_set(task):
    train, test = (set(parts_of(task, split)[0]) for split in ("train", "test_exemplars"))
    assert not train & test
    one, other = (parts_of(task, split)[2] for split in ("train", "test_relabel"))
    assert not one & other
    assert len(one | other) == 10
    one, other = (set(parts_of(task, split)[1]) for split in ("train", "other_exemplars"))
    assert not one & other


@pytest.mark.parametrize("held_out", [0.0, 0.1, 0.5])
def test_held_out_share_of_the_label_sets(held_out):
    train, test = label_split(8, 3, held_out, seed=1)
    assert len(test) == int(56 * held_out)
    assert len(train) + len(test) == 56
    assert set(train.ravel()) == set(range(8))


def test_a_split_that_hides_a_label_is_drawn_again():
    """Half of the 3 pairs of 3 labels is one; two thirds leave a pair, which hides a label."""
    assert len(label_split(3, 2, 0.5, seed=0)[0]) == 2
    with pytest.raises(ValueError, match="held_out_labels"):
        label_split(3, 2, 0.7, seed=0)
    # Of 6 pairs of 4 labels 2 are kept; only 3 of the 15 choices show every label.
    for seed in range(10):
        assert set(label_split(4, 2, 0.7, seed)[0].ravel()) == {0, 1, 2, 3}


def test_endless_label_sets_are_refused():
    with pytest.raises(ValueError, match="10,272,278,170 sets"):
        label_split(50, 10, 0.2, seed=20)


@pytest.mark.parametrize(
    ("config", "split", "words"),
    [
        ({"n_test_classes": 1}, "test_exemplars", "it needs 2 unseen classes and 1 are left"),
        ({"n_train_classes": 5}, "test_exemplars", "it needs 2 unseen classes and 0 are left"),
        ({"held_out_labels": 0}, "test_relabel", "no label set is held out; raise"),
        ({"n_train_exemplars": 2}, "other_exemplars", "every exemplar of a class is trained on"),
    ],
)
def test_empty_splits_are_refused(config, split, words):
    task = small_task(**config)
    assert split not in task.splits
    with pytest.raises(ValueError, match=rf"split '{split}' is empty: {words}"):
        task.sample(split, 5, generator=seeded())
    with pytest.raises(ValueError, match=rf"split '{split}' is empty: {words}"):
        task.enumerate(split)


def test_endless_listings_are_refused():
    exemplars = Exemplars.gaussian(n_classes=200, n_exemplars=5, n_features=2)
    task = FewShotTask(exemplars, TaskConfig(n_train_classes=100, n_train_exemplars=5))
    with pytest.raises(ValueError, match=r"39,600,000.* sample"):
        task.enumerate("train")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_index": [[30, 1, 1]]}, "class_index runs from 1 to 30: expected 0 to 29"),
        ({"exemplar_index": [[0, 3, 0]]}, "exemplar_index runs from 0 to 3: expected 0 to 2"),
        ({"label": [[-1, 1, 1]]}, "label runs from -1 to 1: expected 0 to 4"),
    ],
)
def test_bad_indices_are_refused(task, change, words):
    good = {"class_index": [[0, 1, 1]], "exemplar_index": [[0, 0, 0]], "label": [[0, 1, 1]]}
    indices = {name: torch.tensor(index) for name, index in {**good, **change}.items()}
    with pytest.raises(ValueError, match=words):
        task.batch(**indices)


def test_a_wrong_number_of_items_is_refused(task):
    four = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"shape \(2, 4\): expected \[batch, 3\]"):
        task.batch(four, four, four)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64])
@pytest.mark.parametrize("name", ["class_index", "exemplar_index", "label"])
def test_indices_that_are_no_integers_are_refused(name, dtype):
    indices = dict.fromkeys(("class_index", "exemplar_index", "label"), torch.zeros(2, 3).long())
    indices[name] = indices[name].to(dtype)
    # Past the type checker, which only tests have; so below.
    with pytest.raises(ValueError, match=rf"{name}: expected integers, .* got {dtype}"):
        inspect.unwrap(FewShotTask.batch)(TWO_PAIRS, **indices)


@pytest.mark.parametrize("index", [[[0, 1, 1]], None, 3])
def test_indices_that_are_no_tensors_are_refused(index):
    zeros = torch.zeros(1, 3).long()
    with pytest.raises(TypeError, match="label is"):
        inspect.unwrap(FewShotTask.batch)(TWO_PAIRS, zeros, zeros, index)


def test_indices_of_another_number_of_sequences_are_refused():
    one, two = torch.zeros(1, 3).long(), torch.zeros(2, 3).long()
    with pytest.raises(ValueError, match="are 2, 1 and 2 sequences"):
        inspect.unwrap(FewShotTask.batch)(TWO_PAIRS, two, one, two)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_small_integers_make_no_other_tokens(paper, dtype):
    """Token 5 + 5 * 100 + 4 overflows a byte."""
    class_index = torch.tensor([[100, 2, 100]], dtype=dtype)
    exemplar_index = torch.tensor([[4, 0, 4]], dtype=dtype)
    label = torch.tensor([[3, 1, 3]], dtype=dtype)
    batch = inspect.unwrap(FewShotTask.batch)(paper, class_index, exemplar_index, label)
    assert batch.tokens.tolist() == [[509, 3, 15, 1, 509]]
    assert (batch.tokens.dtype, batch.target.dtype) == (torch.int64, torch.int64)


def test_an_unknown_split_is_refused_with_those_there_are():
    # Past the type checker, which only tests have.
    with pytest.raises(ValueError, match=r"'test'.*train, test_exemplars"):
        inspect.unwrap(FewShotTask._split)(TWO_PAIRS, "test")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"n_pairs": 2, "n_copies": 2}, "n_copies=2: expected fewer than n_pairs=2"),
        ({"n_pairs": 6}, "n_labels=5: expected at least 6"),
        ({"n_pairs": 4, "n_train_classes": 3}, "n_train_classes=3: expected at least 4"),
        ({"n_pairs": 1}, "n_pairs=.*at least 2"),
        ({"held_out_labels": 1}, "held_out_labels=.*below 1"),
        ({"n_classes": 9}, "n_classes=.*no such field"),
    ],
)
def test_configurations_that_make_no_task_are_refused(config, words):
    with pytest.raises(ValueError, match=words):
        TaskConfig(**config)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"n_train_classes": 31}, "n_train_classes=31: expected up to 30"),
        ({"n_train_classes": 12, "n_test_classes": 19}, "n_test_classes=19: expected up to 18"),
        ({"n_train_classes": 12, "n_train_exemplars": 4}, "n_train_exemplars=4: expected up to 3"),
    ],
)
def test_tasks_without_enough_exemplars_are_refused(exemplars, config, words):
    with pytest.raises(ValueError, match=words):
        FewShotTask(exemplars, TaskConfig(**config))


def test_a_seed_stands_for_a_new_generator(task):
    one, other = (
        task.sample("train", 9, **given) for given in ({"seed": 3}, {"generator": seeded(3)})
    )
    assert rows(one) == rows(other)
    for given in ({}, {"seed": 3, "generator": seeded(3)}):
        with pytest.raises(TypeError, match="seed=0"):
            task.sample("train", 9, **given)
    with pytest.raises(ValueError, match="seed=-1"):
        task.sample("train", 9, seed=-1)


@pytest.mark.parametrize("split", ["train", "test_exemplars", "other_exemplars", "test_relabel"])
def test_sequences_are_counted_without_a_list(task, split):
    assert task.n_sequences(split) == len(task.enumerate(split))


def test_more_sequences_than_can_be_listed_are_told_with_the_way_out():
    exemplars = Exemplars.gaussian(n_classes=2_000, n_exemplars=1, n_features=2)
    config = TaskConfig(n_pairs=2_000, n_labels=2_000, n_train_classes=2_000, held_out_labels=0)
    task = FewShotTask(exemplars, config)
    with pytest.raises(ValueError, match=r"'train' has 10\^\d+\.\d sequences, too .*seed=0\)"):
        task.enumerate("train")
