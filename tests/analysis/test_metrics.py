"""Every scale against the evaluation, and against sums done by hand."""

import inspect
import math

import pytest
import torch
from torch.testing import assert_close

import ih_interp as ih
from ih_interp.batch import Layout
from ih_interp.evaluation import LOWER_IS_BETTER, SCALES, chance, measured, sequence_metrics

# Two sequences of three labels; tokens from 3 are exemplars. Contexts hold labels 0, 1 and 2, 1.
BATCH = ih.Batch(
    torch.tensor([[3, 0, 4, 1, 3], [3, 2, 4, 1, 4]]), torch.tensor([0, 1]), layout=Layout(2)
)
LOGITS = torch.tensor([[2.0, 1.0, 5.0], [4.0, 1.0, 3.0]])


def test_every_scale_by_hand():
    e = math.exp
    all_first, all_second = e(2) + e(1) + e(5), e(4) + e(1) + e(3)
    expected = {
        "logit": [2, 1],
        "logit_difference": [2 - 1, 1 - 3],
        "loss": [math.log(all_first) - 2, math.log(all_second) - 1],
        "in_context_loss": [math.log(e(2) + e(1)) - 2, math.log(e(1) + e(3)) - 1],
        "probability": [e(2) / all_first, e(1) / all_second],
        "in_context_probability": [e(2) / (e(2) + e(1)), e(1) / (e(1) + e(3))],
        "accuracy": [0, 0],
        "in_context_accuracy": [1, 0],
    }
    assert set(expected) == set(SCALES)
    for scale, values in expected.items():
        assert_close(measured(scale, LOGITS, BATCH), torch.tensor(values).float())


def test_scales_are_those_of_the_evaluation(model, batch):
    logits = model(batch.tokens)[:, -1].detach()
    expected = sequence_metrics(logits[:, None], batch)
    shared = [scale for scale in SCALES if scale in expected]
    assert len(shared) == 5
    for scale in shared:
        assert_close(measured(scale, logits, batch), expected[scale])
    context = measured("in_context_probability", logits, batch)
    assert_close(measured("in_context_loss", logits, batch), -context.log())


def test_several_labels_of_a_longer_context(exemplars):
    """Four pairs, two labels said twice: n counts different labels, and each once."""
    config = ih.TaskConfig(n_train_classes=12, n_pairs=4, n_copies=2)
    task = ih.FewShotTask(exemplars, config)
    batch = task.sample("train", 16, generator=torch.Generator().manual_seed(0))
    logits = torch.randn(16, task.n_labels, generator=torch.Generator().manual_seed(1))
    for row in range(16):
        target = int(batch.target[row])
        shown = {int(label) for label in batch.context_labels[row]}
        others = [float(logits[row, label]) for label in shown - {target}]
        expected = float(logits[row, target]) - sum(others) / len(others)
        assert float(measured("logit_difference", logits, batch)[row]) == pytest.approx(
            expected, abs=1e-6
        )
    expected = sequence_metrics(logits[:, None], batch).in_context_probability
    assert_close(measured("in_context_probability", logits, batch), expected)


def test_a_model_that_knows_nothing_scores_chance(task, batch):
    even = torch.zeros(len(batch), task.n_labels)
    levels = chance(task)
    for scale in ("loss", "probability", "in_context_probability"):
        assert measured(scale, even, batch).numpy() == pytest.approx(levels[scale])
    assert measured("in_context_loss", even, batch).numpy() == pytest.approx(math.log(2))
    assert (measured("logit_difference", even, batch) == 0).all()


@pytest.mark.parametrize("scale", SCALES)
def test_axes_in_front_are_kept(scale):
    logits = torch.randn(2, 3, 2, 3, generator=torch.Generator().manual_seed(0))
    values = measured(scale, logits, BATCH)
    assert values.shape == (2, 3, 2)
    for i in range(2):
        for j in range(3):
            assert_close(values[i, j], measured(scale, logits[i, j], BATCH))


@pytest.mark.parametrize("scale", SCALES)
def test_more_of_the_target_is_better(scale):
    better = LOGITS.clone()
    better[[0, 1], BATCH.target] += 10
    change = measured(scale, better, BATCH) - measured(scale, LOGITS, BATCH)
    assert (change <= 0).all() if scale in LOWER_IS_BETTER else (change >= 0).all()
    assert change.abs().max() > 0.1


