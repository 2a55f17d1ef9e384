"""Batches: what is asked where, which positions are padding, and what is refused."""

import pytest
import torch

from ih_interp.batch import NOT_ASKED, Batch, Layout

NARROW = (torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.uint32)


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


@pytest.fixture
def asked():
    """Three prompts of 4, 2 and 3 tokens, padded with 0, each asked at its end and one before."""
    tokens = torch.tensor([[5, 6, 7, 8], [5, 9, 0, 0], [6, 5, 4, 0]])
    targets = torch.full((3, 4), NOT_ASKED)
    targets[0, 3], targets[0, 1], targets[1, 1], targets[2, 2] = 1, 4, 2, 3
    foils = torch.tensor([[2, 3], [1, NOT_ASKED], [2, 1]])
    return Batch(tokens, targets, lengths=torch.tensor([4, 2, 3]), foils=foils)


def test_what_is_asked_is_named_sequence_by_sequence(asked):
    sequences, positions = asked.asked_rows
    assert [*zip(sequences.tolist(), positions.tolist(), strict=True)] == [
        (0, 1),
        (0, 3),
        (1, 1),
        (2, 2),
    ]
    last = Batch(asked.tokens, torch.tensor([1, 2, 3]))
    assert last.asks_last
    assert not asked.asks_last
    assert [row.tolist() for row in last.asked_rows] == [[0, 1, 2], [3, 3, 3]]


def test_padding_is_known_by_the_lengths(asked):
    assert asked.present.sum(dim=1).tolist() == [4, 2, 3]
    assert not asked.present[1, 2:].any()
    assert Batch(asked.tokens, asked.targets).present.all()


def test_lengths_and_foils_stay_with_their_rows(asked):
    part = asked[torch.tensor([2, 0])]
    assert part.given_lengths.tolist() == [3, 4]
    assert part.foils.tolist() == [[2, 1], [2, 3]]
    assert [len(one.foils) for one in asked.split(2)] == [2, 1]
    assert asked.replace(foils=None).foils is None


@pytest.mark.parametrize(
    ("lengths", "token"),
    [
        ([4, 2], "shape"),
        ([4, 2, 5], "1 to 4"),
        ([4, 0, 3], "1 to 4"),
        ([4, 1, 3], "behind"),
        ([4.0, 2.0, 3.0], "integers"),
    ],
)
def test_lengths_that_do_not_fit_are_refused(lengths, token, asked):
    with pytest.raises(ValueError, match=token):
        Batch(asked.tokens, asked.targets, lengths=torch.tensor(lengths))


def test_the_last_position_is_not_asked_of_shorter_sequences(asked):
    with pytest.raises(ValueError, match="behind"):
        Batch(asked.tokens, torch.tensor([1, 2, 3]), lengths=asked.given_lengths)


@pytest.mark.parametrize(
    "foils", [[1, 2, 3], [[1], [2]], [[1], [-100], [2]], [[0.5], [1.0], [2.0]]]
)
def test_foils_that_do_not_fit_are_refused(foils, asked):
    with pytest.raises(ValueError, match="foils"):
        Batch(asked.tokens, asked.targets, foils=torch.tensor(foils))
