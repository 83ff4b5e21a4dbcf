"""Model files as LlamaIndex's embeddings and as a node postprocessor that reranks."""

from __future__ import annotations

import asyncio
from typing import Any

from edgebert.errors import InvalidInputError
from edgebert.integrations import DOCUMENT, QUERY, Source, encode, need_library, score_documents, take_model
from edgebert.model import Model

need_library(__name__)

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

NAMES = {"embedding": "EdgeBertEmbedding", "reranking": "EdgeBertRerank"}


class EdgeBertEmbedding(BaseEmbedding):
    """Embeddings of an embedding file, queries and documents each with the file's prompt for them."""

    _model: Model = PrivateAttr()
    _options: dict[str, Any] = PrivateAttr()

    def __init__(self, model: Source, *, embed_batch_size: int = 256, **options: Any) -> None:
        """Args: a model file or what `edgebert.load` returned, texts a call, and options of `Model.encode`."""
        loaded = take_model(model, NAMES, "embedding")
        super().__init__(model_name=str(loaded.arguments[0]), embed_batch_size=embed_batch_size)
        self._model, self._options = loaded, options

    @classmethod
    def class_name(cls) -> str:
        """For LlamaIndex's records."""
        return "EdgeBertEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return encode(self._model, [query], QUERY, **self._options)[0].tolist()

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return encode(self._model, texts, DOCUMENT, **self._options).tolist()

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


class EdgeBertRerank(BaseNodePostprocessor):
    """The `top_n` best nodes by a cross-encoder's file, best first, with its scores.

    Attributes:
        top_n: how many; None for all.
        label: the label whose score ranks; needed where the file has several.
    """

    top_n: int | None = 2
    label: str | None = None
    _model: Model = PrivateAttr()

    def __init__(self, model: Source, **fields: Any) -> None:
        """Args: a model file or what `edgebert.load` returned, and the attributes."""
        super().__init__(**fields)
        self._model = take_model(model, NAMES, "reranking")

    @classmethod
    def class_name(cls) -> str:
        """For LlamaIndex's records."""
        return "EdgeBertRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        if query_bundle is None:
            raise InvalidInputError("a reranker needs the query: give query_bundle or query_str")
        texts = [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]
        ranked = score_documents(self._model, query_bundle.query_str, texts, self.label)
        return [NodeWithScore(node=nodes[i].node, score=score) for i, score in ranked[: self.top_n]]
