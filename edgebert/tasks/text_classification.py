"""Sequence classification: texts or pairs in, labels and scores out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgebert.artifact.spec import EncoderSpec
from edgebert.errors import InvalidInputError
from edgebert.tasks.inputs import F32, sigmoid, softmax
from edgebert.tokenizer import Text

if TYPE_CHECKING:
    from edgebert.runner import TextRunner

FUNCTIONS: dict[str, Callable[[F32], F32]] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "none": lambda logits: logits,
    "tanh": np.tanh,
}


def answer(
    runner: TextRunner, inputs: Any, *, top_k: int | str | None = "", function_to_apply: str | None = None
) -> Any:
    """Labels and scores.

    Args:
        runner: the file and the options all tasks have.
        inputs: a text, a pair as {"text": …, "text_pair": …}, or several of these; among several a pair may also be
            a tuple or list of two.
        top_k: how many labels a text gets, best first; None for all. Left out: the best one, not in a list.
        function_to_apply: "softmax", "sigmoid", "tanh" or "none"; None takes what the file's kind of labels asks for.

    Returns:
        A list of {"label": str, "score": float}, one a text (also for a single str); with `top_k` a list of such
        a text. A single pair given as a dict is answered without the outer list. A text in windows has the mean of
        their logits.

    Raises:
        InvalidInputError: an input or option that is not usable.
    """
    is_single, items = read_inputs(inputs)
    decode = decoder(runner.spec, function_to_apply, top_k)
    answers = [decode(row) for row in runner.run_texts(items, "logits")]
    return answers[0] if is_single and (isinstance(inputs, dict) or top_k != "") else answers


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
    function = find_function(spec, function_to_apply)
    if not (top_k in ("", None) or (isinstance(top_k, int) and not isinstance(top_k, bool) and top_k > 0)):
        raise InvalidInputError(f"top_k must be a positive integer or None, got {top_k!r}")

    def decode(logits: F32) -> Any:
        scores = function(logits)
        if top_k == "":
            best = int(scores.argmax())
            return {"label": spec.labels[best], "score": float(scores[best])}
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [{"label": spec.labels[i], "score": float(scores[i])} for i in order]

    return decode


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
    if name not in FUNCTIONS:
        raise InvalidInputError(f"function_to_apply must be one of {', '.join(FUNCTIONS)}, got {function_to_apply!r}")
    return FUNCTIONS[name]


def _read_item(i: int, item: Any) -> Text:
    if not isinstance(item, dict):
        return item  # type: ignore[no-any-return]  # the tokenizer checks texts and pairs
    if not {"text"} <= set(item) <= {"text", "text_pair"}:
        raise InvalidInputError(
            f"text {i}: expected a dict with text and text_pair, got the keys {', '.join(map(str, item))}"
        )
    return item["text"] if item.get("text_pair") is None else (item["text"], item["text_pair"])
