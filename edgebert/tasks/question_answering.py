"""Extractive question answering: a question and a context in, the spans of the context that answer it out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from edgebert.artifact.spec import EncoderSpec
from edgebert.errors import InvalidInputError
from edgebert.tasks import base
from edgebert.tasks.base import F32, Outputs, Prepared, check_count, check_max_length, in_order, make_rows, softmax
from edgebert.tokenizer import Row, Tokenizer, check_stride, check_text

Answer = dict[str, Any]

MAX_SEQ_LEN = 384  # tokens of a window, and
DOC_STRIDE = 128  # what two have in common, as transformers' pipeline cuts contexts
OUTPUTS = ("start_logits", "end_logits")


@dataclass(frozen=True, kw_only=True)
class Options(base.Options):
    """Which spans may answer, and how contexts are cut.

    Attributes:
        top_k: how many answers, best first; fewer where the context has fewer; None for 1.
        max_answer_len: tokens of an answer at most.
        handle_impossible_answer: let "no answer" (an empty one) compete, with the first token's probability.
        align_to_words: widen an answer to whole words; False for text without blanks, as Chinese, where a word is all
            that stands between two.
        max_seq_len: tokens of a window: `max_length`; neither given, the file's limit, 384 at most.
        doc_stride: tokens that neighbouring windows share: `stride`; neither given, 128, half of a window at most, and
            after a question that leaves a window fewer tokens, half of those.
        truncation: answer from the first window of a long context alone.

    Raises:
        InvalidInputError: an option that is not usable.
    """

    top_k: int | None = 1
    max_answer_len: int = 15
    handle_impossible_answer: bool = False
    align_to_words: bool = True
    max_seq_len: int | None = None
    doc_stride: int | None = None
    truncation: bool = False

    def __post_init__(self) -> None:
        if self.top_k is not None:
            check_count("top_k", self.top_k)
        check_count("max_answer_len", self.max_answer_len)
        for name in ("max_seq_len", "max_length"):
            check_max_length(name, getattr(self, name), self.spec)
        if self.doc_stride is not None:
            check_stride("doc_stride", self.doc_stride)


def find_limit(spec: EncoderSpec, tokenizer: Tokenizer, options: Mapping[str, Any]) -> int:
    """Tokens that a window has at most."""
    limit: int = options.get("max_seq_len") or options.get("max_length") or min(tokenizer.max_length, MAX_SEQ_LEN)
    return limit


def prepare(inputs: Sequence[dict[str, str]], tokenizer: Tokenizer, options: Options) -> Prepared:
    """Rows of the question and a window of the context, of {"question", "context"} each.

    Raises:
        InvalidInputError: an input of which one of the two is missing, empty or not a str, or that leaves no room.
    """
    for i, item in enumerate(inputs):
        if not isinstance(item, dict) or set(item) != {"question", "context"}:
            found = (", ".join(map(str, item)) or "an empty one") if isinstance(item, dict) else type(item).__name__
            raise InvalidInputError(f"input {i}: expected a dict with question and context alone, got {found}")
        for key, value in item.items():
            if not isinstance(value, str) or not value:
                raise InvalidInputError(f"input {i}: {key} must be a text that is not empty, got {value!r:.100}")
            check_text(f"input {i}: {key}", value)
    pairs = [(item["question"], item["context"]) for item in inputs]
    size = find_limit(options.spec, tokenizer, vars(options))
    stride = options.doc_stride if options.doc_stride is not None else options.stride
    is_default = stride is None and not options.truncation
    if is_default:
        stride = min(size // 2, DOC_STRIDE)
    cut = replace(options, max_length=size, stride=None if options.truncation else stride)
    rows, is_truncated = make_rows(pairs, tokenizer, cut, has_offsets=True, lowers_stride=is_default)
    return Prepared(rows, OUTPUTS, is_truncated)


def decode(
    inputs: Sequence[dict[str, str]], outputs: Outputs, tokenizer: Tokenizer, options: Options
) -> list[list[Answer]]:
    """Spans of a context that answer a question, by start and end probability.

    Returns:
        Of each question {"score", "start", "end", "answer"}, best first. `context[start:end]` is the answer; scores of
        equal answers are added. A context without tokens, as one of blanks, has the empty answer alone, with the score
        0, or with `handle_impossible_answer` 1.
    """
    answers: list[list[Answer]] = [[] for _ in inputs]
    null_scores = [1.0] * len(inputs)
    top_k, align = options.top_k or 1, options.align_to_words
    for row, values in in_order(outputs):
        start, end = (find_probabilities(values[name], row) for name in OUTPUTS)
        null_scores[row.text] = min(null_scores[row.text], float(start[0] * end[0]))
        num_spans = top_k * 2 + 10 if align else top_k  # some become equal when widened to words
        for first, last, score in _best_spans(start[1:], end[1:], num_spans, options.max_answer_len):
            if align:
                first, last = _widen_to_words(row, first, last)
            bounds = int(row.offsets[first, 0]), int(row.offsets[last, 1])
            _add(answers[row.text], inputs[row.text]["context"], bounds, score)
    for spans, null_score in zip(answers, null_scores, strict=True):
        if options.handle_impossible_answer or not spans:
            score = null_score if options.handle_impossible_answer else 0.0  # there was nothing to answer with
            spans.append({"score": score, "start": 0, "end": 0, "answer": ""})
    return [sorted(spans, key=lambda span: -span["score"])[:top_k] for spans in answers]


def find_probabilities(logits: F32, row: Row) -> F32:
    """Of the row's first token (no answer) and of the context's, f32 [1 + k]; the question's are left out."""
    return softmax(np.concatenate([logits[:1], logits[row.tokens]]))


def _best_spans(start: F32, end: F32, count: int, max_length: int) -> list[tuple[int, int, float]]:
    """(first token, last token, start * end) of the spans of up to `max_length` tokens that score best, best first."""
    max_length = min(max_length, len(start))
    if not max_length:
        return []
    ends = np.concatenate([end, np.full(max_length - 1, -1.0, np.float32)])  # below every span that exists
    scores = start[:, None] * np.lib.stride_tricks.sliding_window_view(ends, max_length)
    order = np.argsort(-scores, axis=None, kind="stable")[:count]
    spans = [(int(i) // max_length, int(i) // max_length + int(i) % max_length) for i in order]
    return [(first, last, float(scores[first, last - first])) for first, last in spans if last < len(start)]


def _widen_to_words(row: Row, first: int, last: int) -> tuple[int, int]:
    """The first token of `first`'s word and the last one of `last`'s, as far as the window has them."""
    words = row.word_ids
    if words[first] < 0 or words[last] < 0:
        return first, last
    return int(np.flatnonzero(words == words[first])[0]), int(np.flatnonzero(words == words[last])[-1])


def _add(spans: list[Answer], context: str, bounds: tuple[int, int], score: float) -> None:
    start, end = bounds
    text = context[start:end]
    for span in spans:
        if _fold(span["answer"]) == _fold(text):
            span["score"] += score
            return
    spans.append({"score": score, "start": start, "end": end, "answer": text})


def _fold(text: str) -> str:
    """Lower case, where a sigma at the end of a word is the same letter as one inside."""
    return text.lower().replace("ς", "σ")
