"""Explaining: how much each word of a text counts for the score that it gets.

A word's contribution is what the score loses when the mask token stands in the place of its tokens: occlusion (Zeiler
and Fergus, arXiv 1311.2901, section 4.1), for words also called erasure (Li et al., arXiv 1612.08220). Every masked
copy is a row of its own, and all of them run packed together.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from edgebert.artifact.spec import EncoderSpec
from edgebert.errors import InvalidInputError
from edgebert.tasks import base, question_answering
from edgebert.tasks.base import (
    F32,
    Bools,
    Outputs,
    Prepared,
    add_up,
    check_count,
    check_texts,
    exp,
    make_rows,
    normalize,
    sigmoid,
    softmax,
)
from edgebert.tasks.embedding import find_prompt
from edgebert.tasks.text_classification import find_function, read_item
from edgebert.tokenizer import Row, Tokenizer, check_id

Values = Sequence[dict[str, F32]]  # the outputs of the rows of an input
Score = Callable[[Values], float]

_QUESTION = ("question", "context")
# Blanks, and letters of scripts that do not put any between words: Thai, Lao, Burmese, Khmer, kana, Han.
_ENDS_WORD = re.compile(
    r"[\s\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


@dataclass(frozen=True, kw_only=True)
class Options(base.Options):
    """What is explained, and by masking what.

    Attributes:
        label: of classifiers, the label whose score is explained; None: the one that the model gives.
        target: of taggers and readers, the characters (start, end) of the text or context whose tag, or being the
            answer, is explained; None: the word with the surest tag other than "O", or the model's answer.
        span_length: also mask each run of this many neighbouring words together; 1: words alone.
        function_to_apply: of text classifiers, as there, or as in reranking where there is one label.

    Raises:
        InvalidInputError: an option that is not usable.
    """

    label: str | None = None
    target: Sequence[int] | None = None
    span_length: int = 1
    function_to_apply: str | None = None

    def __post_init__(self) -> None:
        task, labels = self.spec.task, self.spec.labels
        if self.label is not None and (task not in _HAVE_LABELS or self.label not in labels):
            known = (
                f"one of {', '.join(labels)}" if task in _HAVE_LABELS else "left out: a file with this head has none"
            )
            raise InvalidInputError(f"label must be {known}, got {self.label!r}")
        if self.target is not None:
            if task not in ("token-classification", "question-answering"):
                raise InvalidInputError("target is for taggers and readers: the score of a whole text has none")
            is_range = isinstance(self.target, (list, tuple)) and [*map(type, self.target)] == [int, int]
            if not is_range or not 0 <= self.target[0] < self.target[1]:
                raise InvalidInputError(
                    f"target must be [start, end], characters of the text, start < end, got {self.target!r:.100}"
                )
        check_count("span_length", self.span_length)
        if self.function_to_apply is not None and task != "text-classification":
            raise InvalidInputError("function_to_apply is for text classifiers: leave it out")
        find_function(self.spec, self.function_to_apply)


class Word(NamedTuple):
    """A word of an input.

    Attributes:
        side: of a pair, which text it is in.
        start: its first character there.
        end: the character after its last.
        places: its tokens in each row that has some: row of the input -> places, ascending.
    """

    side: int
    start: int
    end: int
    places: dict[int, list[int]]


@dataclass
class Case:
    """An input while it is explained.

    Attributes:
        number: of the input.
        texts: the one or two that words are of.
        rows: as they run unmasked.
        words: in the order of the text, of a pair first those of the first.
        masks: the words, by number and ascending, that are masked together in a copy of the rows; each once.
        found: outputs by (number of the mask, row); -1: unmasked.
        num_rows: that this input has in all, with its copies.
    """

    number: int
    texts: list[str]
    rows: list[Row]
    words: list[Word]
    masks: list[tuple[int, ...]] = field(default_factory=list)
    found: dict[tuple[int, int], dict[str, F32]] = field(default_factory=dict)
    num_rows: int = 0


def prepare(inputs: Sequence[Any], tokenizer: Tokenizer, options: Options) -> Prepared:
    """Rows of inputs, and masked copies of them: one with all words masked, one a word, one a run of words.

    Args:
        inputs: as the task of the file's head takes them: texts, pairs, {"question": …, "context": …}. Of an embedding
            file pairs, whose similarity is explained.
        tokenizer: the file's.
        options: of the call.

    Raises:
        InvalidInputError: an input that is not usable, or a tokenizer with neither a mask token nor an unknown one.
    """
    cases, is_truncated = read_cases(inputs, tokenizer, options)
    for case in cases:
        case.masks = [*dict.fromkeys(_find_masks(case.words, options))]
    return Prepared(make_copies(cases, tokenizer, options.spec), find_outputs(options.spec), is_truncated)


def decode(inputs: Sequence[Any], outputs: Outputs, tokenizer: Tokenizer, options: Options) -> list[dict[str, Any]]:
    """What the score is made of.

    Returns:
        For each input {"score", "base", "words"}: the score explained, what it is with all words masked, and for each
        word {"word", "start", "end", "contribution"}: `text[start:end]` is the word, and its contribution what the
        score loses without it. Of a pair each word has "side" too: "text" or "text_pair", "question" or "context".
        With `span_length` there is "spans", the like for runs of words. Before these stands what is explained: "label"
        of a classifier; of a tagger and a reader also "word" or "answer" with "start" and "end".
    """
    answers: list[dict[str, Any]] = [{} for _ in inputs]
    for case in finish_cases(outputs):
        target, score, masked = score_masks(case, tokenizer, options)
        everything = tuple(range(len(case.words)))
        answers[case.number] = {**target, "score": score, "base": masked[everything]}
        runs: dict[str, list[tuple[int, ...]]] = {"words": [(i,) for i in everything]}
        if options.span_length > 1:
            runs["spans"] = find_runs(case.words, options.span_length)
        for name, each in runs.items():
            answers[case.number][name] = [
                _describe(case, run, name[:-1], score - masked[run], options.spec) for run in each
            ]
    return answers


def _find_masks(words: Sequence[Word], options: Options) -> Iterator[tuple[int, ...]]:
    """All words, each alone, and the runs asked for."""
    yield tuple(range(len(words)))
    yield from ((i,) for i in range(len(words)))
    if options.span_length > 1:
        yield from find_runs(words, options.span_length)


def _describe(case: Case, run: Sequence[int], name: str, contribution: float, spec: EncoderSpec) -> dict[str, Any]:
    first, last = case.words[run[0]], case.words[run[-1]]
    described: dict[str, Any] = {name: case.texts[first.side][first.start : last.end]}
    if len(case.texts) == 2:
        sides = _QUESTION if spec.task == "question-answering" else ("text", "text_pair")
        described["side"] = sides[first.side]
    return described | {"start": first.start, "end": last.end, "contribution": contribution}


# Inputs to words


def read_cases(inputs: Sequence[Any], tokenizer: Tokenizer, options: Options) -> tuple[list[Case], Bools]:
    """(inputs with their rows and words; which of them were truncated).

    Raises:
        InvalidInputError: an input that is not usable.
    """
    task, prompt = options.spec.task, 0
    if task == "question-answering":
        asked = question_answering.Options(spec=options.spec, max_length=options.max_length, stride=options.stride)
        questions = [_read_question(item) for item in inputs]
        prepared = question_answering.prepare(questions, tokenizer, asked)
        rows, is_truncated = list(prepared.rows), prepared.is_truncated
        texts = [[item["question"], item["context"]] for item in questions]
    elif task == "embedding":
        texts = [_read_pair(i, item) for i, item in enumerate(inputs)]
        before = find_prompt(options.spec, None, None)
        prompt = len(before)
        each = [before + text for pair in texts for text in pair]
        rows, is_cut = make_rows(each, tokenizer, options, has_offsets=True)
        is_truncated = is_cut[::2] | is_cut[1::2]
    else:
        if task == "token-classification":
            check_texts(inputs)
        items = [read_item(i, item) for i, item in enumerate(inputs)]
        rows, is_truncated = make_rows(items, tokenizer, options, has_offsets=True, cuts_longer=True)
        texts = [[item] if isinstance(item, str) else [*item] for item in items]
        if task in ("next-sentence", "pretraining") and (
            single := [i for i, pair in enumerate(texts) if len(pair) < 2]
        ):
            raise InvalidInputError(f"input {single[0]}: expected a pair of texts, got one text")
    by_input: list[list[Row]] = [[] for _ in inputs]
    for row in rows:
        by_input[row.text // 2 if task == "embedding" else row.text].append(row)
    cases = []
    for number, (own, pair) in enumerate(zip(by_input, texts, strict=True)):
        sides = [row.text % 2 for row in own] if task == "embedding" else None
        cases.append(Case(number, pair, own, _find_words(pair, own, sides, prompt)))
    return cases, is_truncated


def _read_question(item: Any) -> Any:
    """A question and its context given as a pair, as they are otherwise given."""
    is_pair = isinstance(item, (tuple, list)) and len(item) == 2
    return dict(zip(_QUESTION, item, strict=True)) if is_pair else item


def _read_pair(i: int, item: Any) -> list[str]:
    pair = read_item(i, item)
    if isinstance(pair, str) or not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InvalidInputError(
            f"input {i}: expected a pair of texts, whose similarity is explained, got {type(item).__name__}"
        )
    check_texts(pair)
    return list(pair)


def _find_words(texts: list[str], rows: list[Row], sides: list[int] | None, prompt: int) -> list[Word]:
    """The words of an input's texts.

    They are those that the tokenizer splits a text into before it makes pieces of them, but a word ends at a blank in
    any case, and a letter of a script without blanks is a word of its own, or the piece that it stands in.

    Args:
        texts: of the input.
        rows: of the input.
        sides: of each row the text that it is of; None where a row has all.
        prompt: characters that stand before each text.
    """
    tokens: dict[tuple[int, int, int, int], dict[int, list[int]]] = {}
    for number, row in enumerate(rows):
        words, spans = row.all_word_ids.tolist(), row.all_offsets.tolist()
        for place, (word, (start, end)) in enumerate(zip(words, spans, strict=True)):
            side = sides[number] if sides else int(place >= row.first) if len(texts) == 2 else 0
            if word >= 0 and (end > prompt or not prompt):
                key = side, word, max(start - prompt, 0), end - prompt
                tokens.setdefault(key, {}).setdefault(number, []).append(place)
    found: list[Word] = []
    last = (-1, -1)
    for (side, word, start, end), places in sorted(tokens.items()):
        text = texts[side]
        if (side, word) == last and _goes_on(text, found[-1], start):
            before = found[-1]
            for number, more in places.items():
                before.places.setdefault(number, []).extend(more)
            found[-1] = before._replace(end=max(end, before.end))
        else:
            found.append(Word(side, start, end, places))
        last = side, word
    return [_trim(texts[word.side], word) for word in found if texts[word.side][word.start : word.end].strip()]


def _goes_on(text: str, word: Word, start: int) -> bool:
    """Whether a token that starts there, of the tokenizer's same word, is of this word."""
    if start < word.end or not text[word.start : word.end].strip():  # bytes of one letter; what stands before a word
        return True
    return not _ENDS_WORD.search(text[max(start - 1, 0) : start + 1])


