"""Task data: the rows of a file, checked and made examples of one task. Messages name the file and the row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from edgebert.artifact.spec import PROBLEM_TYPES
from edgebert.errors import InvalidInputError, require
from edgebert.scoring.readers import Source
from edgebert.tokenizer import Text

SINGLE_LABEL, MULTI_LABEL, REGRESSION = PROBLEM_TYPES
TASKS = ("text-classification", "token-classification", "question-answering", "embedding", "fill-mask")

# Role of a column -> names it is found under, first match first; `columns` names it otherwise.
ROLES = {
    "text": ("text", "text_a", "sentence", "sentence1", "text1", "premise", "question1", "query", "review", "content"),
    "text_pair": ("text_pair", "text_b", "sentence2", "text2", "hypothesis", "question2", "positive", "positives"),
    "label": ("label", "labels", "class", "category", "intent"),
    "score": ("score", "similarity", "rating", "target"),
    "tokens": ("tokens", "words"),
    "tags": ("tags", "ner_tags", "pos_tags", "labels"),
    "question": ("question",),
    "context": ("context", "passage"),
    "answers": ("answers", "answer"),
}
_TASK_ROLES = {  # roles of a task: (needed, optional)
    "text-classification": (("text",), ("text_pair", "label", "score")),
    "token-classification": (("tokens", "tags"), ()),
    "question-answering": (("question", "context", "answers"), ()),
    "embedding": (("text",), ("text_pair", "score")),
    "fill-mask": (("text",), ()),
}
MULTI_LABEL_SEPARATOR = ";"  # between the labels of one cell of a CSV or TSV file
WINDOW_ROWS = 4096  # that are read at a time
HELD_OUT = 10  # parts that texts are divided into, by a hash, to hold some out


@dataclass(frozen=True)
class Answer:
    """One right answer: its text, and where it starts in the context, in characters."""

    text: str
    start: int


@dataclass(frozen=True)
class Dataset:
    """Examples of one task.

    Attributes:
        task: one of TASKS.
        inputs: an example each: a text or a pair; the list of words (token classification); (question, context);
            (query, tuple of the texts to be found).
        targets: an example each: a label; a tuple of labels; a score; a tuple of tags, one a word; a tuple of answers,
            none for a question that has none; a tuple of indices, the nearest texts by another model (embedding, texts
            alone); None (contrastive pairs, texts alone, fill-mask).
        labels: in the order of the model's logits; () where the task has none.
        problem_type: one of spec.PROBLEM_TYPES; what the targets are.
        source: the file, for messages.
        corpus: texts among which queries search, besides all that are to be found.
    """

    task: str
    inputs: list[Any]
    targets: list[Any]
    labels: tuple[str, ...]
    problem_type: str
    source: str
    corpus: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: Sequence[int]) -> Dataset:
        """The examples at `indices`."""
        return replace(self, inputs=[self.inputs[i] for i in indices], targets=[self.targets[i] for i in indices])

    def rename(self, names: Mapping[str, str], labels: tuple[str, ...]) -> Dataset:
        """The same examples, with other names for their labels, out of `labels`; no names leave all as it is."""

        def renamed(target: Any) -> Any:
            if isinstance(target, tuple):
                return tuple(map(renamed, target))
            return names[target] if isinstance(target, str) else target

        if not names:
            return self
        return replace(self, targets=[renamed(target) for target in self.targets], labels=labels)

    def parts(self) -> list[tuple[str, ...]]:
        """Each example's texts: rows that share one are not independent of each other."""
        if self.task == "token-classification":
            return [(" ".join(words),) for words in self.inputs]
        if self.has_queries:
            return [(query, *found) for query, found in self.inputs]
        return [(item,) if isinstance(item, str) else tuple(item) for item in self.inputs]

    @property
    def has_pairs(self) -> bool:
        """Whether an example is two texts, to be embedded each."""
        return self.task == "embedding" and isinstance(self.inputs[0], tuple) and not self.has_queries

    @property
    def has_queries(self) -> bool:
        """Whether an example is a query and the texts that it is to find."""
        first = self.inputs[0]
        return self.task == "embedding" and isinstance(first, tuple) and isinstance(first[1], tuple)

    def texts(self) -> list[Text]:
        """Each example's text or pair, as the tokenizer takes it."""
        if self.has_queries:
            return [query for query, _ in self.inputs]
        return [" ".join(item) if self.task == "token-classification" else item for item in self.inputs]


