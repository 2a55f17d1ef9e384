"""Heads, layouts and batches."""

import numpy as np
import pytest
import torch
from pydantic import BaseModel

import ih_interp as ih
from ih_interp._expect import integer
from ih_interp.batch import Batch, Layout
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


@pytest.mark.parametrize("n_pairs", [1, 2, 5])
def test_layouts_name_every_position_once(n_pairs):
    layout = Layout(n_pairs)
    assert sorted((*layout.exemplars, *layout.labels, layout.query)) == list(range(2 * n_pairs + 1))
    assert layout.n_positions == 2 * n_pairs + 1
    assert [label - 1 for label in layout.labels] == list(layout.exemplars)
    assert Layout.of(layout.n_positions) == layout


def test_the_paper_layout():
    layout = Layout(n_pairs=2)
    assert (layout.exemplars, layout.labels, layout.query) == ((0, 2), (1, 3), 4)


@pytest.mark.parametrize("n_positions", [0, 1, 2, 4])
def test_layouts_of_no_sequence_are_refused(n_positions):
    with pytest.raises(ValueError, match=rf"{n_positions} positions .* odd number"):
        Layout.of(n_positions)


@pytest.fixture
def small() -> Batch:
    """Sequences of three pairs; the last shows the target's label twice."""
    tokens = torch.tensor([[9, 0, 8, 1, 7, 2, 8], [9, 3, 8, 1, 7, 2, 7], [9, 0, 8, 1, 9, 0, 9]])
    return Batch(tokens, torch.tensor([1, 2, 0]), layout=Layout(3))


def test_batches_know_their_context(small):
    assert small.context_labels.tolist() == [[0, 1, 2], [3, 1, 2], [0, 1, 0]]
    assert small.correct.tolist() == [
        [False, True, False],
        [False, False, True],
        [True, False, True],
    ]
    assert small.layout == Layout(3)
    assert len(small) == 3


def test_batches_are_cut_by_rows(small):
    part = small[1:]
    assert part.tokens.tolist() == small.tokens[1:].tolist()
    assert part.target.tolist() == [2, 0]
    assert small[torch.tensor([2, 0])].target.tolist() == [0, 1]
    assert small[torch.tensor([False, True, False])].target.tolist() == [2]


def test_splits_are_the_batch_in_order(small):
    parts = small.split(2)
    assert [len(part) for part in parts] == [2, 1]
    assert torch.equal(torch.cat([part.tokens for part in parts]), small.tokens)
    assert torch.equal(torch.cat([part.target for part in parts]), small.target)


def test_batches_move(small):
    moved = small.to("meta")
    assert (moved.tokens.device.type, moved.target.device.type) == ("meta", "meta")


def test_batches_are_frozen(small):
    with pytest.raises(AttributeError):
        small.target = small.target + 1


@pytest.mark.untyped
@pytest.mark.parametrize(
    ("tokens", "target"),
    [((3, 5), (2,)), ((3, 5), (1,)), ((5,), ()), ((3, 5), (3, 1)), ((3, 5), (3, 4))],
)
def test_tokens_and_targets_agree_in_number(tokens, target):
    """One target would otherwise stand for every sequence, in silence."""
    with pytest.raises(ValueError, match="shape"):
        Batch(torch.zeros(tokens, dtype=torch.int64), torch.zeros(target, dtype=torch.int64))


NARROW = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_narrow_whole_numbers_become_int64(dtype, small):
    """To torch, uint8 indices are a mask."""
    narrow = Batch(small.tokens.to(dtype), small.target.to(dtype), layout=Layout(3))
    assert (narrow.tokens.dtype, narrow.target.dtype) == (torch.int64, torch.int64)
    assert torch.equal(narrow.tokens, small.tokens)
    assert torch.equal(narrow.target, small.target)
    assert torch.equal(narrow.correct, small.correct)


@pytest.mark.untyped
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("field", ["tokens", "targets"])
def test_what_is_no_whole_number_is_no_token(dtype, field, small):
    fields = {"tokens": small.tokens, "targets": small.target}
    with pytest.raises(ValueError, match=f"{field}.*{dtype}"):
        Batch(**fields | {field: fields[field].to(dtype)})


def test_tokens_and_targets_lie_on_one_device(small):
    with pytest.raises(ValueError, match="targets on cpu: expected one device"):
        Batch(small.tokens.to("meta"), small.target)


def test_nothing_cannot_be_split(small):
    with pytest.raises(ValueError, match="no sequences in this batch"):
        small[:0].split(2)


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
            ih.previous_token_score(model, narrow)


@pytest.mark.parametrize("size", [0, -1, True, 2.5, "3"])
def test_a_size_of_no_sequences_is_refused(size):
    batch = Batch(torch.zeros(4, 5, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    with pytest.raises((ValueError, TypeError), match="size"):
        batch.split(size)


@pytest.mark.parametrize(
    "rows", [torch.tensor([99]), torch.tensor([0.0]), torch.ones(3, dtype=torch.bool)]
)
def test_rows_that_are_none_are_refused_in_words(rows):
    batch = Batch(torch.zeros(4, 5, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(IndexError, match="rows of 4"):
        batch[rows]
