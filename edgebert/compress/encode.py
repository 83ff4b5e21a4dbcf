"""Datasets to token ids and numeric targets, through the tokenizer that the model file will carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from edgebert.artifact.spec import EncoderSpec
from edgebert.batch import PackedBatch
from edgebert.checkpoints.loading import Checkpoint
from edgebert.compress.data import MULTI_LABEL, REGRESSION, Dataset
from edgebert.errors import InvalidInputError, UnsupportedModelError
from edgebert.runner import check_ids
from edgebert.tokenizer import Tokenizer

IGNORED = -100  # target of a piece that is not the first of its word
STRIDE = 128  # tokens that neighbouring windows of a long context share


@dataclass(frozen=True)
class Window:
    """A stretch of a context as the model sees it behind the question.

    Attributes:
        example: index of its question in the dataset.
        offsets: int64 [tokens, 2]: characters of the context, (-1, -1) for tokens outside of it.
    """

    example: int
    offsets: NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Encoded examples: example i is the sequences i * width to (i + 1) * width of the batch.

    Attributes:
        batch: all sequences.
        targets: an array an example: int64 [] of a label, f32 [labels] of several, f32 [] of a score (NaN for none),
            int64 [tokens] of tags (IGNORED where none is asked for), int64 [2] of a span's first and last token;
            None for text without a target.
        width: sequences an example: 2 for pairs of sentences to be embedded, else 1.
        windows: of question answering, one an example (a long context has several); else empty.
        has_piece: of token classification, bool an example and word: whether the word has a token; else empty.
        counts: what the encoding lost: "truncated" rows, "cut_spans" that begin or end inside a token, "lost_words"
            that have no token; "windowed" questions have a context in several windows.
    """

    batch: PackedBatch
    targets: list[Any]
    width: int
    counts: dict[str, int]
    windows: list[Window] = field(default_factory=list)
    has_piece: list[list[bool]] = field(default_factory=list)

    def __len__(self) -> int:
        return self.batch.num_sequences // self.width

    @property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each example's longest sequence, int32 [n]."""
        lengths: NDArray[np.int32] = self.batch.lengths.reshape(-1, self.width).max(axis=1)
        return lengths

    def take(self, indices: Sequence[int]) -> Examples:
        """The examples at `indices`."""
        rows = [i * self.width + part for i in indices for part in range(self.width)]
        windows, has_piece = ([kept[i] for i in indices] if kept else [] for kept in (self.windows, self.has_piece))
        targets = [self.targets[i] for i in indices]
        return Examples(self.batch.take(rows), targets, self.width, self.counts, windows, has_piece)  # type: ignore[arg-type]

    def join(self, texts: PackedBatch) -> Examples:
        """These examples and others without a target, `width` sequences each, at the end."""
        return replace(
            self, batch=self.batch.join(texts), targets=[*self.targets, *[None] * (texts.num_sequences // self.width)]
        )


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    """The checkpoint's tokenizer as the file will use it.

    Raises:
        UnsupportedModelError: the checkpoint has none.
    """
    if checkpoint.tokenizer_json is None:
        raise UnsupportedModelError(f"{checkpoint.folder} has no tokenizer: training on texts needs one")
    spec = checkpoint.spec
    return Tokenizer.for_spec(checkpoint.tokenizer_json, spec)


def find_special_tokens(checkpoint: Checkpoint) -> tuple[int, list[int]]:
    """(id of the mask token, ids of all special tokens).

    Raises:
        UnsupportedModelError: the tokenizer has no mask token.
    """
    tokenizer = tokenizers.Tokenizer.from_str(str(checkpoint.tokenizer_json))
    special = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    mask_token_id = special.get("[MASK]", special.get("<mask>"))
    if mask_token_id is None:
        raise UnsupportedModelError("the tokenizer has no [MASK] or <mask>: fill-mask needs one")
    return mask_token_id, sorted(special.values())


def encode(dataset: Dataset, checkpoint: Checkpoint, max_length: int | None = None) -> Examples:
    """Token ids and targets of a dataset.

    Args:
        dataset: of the checkpoint's task.
        checkpoint: whose tokenizer and spec to use.
        max_length: tokens a row has at most, special tokens included; None takes the spec's limit.

    Raises:
        InvalidInputError: a limit out of range, a question that leaves no room for its context, or a token that the
            model has no row for.
    """
    examples = _encode(dataset, checkpoint, max_length)
    rows = [window.example for window in examples.windows] or np.arange(examples.batch.num_sequences) // examples.width
    check_ids(examples.batch, rows, load_tokenizer(checkpoint), checkpoint.spec)
    return examples


def _encode(dataset: Dataset, checkpoint: Checkpoint, max_length: int | None) -> Examples:
    tokenizer = load_tokenizer(checkpoint)
    spec = checkpoint.spec
    limit = min(max_length or spec.max_length, spec.max_length)
    if dataset.task == "token-classification":
        return _encode_words(dataset, checkpoint, limit)
    if dataset.task == "question-answering":
        return _encode_questions(dataset, checkpoint, limit)
    texts = dataset.texts()
    width = 2 if dataset.task == "embedding" else 1
    batch, truncated = tokenizer.tokenize([part for pair in texts for part in pair] if width == 2 else texts, limit)
    return Examples(batch, _row_targets(dataset, spec), width, {"truncated": int(truncated.sum())})


def _row_targets(dataset: Dataset, spec: EncoderSpec) -> list[NDArray[Any]]:
    if dataset.task == "text-classification" and dataset.problem_type != REGRESSION:
        index = {label: i for i, label in enumerate(spec.labels)}
        if dataset.problem_type == MULTI_LABEL:
            targets = np.zeros((len(dataset), len(index)), np.float32)
            for row, labels in zip(targets, dataset.targets, strict=True):
                row[[index[label] for label in labels]] = 1.0
            return list(targets)
        return [np.int64(index[label]) for label in dataset.targets]  # type: ignore[misc]
    return [np.float32(np.nan if score is None else score) for score in dataset.targets]  # type: ignore[misc]


def _library_tokenizer(checkpoint: Checkpoint, limit: int, **truncation: Any) -> tokenizers.Tokenizer:
    """The tokenizers library's own, which gives the characters of every token."""
    tokenizer = tokenizers.Tokenizer.from_str(str(checkpoint.tokenizer_json))
    tokenizer.no_padding()
    tokenizer.enable_truncation(limit, **truncation)
    return tokenizer


def _pack(spec: EncoderSpec, encodings: Sequence[tokenizers.Encoding]) -> PackedBatch:
    types = [encoding.type_ids for encoding in encodings] if spec.has_token_types else None
    return PackedBatch.from_lists([encoding.ids for encoding in encodings], types)


def _encode_words(dataset: Dataset, checkpoint: Checkpoint, limit: int) -> Examples:
    """Words joined by spaces; the first piece of a word carries its tag."""
    tokenizer = _library_tokenizer(checkpoint, limit)
    index = {label: i for i, label in enumerate(checkpoint.spec.labels)}
    encodings = tokenizer.encode_batch(dataset.texts())
    targets, has_piece, truncated = [], [], 0
    for words, tags, encoding in zip(dataset.inputs, dataset.targets, encodings, strict=True):
        target = np.full(len(encoding.ids), IGNORED, np.int64)
        pieces = first_pieces(words, encoding)
        for piece, tag in zip(pieces, tags, strict=True):
            if piece >= 0:
                target[piece] = index[tag]
        has_piece.append([piece >= 0 for piece in pieces])
        truncated += bool(encoding.overflowing)
        targets.append(target)
    counts = {"truncated": truncated, "lost_words": sum(row.count(False) for row in has_piece)}
    return Examples(_pack(checkpoint.spec, encodings), targets, 1, counts, has_piece=has_piece)


def first_pieces(words: Sequence[str], encoding: tokenizers.Encoding) -> list[int]:
    """Index of each word's first token in the encoding of the words joined by spaces; -1 for a word that has none."""
    pieces, start, token = [], 0, 0
    spans = [
        span if sequence is not None else (-1, -1)
        for span, sequence in zip(encoding.offsets, encoding.sequence_ids, strict=True)
    ]
    for word in words:
        end = start + len(word)
        while token < len(spans) and spans[token][1] <= start:
            token += 1
        pieces.append(token if token < len(spans) and spans[token][0] < end else -1)
        start = end + 1
    return pieces


def _encode_questions(dataset: Dataset, checkpoint: Checkpoint, limit: int) -> Examples:
    """Windows over the context behind the question; a span outside of the window is answered with the first token."""
    try:
        tokenizer = _library_tokenizer(checkpoint, limit, stride=min(STRIDE, limit // 3), strategy="only_second")
        encodings = tokenizer.encode_batch([tuple(pair) for pair in dataset.inputs])
    except Exception as error:  # the library raises nothing narrower
        raise InvalidInputError(
            f"{dataset.source}: a question leaves no room for its context in {limit} tokens ({error}): raise max_length"
        ) from None
    parts, targets, windows, cut = [], [], [], 0
    for i, (first, answers) in enumerate(zip(encodings, dataset.targets, strict=True)):
        for encoding in [first, *first.overflowing]:
            inside = np.array([sequence == 1 for sequence in encoding.sequence_ids])
            offsets = np.where(inside[:, None], np.array(encoding.offsets, np.int64), -1)
            parts.append(encoding)
            windows.append(Window(i, offsets))
            target, is_cut = (0, 0), False
            if answers:
                target, is_cut = _find_span(offsets, answers[0].start, answers[0].start + len(answers[0].text))
            targets.append(np.array(target, np.int64))
            cut += is_cut
    counts = {"windowed": sum(bool(encoding.overflowing) for encoding in encodings), "cut_spans": cut}
    return Examples(_pack(checkpoint.spec, parts), targets, 1, counts, windows)


def _find_span(offsets: NDArray[np.int64], start: int, end: int) -> tuple[tuple[int, int], bool]:
    """((first, last) token that hold these characters, whether a token reaches over them); (0, 0) if not all inside."""
    tokens = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < end) & (offsets[:, 0] >= 0))
    if not len(tokens):
        return (0, 0), False
    first, last = int(tokens[0]), int(tokens[-1])
    context = np.flatnonzero(offsets[:, 0] >= 0)
    starts_before = first == context[0] and offsets[first, 0] > start
    ends_after = last == context[-1] and offsets[last, 1] < end
    if starts_before or ends_after:
        return (0, 0), False
    return (first, last), bool(offsets[first, 0] < start or offsets[last, 1] > end)
