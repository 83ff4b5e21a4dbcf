"""Extractive question answering: a question and a context in, the spans of the context that answer it out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgebert.errors import InvalidInputError
from edgebert.tasks.inputs import F32, check_count, softmax

if TYPE_CHECKING:
    from edgebert.runner import TextRunner
    from edgebert.tokenizer import Window

Answer = dict[str, Any]

MAX_SEQ_LEN = 384  # tokens of a window, and
DOC_STRIDE = 128  # what two have in common, as transformers' pipeline cuts contexts


def answer(
    runner: TextRunner,
    inputs: dict[str, str] | Iterable[dict[str, str]] | None = None,
    *,
    question: str | list[str] | None = None,
    context: str | list[str] | None = None,
    top_k: int = 1,
    max_answer_len: int = 15,
    handle_impossible_answer: bool = False,
    align_to_words: bool = True,
    max_seq_len: int | None = None,
    doc_stride: int | None = None,
    truncation: bool = False,
) -> Any:
    """Spans of a context that answer a question, by start and end probability.

    Args:
        runner: the file and the options all tasks have.
        inputs: {"question", "context"}, or several; or
        question: a question or several, and
        context: a context, or one for each question.
        top_k: how many answers, best first; fewer where the context has fewer.
        max_answer_len: tokens of an answer at most.
        handle_impossible_answer: let "no answer" (an empty one) compete, with the first token's probability.
        align_to_words: widen an answer to whole words; False for text without blanks, as Chinese, where a word is all
            that stands between two.
        max_seq_len: tokens of a window: `max_length`; neither given, the file's limit, 384 at most.
        doc_stride: tokens that neighbouring windows share: `stride`; neither given, 128, half of a window at most.
        truncation: answer from the first window of a long context alone.

    Returns:
        {"score", "start", "end", "answer"}, a list of these if there are several; for several questions a list of that.
        `context[start:end]` is the answer; scores of equal answers are added.

    Raises:
        InvalidInputError: an input or option that is not usable.
    """
    check_count("top_k", top_k)
    check_count("max_answer_len", max_answer_len)
    items = read_inputs(inputs, question, context)
    runner.max_length = max_seq_len or runner.max_length or min(runner.tokenizer.max_length, MAX_SEQ_LEN)
    if truncation:
        runner.stride = None
    else:
        strides = (doc_stride, runner.stride, min(runner.max_length // 2, DOC_STRIDE))
        runner.stride = next(value for value in strides if value is not None)
    found: list[list[Answer]] = [[] for _ in items]
    null_scores = [1.0] * len(items)
    for window, _, outputs in runner.run_windows(items, ("start_logits", "end_logits")):
        start, end = (_probabilities(outputs[name], window) for name in ("start_logits", "end_logits"))
        null_scores[window.text] = min(null_scores[window.text], float(start[0] * end[0]))
        num_spans = top_k * 2 + 10 if align_to_words else top_k  # some become equal when widened to words
        for first, last, score in _best_spans(start[1:], end[1:], num_spans, max_answer_len):
            if align_to_words:
                first, last = _widen_to_words(window, first, last)
            bounds = int(window.offsets[first, 0]), int(window.offsets[last, 1])
            _add(found[window.text], items[window.text][1], bounds, score)
    answers = []
    for spans, null_score in zip(found, null_scores, strict=True):
        if handle_impossible_answer or not spans:
            spans.append({"score": null_score, "start": 0, "end": 0, "answer": ""})
        spans = sorted(spans, key=lambda span: -span["score"])[:top_k]
        answers.append(spans[0] if len(spans) == 1 else spans)
    return answers[0] if len(answers) == 1 else answers


def read_inputs(inputs: Any, question: Any, context: Any) -> list[tuple[str, str]]:
    """Pairs of question and context.

    Raises:
        InvalidInputError: neither or both, or one of them is missing, empty or not a str.
    """
    if inputs is not None and (question is not None or context is not None):
        raise InvalidInputError("expected inputs, or question=… and context=…, got both")
    if inputs is None:
        questions = [question] if isinstance(question, str) else question
        contexts = [context] * len(questions or ()) if isinstance(context, str) else context
        if not isinstance(questions, list) or not isinstance(contexts, list) or len(questions) != len(contexts):
            raise InvalidInputError("expected question=… and context=…, each a text or lists of one length")
        inputs = [{"question": q, "context": c} for q, c in zip(questions, contexts, strict=True)]
    elif isinstance(inputs, dict):
        inputs = [inputs]
    if isinstance(inputs, (str, bytes)) or not isinstance(inputs, Iterable):
        raise InvalidInputError(f'expected {{"question": …, "context": …}} or a list, got {type(inputs).__name__}')
    items = []
    for i, item in enumerate(inputs):
        if not isinstance(item, dict) or set(item) != {"question", "context"}:
            found = ", ".join(map(str, item)) if isinstance(item, dict) else type(item).__name__
            raise InvalidInputError(f"input {i}: expected a dict with question and context alone, got {found}")
        for key, value in item.items():
            if not isinstance(value, str) or not value:
                raise InvalidInputError(f"input {i}: {key} must be a text that is not empty, got {value!r:.100}")
        items.append((item["question"], item["context"]))
    return items


def _probabilities(logits: F32, window: Window) -> F32:
    """Of the row's first token (no answer) and of the context's, f32 [1 + k]; the question's are left out."""
    return softmax(np.concatenate([logits[:1], logits[window.tokens]]))


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


def _widen_to_words(window: Window, first: int, last: int) -> tuple[int, int]:
    """The first token of `first`'s word and the last one of `last`'s, as far as the window has them."""
    words = window.word_ids
    if words[first] < 0 or words[last] < 0:
        return first, last
    return int(np.flatnonzero(words == words[first])[0]), int(np.flatnonzero(words == words[last])[-1])


def _add(spans: list[Answer], context: str, bounds: tuple[int, int], score: float) -> None:
    start, end = bounds
    text = context[start:end]
    for span in spans:
        if span["answer"].lower() == text.lower():
            span["score"] += score
            return
    spans.append({"score": score, "start": start, "end": end, "answer": text})