def _trim(text: str, word: Word) -> Word:
    covered = text[word.start : word.end]
    start = word.start + len(covered) - len(covered.lstrip())
    return word._replace(start=start, end=start + len(covered.strip()))


def find_runs(words: Sequence[Word], length: int) -> list[tuple[int, ...]]:
    """Runs of `length` neighbouring words of one text, each beginning a word later; of a shorter text all its words."""
    runs = []
    for side in (0, 1):
        numbers = [i for i, word in enumerate(words) if word.side == side]
        for first in numbers[: max(len(numbers) - length + 1, 1)]:
            runs.append(tuple(range(first, min(first + length, numbers[-1] + 1))))
    return runs


# Words to masked copies


def make_copies(cases: Iterable[Case], tokenizer: Tokenizer, spec: EncoderSpec) -> Iterator[Row]:
    """The rows of cases and of their masked copies, made as they are taken; a row's note says which copy it is.

    A copy has no row where it would be equal to the unmasked one.

    Raises:
        InvalidInputError: the tokenizer has neither a mask token nor an unknown one, or the model has no row for it.
    """
    mask_id = tokenizer.unknown_id if tokenizer.mask_id is None else tokenizer.mask_id
    if mask_id is None:
        raise InvalidInputError("the file's tokenizer has no mask token and no unknown one: nothing can hide words")
    check_id(mask_id, "the mask token", tokenizer, spec)
    return _make_copies(cases, mask_id)


