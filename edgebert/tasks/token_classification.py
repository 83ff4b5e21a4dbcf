"""Token classification: texts in, labelled tokens or entities with their characters out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from edgebert.batch import I32
from edgebert.errors import InvalidInputError
from edgebert.tasks.inputs import F32, read_texts, softmax

if TYPE_CHECKING:
    from edgebert.runner import TextRunner
    from edgebert.tokenizer import Tokenizer, Window

Entity = dict[str, Any]

STRATEGIES = ("none", "simple", "first", "average", "max")
# Of a word's tokens, f32 [tokens, labels], the scores that stand for the word.
WORD_SCORES: dict[str, Callable[[F32], F32]] = {
    "first": lambda scores: scores[0],
    "average": lambda scores: scores.mean(axis=0),
    "max": lambda scores: scores[scores.max(axis=1).argmax()],
}


def answer(
    runner: TextRunner,
    texts: str | Iterable[str],
    *,
    aggregation_strategy: str = "none",
    ignore_labels: Sequence[str] = ("O",),
) -> list[Entity] | list[list[Entity]]:
    """Labelled tokens, or the entities they form.

    Args:
        runner: the file and the options all tasks have.
        texts: a text or several.
        aggregation_strategy: "none" gives tokens; "simple" joins neighbours of one label to entities, as the prefixes
            B- and I- say; the others first give all tokens of a word one label: the label of its "first" token, of
            its best ("max"), or the best on "average" (of a tokenizer that does not mark the tokens inside words,
            words are what stands between blanks). A text in windows needs one that is not "none".
        ignore_labels: labels that are left out.

    Returns:
        A list for a text, a list of lists for several. A token is {"entity", "score", "index", "word", "start",
        "end"}, an entity {"entity_group", "score", "word", "start", "end"}; `text[start:end]` is what it covers.

    Raises:
        InvalidInputError: a text or option that is not usable.
    """
    if aggregation_strategy not in STRATEGIES:
        raise InvalidInputError(
            f"aggregation_strategy must be one of {', '.join(STRATEGIES)}, got {aggregation_strategy!r}"
        )
    if runner.stride is not None and aggregation_strategy == "none":
        raise InvalidInputError(
            f"stride needs an aggregation_strategy that joins what windows have in common: {', '.join(STRATEGIES[1:])}"
        )
    is_single, items = read_texts(texts)
    answers: list[list[Entity]] = [[] for _ in items]
    num_windows = [0] * len(items)
    for window, ids, outputs in runner.run_windows(items, ["logits"]):
        tokens = _read_tokens(runner.tokenizer, items[window.text], window, ids)
        scores = softmax(outputs["logits"][window.tokens])
        entities = _label(runner, tokens, scores, WORD_SCORES.get(aggregation_strategy))
        if aggregation_strategy != "none":
            entities = _group(runner.tokenizer, entities)
        key = "entity" if aggregation_strategy == "none" else "entity_group"
        answers[window.text] += [entity for entity in entities if entity[key] not in ignore_labels]
        num_windows[window.text] += 1
    answers = [_drop_overlaps(found) if n > 1 else found for found, n in zip(answers, num_windows, strict=True)]
    return answers[0] if is_single else answers


class _Token(NamedTuple):
    row: int  # of the logits
    word: str
    start: int
    end: int
    is_subword: bool  # goes on the word of the token before


def _read_tokens(tokenizer: Tokenizer, text: str, window: Window, ids: I32) -> list[_Token]:
    """The text's tokens of one row; where the tokenizer does not mark those inside words, words end at blanks."""
    tokens = []
    offsets = window.offsets.tolist()
    for i, (token_id, (start, end)) in enumerate(zip(ids[window.tokens].tolist(), offsets, strict=True)):
        word, covered = tokenizer.id_to_token(token_id), text[start:end]
        if token_id == tokenizer.unknown_id:
            word, is_subword = covered, False
        elif tokenizer.marks_subwords:
            is_subword = len(word) != len(covered)
        else:
            is_subword = start > 0 and " " not in text[start - 1 : start + 1]
        tokens.append(_Token(window.first + i, word, start, end, is_subword))
    return tokens


def _label(
    runner: TextRunner, tokens: list[_Token], scores: F32, word_scores: Callable[[F32], F32] | None
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
        entity: Entity = {"entity": runner.spec.labels[label], "score": float(row[label])}
        if word_scores:
            entity["word"] = runner.tokenizer.join_tokens([tokens[i].word for i in group])
        else:
            entity |= {"index": first.row, "word": first.word}
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
            "score": float(np.mean([entity["score"] for entity in group])),
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
