"""Model files as components of spaCy: entities from a tagger, and document vectors from an embedding file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from edgebert.integrations import need_library, take_model
from edgebert.tasks.embedding import similarity

need_library(__name__)

from spacy.language import Language
from spacy.tokens import Doc
from spacy.util import filter_spans, minibatch

NAMES = {"embedding": "the component edgebert_vectors", "token-classification": "the component edgebert_entities"}


class _Component:
    """A component that answers documents in batches."""

    def __call__(self, doc: Doc) -> Doc:
        [doc] = self.pipe([doc])
        return doc

    def pipe(self, stream: Iterable[Doc], batch_size: int = 256) -> Iterator[Doc]:
        """The documents, each changed."""
        for docs in minibatch(stream, batch_size):
            self.change(docs)
            yield from docs

    def change(self, docs: list[Doc]) -> None:
        """Set what the component sets."""
        raise NotImplementedError


class EdgeBertEntities(_Component):
    """Sets `doc.ents`, and `doc._.edgebert_entities` to the tagger's answer, with exact characters and scores."""

    def __init__(self, model: str, options: dict[str, Any], alignment_mode: str, load: dict[str, Any]) -> None:
        self.model, self.options = take_model(model, NAMES, "token-classification", **load), options
        self.alignment_mode = alignment_mode
        if not Doc.has_extension("edgebert_entities"):
            Doc.set_extension("edgebert_entities", default=[])

    def change(self, docs: list[Doc]) -> None:
        """Set the entities; those that overlap after they were widened to spaCy's tokens give way to the longest."""
        found = self.model([doc.text for doc in docs], **{"aggregation_strategy": "first"} | self.options)
        for doc, entities in zip(docs, found, strict=True):
            doc._.edgebert_entities = entities
            spans = (
                doc.char_span(
                    entity["start"], entity["end"], entity["entity_group"], alignment_mode=self.alignment_mode
                )
                for entity in entities
            )
            doc.set_ents(filter_spans(span for span in spans if span))


class EdgeBertVectors(_Component):
    """Sets `doc.vector`, and with it `doc.similarity`."""

    def __init__(self, model: str, options: dict[str, Any], load: dict[str, Any]) -> None:
        self.model, self.options = take_model(model, NAMES, "embedding", **load), options

    def change(self, docs: list[Doc]) -> None:
        """Set the vectors."""
        for doc, row in zip(docs, self.model.encode([doc.text for doc in docs], **self.options), strict=True):
            doc.vector = row
            doc.user_hooks["similarity"] = _similarity  # without it spaCy warns that its vocabulary has no vectors


def _similarity(doc: Doc, other: Any) -> float:
    return float(similarity(doc.vector[None], other.vector[None])[0, 0])


@Language.factory(
    "edgebert_entities",
    assigns=["doc.ents", "doc._.edgebert_entities"],
    default_config={"options": {}, "alignment_mode": "expand", "load": {}},
)
def make_entities(
    nlp: Language, name: str, model: str, options: dict[str, Any], alignment_mode: str, load: dict[str, Any]
) -> EdgeBertEntities:
    """Args: the path of a token-classification file, options of that task, of `Doc.char_span`, of `edgebert.load`."""
    return EdgeBertEntities(model, options, alignment_mode, load)


@Language.factory("edgebert_vectors", default_config={"options": {}, "load": {}})
def make_vectors(
    nlp: Language, name: str, model: str, options: dict[str, Any], load: dict[str, Any]
) -> EdgeBertVectors:
    """Args: the path of an embedding file, options of `Model.encode` and of `edgebert.load`."""
    return EdgeBertVectors(model, options, load)