def _make_copies(cases: Iterable[Case], mask_id: int) -> Iterator[Row]:
    for case in cases:
        case.num_rows = len(case.rows) + sum(
            len({number for word in mask for number in case.words[word].places}) for mask in case.masks
        )
        for number, row in enumerate(case.rows):
            yield row._replace(note=(case, -1, number))
        for i, mask in enumerate(case.masks):
            places: dict[int, list[int]] = {}
            for word in mask:
                for number, own in case.words[word].places.items():
                    places.setdefault(number, []).extend(own)
            for number, masked in places.items():
                ids = case.rows[number].input_ids.copy()
                ids[masked] = mask_id
                yield case.rows[number]._replace(input_ids=ids, note=(case, i, number))


def finish_cases(outputs: Outputs) -> Iterator[Case]:
    """Cases, each as soon as all of its rows have run; what they found is dropped after that."""
    for row, values in outputs:
        case, mask, number = row.note
        # copies: a view would keep the whole batch
        case.found[mask, number] = {name: np.array(value) for name, value in values.items()}
        if len(case.found) == case.num_rows:
            yield case
            case.found.clear()


# Copies to scores


def find_outputs(spec: EncoderSpec) -> tuple[str, ...]:
    """The outputs that a score is made of."""
    if spec.task == "embedding":
        return ("sentence_embedding",)
    return question_answering.OUTPUTS if spec.task == "question-answering" else spec.outputs[-1:]


