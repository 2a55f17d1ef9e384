"""What comes instead of what was meant is told in words, as a user without beartype sees it."""

import subprocess
import sys

import pytest

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
]
for call in calls:
    try:
        call()
        print("nothing")
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""

WORDS = (
    "TypeError: The batch has to be a Batch and is a Tensor; give the Batch itself",
    "TypeError: ('kind', 'induction_attention') is no clamp: clamps come as a list",
    "is no clamp: clamps come as a list",
    "TypeError: Metrics has to be a Sequence and is a dict; give rows",
    "TypeError: The batch has to be a Batch and is a Tensor",
    "TypeError: The model has to be a HookedTransformer and is a str; a run's is run.model(step)",
    "TypeError: The run has to be a Run and is a str; open its folder with ih.Run(folder)",
    "TypeError: A run has to be a RunConfig and is a str; write ih.RunConfig(",
    "TypeError: A run has to be a RunConfig and is a dict",
    "TypeError: A run has to be a RunConfig and is a NoneType",
    "TypeError: A run has to be a RunConfig and is a str",
    "TypeError: workers='2' has to be a int and is a str",
    "TypeError: device=None has to be a str and is a NoneType",
    "TypeError: root=5 has to be a str or PathLike and is a int",
    "is a file; give a folder",
    "TypeError: on_metrics=5 cannot be called; give a function(run, row)",
    "TypeError: progress='no' has to be a bool and is a str",
    "TypeError: repair=1 has to be a bool and is a int",
    "TypeError: Exemplars has to be a Exemplars and is a str; load a file",
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
