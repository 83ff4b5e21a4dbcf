"""Sequence classification: texts or pairs in, labels and scores out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.artifact.spec import EncoderSpec
from edgebert.errors import InvalidInputError
from edgebert.tokenizer import Text

F32 = NDArray[np.float32]

FUNCTIONS = ("softmax", "sigmoid", "none")


def read_inputs(inputs: Any) -> tuple[bool, list[Text]]:
    """(whether `inputs` is one text or one dict, the texts and pairs).

    Raises:
        InvalidInputError: not texts, or a dict with other keys than "text" and "text_pair".
    """
    if isinstance(inputs, (str, dict)):
        return True, [_read_item(0, inputs)]
    if isinstance(inputs, bytes) or not isinstance(inputs, Iterable):
        raise InvalidInputError(f"expected a text, a dict or a list of them, got {type(inputs).__name__}")
    return False, [_read_item(i, item) for i, item in enumerate(inputs)]


def decoder(
    spec: EncoderSpec, function_to_apply: str | None = None, top_k: int | str | None = ""
) -> Callable[[F32], Any]:
    """A function from the logits of one row, f32 [labels], to what transformers' pipeline gives for it.

    Args:
        spec: labels and problem type.
        function_to_apply: one of FUNCTIONS; None: "none" for regression, "sigmoid" for several labels at once or
            a single one, else "softmax".
        top_k: "" for one {"label", "score"}; a count or None (all) for a list of them, best first.

    Raises:
        InvalidInputError: an option that is not one of these.
    """
    name = function_to_apply.lower() if isinstance(function_to_apply, str) else function_to_apply
    if name is None:
        if spec.problem_type == "regression":
            name = "none"
        else:
            is_sigmoid = spec.problem_type == "multi_label_classification" or len(spec.labels) == 1
            name = "sigmoid" if is_sigmoid else "softmax"
    if name not in FUNCTIONS:
        raise InvalidInputError(f"function_to_apply must be one of {', '.join(FUNCTIONS)}, got {function_to_apply!r}")
    if not (top_k in ("", None) or (isinstance(top_k, int) and not isinstance(top_k, bool) and top_k > 0)):
        raise InvalidInputError(f"top_k must be a positive integer or None, got {top_k!r}")

    def decode(logits: F32) -> Any:
        scores = _apply(name, logits)
        if top_k == "":
            best = int(scores.argmax())
            return {"label": spec.labels[best], "score": float(scores[best])}
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [{"label": spec.labels[i], "score": float(scores[i])} for i in order]

    return decode


def _apply(name: str, logits: F32) -> F32:
    if name == "none":
        return logits
    if name == "sigmoid":
        with np.errstate(over="ignore"):  # exp(-x) may be infinite: the score is then 0
            sigmoid: F32 = np.float32(1.0) / (np.float32(1.0) + np.exp(-logits))
        return sigmoid
    powers = np.exp(logits - logits.max())
    softmax: F32 = powers / powers.sum()
    return softmax


def _read_item(i: int, item: Any) -> Text:
    if not isinstance(item, dict):
        return item  # type: ignore[no-any-return]  # the tokenizer checks texts and pairs
    if not {"text"} <= set(item) <= {"text", "text_pair"}:
        raise InvalidInputError(
            f"text {i}: expected a dict with text and text_pair, got the keys {', '.join(map(str, item))}"
        )
    return item["text"] if item.get("text_pair") is None else (item["text"], item["text_pair"])
