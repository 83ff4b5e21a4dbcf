"""What tasks have in common: their options, texts to rows, scores."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.spec import EncoderSpec
from edgebert.batch import PackedBatch
from edgebert.errors import InvalidInputError
from edgebert.tokenizer import Row, Text, Tokenizer, check_ids

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Bools = NDArray[np.bool_]
Outputs = Iterable[tuple[Row, dict[str, F32]]]  # of rows, in any order: see `run_rows`


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options that every task has; each task adds its own, and checks them.

    Attributes:
        spec: of the file that is asked.
        max_length: tokens a row has at most, special tokens included; None takes the file's limit.
        stride: tokens that neighbouring windows of a long text have in common; None truncates instead.
    """

    spec: EncoderSpec
    max_length: int | None = None
    stride: int | None = None


class Prepared(NamedTuple):
    """What a task asks for: rows to run and the outputs it reads; and which inputs were truncated, bool [n]."""

    rows: Iterable[Row]
    outputs: tuple[str, ...]
    is_truncated: Bools


def make_rows(
    texts: Sequence[Text],
    tokenizer: Tokenizer,
    options: Options,
    has_offsets: bool = False,
    lowers_stride: bool = False,
    cuts_longer: bool = False,
) -> tuple[list[Row], Bools]:
    """(rows of texts and pairs, truncated, or in windows where there is a stride; which texts were truncated).

    With `lowers_stride` a stride that the first of a pair leaves no room for is half of that room; with `cuts_longer`
    pairs with offsets are truncated as those without.

    Raises:
        InvalidInputError: as `Tokenizer.make_windows`; a token that the model has no row for.
    """
    if has_offsets or options.stride is not None:
        rows, is_truncated = tokenizer.make_windows(
            texts, options.max_length, options.stride, lowers_stride, cuts_longer
        )
    else:
        rows, is_truncated = tokenizer.make_rows(texts, options.max_length)
    if rows and tokenizer.max_id >= options.spec.vocab_size:
        ids = PackedBatch.from_lists([row.input_ids for row in rows])
        check_ids(ids, [row.text for row in rows], tokenizer, options.spec)
    return rows, is_truncated


def in_order(outputs: Outputs) -> list[tuple[Row, dict[str, F32]]]:
    """The rows in the order of the texts, and of the windows of each, with their outputs."""
    return sorted(outputs, key=lambda found: found[0][:2])


def gather_texts(num_texts: int, outputs: Outputs, output: str, options: Options) -> F32:
    """An output of sequences, f32 [num_texts, width]; of a text in windows the mean of theirs."""
    rows = np.zeros((num_texts, options.spec.output_width(output)[1]), np.float32)
    if options.stride is None:
        for row, values in outputs:
            rows[row.text] = values[output]
        return rows
    num_windows = np.zeros((num_texts, 1), np.float32)
    for row, values in in_order(outputs):
        rows[row.text] += values[output]
        num_windows[row.text] += 1
    return rows / num_windows


def check_texts(texts: Sequence[object]) -> None:
    """Raise InvalidInputError for a text that is not a str, named by its index."""
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidInputError(f"text {i} must be a str, got {type(text).__name__}")


def check_count(name: str, value: object) -> int:
    """`value`, if it is a positive integer.

    Raises:
        InvalidInputError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInputError(f"{name} must be a positive integer, got {value!r}")
    return value


def read_numbers(name: str, values: object) -> F32:
    """`values` as an array of f32.

    Raises:
        InvalidInputError: they are not numbers, or lists of them that are not of one length.
    """
    try:
        return np.asarray(values, np.float32)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise InvalidInputError(
            f"{name} must be numbers, in rows of one width, got {type(values).__name__} ({error})"
        ) from None


def check_max_length(name: str, value: object, spec: EncoderSpec) -> None:
    """Raise InvalidInputError for what is no count of tokens that a row can have; None is the file's limit."""
    if value is not None and check_count(name, value) > spec.usable_positions:
        raise InvalidInputError(
            f"{name} must be an integer from 1 to {spec.usable_positions}, the model's positions, got {value!r}"
        )


def softmax(logits: F32) -> F32:
    """exp(x) / sum of exp(x) over the last axis, f32."""
    rows = logits.reshape(-1, logits.shape[-1])
    scores = np.empty_like(rows)
    for part in _blocks(rows):
        x = rows[part].astype(np.float64)
        powers = exp(x - x.max(axis=-1, keepdims=True))
        scores[part] = powers / add_up(powers)
    return scores.reshape(logits.shape)


def sigmoid(logits: F32) -> F32:
    """1 / (1 + exp(-x)), f32."""
    scores: F32 = (1.0 / (1.0 + exp(-logits.astype(np.float64)))).astype(np.float32)
    return scores


def tanh(logits: F32) -> F32:
    """(1 - exp(-2 |x|)) / (1 + exp(-2 |x|)) with the sign of x, f32."""
    x = np.abs(logits.astype(np.float64))
    power, square = exp(-2.0 * x), x * x
    # near 0 the difference has too few digits, and two terms of the series are enough
    near = x * (1.0 - square * (1.0 / 3.0 - square * (2.0 / 15.0)))
    values = np.where(x < 0.03125, near, (1.0 - power) / (1.0 + power))
    scores: F32 = np.copysign(values, logits).astype(np.float32)
    return scores


# Scores have the same bits on every CPU, and in the C API (kernels/tasks/scores.cc). NumPy's exp and sums take other
# instructions and orders on other CPUs, so these are made of single operations on float64, each rounded once.


def exp(x: F64) -> F64:
    """Euler's number to the power of x for x within ±700, beyond that as there; float64, right to 33 bits."""
    with np.errstate(invalid="ignore"):  # of NaN the power of two is nonsense, and the product NaN
        x = np.clip(x, -700.0, 700.0)
        n = np.rint(x * 1.4426950408889634)
        r = (x - n * 0.6931471805599453) * 0.125
        p = r * (1.0 / 120.0) + 1.0 / 24.0
        for term in (1.0 / 6.0, 0.5, 1.0, 1.0):
            p = p * r + term
        for _ in range(3):
            p = p * p
        powers: F64 = p * ((n.astype(np.int64) + 1023) << 52).view(np.float64)
    return powers


def add_up(values: F64) -> F64:
    """Sums over the last axis, kept, from the first value to the last; float64."""
    sums: F64 = np.cumsum(values, axis=-1, dtype=np.float64)[..., -1:]
    return sums


def normalize(rows: F32) -> F32:
    """Rows scaled to length 1: x / max(|x|, 1e-12), f32 [n, width]."""
    scaled = np.empty_like(rows)
    for part in _blocks(rows):
        x = rows[part].astype(np.float64)
        scaled[part] = x / np.maximum(np.sqrt(add_up(x * x)), 1e-12)
    return scaled


def _blocks(rows: F32) -> Iterator[slice]:
    """Rows, few enough at a time that float64 copies of them stay in the cache."""
    step = max(1, (1 << 15) // max(1, rows.shape[-1]))
    for first in range(0, len(rows), step):
        yield slice(first, first + step)


def warn(message: str) -> None:
    """Warn, at the first line up the stack that is not EdgeBERT's."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "edgebert":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
