"""Reranking: a query and documents in, the documents in the order a cross-encoder ranks them out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from edgebert.errors import InvalidInputError
from edgebert.tasks.inputs import check_count, read_texts, softmax
from edgebert.tasks.text_classification import find_function

if TYPE_CHECKING:
    from edgebert.runner import TextRunner


def answer(
    runner: TextRunner,
    query: str,
    documents: Iterable[str],
    *,
    top_k: int | None = None,
    return_documents: bool = False,
    label: str | None = None,
    function_to_apply: str | None = None,
) -> list[dict[str, Any]]:
    """Documents ranked by the score of (query, document), as `CrossEncoder.rank` of sentence-transformers gives them.

    Args:
        runner: the file and the options all tasks have.
        query: the text to rank for.
        documents: the texts to rank.
        top_k: how many to return; None for all.
        return_documents: put the document's text into the answer as well.
        label: the label whose score ranks; needed where the file has several.
        function_to_apply: as in text classification; None takes what the checkpoint states for CrossEncoder, else as
            there "sigmoid" for a single label, and what text classification takes for several.

    Returns:
        [{"corpus_id", "score"}, …], best first, also where scores are so near 0 or 1 that they are equal; equal
        logits in the order of the documents. With `return_documents` each has "text" too.

    Raises:
        InvalidInputError: an input or option that is not usable.
    """
    if not isinstance(query, str):
        raise InvalidInputError(f"query must be a str, got {type(query).__name__}")
    if isinstance(documents, str):
        raise InvalidInputError("expected a list of documents, got one str")
    if top_k is not None:
        check_count("top_k", top_k)
    labels = runner.spec.labels
    if (label not in labels) if label is not None else len(labels) != 1:
        raise InvalidInputError(f"label must be one of {', '.join(labels)}, got {label!r}: its score ranks")
    column = labels.index(label) if label is not None else 0
    if function_to_apply is None:
        function_to_apply = runner.spec.rank_function or ("sigmoid" if len(labels) == 1 else None)
    function = find_function(runner.spec, function_to_apply)
    _, texts = read_texts(documents)
    logits = runner.run_texts([(query, text) for text in texts], "logits")
    scores = function(logits)[:, column]
    keys = logits[:, column]  # every function grows with them, a softmax with their lead over the others
    if function is softmax:
        keys = keys - np.logaddexp.reduce(np.delete(logits, column, axis=1), axis=1)
    order = np.argsort(-keys, kind="stable")[:top_k].tolist()
    return [
        {"corpus_id": i, "score": float(scores[i])} | ({"text": texts[i]} if return_documents else {}) for i in order
    ]
