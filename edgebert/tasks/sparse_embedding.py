"""Sparse embeddings: a weight for each token that a text is about, be it in the text or not (SPLADE, BGE-M3).

A text's weights come from its own row of the vocabulary's width, or, where the file weighs the tokens of the text, are
the largest of each token's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from edgebert.tasks import base
from edgebert.tasks.base import F32, I32, Outputs, Prepared, check_count
from edgebert.tasks.embedding import find_prompt, prepare_after
from edgebert.tokenizer import Tokenizer


class SparseEmbedding(NamedTuple):
    """The weights of a text that are not 0.

    Attributes:
        ids: int32 [n], of tokens, ascending.
        weights: f32 [n], of these.
    """

    ids: I32
    weights: F32


@dataclass(frozen=True, kw_only=True)
class Options(base.Options):
    """How texts are embedded.

    Attributes:
        prompt_name: name of one of the file's prompts, put before every text; the file's default prompt if None.
        prompt: a prompt of the caller's own, instead of one by name.
        top_k: keep this many of the largest weights; None keeps all.
        return_arrays: answer a `SparseEmbedding` instead of a dict.

    Raises:
        InvalidInputError: a prompt name or count that is not usable.
    """

    prompt_name: str | None = None
    prompt: str | None = None
    top_k: int | None = None
    return_arrays: bool = False

    def __post_init__(self) -> None:
        find_prompt(self.spec, self.prompt_name, self.prompt)
        if self.top_k is not None:
            check_count("top_k", self.top_k)


def prepare(texts: Sequence[str], tokenizer: Tokenizer, options: Options) -> Prepared:
    """Rows of texts, each with the prompt before it.

    Raises:
        InvalidInputError: a text that is not usable.
    """
    before = find_prompt(options.spec, options.prompt_name, options.prompt)
    return prepare_after(before, texts, tokenizer, options, _output(options))


def decode(texts: Sequence[str], outputs: Outputs, tokenizer: Tokenizer, options: Options) -> list[Any]:
    """The weights of each text: {token: weight}, largest first, or a `SparseEmbedding`.

    Of a text in windows a token's weight is the largest of theirs.
    """
    found: list[SparseEmbedding | None] = [None] * len(texts)
    name, unweighted = _output(options), np.array(options.spec.unweighted_ids, np.int32)
    for row, values in outputs:
        if name == "sparse_embedding":
            ids = np.flatnonzero(values[name]).astype(np.int32)
            new = SparseEmbedding(ids, values[name][ids])
        else:
            new = _merge(row.input_ids, values[name][:, 0], unweighted)
        before = found[row.text]
        found[row.text] = new if before is None else _join(before, new)
    return list(_finish(found, tokenizer, options))


def _join(a: SparseEmbedding, b: SparseEmbedding) -> SparseEmbedding:
    return _merge(np.concatenate([a.ids, b.ids]), np.concatenate([a.weights, b.weights]))


def _output(options: Options) -> str:
    """The output that the weights are made of."""
    return "sparse_embedding" if "sparse_embedding" in options.spec.outputs else "token_weights"


def _merge(ids: I32, weights: F32, unweighted: I32 | None = None) -> SparseEmbedding:
    """The largest weight of each id, where that is not 0."""
    if unweighted is not None:
        weights = np.where(np.isin(ids, unweighted), np.float32(0), weights)
    kept, places = np.unique(ids, return_inverse=True)
    largest = np.zeros(len(kept), np.float32)
    np.maximum.at(largest, places, weights)
    return SparseEmbedding(kept[largest > 0], largest[largest > 0])


def _finish(found: Sequence[SparseEmbedding | None], tokenizer: Tokenizer, options: Options) -> Iterator[Any]:
    for embedding in found:
        assert embedding is not None  # every text has a row
        ids, weights = embedding
        order = np.lexsort((ids, -weights))[: options.top_k]
        if options.return_arrays:
            order = np.sort(order)
            yield SparseEmbedding(ids[order], weights[order])
        else:
            yield {tokenizer.id_to_token(int(i)): float(w) for i, w in zip(ids[order], weights[order], strict=True)}