def load_dataset(
    path: str | Path,
    task: str,
    *,
    columns: Mapping[str, str] | None = None,
    problem_type: str | None = None,
    labels: Sequence[str] | None = None,
) -> Dataset:
    """Read and check a file of task data.

    Args:
        path: a file of any format that is scored: FORMATS and CODECS of edgebert/scoring/readers.py.
        task: one of TASKS.
        columns: role -> column; roles left out are found by the names in ROLES.
        problem_type: of text classification; None takes what the column holds: lists of labels, labels or numbers.
        labels: the labels there may be, in order; None takes those of the file, sorted.

    Raises:
        InvalidInputError: no such file, a column missing or of mixed types, an empty field, a single class, a label
            that is not among `labels`, an answer that is not where it should be; names the row.
        BackendUnavailableError: pyarrow is missing.
    """
    path = Path(path)
    if task not in TASKS:
        raise InvalidInputError(f"task {task!r} cannot be trained; expected one of {', '.join(TASKS)}")
    rows = read_rows(path)
    found = _find_columns(path, task, list(rows[0]), dict(columns or {}), problem_type)
    complain = _Complaints(path)
    reader: Callable[..., tuple[list[Any], list[Any], str]] = {
        "text-classification": _read_classification,
        "token-classification": _read_tokens,
        "question-answering": _read_questions,
        "embedding": _read_pairs,
        "fill-mask": _read_texts,
    }[task]
    inputs, targets, problem_type = reader(rows, found, complain, problem_type)
    dataset = Dataset(task, inputs, targets, (), problem_type, str(path))
    return _with_labels(dataset, labels)


def _with_labels(dataset: Dataset, labels: Sequence[str] | None) -> Dataset:
    """The dataset with its labels: those given, which must cover it, or its own, sorted."""
    if dataset.task == "token-classification":
        seen = {tag for tags in dataset.targets for tag in tags}
    elif dataset.task != "text-classification":
        return dataset
    elif dataset.problem_type == REGRESSION:
        return replace(dataset, labels=("score",))
    elif dataset.problem_type == MULTI_LABEL:
        seen = {label for found in dataset.targets for label in found}
    else:
        seen = set(dataset.targets)
    if labels is not None:
        if unknown := sorted(seen - set(labels)):
            raise InvalidInputError(
                f"{dataset.source} has labels that the training data lacks: {', '.join(unknown[:5])}"
                f"{', …' if len(unknown) > 5 else ''}; expected some of {', '.join(list(labels)[:5])}"
                f"{', …' if len(labels) > 5 else ''}: correct them, or add training rows"
            )
    elif len(seen) < 2:
        raise InvalidInputError(
            f"{dataset.source} has one class only ({next(iter(seen), 'none')!r}): a classifier needs two or more"
        )
    return replace(dataset, labels=tuple(sorted(seen) if labels is None else labels))


def hold_out(dataset: Dataset, tenths: Sequence[int] = (1,)) -> list[Dataset]:
    """The dataset in parts: what is left, then as many tenths of it as asked for, by a hash of the text.

    Equal texts are on one side, whatever the order of rows; so are questions about one passage.

    Raises:
        InvalidInputError: too few rows for a part, or a label that none of those left has.
    """
    keys = [_text_of(item, dataset.task) for item in dataset.inputs]
    buckets = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % HELD_OUT for key in keys]
    owners = [part for part, count in enumerate(tenths, 1) for _ in range(count)]
    owners += [0] * (HELD_OUT - len(owners))
    parts = [
        dataset.take([i for i, bucket in enumerate(buckets) if owners[bucket] == part])
        for part in range(len(tenths) + 1)
    ]
    if not all(map(len, parts)):
        raise InvalidInputError(f"{dataset.source} has too few rows ({len(dataset)}) to hold some out: give --eval")
    labels = _with_labels(parts[0], None).labels if parts[0].labels else None
    for part in parts[1:]:
        _with_labels(replace(part, source=f"what is held out of {part.source}"), labels)
    return parts


def _text_of(item: Any, task: str) -> str:
    if task == "question-answering":
        return str(item[1])
    return item if isinstance(item, str) else "\0".join(item)


