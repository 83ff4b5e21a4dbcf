"""Model files as Haystack's components: embedders of texts and of documents, and a ranker; each can be serialized."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

from edgebert.integrations import DOCUMENT, QUERY, encode, need_library, score_documents, take_model
from edgebert.model import Model

need_library(__name__)

from haystack import Document, component

NAMES = {"embedding": "EdgeBertTextEmbedder or EdgeBertDocumentEmbedder", "reranking": "EdgeBertRanker"}


class _Component:
    """What the three have in common: the path of a file, loaded by `warm_up` or the first run."""

    _task: str
    model: str
    backend: str
    threads: int | None
    _loaded: Model | None = None

    def warm_up(self) -> None:
        """Load the file."""
        self._load()

    def _load(self) -> Model:
        if self._loaded is None:
            self._loaded = take_model(self.model, NAMES, self._task, backend=self.backend, threads=self.threads)
        return self._loaded


class _Embedder(_Component):
    _task = "embedding"

    def __init__(
        self, model: str, backend: str = "auto", threads: int | None = None, options: dict[str, Any] | None = None
    ) -> None:
        """Args: the path of an embedding file, those of `edgebert.load`, and options of `Model.encode`."""
        self.model, self.backend, self.threads, self.options = model, backend, threads, options

    def _embed(self, texts: list[str], prompt_names: tuple[str, ...]) -> list[list[float]]:
        rows: list[list[float]] = encode(self._load(), texts, prompt_names, **self.options or {}).tolist()
        return rows


@component
class EdgeBertTextEmbedder(_Embedder):
    """The embedding of a query, with the file's prompt for queries."""

    @component.output_types(embedding=list[float])
    def run(self, text: str) -> dict[str, Any]:
        """{"embedding": the row of the text}."""
        return {"embedding": self._embed([text], QUERY)[0]}

    @component.output_types(embedding=list[float])
    async def run_async(self, text: str) -> dict[str, Any]:
        """`run`, in a thread."""
        return await asyncio.to_thread(self.run, text)


@component
class EdgeBertDocumentEmbedder(_Embedder):
    """Documents with their embeddings, made with the file's prompt for documents."""

    @component.output_types(documents=list[Document])
    def run(self, documents: list[Document]) -> dict[str, Any]:
        """{"documents": copies with `embedding`}."""
        rows = self._embed([document.content or "" for document in documents], DOCUMENT)
        pairs = zip(documents, rows, strict=True)
        return {"documents": [dataclasses.replace(document, embedding=row) for document, row in pairs]}

    @component.output_types(documents=list[Document])
    async def run_async(self, documents: list[Document]) -> dict[str, Any]:
        """`run`, in a thread."""
        return await asyncio.to_thread(self.run, documents)


@component
class EdgeBertRanker(_Component):
    """The `top_k` best documents by a cross-encoder's file, best first, with its scores."""

    _task = "reranking"

    def __init__(
        self, model: str, top_k: int = 10, label: str | None = None, backend: str = "auto", threads: int | None = None
    ) -> None:
        """Args: the path of a file, how many, the label whose score ranks, and those of `edgebert.load`."""
        self.model, self.top_k, self.label, self.backend, self.threads = model, top_k, label, backend, threads

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """{"documents": copies of the best, with `score`}."""
        texts = [document.content or "" for document in documents]
        ranked = score_documents(self._load(), query, texts, self.label)[: top_k or self.top_k]
        return {"documents": [dataclasses.replace(documents[i], score=score) for i, score in ranked]}

    @component.output_types(documents=list[Document])
    async def run_async(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """`run`, in a thread."""
        return await asyncio.to_thread(self.run, query, documents, top_k)
