"""Token classification: texts in, labelled tokens or entities with their characters out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from edgebert.artifact.spec import EncoderSpec
from edgebert.errors import InvalidInputError
from edgebert.tasks import base
from edgebert.tasks.base import F32, Outputs, Prepared, add_up, check_texts, in_order, make_rows, softmax
from edgebert.tokenizer import Row, Tokenizer

Entity = dict[str, Any]

STRATEGIES = ("none", "simple", "first", "average", "max")
# Of a word's tokens, f32 [tokens, labels], the scores that stand for the word.
WORD_SCORES: dict[str, Callable[[F32], F32]] = {
    "first": lambda scores: scores[0],
    "average": lambda scores: (add_up(scores.T.astype(np.float64))[:, 0] / len(scores)).astype(np.float32),
    "max": lambda scores: scores[scores.max(axis=1).argmax()],
}


@dataclass(frozen=True, kw_only=True)
class Options(base.Options):
    """Which tokens are reported, and how they are joined to entities.

    Attributes:
        aggregation_strategy: "none" gives tokens; "simple" joins neighbours of one label to entities, as the prefixes
            B- and I- say; the others first give all tokens of a word one label: the label of its "first" token, of
            its best ("max"), or the best on "average" (of a tokenizer that does not mark the tokens inside words,
            words are what stands between blanks). A text in windows needs one that is not "none".
        ignore_labels: labels of the file that are left out, those of entities without B- or I-.

    Raises:
        InvalidInputError: an option that is not usable.
    """

    aggregation_strategy: str = "none"
    ignore_labels: Collection[str] = ("O",)

    def __post_init__(self) -> None:
        if self.aggregation_strategy not in STRATEGIES:
            raise InvalidInputError(
                f"aggregation_strategy must be one of {', '.join(STRATEGIES)}, got {self.aggregation_strategy!r}"
            )
        if isinstance(self.ignore_labels, str) or not isinstance(self.ignore_labels, Collection):
            raise InvalidInputError(f"ignore_labels must be a list of labels, got {self.ignore_labels!r:.100}")
        if self.stride is not None and self.aggregation_strategy == "none":
            raise InvalidInputError(
                "stride needs an aggregation_strategy that joins what windows have in common: "
                f"{', '.join(STRATEGIES[1:])}"
            )
        known = {"O", *self.spec.labels, *(label.split("-", 1)[-1] for label in self.spec.labels)}
        for label in self.ignore_labels:
            if not isinstance(label, str) or label not in known:
                raise InvalidInputError(
                    f"ignore_labels has {label!r}, which is no label of this file: it has {', '.join(self.spec.labels)}"
                )


def prepare(texts: Sequence[str], tokenizer: Tokenizer, options: Options) -> Prepared:
    """Rows of texts, with the characters of each token.

    Raises:
        InvalidInputError: a text that is not usable.
    """
    check_texts(texts)
    rows, is_truncated = make_rows(texts, tokenizer, options, has_offsets=True)
    return Prepared(rows, ("logits",), is_truncated)


def decode(texts: Sequence[str], outputs: Outputs, tokenizer: Tokenizer, options: Options) -> list[list[Entity]]:
    """Labelled tokens, or the entities they form.

    Returns:
        A list a text. A token is {"entity", "score", "index", "word", "start", "end"}, an entity {"entity_group",
        "score", "word", "start", "end"}; `text[start:end]` is what it covers.
    """
    strategy = options.aggregation_strategy
    answers: list[list[Entity]] = [[] for _ in texts]
    num_windows = [0] * len(texts)
    for row, values in in_order(outputs):
        tokens = _read_tokens(tokenizer, texts[row.text], row)
        scores = softmax(values["logits"][row.tokens])
        entities = _label(tokenizer, options.spec, tokens, scores, WORD_SCORES.get(strategy))
        if strategy != "none":
            entities = _group(tokenizer, entities)
        key = "entity" if strategy == "none" else "entity_group"
        answers[row.text] += [entity for entity in entities if entity[key] not in options.ignore_labels]
        num_windows[row.text] += 1
    return [_drop_overlaps(found) if n > 1 else found for found, n in zip(answers, num_windows, strict=True)]


class _Token(NamedTuple):
    place: int  # in the row
    word: str
    start: int
    end: int
    is_subword: bool  # goes on the word of the token before


def _read_tokens(tokenizer: Tokenizer, text: str, row: Row) -> list[_Token]:
    """The text's tokens of one row; where the tokenizer does not mark those inside words, words end at blanks."""
    tokens = []
    ids, offsets = row.input_ids[row.tokens].tolist(), row.offsets.tolist()
    for i, (token_id, (start, end)) in enumerate(zip(ids, offsets, strict=True), row.first):
        word, covered = tokenizer.id_to_token(token_id), text[start:end]
        if token_id == tokenizer.unknown_id:
            word, is_subword = covered, False
        elif tokenizer.marks_subwords:
            is_subword = len(word) != len(covered)
        else:
            is_subword = start > 0 and " " not in text[start - 1 : start + 1]
        tokens.append(_Token(i, word, start, end, is_subword))
    return tokens


def _label(
    tokenizer: Tokenizer,
    spec: EncoderSpec,
    tokens: list[_Token],
    scores: F32,
    word_scores: Callable[[F32], F32] | None,
) -> list[Entity]:
    """A label and score for each token, or with `word_scores` for each word."""
    groups: list[list[int]] = []
    for i, token in enumerate(tokens):
        if word_scores and token.is_subword and groups:
            groups[-1].append(i)
        else:
            groups.append([i])
    entities = []
    for group in groups:
        row = word_scores(scores[group]) if word_scores else scores[group[0]]
        first, last, label = tokens[group[0]], tokens[group[-1]], int(row.argmax())
        entity: Entity = {"entity": spec.labels[label], "score": float(row[label])}
        if word_scores:
            entity["word"] = tokenizer.join_tokens([tokens[i].word for i in group])
        else:
            entity |= {"index": first.place, "word": first.word}
        entities.append(entity | {"start": first.start, "end": last.end})
    return entities


def _group(tokenizer: Tokenizer, entities: list[Entity]) -> list[Entity]:
    """Neighbours of one type joined, a B- prefix beginning a new one; the score is the mean of theirs."""
    groups: list[list[Entity]] = []
    for entity in entities:
        label = entity["entity"]
        if groups and not label.startswith("B-") and _type(label) == _type(groups[-1][-1]["entity"]):
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return [
        {
            "entity_group": group[0]["entity"].split("-", 1)[-1],
            "score": float(add_up(np.array([entity["score"] for entity in group]))[0]) / len(group),
            "word": tokenizer.join_tokens([entity["word"] for entity in group]),
            "start": group[0]["start"],
            "end": group[-1]["end"],
        }
        for group in groups
    ]


def _type(label: str) -> str:
    return label[2:] if label.startswith(("B-", "I-")) else label


def _drop_overlaps(entities: list[Entity]) -> list[Entity]:
    """Of entities of several windows that overlap, the longest, then the one of the best score."""
    kept: list[Entity] = []
    for entity in sorted(entities, key=lambda entity: entity["start"]):
        if not kept or entity["start"] >= kept[-1]["end"]:
            kept.append(entity)
        elif _rank(entity) > _rank(kept[-1]):
            kept[-1] = entity
    return kept


def _rank(entity: Entity) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]
