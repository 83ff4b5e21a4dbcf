"""Rows of tokens, of one caller or of many, sorted by length and run in micro-batches; and tasks answered with that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.backends.base import Backend, Outputs
from edgebert.batch import PackedBatch
from edgebert.errors import InvalidInputError
from edgebert.tasks import find_task
from edgebert.tokenizer import Row, Tokenizer

BATCH_TOKENS = 4096  # tokens of one micro-batch, unless a single row has more
MAX_LOGITS = 1 << 25  # numbers that one micro-batch gives, unless a single row gives more
SORTED_ROWS = 1 << 14  # rows that are held, and sorted by length, at a time


def answer(
    backend: Backend,
    tokenizer: Tokenizer,
    task: str,
    inputs: Sequence[Any],
    batch_tokens: int = BATCH_TOKENS,
    **options: Any,
) -> tuple[Sequence[Any], NDArray[np.bool_]]:
    """The answers of a task and which of the inputs were truncated, one an input: see its file in `edgebert/tasks/`.

    Raises:
        InvalidInputError: an input or option that is not usable.
    """
    module = find_task(task)
    chosen = module.Options(spec=backend.spec, **options)
    rows, outputs, is_truncated = module.prepare(inputs, tokenizer, chosen)
    return module.decode(inputs, run_rows(backend, rows, outputs, batch_tokens), tokenizer, chosen), is_truncated


def run_rows(
    backend: Backend, rows: Iterable[Row], outputs: Sequence[str], batch_tokens: int = BATCH_TOKENS
) -> Iterator[tuple[Row, Outputs]]:
    """Run rows, as they are asked for; what a row gives does not depend on the others where a backend promises that.

    Args:
        backend: what runs them.
        rows: may be made as they are taken: no more than SORTED_ROWS are held.
        outputs: names of the outputs wanted.
        batch_tokens: tokens that are computed together; a matter of memory and speed, not of the result.

    Yields:
        (row, its outputs: f32 [m, width] ([m] for start_logits and end_logits) for its `output_tokens`, f32 [width]
        for outputs of a sequence), not in the order of the rows.

    Raises:
        InvalidInputError: a bad `batch_tokens`, or what `Backend.run` refuses.
    """
    if not isinstance(batch_tokens, int) or batch_tokens < 1:
        raise InvalidInputError(f"batch_tokens must be a positive integer, got {batch_tokens!r}")
    widths = [backend.spec.output_width(name) for name in outputs]
    asked = [(name, is_token) for name, (is_token, _) in zip(outputs, widths, strict=True)]
    width = sum([width or 1 for is_token, width in widths if is_token])
    row_width = sum([width for is_token, width in widths if not is_token])
    if not backend.chooses_tokens and "sparse_embedding" in outputs:
        width += backend.spec.vocab_size  # the logits that others fold as they come
    rows = iter(rows)
    while held := list(islice(rows, SORTED_ROWS)):
        for part in [held] if len(held) == 1 else _split(backend, held, width, row_width, batch_tokens):
            batch = _pack(part)
            values = backend.run(batch, outputs)
            last = 0
            for i, row in enumerate(part):
                first, last = last, last + _num_output_tokens(row)
                found = {name: values[name][first:last] if is_token else values[name][i] for name, is_token in asked}
                yield row, found


def _split(backend: Backend, rows: list[Row], width: int, row_width: int, batch_tokens: int) -> Iterator[list[Row]]:
    """Rows of at most `batch_tokens` tokens and MAX_LOGITS numbers, or one row, each.

    There are `width` numbers a token and `row_width` a row.

    Longest first: neighbours are of like length, and memory does not grow after the first batch.
    """
    part: list[Row] = []
    num_tokens = num_logits = 0
    for row in sorted(rows, key=lambda row: -len(row.input_ids)):
        length = len(row.input_ids)
        # backends that cannot choose hold all tokens' outputs for a moment
        logits = row_width + width * (_num_output_tokens(row) if backend.chooses_tokens else length)
        if part and (num_tokens + length > batch_tokens or num_logits + logits > MAX_LOGITS):
            yield part
            part, num_tokens, num_logits = [], 0, 0
        part.append(row)
        num_tokens, num_logits = num_tokens + length, num_logits + logits
    yield part


def _num_output_tokens(row: Row) -> int:
    return len(row.input_ids if row.output_tokens is None else row.output_tokens)


def _pack(rows: list[Row]) -> PackedBatch:
    if len(rows) == 1:
        [row] = rows
        bounds = np.array((0, len(row.input_ids)), np.int32)
        return PackedBatch(row.input_ids, row.token_type_ids, bounds, row.output_tokens)
    bounds = np.array([0, *accumulate(len(row.input_ids) for row in rows)], np.int32)
    chosen = None
    if any(row.output_tokens is not None for row in rows):
        of_rows = (
            first + (np.arange(len(row.input_ids)) if row.output_tokens is None else row.output_tokens)
            for first, row in zip(bounds, rows, strict=False)
        )
        chosen = np.concatenate([*of_rows]).astype(np.int32)
    ids = np.concatenate([row.input_ids for row in rows])
    types = np.concatenate([row.token_type_ids for row in rows])
    return PackedBatch(ids, types, bounds, chosen)
