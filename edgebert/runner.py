"""TextRunner: how one call's texts become rows: tokenized, sorted by length, run in micro-batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Backend, Outputs
from edgebert.batch import I32, PackedBatch, join_ranges
from edgebert.errors import InvalidInputError
from edgebert.tokenizer import Text, Tokenizer, Window

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

BATCH_TOKENS = 4096  # tokens of one micro-batch, unless a single text has more
MAX_LOGITS = 1 << 25  # of a vocabulary, that one micro-batch gives


def check_id(token_id: int, where: str, tokenizer: Tokenizer, spec: EncoderSpec) -> None:
    """Refuse a token that the model has no row for: one that was added to the tokenizer, but not to the model.

    Raises:
        InvalidInputError: it is such a token; names it, and `where` it was found.
    """
    if token_id >= spec.vocab_size:
        raise InvalidInputError(
            f"{where}: the tokenizer gives {tokenizer.id_to_token(token_id)!r} the id {token_id}, and the model "
            f"has the ids 0 to {spec.vocab_size - 1} alone: leave that token out, or give the model a row for it "
            "(resize_token_embeddings in transformers), train it, and export it again"
        )


def check_ids(batch: PackedBatch, text_of_row: Sequence[int] | I64, tokenizer: Tokenizer, spec: EncoderSpec) -> None:
    """`check_id` of every token of a batch; `text_of_row` says of each of its rows which text it is from."""
    if batch.input_ids.max(initial=0) >= spec.vocab_size:
        token = int(np.argmax(batch.input_ids >= spec.vocab_size))
        row = int(np.searchsorted(batch.cu_seqlens, token, side="right")) - 1
        check_id(int(batch.input_ids[token]), f"text {text_of_row[row]}", tokenizer, spec)


@dataclass
class TextRunner:
    """What a task needs to run texts, with the options that all tasks have in common.

    Attributes:
        backend: what runs them.
        text_tokenizer: None for a file that takes token ids only.
        max_length: tokens a row has at most, special tokens included; None takes the file's limit.
        stride: tokens that neighbouring windows of a long text have in common; None truncates instead.
        batch_tokens: tokens that are computed together; a matter of memory and speed, not of the result.
        is_truncated: after a run, which of its texts were truncated.
    """

    backend: Backend
    text_tokenizer: Tokenizer | None
    max_length: int | None = None
    stride: int | None = None
    batch_tokens: int = BATCH_TOKENS
    is_truncated: Bools = field(default_factory=lambda: np.zeros(0, np.bool_))

    @property
    def spec(self) -> EncoderSpec:
        """Sizes, head and text settings of the file."""
        return self.backend.spec

    @property
    def tokenizer(self) -> Tokenizer:
        """The file's tokenizer.

        Raises:
            InvalidInputError: it has none.
        """
        if self.text_tokenizer is None:
            raise InvalidInputError(
                "this file has no tokenizer, it takes token ids: use forward(PackedBatch.from_lists(input_ids))"
            )
        return self.text_tokenizer

    @property
    def mask_id(self) -> int:
        """The id of the tokenizer's mask token.

        Raises:
            InvalidInputError: it has none.
        """
        mask_id = self.tokenizer.mask_id
        if mask_id is None:
            raise InvalidInputError("the file's tokenizer has no mask token, neither [MASK] nor <mask>")
        check_id(mask_id, "the mask token", self.tokenizer, self.spec)
        return mask_id

    def tokenize(self, texts: Sequence[Text]) -> tuple[PackedBatch, list[Window]]:
        """Rows with their offsets, each text truncated or in windows; notes which texts were truncated."""
        batch, windows, self.is_truncated = self.tokenizer.tokenize_windows(texts, self.max_length, self.stride)
        check_ids(batch, [window.text for window in windows], self.tokenizer, self.spec)
        return batch, windows

    def run_texts(self, texts: Sequence[Text], output: str) -> F32:
        """A sequence output, f32 [n, width], one row a text or pair; of a text in windows the mean of theirs."""
        if self.stride is None:
            batch, self.is_truncated = self.tokenizer.tokenize(texts, self.max_length)
            check_ids(batch, range(len(texts)), self.tokenizer, self.spec)
            return self._run_sequences(batch, output)
        batch, windows = self.tokenize(texts)
        rows = self._run_sequences(batch, output)
        text_of_row = np.array([window.text for window in windows], np.int64)
        sums = np.zeros((len(texts), rows.shape[1]), np.float32)
        np.add.at(sums, text_of_row, rows)
        return sums / np.bincount(text_of_row, minlength=len(texts)).astype(np.float32)[:, None]

    def run_windows(self, texts: Sequence[Text], outputs: Sequence[str]) -> list[tuple[Window, I32, Outputs]]:
        """Token outputs: of each text in turn its windows (one, if truncated or short).

        Returns:
            (the window, its row's input_ids [length], the row's outputs [length, width]) for each.
        """
        batch, windows = self.tokenize(texts)
        found: list[Outputs] = [{} for _ in windows]
        for indices, part in self._split(batch, 1):
            values = self.backend.run(part, outputs)
            for i, first, last in zip(indices, part.cu_seqlens[:-1], part.cu_seqlens[1:], strict=True):
                found[i] = {name: value[first:last] for name, value in values.items()}
        ids = [batch.input_ids[first:last] for first, last in pairwise(batch.cu_seqlens)]
        return list(zip(windows, ids, found, strict=True))

    def run_tokens(self, batch: PackedBatch, output: str, tokens: Sequence[int] | I64) -> Iterator[tuple[I64, F32]]:
        """A token output at some tokens alone, piece by piece: all of a vocabulary's logits would be too many to hold.

        Args:
            batch: rows; those without such a token are not run.
            output: name of the output.
            tokens: tokens of the batch, as indices of its `input_ids`.

        Yields:
            (which of `tokens`, their rows f32 [m, width]).
        """
        wanted = np.asarray(tokens, np.int64)
        by_token = np.argsort(wanted, kind="stable")
        bounds = np.searchsorted(wanted[by_token], batch.cu_seqlens)
        rows = np.flatnonzero(np.diff(bounds))
        batch = dataclasses.replace(batch, output_tokens=wanted[by_token].astype(np.int32)).take(rows)
        width = self.spec.output_width(output)[1]
        if self.backend.chooses_tokens:  # the others hold all tokens' rows for a moment
            width = max(1, width * len(wanted) // max(1, batch.total_tokens))
        for indices, part in self._split(batch, width):
            sequences = rows[indices]
            chosen = by_token[join_ranges(bounds[sequences], np.diff(bounds)[sequences])]
            yield chosen, self.backend.run(part, [output])[output]

    def _run_sequences(self, batch: PackedBatch, output: str) -> F32:
        rows = np.empty((batch.num_sequences, self.spec.output_width(output)[1]), np.float32)
        for indices, part in self._split(batch, 1):
            rows[indices] = self.backend.run(part, [output])[output]
        return rows

    def _split(self, batch: PackedBatch, width: int) -> Iterator[tuple[I64, PackedBatch]]:
        """Micro-batches in the order they are best computed in, each with the indices of its sequences.

        They hold at most `batch_tokens` tokens and MAX_LOGITS numbers, `width` a token.
        """
        if not isinstance(self.batch_tokens, int) or self.batch_tokens < 1:
            raise InvalidInputError(f"batch_tokens must be a positive integer, got {self.batch_tokens!r}")
        # longest first: neighbours are of like length, and memory does not grow after the first batch
        order = np.argsort(-batch.lengths, kind="stable")
        batch = batch.take(order)
        for first, last in batch.split(max(1, min(self.batch_tokens, MAX_LOGITS // width))):
            is_whole = last - first == batch.num_sequences
            yield order[first:last], batch if is_whole else batch.take(range(first, last))
