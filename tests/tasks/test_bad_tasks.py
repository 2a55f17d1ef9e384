"""Tasks and batches that do not fit are refused in words, before anything is written."""

from typing import ClassVar, Literal

import pytest
import torch

import ih_interp as ih
from ih_interp.analysis.ablation.single_heads import ablate_each_head
from ih_interp.tasks import AbstractTask, MarkovChains, RepeatedTokens


class Faulty(AbstractTask):
    """Counts up from a random number; `fault` says what is wrong."""

    kind: Literal["faulty_in_tests"] = "faulty_in_tests"
    fault: str = ""

    @property
    def d_vocab(self) -> int:
        return 9

    @property
    def d_vocab_out(self) -> int:
        return 7 if self.fault == "fewer outputs" else 9

    @property
    def n_ctx(self) -> int:
        return 3 if self.fault == "long" else 5

    def sample(self, split, n, *, generator):
        if self.fault == "number":
            n += 1
        start = torch.randint(9, (n, 1), generator=generator)
        said = (start + torch.arange(6)) % 9
        tokens, targets = said[:, :-1], said[:, 1:].clone()
        changes = {"tokens high": (tokens, 9), "tokens low": (tokens, -1)}
        changes |= {"targets high": (targets, 9), "targets low": (targets, -7)}
        if self.fault in changes:
            tensor, value = changes[self.fault]
            tensor[:, 2] = value
        if self.fault == "nothing":
            targets[:] = -100
        if self.fault == "floats":
            tokens = tokens.float()
        return tokens if self.fault == "no batch" else ih.Batch(tokens, targets)


class FaultyLast(Faulty):
    kind: Literal["faulty_last_in_tests"] = "faulty_last_in_tests"
    asks_last: ClassVar[bool] = True


def small(task, **fields):
    return ih.RunConfig(task=task, sequences=64, evaluation_size=10, **fields)


@pytest.mark.parametrize(
    ("task", "error", "named"),
    [
        (Faulty(fault="tokens high"), ValueError, "d_vocab=9"),
        (Faulty(fault="tokens low"), ValueError, "d_vocab=9"),
        (Faulty(fault="targets high"), ValueError, "d_vocab_out=9"),
        (Faulty(fault="targets low"), ValueError, "d_vocab_out=9"),
        (Faulty(fault="fewer outputs"), ValueError, "d_vocab_out=7"),
        (Faulty(fault="nothing"), ValueError, "-100"),
        (Faulty(fault="number"), ValueError, r"sample\('train', 8\)"),
        (Faulty(fault="long"), ValueError, "n_ctx=3"),
        (Faulty(fault="floats"), ValueError, "torch.float32"),
        (Faulty(fault="no batch"), TypeError, "Batch"),
        (FaultyLast(), ValueError, "asks_last"),
    ],
    ids=lambda value: value.fault if isinstance(value, Faulty) else "",
)
def test_sequences_that_do_not_fit_their_task(task, error, named, tmp_path):
    with pytest.raises(error, match=named):
        ih.train([small(task)], tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs").exists()


def test_a_sound_task_of_this_file_trains(tmp_path):
    (run,) = ih.train([small(Faulty())], tmp_path, progress=False, workers=1)
    assert run.finished


def test_a_clamp_that_needs_answers_of_a_task_that_has_none(tmp_path):
    clamp = ih.clamps.InductionAttention(heads=["L1H0"])
    with pytest.raises(ValueError, match="answers"):
        ih.train([small(Faulty(), clamps=[clamp])], tmp_path / "runs", progress=False)
    assert not (tmp_path / "runs").exists()


def test_a_second_class_of_a_kind_is_refused():
    for kind in ("repeated_tokens", "faulty_in_tests"):
        with pytest.raises(TypeError, match=kind):
            type(
                "Another",
                (AbstractTask,),
                {"kind": kind, "__annotations__": {"kind": Literal[kind]}, "__module__": "other"},
            )
    assert type(ih.RunConfig.load(small(RepeatedTokens()).save()).task) is RepeatedTokens


@pytest.mark.parametrize("length", [11, 12])  # an odd number could be pairs and a query
@pytest.mark.parametrize("task", [RepeatedTokens, MarkovChains, None])
def test_plain_tokens_are_not_taken_for_few_shot_sequences(task, length):
    fields = {"max_period": 6} if task is RepeatedTokens else {}
    own = (task or MarkovChains)(length=length, **fields)
    model, batch = ih.build_model(own), own.sample("train", 8, seed=0)
    if task is None:
        batch = ih.Batch(batch.tokens, batch.targets)
    assert tuple(ih.evaluate(model, batch)) == ("loss", "accuracy")
    for needs_layout in (
        lambda: batch.layout,
        lambda: batch.context_labels,
        lambda: batch.correct,
        lambda: ih.coalitions(model, batch, ["L1H0"], metric="logit_difference"),
        lambda: ih.coalitions(model, batch, ["L1H0"], metric="in_context_loss"),
    ):
        with pytest.raises(ValueError, match="plain tokens"):
            needs_layout()
    if task is None:
        with pytest.raises(ValueError, match="answers"):
            ih.induction_strength(model, batch)
        clamp = ih.clamps.InductionAttention(heads=["L1H0"])
        with (
            pytest.raises(ValueError, match=r"answers|plain tokens"),
            ih.clamped(model, [clamp], batch),
        ):
            pass


def test_the_heads_of_plain_tokens_have_no_strength():
    task = MarkovChains(length=11)
    model, batch = ih.build_model(task), task.sample("train", 8, seed=0)
    for given, has_strength in ((batch, True), (ih.Batch(batch.tokens, batch.targets), False)):
        table = ablate_each_head(model, given)
        assert (table[table["head"].notna()].strength.notna() == has_strength).all()
        assert table.value.notna().all()