def score_masks(
    case: Case, tokenizer: Tokenizer, options: Options
) -> tuple[dict[str, Any], float, dict[tuple[int, ...], float]]:
    """(what is explained, its score, its score with the words of each mask masked)."""
    whole = [case.found[-1, number] for number in range(len(case.rows))]
    target, score = _HEADS[options.spec.task](case, whole, tokenizer, options)
    masked = {
        mask: score([case.found.get((i, number), values) for number, values in enumerate(whole)])
        for i, mask in enumerate(case.masks)
    }
    return target, score(whole), masked


def _score_labels(case: Case, whole: Values, tokenizer: Tokenizer, options: Options) -> tuple[dict[str, Any], Score]:
    """The score of a label; of a text in windows that of the mean of their logits."""
    [output], labels = find_outputs(options.spec), options.spec.labels
    name = options.function_to_apply
    if name is None and len(labels) == 1:
        name = options.spec.rank_function
    function = softmax if options.spec.task != "text-classification" else find_function(options.spec, name)

    def average(rows: Values) -> F32:
        total = np.zeros_like(rows[0][output])
        for row in rows:
            total += row[output]
        mean: F32 = total / np.float32(len(rows))
        return mean

    label = int(average(whole).argmax()) if options.label is None else labels.index(options.label)
    return {"label": labels[label]}, lambda rows: _apply(function, average(rows), label)


def _score_tags(case: Case, whole: Values, tokenizer: Tokenizer, options: Options) -> tuple[dict[str, Any], Score]:
    """The score of tags, those that the first tokens of the target's words get; their mean for several words."""
    labels = options.spec.labels
    places = [_find_first_token(case, word) for word in case.words]
    if options.target is None:
        logits = [whole[number]["logits"][place] for number, place in places]
        best = [int(row.argmax()) for row in logits]
        sureness = [(labels[k] != "O", _apply(softmax, row, k)) for row, k in zip(logits, best, strict=True)]
        chosen = [max(range(len(sureness)), key=lambda i: sureness[i])] if sureness else []
    else:
        chosen = _find_target(case, 0, options.target)
    if not chosen:
        return {"label": None, "word": "", "start": 0, "end": 0}, lambda rows: 0.0
    asked = []
    for i in chosen:
        number, place = places[i]
        logits_of_word = whole[number]["logits"][place]
        tag = int(logits_of_word.argmax()) if options.label is None else labels.index(options.label)
        asked.append((number, place, tag))
    start, end = case.words[chosen[0]].start, case.words[chosen[-1]].end
    target = {"label": labels[asked[0][2]], "word": case.texts[0][start:end], "start": start, "end": end}
    return target, lambda rows: sum(_apply(softmax, rows[i]["logits"][j], tag) for i, j, tag in asked) / len(asked)


