"""Next sentence: pairs in, whether the second follows the first out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgebert.errors import InvalidInputError
from edgebert.tasks.text_classification import decoder, read_inputs

if TYPE_CHECKING:
    from edgebert.runner import TextRunner


def answer(runner: TextRunner, pairs: Any, *, top_k: int | str | None = "") -> Any:
    """Whether the second sentence of a pair follows the first: softmax over the labels "is_next" and "not_next".

    Args:
        runner: the file and the options all tasks have.
        pairs: a pair as {"text": …, "text_pair": …}, or several, each such a dict or a tuple or list of two.
        top_k: as in text classification: how many labels a pair gets, best first; left out, the best one.

    Returns:
        {"label", "score"} for a pair, a list of these with `top_k`; a list of that for several pairs.

    Raises:
        InvalidInputError: what is not a pair, or a bad `top_k`.
    """
    is_single, items = read_inputs(pairs)
    for i, item in enumerate(items):
        if isinstance(item, str):
            raise InvalidInputError(f"input {i}: expected a pair of texts, got one text")
    decode = decoder(runner.spec, "softmax", top_k)
    answers = [decode(row) for row in runner.run_texts(items, runner.spec.outputs[-1])]
    return answers[0] if is_single else answers
