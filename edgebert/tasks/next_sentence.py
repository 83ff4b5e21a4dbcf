"""Next sentence: pairs in, whether the second follows the first out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgebert.errors import InvalidInputError
from edgebert.tasks import base
from edgebert.tasks.base import Outputs, Prepared, gather_texts, make_rows, softmax
from edgebert.tasks.text_classification import check_top_k, rank_labels, read_item
from edgebert.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Options(base.Options):
    """As in text classification.

    Attributes:
        top_k: how many labels a pair gets, best first; None for all. `Model` gives the best one without a list where
            it is left out.

    Raises:
        InvalidInputError: a bad `top_k`.
    """

    top_k: int | None = 1

    def __post_init__(self) -> None:
        check_top_k(self.top_k)


def prepare(pairs: Sequence[Any], tokenizer: Tokenizer, options: Options) -> Prepared:
    """Rows of pairs: each {"text": …, "text_pair": …}, or a tuple or list of two.

    Raises:
        InvalidInputError: what is not a pair.
    """
    items = [read_item(i, item) for i, item in enumerate(pairs)]
    for i, item in enumerate(items):
        if isinstance(item, str):
            raise InvalidInputError(f"input {i}: expected a pair of texts, got one text")
    rows, is_truncated = make_rows(items, tokenizer, options)
    return Prepared(rows, options.spec.outputs[-1:], is_truncated)


def decode(pairs: Sequence[Any], outputs: Outputs, tokenizer: Tokenizer, options: Options) -> list[list[Any]]:
    """Whether the second sentence of a pair follows the first: softmax over the labels "is_next" and "not_next".

    Returns:
        For each pair `top_k` of {"label", "score"}, best first.
    """
    scores = softmax(gather_texts(len(pairs), outputs, options.spec.outputs[-1], options))
    return [rank_labels(row, options.spec, options.top_k) for row in scores]
