"""What comes instead of what was meant is told in words, as a user without beartype sees it."""

import subprocess
import sys

import pytest
import torch

import ih_interp as ih

SCRIPT = """
import warnings
warnings.simplefilter("ignore")
import torch
import ih_interp as ih
exemplars = ih.Exemplars.gaussian(n_classes=20, n_exemplars=2, n_features=16)
task = ih.FewShotTask(exemplars, ih.TaskConfig(n_train_classes=8))
model = ih.build_model(task)
batch = task.sample("train", 4, generator=torch.Generator().manual_seed(0))
match = ih.clamps.match("L1H3")
def use(*arguments, **named):
    with ih.clamped(*arguments, **named):
        pass
calls = [
    lambda: use(model, [match], batch.tokens),
    lambda: use(model, match, batch),
    lambda: use(model, [ih.clamps.b_alone("L1H3")], batch),
    lambda: use(model, [match], batch, metrics={}),
    lambda: ih.induction_strength(model, batch.tokens),
    lambda: ih.induction_strength("runs/main", batch),
    lambda: ih.trace("runs/main", ih.induction_strength),
    lambda: ih.train("runs/main"),
    lambda: ih.train({"name": "main"}),
    lambda: ih.train(None),
    lambda: ih.train([ih.RunConfig(), "main"]),
    lambda: ih.train([], workers="2"),
    lambda: ih.train([], device=None),
    lambda: ih.train([], 5),
    lambda: ih.train([], ih.__file__),
    lambda: ih.train([], on_metrics=5),
    lambda: ih.train([], progress="no"),
    lambda: ih.train([], repair=1),
    lambda: ih.FewShotTask("features.npz"),
    lambda: ih.head_table(model, batch),
    lambda: ih.Exemplars(exemplars.features.numpy()),
]
for call in calls:
    try:
        call()
        print("nothing")
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""

WORDS = (
    "TypeError: The batch: expected a Batch, got a Tensor; give the Batch itself",
    "TypeError: clamps=induction_attention",
    "unpack several with a star",
    "TypeError: Metrics: expected a Sequence, got a dict; give rows",
    "TypeError: The batch: expected a Batch, got a Tensor",
    "TypeError: The model: expected a HookedTransformer, got a str; a run's is run.model(step)",
    "TypeError: The run: expected a Run, got a str; open its folder with ih.Run(folder)",
    "TypeError: A run: expected a RunConfig, got a str; write ih.RunConfig(",
    "TypeError: A run: expected a RunConfig, got a dict",
    "TypeError: A run: expected a RunConfig, got a NoneType",
    "TypeError: A run: expected a RunConfig, got a str",
    "TypeError: workers='2': expected an integer, got a str",
    "TypeError: device=None: expected a str, got a NoneType",
    "TypeError: root=5: expected a str or a PathLike, got an int",
    "is a file; give a folder",
    "TypeError: on_metrics=5 cannot be called with a run and a row of its metrics",
    "TypeError: progress='no': expected a bool, got a str",
    "TypeError: repair=1: expected a bool, got an int",
    "TypeError: Exemplars: expected an Exemplars, got a str; load a file",
    "TypeError: scores=FewShotTransformer(...): expected a Mapping, got a FewShotTransformer;",
    "TypeError: The array of features: expected a Tensor, got an ndarray; use ih.Exemplars.from",
)


@pytest.fixture(scope="module")
def said():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


@pytest.mark.parametrize("number", range(len(WORDS)))
def test_wrong_kinds_are_told_in_words(number, said):
    assert len(said) == len(WORDS)
    assert WORDS[number] in said[number]


def test_other_arguments_than_a_function_takes_are_told_what_it_takes(model, batch):
    for call, words in (
        (lambda: ih.prefix_matching_score(model, batch), "generator="),
        (lambda: ih.head_table(model, batch), "scores"),
        (lambda: ih.set_redundancy(model, batch, ["L1H3"]), "single, joint"),
        (lambda: ih.backup_heads(model, batch, "L1H3"), "coalitions"),
        (lambda: ih.copying_score_diag(model, batch), "tokens="),
    ):
        with pytest.raises(TypeError, match=words):
            call()


def test_a_whole_vocabulary_that_takes_hours_is_refused(model, monkeypatch):
    monkeypatch.setattr("ih_interp.analysis.heads.copying.LARGE", 10)
    with pytest.raises(ValueError, match="tokens="):
        ih.copying_score_diag(model)
    assert ih.copying_score_diag(model, tokens=torch.arange(3)).top.shape == (2, 8)
