"""PackedBatch: sequences of token ids laid end to end, with no padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import InvalidInputError

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Rows = Sequence[Sequence[int]] | Sequence[NDArray[np.integer[Any]]]


@dataclass(frozen=True)
class PackedBatch:
    """`n` sequences end to end: sequence i holds tokens cu_seqlens[i]:cu_seqlens[i + 1].

    Attributes:
        input_ids: int32 [total_tokens].
        token_type_ids: int32 [total_tokens].
        cu_seqlens: int32 [n + 1], ascending, starting at 0; every sequence has at least one token.
        output_tokens: int32 [m], ascending: the tokens of the batch that get token outputs; None: every token does.
    """

    input_ids: I32
    token_type_ids: I32
    cu_seqlens: I32
    output_tokens: I32 | None = None

    @classmethod
    def from_lists(cls, input_ids: Rows, token_type_ids: Rows | None = None) -> PackedBatch:
        """Pack lists of token ids (and of token types, zeros if not given).

        Raises:
            InvalidInputError: a row without tokens, ids that are not integers, or types that do not fit the ids.
        """
        lengths = _lengths("input_ids", input_ids)
        if (lengths == 0).any():
            row = int(np.flatnonzero(lengths == 0)[0])
            raise InvalidInputError(
                f"row {row} has no tokens: every row needs at least one, drop it or add special tokens"
            )
        if int(lengths.sum()) >= 2**31:
            raise InvalidInputError(f"the batch has {int(lengths.sum())} tokens, at most 2**31 - 1 fit: split it")
        cu_seqlens = np.zeros(len(lengths) + 1, np.int32)
        np.cumsum(lengths, out=cu_seqlens[1:])
        ids = _flatten("input_ids", input_ids)
        if token_type_ids is None:
            types = np.zeros_like(ids)
        else:
            if not np.array_equal(_lengths("token_type_ids", token_type_ids), lengths):
                raise InvalidInputError("token_type_ids must have the same row lengths as input_ids")
            types = _flatten("token_type_ids", token_type_ids)
        return cls(ids, types, cu_seqlens)

    @property
    def num_sequences(self) -> int:
        """Number of sequences."""
        return len(self.cu_seqlens) - 1

    @property
    def total_tokens(self) -> int:
        """Number of tokens of all sequences together."""
        return len(self.input_ids)

    @property
    def lengths(self) -> I32:
        """int32 [n]: tokens of each sequence."""
        return np.diff(self.cu_seqlens)

    @property
    def num_output_tokens(self) -> int:
        """Number of tokens that get token outputs."""
        return self.total_tokens if self.output_tokens is None else len(self.output_tokens)

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest sequence; 0 for an empty batch."""
        return int(self.lengths.max(initial=0))

    def position_ids(self, offset: int = 0, padding_id: int | None = None) -> I32:
        """int32 [total_tokens]: offset, offset + 1, … from the start of each sequence.

        With a `padding_id`, tokens of that id are not counted and have offset - 1, as transformers'
        `create_position_ids_from_input_ids` numbers tokens for RoBERTa's kind.
        """
        if padding_id is None:
            rows = np.arange(offset, offset + self.total_tokens, dtype=np.int32)
            return rows - np.repeat(self.cu_seqlens[:-1], self.lengths)
        is_counted = self.input_ids != padding_id
        counts = np.cumsum(is_counted, dtype=np.int32)
        before = counts[self.cu_seqlens[:-1]] - is_counted[self.cu_seqlens[:-1]]
        positions: I32 = (counts - np.repeat(before, self.lengths)) * is_counted + np.int32(offset - 1)
        return positions

    def pad(self, pad_token_id: int = 0) -> tuple[I64, I64, I64]:
        """(input_ids, attention_mask, token_type_ids), each int64 [n, max_seqlen], padded on the right."""
        mask = np.arange(self.max_seqlen) < self.lengths[:, None]
        ids = np.full(mask.shape, pad_token_id, np.int64)
        types = np.zeros(mask.shape, np.int64)
        ids[mask] = self.input_ids
        types[mask] = self.token_type_ids
        return ids, mask.astype(np.int64), types

    def take(self, indices: Sequence[int] | I64) -> PackedBatch:
        """The sequences at `indices`, in that order."""
        lengths = self.lengths[indices]
        cu_seqlens = np.zeros(len(lengths) + 1, np.int32)
        np.cumsum(lengths, out=cu_seqlens[1:])
        starts = self.cu_seqlens[:-1][indices]
        rows = join_ranges(starts, lengths)
        chosen = self.output_tokens
        if chosen is not None:
            bounds = np.searchsorted(chosen, self.cu_seqlens)
            counts = np.diff(bounds)[indices]
            chosen = chosen[join_ranges(bounds[:-1][indices], counts)] + np.repeat(cu_seqlens[:-1] - starts, counts)
        return PackedBatch(self.input_ids[rows], self.token_type_ids[rows], cu_seqlens, chosen)

    def join(self, other: PackedBatch) -> PackedBatch:
        """These sequences, then another batch's; every token of the result gets token outputs."""
        return PackedBatch(
            np.concatenate([self.input_ids, other.input_ids]),
            np.concatenate([self.token_type_ids, other.token_type_ids]),
            np.concatenate([self.cu_seqlens, self.total_tokens + other.cu_seqlens[1:]]).astype(np.int32),
        )

    def split(self, max_tokens: int) -> Iterator[tuple[int, int]]:
        """Ranges (first, last) of consecutive sequences with at most `max_tokens` tokens, or one sequence, each."""
        first = 0
        while first < self.num_sequences:
            limit = int(self.cu_seqlens[first]) + max_tokens
            last = int(np.searchsorted(self.cu_seqlens, limit, side="right")) - 1
            last = max(last, first + 1)
            yield first, last
            first = last


def join_ranges(starts: NDArray[Any], lengths: NDArray[Any]) -> I64:
    """starts[0], starts[0] + 1, … as many as lengths[0], then those of the next, and so on."""
    ends = np.cumsum(lengths)
    joined: I64 = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
    return joined


def unpad(values: NDArray[np.float32], mask: I64) -> NDArray[np.float32]:
    """Rows of the real tokens: [n, max_seqlen, ...] with mask [n, max_seqlen] -> [total_tokens, ...]."""
    return np.ascontiguousarray(values[mask.astype(bool)])


def _lengths(name: str, rows: Rows) -> NDArray[np.int64]:
    try:
        return np.fromiter((len(row) for row in rows), np.int64, len(rows))
    except TypeError:
        raise InvalidInputError(f"{name} must be a list of rows, each a list of integers, got {rows!r:.100}") from None


def _flatten(name: str, rows: Rows) -> I32:
    if not len(rows):
        return np.zeros(0, np.int32)
    try:
        flat = np.concatenate([np.asarray(row) for row in rows])
    except (ValueError, TypeError) as error:
        raise InvalidInputError(f"{name} must be a list of lists of integers ({error})") from None
    if flat.ndim != 1 or flat.dtype.kind not in "iu":
        raise InvalidInputError(f"{name} must be a list of lists of integers, got values of type {flat.dtype}")
    if flat.size and (flat.min() < 0 or flat.max() > 2**31 - 1):
        raise InvalidInputError(f"{name} must be in [0, 2**31), got {int(flat.min())} to {int(flat.max())}")
    return flat.astype(np.int32)
