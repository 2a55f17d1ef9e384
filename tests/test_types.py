"""Heads, layouts and batches."""

import numpy as np
import pytest
import torch
from pydantic import BaseModel

import ih_interp as ih
from ih_interp._expect import integer
from ih_interp.types import Head, HeadField


@pytest.mark.parametrize("written", ["L1H3", (1, 3), [1, 3], Head(1, 3)])
def test_heads_are_read(written):
    head = Head.parse(written)
    assert head == (1, 3)
    assert (head.layer, head.head) == (1, 3)
    assert isinstance(head, Head)


def test_heads_are_written_as_they_are_read():
    for head in (Head(0, 0), Head(1, 3), Head(10, 12)):
        assert Head.parse(str(head)) == head
    assert str(Head(10, 12)) == "L10H12"


@pytest.mark.parametrize(
    "written",
    ["", "1:3", "L1H", "l1h3", "L1H3 ", "L-1H3", (1,), (1, 2, 3), (1, -1), (1.0, 3), ("1", "3")],
)
def test_what_is_no_head_is_refused(written):
    with pytest.raises(ValueError, match=r'is not a head; write "L1H3" or \(1, 3\)'):
        Head.parse(written)


@pytest.mark.parametrize("written", [7, None, 1.5])
def test_what_is_not_even_a_pair_is_refused(written):
    class Clamp(BaseModel):
        head: HeadField

    with pytest.raises(ValueError, match="is not a head"):
        Clamp(head=written)


def test_heads_are_their_names_in_json():
    class Clamp(BaseModel):
        heads: tuple[HeadField, ...]

    clamp = Clamp(heads=["L1H3", (0, 2)])
    assert clamp.model_dump_json() == '{"heads":["L1H3","L0H2"]}'
    assert Clamp.model_validate_json(clamp.model_dump_json()) == clamp
    assert clamp.heads[0].layer == 1


NARROW = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32)


@pytest.mark.parametrize(
    "written",
    [
        (np.int64(1), np.uint8(3)),
        np.argwhere(np.eye(4, k=2))[1],
        np.array([1, 3], dtype=np.int16),
        torch.eye(4).roll(2, dims=1).nonzero()[1],
        [np.array(1), torch.tensor(3)],
    ],
    ids=repr,
)
def test_numbers_of_numpy_and_torch_are_heads_in_pythons_numbers(written):
    head = Head.parse(written)
    assert head == (1, 3)
    assert {type(part) for part in head} == {int}


@pytest.mark.parametrize(
    "written",
    [
        *((True, 3), (np.bool_(True), 3), (np.float64(1), 3), np.array([1.0, 3.0])),
        *(np.array([True, False]), np.array([[1, 3]]), torch.tensor([True, True])),
    ],
    ids=repr,
)
def test_what_only_looks_like_numbers_is_no_head(written):
    with pytest.raises(ValueError, match="is not a head"):
        Head.parse(written)


@pytest.mark.parametrize(
    "value", [5, np.int64(5), np.uint8(5), np.array(5), torch.tensor(5), np.intp(5)], ids=repr
)
def test_whole_numbers_of_any_library_are_pythons(value):
    assert type(integer(value, "n")) is int
    assert integer(value, "n") == 5


@pytest.mark.parametrize(
    "value",
    [
        *(True, np.True_, torch.tensor(True), 5.0, np.float64(5), torch.tensor(5.0)),
        *(np.array([5]), torch.tensor([5]), "5", None, [5]),
    ],
    ids=repr,
)
def test_other_values_are_no_whole_numbers(value):
    with pytest.raises(TypeError, match=r"^n=\?: expected an integer, got an? "):
        integer(value, "n=?", "say which")


@pytest.mark.untyped
def test_numbers_of_numpy_serve_as_pythons(task):
    model, same = ih.build_model(task, seed=np.int64(5)), ih.build_model(task, seed=5)
    assert torch.equal(model.W_U, same.W_U)
    batch, drawn = (
        task.sample("train", n, generator=torch.Generator().manual_seed(0))
        for n in (6, np.int64(6))
    )
    assert torch.equal(batch.tokens, drawn.tokens)
    heads = np.argwhere(np.eye(2, 8, dtype=int))
    expected = ih.coalitions(model, batch, ["L0H0", "L1H1"], ablation="resample", seed=3)
    for given in heads, list(map(tuple, heads)), torch.from_numpy(heads):
        found = ih.coalitions(model, batch, given, ablation="resample", seed=np.int64(3))
        assert (found.values == expected.values).all()
    later = ih.clamps.AblateHeads(heads=heads, schedule=ih.clamps.during(np.int64(5), np.int64(9)))
    loss = ih.evaluate(model, batch, [later], step=np.int64(5), chunk=np.int64(4)).loss
    assert torch.equal(loss, ih.evaluate(model, batch, [later], step=5, chunk=4).loss)
    with ih.clamped(model, [later], step=torch.tensor(4)):
        assert torch.equal(model(batch.tokens), same(batch.tokens))
    assert ih.clamps.keep_only(heads[0], n_heads=np.int64(3)) == ((0, 1), (0, 2))
    scores = [
        ih.heads.prefix_matching_score(
            same, generator=torch.Generator().manual_seed(0), period=number(2), offset=number(1)
        )
        for number in (int, np.uint8)
    ]
    assert torch.equal(*scores)


@pytest.mark.untyped
def test_narrow_tokens_serve_models_and_are_refused_by_scores(model, batch):
    tokens = batch.tokens.to(torch.uint8)
    assert torch.equal(model(tokens), model(batch.tokens))
    for narrow in (tokens, batch.tokens > 5):
        with pytest.raises(ValueError, match=r"torch\.int64"):
            ih.heads.previous_token_score(model, narrow)
