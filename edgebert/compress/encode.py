"""Datasets to token ids and numeric targets, through the tokenizer that the model file will carry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from edgebert.artifact.spec import EncoderSpec
from edgebert.batch import PackedBatch
from edgebert.checkpoints.loading import Checkpoint
from edgebert.compress.data import MULTI_LABEL, REGRESSION, Answer, Dataset
from edgebert.errors import InvalidInputError, UnsupportedModelError
from edgebert.tasks.base import Options, make_rows
from edgebert.tokenizer import Row, Tokenizer

IGNORED = -100  # target of a piece that is not the first of its word
STRIDE = 128  # tokens that neighbouring windows of a long context share


@dataclass(frozen=True)
class Examples:
    """Encoded examples: example i is the sequences i * width to (i + 1) * width of the batch.

    Attributes:
        batch: all sequences.
        targets: an array an example: int64 [] of a label, f32 [labels] of several, f32 [] of a score (NaN for none),
            int64 [tokens] of tags (IGNORED where none is asked for), int64 [2] of a span's first and last token;
            None for text without a target.
        width: sequences an example: 2 for pairs of sentences to be embedded, else 1.
        counts: what the encoding lost: "truncated" rows, "cut_spans" that begin or end inside a token, "lost_words"
            that have no token; "windowed" questions have a context in several windows.
    """

    batch: PackedBatch
    targets: list[Any]
    width: int
    counts: dict[str, int]

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
        targets = [self.targets[i] for i in indices]
        return Examples(self.batch.take(rows), targets, self.width, self.counts)

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
    tokenizer, spec = load_tokenizer(checkpoint), checkpoint.spec
    limit = min(max_length or spec.max_length, spec.max_length)
    is_question = dataset.task == "question-answering"
    options = Options(spec=spec, max_length=limit, stride=min(STRIDE, limit // 3) if is_question else None)
    texts, width = dataset.texts(), 1
    if dataset.has_pairs:
        texts, width = [part for pair in texts for part in pair], 2
    try:
        rows, truncated = make_rows(texts, tokenizer, options, dataset.task == "token-classification")
    except InvalidInputError as error:
        raise InvalidInputError(f"{dataset.source}: {error}") from None
    counts = {"truncated": int(truncated.sum())}
    if is_question:
        spans = [_find_span(row, dataset.targets[row.text]) for row in rows]
        targets: list[Any] = [np.array(span, np.int64) for span, _ in spans]
        counts = {"windowed": len({row.text for row in rows if row.window}), "cut_spans": sum(cut for _, cut in spans)}
    elif dataset.task == "token-classification":
        tagged = [_tag_pieces(row, dataset, spec) for row in rows]
        targets = [target for target, _ in tagged]
        counts["lost_words"] = sum(lost for _, lost in tagged)
    else:
        targets = _row_targets(dataset, spec)
    batch = PackedBatch.from_lists([row.input_ids for row in rows], [row.token_type_ids for row in rows])
    return Examples(batch, targets, width, counts)


def _row_targets(dataset: Dataset, spec: EncoderSpec) -> list[Any]:
    if dataset.task == "embedding" and not dataset.has_pairs:
        return [None] * len(dataset)
    if dataset.task == "text-classification" and dataset.problem_type != REGRESSION:
        index = {label: i for i, label in enumerate(spec.labels)}
        if dataset.problem_type == MULTI_LABEL:
            targets = np.zeros((len(dataset), len(index)), np.float32)
            for row, labels in zip(targets, dataset.targets, strict=True):
                row[[index[label] for label in labels]] = 1.0
            return list(targets)
        return [np.int64(index[label]) for label in dataset.targets]
    return [np.float32(np.nan if score is None else score) for score in dataset.targets]


def _tag_pieces(row: Row, dataset: Dataset, spec: EncoderSpec) -> tuple[NDArray[np.int64], int]:
    """(a tag for the first token of each word and IGNORED for the others; how many words have no token)."""
    target = np.full(len(row.input_ids), IGNORED, np.int64)
    pieces = first_pieces(dataset.inputs[row.text], row.offsets.tolist())
    for piece, tag in zip(pieces, dataset.targets[row.text], strict=True):
        if piece >= 0:
            target[row.first + piece] = spec.labels.index(tag)
    return target, pieces.count(-1)


def first_pieces(words: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Index of each word's first token, by the characters of each in the words joined by spaces; -1 if it has none."""
    pieces, start, token = [], 0, 0
    for word in words:
        end = start + len(word)
        while token < len(spans) and spans[token][1] <= start:
            token += 1
        pieces.append(token if token < len(spans) and spans[token][0] < end else -1)
        start = end + 1
    return pieces


def _find_span(row: Row, answers: Sequence[Answer]) -> tuple[tuple[int, int], bool]:
    """((first, last) token of the first answer, whether these tokens hold more than it); (0, 0) if it is not inside."""
    if not answers:
        return (0, 0), False
    start, end = answers[0].start, answers[0].start + len(answers[0].text)
    tokens = np.flatnonzero((row.offsets[:, 1] > start) & (row.offsets[:, 0] < end))
    if not len(tokens):
        return (0, 0), False
    first, last = int(tokens[0]), int(tokens[-1])
    starts_before = first == 0 and row.offsets[first, 0] > start
    ends_after = last == len(row.offsets) - 1 and row.offsets[last, 1] < end
    if starts_before or ends_after:
        return (0, 0), False
    is_cut = bool(row.offsets[first, 0] < start or row.offsets[last, 1] > end)
    return (row.first + first, row.first + last), is_cut