def test_a_function_of_ones_own():
    def brier(logits, batch):
        return ((logits.softmax(-1).gather(1, batch.target[:, None])[:, 0] - 1) ** 2).float()

    expected = (measured("probability", LOGITS, BATCH) - 1) ** 2
    assert_close(measured(brier, LOGITS, BATCH), expected)
    stacked = torch.stack([LOGITS, -LOGITS])[None]
    values = measured(brier, stacked, BATCH)
    assert values.shape == (1, 2, 2)
    assert_close(values[0, 0], expected)
    assert_close(values[0, 1], brier(-LOGITS, BATCH))


def test_what_is_no_metric_is_refused():
    with pytest.raises(ValueError, match="metric='nll'"):
        inspect.unwrap(measured)("nll", LOGITS, BATCH)
    with pytest.raises(ValueError, match=r"shape \(\)"):
        measured(lambda logits, batch: logits.mean(), LOGITS, BATCH)
    with pytest.raises(ValueError, match=r"shape \(2, 3\) for 1 sequences"):
        measured("logit", LOGITS, BATCH[:1])


def test_a_context_without_another_label_has_no_difference():
    alone = BATCH[:1].replace(tokens=torch.tensor([[3, 1, 4, 1, 3]]), targets=torch.tensor([1]))
    assert float(measured("in_context_probability", LOGITS[:1], alone)) == 1
    with pytest.raises(ValueError, match="logit_difference"):
        measured("logit_difference", LOGITS[:1], alone)


def test_a_model_of_other_tokens_is_measured_too():
    """`logit`, `loss`, `probability` and `accuracy` ask for a target only, not for pairs."""
    batch = ih.Batch(torch.tensor([[0, 1], [2, 0]]), torch.tensor([2, 0]))
    assert_close(measured("logit", LOGITS, batch), torch.tensor([5.0, 4.0]))
    assert_close(measured("accuracy", LOGITS, batch), torch.ones(2))
    with pytest.raises(ValueError, match="plain tokens"):
        measured("in_context_loss", LOGITS, batch)


def test_what_a_metric_gets_is_its_own_to_change():
    def careless(logits, batch):
        value = logits.gather(1, batch.target[:, None])[:, 0]
        logits.zero_()
        batch.tokens.zero_()
        batch.target.fill_(1)
        return value

    logits, batch = LOGITS.clone(), BATCH[:]
    tokens, target = batch.tokens.clone(), batch.target.clone()
    expected = measured("logit", LOGITS, BATCH)
    assert torch.equal(measured(careless, logits, batch), expected)
    stacked = torch.stack([logits, logits])
    assert torch.equal(measured(careless, stacked, batch), torch.stack([expected] * 2))
    assert torch.equal(logits, LOGITS)
    assert torch.equal(batch.tokens, tokens)
    assert torch.equal(batch.target, target)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("metric", [m for m in SCALES if m.endswith("accuracy")])
def test_what_diverged_has_no_accuracy(metric, bad):
    """The first sequence's logits are whole; the second's are not, where its context looks too."""
    batch = ih.Batch(torch.tensor([[5, 0, 6, 1, 7]] * 2), torch.tensor([0, 0]), layout=Layout(2))
    logits = torch.tensor([[2.0, 1.0, 0.0], [bad, 1.0, 0.0]])
    right, unknown = measured(metric, logits, batch).tolist()
    assert right == 1
    assert math.isnan(unknown)
    found = sequence_metrics(logits[:, None], batch)
    assert getattr(found, metric).tolist()[0] == 1
    assert math.isnan(getattr(found, metric).tolist()[1])


def test_a_label_outside_the_context_says_nothing_of_it():
    """Masked, as by -inf, or NaN: the context's own numbers are there."""
    batch = ih.Batch(torch.tensor([[5, 0, 6, 1, 7]]), torch.tensor([0]), layout=Layout(2))
    for outside in (-math.inf, math.nan):
        logits = torch.tensor([[2.0, 0.5, outside]])
        assert measured("in_context_accuracy", logits, batch).tolist() == [1]
        assert measured("logit_difference", logits, batch).tolist() == [1.5]
        assert sequence_metrics(logits[:, None], batch).in_context_accuracy.tolist() == [1]
