"""The few-shot task of fixed labels: what every sequence of a split must be, and how often."""

import math
from collections import Counter

import pytest
import torch

import ih_interp as ih
from ih_interp.tasks import FixedLabels, GaussianSource

SOURCE = GaussianSource(n_classes=15, n_exemplars=4, n_features=4)
SMALL = FixedLabels(exemplars=SOURCE, n_train_classes=10, n_train_exemplars=3)
TASKS = {
    "main": SMALL,
    "bursty": SMALL.replace(n_pairs=7, burstiness=3),
    "alone": SMALL.replace(n_pairs=4, burstiness=2, distractor=False, rest="no_support"),
    "zipf, unique": SMALL.replace(n_pairs=5, zipf=1.5, rest="unique"),
    "matched": SMALL.replace(n_pairs=6, burstiness=2, matched=True),
    "icl only": SMALL.replace(labels="relabelled"),
    "ciwl only": SMALL.replace(burstiness=0, rest="unique", labels="copy_available"),
}
EVERY = pytest.mark.parametrize("name", TASKS)


def items_of(task, batch):
    """Per sequence: the context as (class, exemplar, label), the query as well, its label last."""
    n_labels, n_exemplars = task.n_train_classes, SOURCE.n_exemplars
    for tokens, target in zip(batch.tokens.tolist(), batch.target.tolist(), strict=True):
        shown = [divmod(token - n_labels, n_exemplars) for token in tokens[0::2]]
        context = [(*one, label) for one, label in zip(shown[:-1], tokens[1::2], strict=True)]
        yield context, (*shown[-1], target)


def check_labels(labels, context, query, target):
    """That the labels of a context and the target are as the field `labels` says."""
    own = {label for c, _, label in context if c == query}
    wrong = [(c, label) for c, _, label in context if c != label]
    if labels == "fixed":
        assert not wrong
        assert target == query
    elif labels == "copy_available":
        assert wrong == [(wrong[0][0], query)]
        assert target == query
    else:
        assert own == {target}
        changed = {c for c, _ in wrong if c != query}
        assert len(changed) <= 1
        if labels == "flipped":
            assert target != query
            assert {label for c, label in wrong if c != query} == {query}
            assert changed == {target}
        if labels == "first_two":
            assert target in (0, 1)
            assert any(label == 1 - target for _, _, label in context)


@EVERY
@pytest.mark.parametrize("split", FixedLabels.splits)
def test_every_sequence_is_of_its_split(name, split):
    task = TASKS[name]
    labels = {"icl": "first_two", "flip_icl": "flipped", "pure_iwl": "fixed"}
    labels = {**labels, "iwl_copy_avail": "copy_available", "train": task.labels}[split]
    in_context, in_weights = split in ("icl", "flip_icl"), "iwl" in split
    burstiness = 1 if in_context else 0 if in_weights else task.burstiness
    distractor, rest = in_context or task.distractor, "unique" if in_weights else task.rest
    batch = task.sample(split, 400, seed=0)
    for context, (query, _, target) in items_of(task, batch):
        classes = Counter(one for one, _, _ in context)
        assert all(c < task.n_train_classes and e < 3 for c, e, _ in context)
        assert classes[query] >= burstiness
        others = {c for c, n in classes.items() if c != query and n >= burstiness}
        assert others or not (burstiness and distractor)
        if rest != "free":
            assert classes[query] == burstiness
        if rest == "unique":
            counts = [1] * (task.n_pairs - burstiness * (1 + distractor))
            counts += [burstiness] * (burstiness > 0) * (1 + distractor)
            assert sorted(classes.values()) == sorted(counts)
        check_labels(labels, context, query, target)


def test_matched_pairs_show_one_drawing_each():
    task = TASKS["matched"].replace(rest="unique")
    for context, (query, exemplar, _) in items_of(task, task.sample("train", 300, seed=0)):
        drawings = {c: {e for d, e, _ in context if d == c} for c, _, _ in context}
        assert drawings[query] == {exemplar}
        assert all(len(shown) == 1 for shown in drawings.values())


def test_without_matching_drawings_are_independent_of_the_querys():
    task = TASKS["main"]
    same = [
        e == exemplar
        for context, (query, exemplar, _) in items_of(task, task.sample("train", 3_000, seed=0))
        for c, e, _ in context
        if c == query
    ]
    assert abs(sum(same) - len(same) / 3) < 5 * math.sqrt(len(same) * 2 / 9)


