"""Reranking: a query and documents in, the documents in the order a cross-encoder ranks them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgebert.errors import InvalidInputError
from edgebert.tasks import base
from edgebert.tasks.base import (
    Outputs,
    Prepared,
    add_up,
    check_count,
    check_texts,
    exp,
    gather_texts,
    make_rows,
    softmax,
)
from edgebert.tasks.text_classification import find_function
from edgebert.tokenizer import Tokenizer, check_text


@dataclass(frozen=True, kw_only=True)
class Options(base.Options):
    """What documents are ranked for, and by which score.

    Attributes:
        query: the text to rank for.
        top_k: how many to return; None for all.
        return_documents: put the document's text into the answer as well.
        label: the label whose score ranks; needed where the file has several.
        function_to_apply: as in text classification; None takes what the checkpoint states for CrossEncoder, else as
            there "sigmoid" for a single label, and what text classification takes for several.

    Raises:
        InvalidInputError: an option that is not usable.
    """

    query: str
    top_k: int | None = None
    return_documents: bool = False
    label: str | None = None
    function_to_apply: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.query, str):
            raise InvalidInputError(f"query must be a str, got {type(self.query).__name__}")
        check_text("query", self.query)
        if self.top_k is not None:
            check_count("top_k", self.top_k)
        labels = self.spec.labels
        if (self.label not in labels) if self.label is not None else len(labels) != 1:
            raise InvalidInputError(f"label must be one of {', '.join(labels)}, got {self.label!r}: its score ranks")
        find_function(self.spec, self.function_to_apply)


def prepare(documents: Sequence[str], tokenizer: Tokenizer, options: Options) -> Prepared:
    """Rows of pairs of the query and each document.

    Raises:
        InvalidInputError: a document that is not usable.
    """
    check_texts(documents)
    rows, is_truncated = make_rows([(options.query, text) for text in documents], tokenizer, options)
    return Prepared(rows, ("logits",), is_truncated)


def decode(documents: Sequence[str], outputs: Outputs, tokenizer: Tokenizer, options: Options) -> list[dict[str, Any]]:
    """Documents ranked by the score of (query, document), as `CrossEncoder.rank` of sentence-transformers gives them.

    Returns:
        [{"corpus_id", "score"}, …], best first, also where scores are so near 0 or 1 that they are equal; equal
        logits in the order of the documents. With `return_documents` each has "text" too.
    """
    labels = options.spec.labels
    name = options.function_to_apply or options.spec.rank_function or ("sigmoid" if len(labels) == 1 else None)
    function = find_function(options.spec, name)
    column = labels.index(options.label) if options.label is not None else 0
    logits = gather_texts(len(documents), outputs, "logits", options)
    scores = function(logits)[:, column]
    keys = -logits[:, column].astype(
        np.float64
    )  # every function falls with them, a softmax with what the others have beside it
    if function is softmax:
        leads = logits + keys[:, None]
        leads[:, column] = -np.inf
        keys = add_up(exp(leads))[:, 0]
    order = np.argsort(keys, kind="stable")[: options.top_k].tolist()
    return [
        {"corpus_id": i, "score": float(scores[i])} | ({"text": documents[i]} if options.return_documents else {})
        for i in order
    ]
