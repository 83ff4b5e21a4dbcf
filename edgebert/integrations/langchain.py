"""Model files as LangChain's embeddings, and a document compressor that reranks; asynchronous calls run in threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgebert.integrations import DOCUMENT, QUERY, Source, encode, need_library, score_documents, take_model
from edgebert.model import Model

need_library(__name__)

from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import Embeddings
from pydantic import ConfigDict

NAMES = {"embedding": "EdgeBertEmbeddings", "reranking": "EdgeBertReranker"}


class EdgeBertEmbeddings(Embeddings):
    """Embeddings of an embedding file, queries and documents each with the file's prompt for them."""

    def __init__(self, model: Source, **options: Any) -> None:
        """Args: a model file or what `edgebert.load` returned, and options of `Model.encode`."""
        self.model, self.options = take_model(model, NAMES, "embedding"), options

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A row a text."""
        return encode(self.model, texts, DOCUMENT, **self.options).tolist()

    def embed_query(self, text: str) -> list[float]:
        """The row of one text."""
        return encode(self.model, [text], QUERY, **self.options)[0].tolist()


class EdgeBertReranker(BaseDocumentCompressor):
    """The `top_n` best documents by a cross-encoder's file, best first, `relevance_score` in their metadata.

    Attributes:
        model: the loaded file.
        top_n: how many; None for all.
        label: the label whose score ranks; needed where the file has several.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    model: Model
    top_n: int | None = 3
    label: str | None = None

    def __init__(self, model: Source, **fields: Any) -> None:
        """Args: a model file or what `edgebert.load` returned, and the other attributes."""
        super().__init__(model=take_model(model, NAMES, "reranking"), **fields)

    def compress_documents(self, documents: Sequence[Document], query: str, callbacks: Any = None) -> list[Document]:
        """Copies of the best documents."""
        ranked = score_documents(self.model, query, [document.page_content for document in documents], self.label)
        return [
            documents[i].model_copy(update={"metadata": documents[i].metadata | {"relevance_score": score}})
            for i, score in ranked[: self.top_n]
        ]