@pytest.mark.parametrize("zipf", [0.0, 1.0, 3.0])
def test_classes_are_as_frequent_as_their_distribution_says(zipf):
    task = SMALL.replace(n_pairs=3, burstiness=1, rest="unique", zipf=zipf)
    n = 4_000
    p = [(rank + 1) ** -zipf for rank in range(10)]
    p = [one / sum(p) for one in p]

    def expect(found: int, of: int, share: float) -> None:
        assert abs(found - share * of) < 5 * math.sqrt(of * share * (1 - share)) + 1

    drawn = [
        (query, [c for c, _, _ in context if c != query])
        for context, (query, _, _) in items_of(task, task.sample("train", n, seed=0))
    ]
    for c in range(10):
        expect(sum(query == c for query, _ in drawn), n, p[c])
    of_zero = [others for query, others in drawn if query == 0]  # the others without class 0
    for c in range(1, 10):
        first = p[c] / (1 - p[0])
        second = sum(p[d] / (1 - p[0]) * p[c] / (1 - p[0] - p[d]) for d in range(1, 10) if d != c)
        expect(sum(c in others for others in of_zero), len(of_zero), first + second)


def test_places_and_labels_are_uniform():
    task = TASKS["bursty"].replace(rest="unique")
    batch = task.sample("iwl_copy_avail", 3_000, seed=0)
    places = Counter(int(place) for place in batch.correct.int().argmax(dim=1))
    for place in range(task.n_pairs):
        share = 1 / task.n_pairs
        assert abs(places[place] - 3_000 * share) < 5 * math.sqrt(3_000 * share * (1 - share))
    for fields, n in (({"labels": "relabelled"}, 10), ({"labels": "first_two"}, 2)):
        batch = SMALL.replace(**fields).sample("train", 4_000, seed=0)
        pairs = Counter(map(tuple, batch.context_labels.tolist()))
        assert len(pairs) == n * (n - 1)
        share = 1 / (n * (n - 1))
        bound = 5 * math.sqrt(4_000 * share * (1 - share))
        assert all(abs(count - 4_000 * share) < bound for count in pairs.values())


def test_a_context_without_the_target_has_no_answers_and_no_in_context_metrics():
    batch = SMALL.sample("pure_iwl", 20, seed=0)
    assert not batch.answers.any()
    assert batch.candidates.any()
    model = ih.build_model(SMALL)
    metrics = ih.evaluate(model, batch)
    for name, values in metrics.items():
        assert bool(values.isnan().all()) == name.startswith("in_context")
    icl = ih.evaluate(model, SMALL.sample("icl", 20, seed=0))
    assert not any(bool(values.isnan().any()) for values in icl.values())
    with pytest.raises(ValueError, match="answer"):
        ih.induction_strength(model, batch)


def test_a_run_is_evaluated_on_every_split(tmp_path):
    config = ih.RunConfig(task=SMALL, sequences=64, evaluation_size=50)
    (run,) = ih.train([config], tmp_path, progress=False)
    last = run.metrics[run.metrics.step == 2].set_index("split")
    assert tuple(last.index) == FixedLabels.splits
    assert last.loss.notna().all()
    assert last.in_context_accuracy.isna().to_dict() == {
        split: split == "pure_iwl" for split in FixedLabels.splits
    }
    assert run.task.config == SMALL
    assert ih.evaluation.chance(run.task) == {"loss": math.log(10), "accuracy": 0.1}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"burstiness": 2}, "burstiness"),
        ({"n_train_classes": 2}, "n_train_classes"),
        ({"burstiness": 0, "labels": "flipped"}, "labels"),
        ({"distractor": False, "labels": "relabelled"}, "labels"),
        ({"zipf": -1}, "zipf"),
        ({"n_labels": 3}, "n_labels"),
    ],
)
def test_impossible_contexts_are_refused(fields, named):
    with pytest.raises(ValueError, match=named):
        SMALL.replace(**fields)


def test_more_classes_than_exemplars_have_are_refused():
    with pytest.raises(ValueError, match="n_train_classes"):
        SMALL.replace(n_train_classes=16).build()
    with pytest.raises(ValueError, match="split"):
        SMALL.sample("test_exemplars", 3, seed=0)


def test_classes_are_never_drawn_twice_however_rare_the_others_are():
    task = SMALL.replace(zipf=4.0, n_pairs=9, rest="unique")
    batch = task.sample("train", 2_000, seed=0)
    for context, (query, _, _) in items_of(task, batch):
        assert sorted({query, *(c for c, _, _ in context)}) == sorted(c for c, _, _ in context)
    assert torch.equal(batch.tokens, task.sample("train", 2_000, seed=0).tokens)
