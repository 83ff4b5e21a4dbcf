"""TextRunner: how one call's texts become rows: tokenized, sorted by length, run in micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.spec import EncoderSpec
from edgebert.backends.base import Backend, Outputs
from edgebert.batch import I32, PackedBatch
from edgebert.errors import InvalidInputError
from edgebert.tokenizer import Text, Tokenizer, Window

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

BATCH_TOKENS = 4096  # tokens of one micro-batch, unless a single text has more
MAX_LOGITS = 1 << 24  # numbers of one micro-batch's token output: a vocabulary's logits are wide


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

    def run_texts(self, texts: Sequence[Text], output: str) -> F32:
        """A sequence output, f32 [n, width], one row a text or pair; of a text in windows the mean of theirs."""
        if self.stride is None:
            batch, self.is_truncated = self.tokenizer.tokenize(texts, self.max_length)
            return self._run_sequences(batch, output)
        batch, windows, self.is_truncated = self.tokenizer.tokenize_windows(texts, self.max_length, self.stride)
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
        batch, windows, self.is_truncated = self.tokenizer.tokenize_windows(texts, self.max_length, self.stride)
        found: list[Outputs] = [{} for _ in windows]
        for indices, part, values in self.run_batch(batch, outputs):
            for i, first, last in zip(indices, part.cu_seqlens[:-1], part.cu_seqlens[1:], strict=True):
                found[i] = {name: value[first:last] for name, value in values.items()}
        return list(zip(windows, np.split(batch.input_ids, batch.cu_seqlens[1:-1]), found, strict=True))

    def run_batch(self, batch: PackedBatch, outputs: Sequence[str]) -> Iterator[tuple[I64, PackedBatch, Outputs]]:
        """Micro-batches in the order they are best computed in: (indices of their sequences, the part, its outputs)."""
        if not isinstance(self.batch_tokens, int) or self.batch_tokens < 1:
            raise InvalidInputError(f"batch_tokens must be a positive integer, got {self.batch_tokens!r}")
        widths = [width for is_token, width in map(self.spec.output_width, outputs) if is_token]
        tokens = min(self.batch_tokens, max(1, MAX_LOGITS // max([1, *widths])))
        # longest first: neighbours are of like length, and memory does not grow after the first batch
        order = np.argsort(-batch.lengths, kind="stable")
        batch = batch.take(order)
        for first, last in batch.split(tokens):
            part = batch.take(range(first, last))
            yield order[first:last], part, self.backend.run(part, outputs)

    def _run_sequences(self, batch: PackedBatch, output: str) -> F32:
        rows = np.empty((batch.num_sequences, self.spec.output_width(output)[1]), np.float32)
        for indices, _, values in self.run_batch(batch, [output]):
            rows[indices] = values[output]
        return rows
