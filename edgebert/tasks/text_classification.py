"""Sequence classification: texts or pairs in, labels and scores out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgebert.artifact.spec import EncoderSpec
from edgebert.errors import InvalidInputError
from edgebert.tasks import base
from edgebert.tasks.base import F32, Outputs, Prepared, gather_texts, make_rows, sigmoid, softmax, tanh
from edgebert.tokenizer import Text, Tokenizer

FUNCTIONS: dict[str, Callable[[F32], F32]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "none": lambda logits: logits,
    "tanh": tanh,
}


@dataclass(frozen=True, kw_only=True)
class Options(base.Options):
    """Which labels a text gets, with which scores.

    Attributes:
        top_k: how many labels, best first; None for all. `Model` gives the best one without a list where it is left
            out.
        function_to_apply: "softmax", "sigmoid", "tanh" or "none"; None takes what the file's kind of labels asks for:
            "none" for regression, "sigmoid" for several labels at once or a single one, else "softmax".

    Raises:
        InvalidInputError: an option that is not one of these.
    """

    top_k: int | None = 1
    function_to_apply: str | None = None

    def __post_init__(self) -> None:
        find_function(self.spec, self.function_to_apply)
        check_top_k(self.top_k)


def prepare(inputs: Sequence[Any], tokenizer: Tokenizer, options: Options) -> Prepared:
    """Rows of texts and pairs: each a text, {"text": …, "text_pair": …}, or a tuple or list of two.

    Raises:
        InvalidInputError: not texts, or a dict with other keys than "text" and "text_pair".
    """
    rows, is_truncated = make_rows([read_item(i, item) for i, item in enumerate(inputs)], tokenizer, options)
    return Prepared(rows, ("logits",), is_truncated)


def decode(inputs: Sequence[Any], outputs: Outputs, tokenizer: Tokenizer, options: Options) -> list[list[Any]]:
    """Labels and scores.

    Returns:
        For each text or pair `top_k` of {"label": str, "score": float}, best first. A text in windows has the mean of
        their logits.
    """
    function = find_function(options.spec, options.function_to_apply)
    scores = function(gather_texts(len(inputs), outputs, "logits", options))
    return [rank_labels(row, options.spec, options.top_k) for row in scores]


def rank_labels(scores: F32, spec: EncoderSpec, top_k: int | None) -> list[dict[str, Any]]:
    """The `top_k` best of a text's labels, by scores f32 [labels]."""
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [{"label": spec.labels[i], "score": float(scores[i])} for i in order]


def check_top_k(top_k: object) -> None:
    """Raise InvalidInputError for what is neither a positive integer nor None."""
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
        raise InvalidInputError(f"top_k must be a positive integer or None, got {top_k!r}")


def find_function(spec: EncoderSpec, function_to_apply: str | None) -> Callable[[F32], F32]:
    """From logits [..., labels] to scores: the one of FUNCTIONS asked for, else the one for the file's kind of labels.

    Raises:
        InvalidInputError: another one.
    """
    name = function_to_apply.lower() if isinstance(function_to_apply, str) else function_to_apply
    if name is None:
        if spec.problem_type == "regression":
            name = "none"
        else:
            is_sigmoid = spec.problem_type == "multi_label_classification" or len(spec.labels) == 1
            name = "sigmoid" if is_sigmoid else "softmax"
    if not isinstance(name, str) or name not in FUNCTIONS:
        raise InvalidInputError(f"function_to_apply must be one of {', '.join(FUNCTIONS)}, got {function_to_apply!r}")
    return FUNCTIONS[name]


def find_range(spec: EncoderSpec, function_to_apply: str | None) -> tuple[float, float]:
    """(the least, the greatest) of the scores that `find_function` makes.

    Raises:
        InvalidInputError: as there.
    """
    function = find_function(spec, function_to_apply)
    if function in (softmax, sigmoid):
        return 0.0, 1.0
    return (-1.0, 1.0) if function is tanh else (-math.inf, math.inf)


def read_item(i: int, item: Any) -> Text:
    """The text or pair of input i.

    Raises:
        InvalidInputError: a dict with other keys than "text" and "text_pair".
    """
    if not isinstance(item, dict):
        return item  # type: ignore[no-any-return]  # the tokenizer checks texts and pairs
    if not {"text"} <= set(item) <= {"text", "text_pair"}:
        raise InvalidInputError(
            f"text {i}: expected a dict with text and text_pair, got the keys {', '.join(map(str, item))}"
        )
    return item["text"] if item.get("text_pair") is None else (item["text"], item["text_pair"])