def _find_first_token(case: Case, word: Word) -> tuple[int, int]:
    """(row, place) of a word's first token; of several windows in the one that has most text around it."""
    firsts = [(number, places[0]) for number, places in word.places.items()]
    for number, place in firsts:
        if place - case.rows[number].first in case.rows[number].owned:
            return number, place
    return firsts[0]


def _find_target(case: Case, side: int, target: Sequence[int]) -> list[int]:
    """The words, by number, of a text that have characters of a range."""
    start, end = target
    found = [i for i, word in enumerate(case.words) if word.side == side and word.start < end and start < word.end]
    if not found:
        raise InvalidInputError(
            f"input {case.number}: target {start} to {end} has no word of the text, or it is in what was cut off"
        )
    return found


def _score_answers(case: Case, whole: Values, tokenizer: Tokenizer, options: Options) -> tuple[dict[str, Any], Score]:
    """The probability that the answer begins in the target's first word and ends in its last, added over windows."""
    if options.target is None:
        asked = question_answering.Options(spec=options.spec)
        rows = [(row._replace(text=0), values) for row, values in zip(case.rows, whole, strict=True)]
        item = dict(zip(_QUESTION, case.texts, strict=True))
        [[answer]] = question_answering.decode([item], rows, tokenizer, asked)
        start, end = answer["start"], answer["end"]
    else:
        start, end = options.target
    words = _find_target(case, 1, (start, end)) if start < end else []
    if not words:
        return {"answer": "", "start": 0, "end": 0}, lambda rows: 0.0
    first, last = case.words[words[0]], case.words[words[-1]]
    ends = [(number, firsts, last.places[number]) for number, firsts in first.places.items() if number in last.places]

    def score(rows: Values) -> float:
        total = 0.0
        for number, firsts, lasts in ends:
            row = case.rows[number]
            start, end = (
                question_answering.find_probabilities(rows[number][name], row)[1:]
                for name in find_outputs(options.spec)
            )
            total += sum(float(start[i - row.first] * end[j - row.first]) for i in firsts for j in lasts if i <= j)
        return total

    return {"answer": case.texts[1][first.start : last.end], "start": first.start, "end": last.end}, score


def _score_similarity(
    case: Case, whole: Values, tokenizer: Tokenizer, options: Options
) -> tuple[dict[str, Any], Score]:
    """The cosine of the embeddings of two texts; of a text in windows their mean is its embedding."""
    sides = [row.text % 2 for row in case.rows]

    def score(rows: Values) -> float:
        total = np.zeros((2, len(rows[0]["sentence_embedding"])), np.float32)
        for side, row in zip(sides, rows, strict=True):
            total[side] += row["sentence_embedding"]
        a, b = normalize(total).astype(np.float64)
        return float(add_up(a * b)[0])

    return {}, score


_HEADS: dict[str, Callable[..., tuple[dict[str, Any], Score]]] = {
    "embedding": _score_similarity,
    "text-classification": _score_labels,
    "token-classification": _score_tags,
    "question-answering": _score_answers,
    "next-sentence": _score_labels,
    "pretraining": _score_labels,
}
_HAVE_LABELS = ("text-classification", "token-classification", "next-sentence", "pretraining")


def _apply(function: Callable[[F32], F32], logits: F32, label: int) -> float:
    """A label's score, in float64: near 1 float32 has no room for what a word contributes."""
    x = logits.astype(np.float64)
    if function is softmax:
        return float(1.0 / add_up(exp(x - x[label]))[0])
    if function is sigmoid:
        return float(1.0 / (1.0 + exp(-x[label : label + 1]))[0])
    return float(function(logits)[label])
