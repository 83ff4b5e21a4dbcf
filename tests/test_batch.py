"""PackedBatch: packing, padding, selection, splitting, and what it refuses."""

import dataclasses

import numpy as np
import pytest

from edgebert.batch import PackedBatch, unpad
from edgebert.errors import InvalidInputError

ROWS = [[5, 6, 7], [8], [9, 10]]
TYPES = [[0, 1, 1], [0], [1, 0]]


def test_packs_end_to_end() -> None:
    batch = PackedBatch.from_lists(ROWS, TYPES)
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert batch.token_type_ids.tolist() == [0, 1, 1, 0, 1, 0]
    assert batch.cu_seqlens.tolist() == [0, 3, 4, 6]
    assert {batch.input_ids.dtype, batch.token_type_ids.dtype, batch.cu_seqlens.dtype} == {np.dtype(np.int32)}
    assert batch.position_ids().tolist() == [0, 1, 2, 0, 0, 1]
    assert (batch.num_sequences, batch.total_tokens, batch.max_seqlen) == (3, 6, 3)
    assert PackedBatch.from_lists(ROWS).token_type_ids.tolist() == [0] * 6
    assert PackedBatch.from_lists([np.array(row) for row in ROWS]).input_ids.tolist() == batch.input_ids.tolist()


def test_positions_that_do_not_count_a_padding_id() -> None:
    """RoBERTa's, here with padding_idx 1: pad tokens at the start, inside, at the end, everywhere and nowhere."""
    rows = [[1, 7, 8], [7, 1, 1, 8], [7, 8, 1], [1, 1], [7], [7, 8]]
    expected = [[1, 2, 3], [2, 1, 1, 3], [2, 3, 1], [1, 1], [2], [2, 3]]
    positions = PackedBatch.from_lists(rows).position_ids(offset=2, padding_id=1)
    assert positions.tolist() == sum(expected, [])
    assert positions.dtype == np.int32
    assert PackedBatch.from_lists(rows[1:3]).position_ids(offset=2).tolist() == [2, 3, 4, 5, 2, 3, 4]
    assert PackedBatch.from_lists([]).position_ids(offset=2, padding_id=1).tolist() == []


def test_empty_batch() -> None:
    batch = PackedBatch.from_lists([])
    assert (batch.num_sequences, batch.total_tokens, batch.max_seqlen) == (0, 0, 0)
    assert list(batch.split(10)) == []


def test_pad_and_unpad_are_inverse() -> None:
    batch = PackedBatch.from_lists(ROWS, TYPES)
    ids, mask, types = batch.pad(pad_token_id=1)
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1], [9, 10, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert types.tolist() == [[0, 1, 1], [0, 0, 0], [1, 0, 0]]
    values = ids[..., None].astype(np.float32) * [1, 2]
    assert unpad(values, mask)[:, 1].tolist() == (2 * batch.input_ids).tolist()


@pytest.mark.parametrize("indices", [[2, 0], [1, 1], [], range(1, 3)])
def test_take(indices: list[int]) -> None:
    taken = PackedBatch.from_lists(ROWS, TYPES).take(indices)
    expected = PackedBatch.from_lists([ROWS[i] for i in indices], [TYPES[i] for i in indices])
    for name in ("input_ids", "token_type_ids", "cu_seqlens"):
        assert getattr(taken, name).tolist() == getattr(expected, name).tolist()


def test_join() -> None:
    batch = PackedBatch.from_lists(ROWS, TYPES)
    joined = batch.take([0]).join(batch.take([])).join(batch.take([1, 2]))
    for name in ("input_ids", "token_type_ids", "cu_seqlens"):
        assert getattr(joined, name).tolist() == getattr(batch, name).tolist()
        assert getattr(joined, name).dtype == np.int32


def test_take_keeps_the_output_tokens() -> None:
    batch = PackedBatch.from_lists([[10, 11, 12], [20], [30, 31, 32, 33]])
    batch = dataclasses.replace(batch, output_tokens=np.int32([1, 4, 6, 7]))
    assert batch.num_output_tokens == 4
    for indices, expected in (([2, 0, 1], [30, 32, 33, 11]), ([0, 2], [11, 30, 32, 33]), ([1], []), ([], [])):
        taken = batch.take(np.array(indices, int))
        assert taken.output_tokens is not None
        assert taken.input_ids[taken.output_tokens].tolist() == expected


@pytest.mark.parametrize(
    ("max_tokens", "expected"),
    [(1, [(0, 1), (1, 2), (2, 3)]), (3, [(0, 1), (1, 3)]), (4, [(0, 2), (2, 3)]), (100, [(0, 3)])],
)
def test_split_keeps_the_budget(max_tokens: int, expected: list[tuple[int, int]]) -> None:
    assert list(PackedBatch.from_lists(ROWS).split(max_tokens)) == expected


@pytest.mark.parametrize(
    ("ids", "types", "message"),
    [
        ([[1], []], None, "row 1 has no tokens"),
        ([[1.5]], None, "integers"),
        ([["a"]], None, "integers"),
        ([[-1]], None, r"\[0, 2\*\*31\)"),
        ([[2**31]], None, r"\[0, 2\*\*31\)"),
        ([[1, 2]], [[0]], "same row lengths"),
        ([[1, 2]], [0, 0], "token_type_ids must be a list of rows"),
        ([1, 2], None, "input_ids must be a list of rows"),
        (None, None, "input_ids must be a list of rows"),
        ([[[1, 2]]], None, "integers"),
    ],
)
def test_refuses(ids: list, types: list | None, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        PackedBatch.from_lists(ids, types)