# Files to rows


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, column -> value; all strings for CSV, TSV and text.

    Raises:
        InvalidInputError: missing, unreadable, not UTF-8, without rows, or of an unknown kind.
        BackendUnavailableError: pyarrow is missing.
    """
    require("compress", "pyarrow")
    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder: expected a file of rows")
    source = Source(path, WINDOW_ROWS)
    rows: list[dict[str, Any]] = []
    for window in source.read(source.files[0]):
        for i, row in enumerate(window.to_dicts()):
            fault = window.errors.get(i)
            try:
                json.dumps(row, ensure_ascii=False, default=str).encode()
            except UnicodeEncodeError:
                place = f"line {window.lines[i]}" if window.lines else f"row {len(rows) + 1}"
                fault = fault or f"{place} is not UTF-8"
            if fault:
                raise InvalidInputError(f"{path}: {fault}: convert the file, correct the row or remove it")
            rows.append(row)
    if not rows:
        raise InvalidInputError(f"{path} has no rows: expected a header and rows, or an object a line")
    return rows


# Rows to examples


class _Complaints:
    """Raises InvalidInputError with the file's name and the row, counted from 1."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, row: int, text: str) -> NoReturn:
        raise InvalidInputError(f"{self.path}, row {row + 1}: {text}")


def _find_columns(
    path: Path, task: str, names: list[str], columns: dict[str, str], problem_type: str | None
) -> dict[str, str]:
    """Role -> column, for the roles of the task that the file has."""
    needed, optional = _TASK_ROLES[task]
    for role, column in columns.items():
        if role not in needed + optional:
            raise InvalidInputError(f"{task} has no column role {role!r}; its roles: {', '.join(needed + optional)}")
        if column not in names:
            raise InvalidInputError(f"{path} has no column {column!r} for {role}; its columns: {', '.join(names)}")
    found = dict(columns)
    for role in needed + optional:
        match = next((name for name in ROLES[role] if name in names and name not in found.values()), None)
        if role not in found and match is not None:
            found[role] = match
    if task == "text-classification":
        if problem_type == REGRESSION and "score" not in columns and "label" in columns:
            found["score"] = found["label"]
        needed += ("score",) if problem_type == REGRESSION else () if "score" in found else ("label",)
    for role in needed:
        if role not in found:
            raise InvalidInputError(
                f"{path} has no column for {role}: expected one named {', '.join(ROLES[role])}; its columns: "
                f"{', '.join(names)}. Name it with --column {role}=NAME"
            )
    return found


def _text(row: dict[str, Any], i: int, column: str, complain: _Complaints) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        complain(i, f"column {column!r} must hold text, got {value!r:.60}")
    if not value.strip():
        complain(i, f"column {column!r} is empty: fill it in, or leave the row out")
    return value


def _score(row: dict[str, Any], i: int, column: str, complain: _Complaints) -> float:
    value = row.get(column)
    try:
        score = float(value) if not isinstance(value, bool) else float("nan")  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        score = float("nan")
    if not -1e30 < score < 1e30:
        complain(i, f"column {column!r} must hold a number, got {value!r:.60}")
    return score


def _read_inputs(rows: list[dict[str, Any]], found: dict[str, str], complain: _Complaints) -> list[Text]:
    roles = [found[role] for role in ("text", "text_pair") if role in found]
    texts = [tuple(_text(row, i, column, complain) for column in roles) for i, row in enumerate(rows)]
    return [text[0] if len(text) == 1 else text for text in texts]


def _read_texts(
    rows: list[dict[str, Any]], found: dict[str, str], complain: _Complaints, _: str | None
) -> tuple[list[Any], list[Any], str]:
    return _read_inputs(rows, found, complain), [None] * len(rows), SINGLE_LABEL


def _read_pairs(
    rows: list[dict[str, Any]], found: dict[str, str], complain: _Complaints, _: str | None
) -> tuple[list[Any], list[Any], str]:
    if isinstance(rows[0].get(found.get("text_pair", "")), list):
        return _read_queries(rows, found, complain), [None] * len(rows), SINGLE_LABEL
    inputs = _read_inputs(rows, found, complain)
    if "score" not in found or "text_pair" not in found:
        return inputs, [None] * len(rows), SINGLE_LABEL
    return inputs, [_score(row, i, found["score"], complain) for i, row in enumerate(rows)], REGRESSION


def _read_queries(rows: list[dict[str, Any]], found: dict[str, str], complain: _Complaints) -> list[Any]:
    inputs, column = [], found["text_pair"]
    for i, row in enumerate(rows):
        texts = row.get(column)
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(text, str) and text.strip() for text in texts)
        ):
            complain(i, f"column {column!r} must hold the list of texts that the query is to find, got {texts!r:.60}")
        inputs.append((_text(row, i, found["text"], complain), tuple(dict.fromkeys(texts))))
    return inputs


