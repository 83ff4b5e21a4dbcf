"""What several tasks do with inputs and scores."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import InvalidInputError

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


def read_texts(texts: Any) -> tuple[bool, list[str]]:
    """(whether `texts` is a single str, the texts).

    Raises:
        InvalidInputError: a text that is not a str, named by its index.
    """
    if isinstance(texts, str):
        return True, [texts]
    if isinstance(texts, (bytes, dict)) or not isinstance(texts, Iterable):
        raise InvalidInputError(f"expected a text or a list of texts, got {type(texts).__name__}")
    items = list(texts)
    for i, text in enumerate(items):
        if not isinstance(text, str):
            raise InvalidInputError(f"text {i} must be a str, got {type(text).__name__}")
    return False, items


def check_count(name: str, value: object) -> int:
    """`value`, if it is a positive integer.

    Raises:
        InvalidInputError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInputError(f"{name} must be a positive integer, got {value!r}")
    return value


def softmax(logits: F32) -> F32:
    """exp(x) / sum of exp(x) over the last axis, f32."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: F32 = powers / powers.sum(axis=-1, keepdims=True)
    return scores


def sigmoid(logits: F32) -> F32:
    """1 / (1 + exp(-x)), f32."""
    with np.errstate(over="ignore"):  # exp(-x) may be infinite: the score is then 0
        scores: F32 = np.float32(1.0) / (np.float32(1.0) + np.exp(-logits))
    return scores


def warn(message: str) -> None:
    """Warn, at the first line up the stack that is not EdgeBERT's."""
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == "edgebert":
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
