"""Arguments of a wrong kind are refused in words, which name what was expected and what came."""

import pytest
import torch

import ih_interp as ih

MATCH = ih.clamps.match("L1H3")


def enter(*arguments, **named):
    with ih.clamped(*arguments, **named):
        pass


WRONG_KINDS = {
    "tokens for a batch": (lambda m, b: enter(m, [MATCH], b.tokens), ("Batch", "Tensor")),
    "a clamp for a list": (lambda m, b: enter(m, MATCH, b), ("clamps", "list")),
    "a list in a list": (lambda m, b: enter(m, [ih.clamps.b_alone("L1H3")], b), ("clamps", "star")),
    "a dict for metrics": (lambda m, b: enter(m, [MATCH], b, metrics={}), ("etrics", "dict")),
    "tokens for a score": (lambda m, b: ih.induction_strength(m, b.tokens), ("Batch", "Tensor")),
    "a folder for a model": (
        lambda m, b: ih.induction_strength("runs/main", b),
        ("HookedTransformer", "str"),
    ),
    "a folder for a run": (
        lambda m, b: ih.trace("runs/main", ih.induction_strength),
        ("Run", "str"),
    ),
    "a folder to train": (lambda m, b: ih.train("runs/main"), ("RunConfig", "str")),
    "a dict to train": (lambda m, b: ih.train({"name": "main"}), ("RunConfig", "dict")),
    "nothing to train": (lambda m, b: ih.train(None), ("RunConfig", "None")),
    "a name among runs": (lambda m, b: ih.train([ih.RunConfig(), "main"]), ("RunConfig", "str")),
    "workers": (lambda m, b: ih.train([], workers="2"), ("workers='2'", "str")),
    "device": (lambda m, b: ih.train([], device=None), ("device=None", "str")),
    "root": (lambda m, b: ih.train([], 5), ("root=5", "int")),
    "on_metrics": (lambda m, b: ih.train([], on_metrics=5), ("on_metrics=5",)),
    "progress": (lambda m, b: ih.train([], progress="no"), ("progress='no'", "bool")),
    "repair": (lambda m, b: ih.train([], repair=1), ("repair=1", "bool")),
    "a path for exemplars": (lambda m, b: ih.FewShotTask("features.npz"), ("Exemplars", "str")),
    "a model for scores": (lambda m, b: ih.heads.head_table(m, b), ("scores", "Mapping")),
    "an array for a tensor": (
        lambda m, b: ih.Exemplars(torch.zeros(2, 2, 2).numpy()),
        ("Tensor", "ndarray"),
    ),
}


@pytest.mark.untyped
@pytest.mark.parametrize("case", WRONG_KINDS)
def test_wrong_kinds_are_told_in_words(case, model, batch, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, tokens = WRONG_KINDS[case]
    with pytest.raises(TypeError) as refusal:
        call(model, batch)
    assert all(token in str(refusal.value) for token in tokens), refusal.value
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_no_root(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises((ValueError, OSError), match="folder"):
        ih.train([], tmp_path / "file")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m, b: ih.heads.prefix_matching_score(m, b), "generator="),
        (lambda m, b: ih.heads.head_table(m, b), "scores"),
        (lambda m, b: ih.ablation.set_redundancy(m, b, ["L1H3"]), "single, joint"),
        (lambda m, b: ih.ablation.backup_heads(m, b, "L1H3"), "coalitions"),
        (lambda m, b: ih.heads.copying_score_diag(m, b), "each once"),
    ],
)
def test_other_arguments_than_a_function_takes_are_told_what_it_takes(call, words, model, batch):
    with pytest.raises(TypeError, match=words):
        call(model, batch)


def test_a_whole_vocabulary_that_takes_hours_is_refused(model, monkeypatch):
    monkeypatch.setattr("ih_interp.analysis.heads.copying.LARGE", 10)
    with pytest.raises(ValueError, match="tokens="):
        ih.heads.copying_score_diag(model)
    assert ih.heads.copying_score_diag(model, tokens=torch.arange(3)).top.shape == (2, 8)