def _read_classification(
    rows: list[dict[str, Any]], found: dict[str, str], complain: _Complaints, problem_type: str | None
) -> tuple[list[Any], list[Any], str]:
    inputs = _read_inputs(rows, found, complain)
    if problem_type == REGRESSION or (problem_type is None and "label" not in found):
        return inputs, [_score(row, i, found["score"], complain) for i, row in enumerate(rows)], REGRESSION
    column = found["label"]
    values = [row.get(column) for row in rows]
    if problem_type is None:
        problem_type = MULTI_LABEL if isinstance(values[0], list) else SINGLE_LABEL
    if problem_type == MULTI_LABEL:
        return inputs, [_read_labels(value, i, column, complain) for i, value in enumerate(values)], problem_type
    kind = type(values[0])
    for i, value in enumerate(values):
        if not isinstance(value, (str, int)) or (isinstance(value, str) and not value.strip()):
            complain(
                i,
                f"column {column!r} must hold a label, text or an integer, got {value!r:.60}; scores are learned with "
                "--problem-type regression",
            )
        if type(value) is not kind:
            complain(
                i, f"column {column!r} holds {type(value).__name__} here and {kind.__name__} in row 1: use one type"
            )
    return inputs, [str(value) for value in values], problem_type


def _read_labels(value: object, i: int, column: str, complain: _Complaints) -> tuple[str, ...]:
    labels = [part for part in value.split(MULTI_LABEL_SEPARATOR) if part] if isinstance(value, str) else value
    if not isinstance(labels, list) or not all(isinstance(label, (str, int)) for label in labels):
        complain(i, f"column {column!r} must hold a list of labels, got {value!r:.60}")
    return tuple(str(label) for label in labels)


def _read_tokens(
    rows: list[dict[str, Any]], found: dict[str, str], complain: _Complaints, _: str | None
) -> tuple[list[Any], list[Any], str]:
    inputs, targets = [], []
    for i, row in enumerate(rows):
        lists = []
        for role in ("tokens", "tags"):
            value = row.get(found[role])
            value = value.split() if isinstance(value, str) else value
            if not isinstance(value, list) or not value:
                complain(i, f"column {found[role]!r} must hold a list of {role}, got {value!r:.60}")
            lists.append(value)
        tokens, tags = lists
        if len(tokens) != len(tags):
            complain(i, f"{len(tokens)} {found['tokens']} but {len(tags)} {found['tags']}: expected a tag for each")
        for token in tokens:
            if not isinstance(token, str) or not token.strip():
                complain(i, f"column {found['tokens']!r} holds {token!r:.60}, expected words")
        inputs.append(tokens)
        targets.append(tuple(str(tag) for tag in tags))
    return inputs, targets, SINGLE_LABEL


def _read_questions(
    rows: list[dict[str, Any]], found: dict[str, str], complain: _Complaints, _: str | None
) -> tuple[list[Any], list[Any], str]:
    inputs, targets = [], []
    for i, row in enumerate(rows):
        context = _text(row, i, found["context"], complain)
        inputs.append((_text(row, i, found["question"], complain), context))
        answers = []
        for text, start in _answer_fields(row.get(found["answers"]), i, found["answers"], complain):
            if context[start : start + len(text)] != text:
                complain(
                    i,
                    f"the context has {context[start : start + len(text)]!r:.60} at character {start}, the answer is "
                    f"{text!r:.60}: `start` counts characters of the context, from 0",
                )
            answers.append(Answer(text, start))
        targets.append(tuple(answers))
    return inputs, targets, SINGLE_LABEL


def _answer_fields(value: Any, i: int, column: str, complain: _Complaints) -> list[tuple[str, int]]:
    """(text, start) pairs out of [{"text", "start"}, …] or SQuAD's {"text": […], "answer_start": […]}."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            complain(i, f"column {column!r} must hold JSON with text and start, got {value!r:.60}")
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        starts = value.get("answer_start", value.get("start"))
        if isinstance(starts, list) and len(starts) == len(value["text"]):
            value = [{"text": text, "start": start} for text, start in zip(value["text"], starts, strict=True)]
    value = [value] if isinstance(value, dict) else value
    pairs = []
    for answer in value if isinstance(value, list) else [None]:
        text = answer.get("text") if isinstance(answer, dict) else None
        start = answer.get("start", answer.get("answer_start")) if isinstance(answer, dict) else None
        if not isinstance(text, str) or not text or not isinstance(start, int) or start < 0:
            complain(i, f"column {column!r} must hold answers with text and start, got {answer!r:.60}")
        pairs.append((text, start))
    return pairs
