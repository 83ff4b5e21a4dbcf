"""Scorer: columns of texts in, columns of answers out. The local runner, Ray and Spark all use it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import InvalidInputError
from edgebert.model import load
from edgebert.tasks import find_limit
from edgebert.tasks.base import F32
from edgebert.tasks.embedding import DTYPES, find_scales, quantize_embeddings
from edgebert.tasks.text_classification import find_range

Bools = NDArray[np.bool_]

TOO_LONG = ("truncate", "error")
_FIELDS = ("vector", "vectors", "text", "number", "numbers")  # kinds of columns that are one field of an answer


@dataclass(frozen=True)
class RowCheck:
    """What a row's values must be before it goes to the model.

    Attributes:
        columns: their columns.
        takes_lists: whether values may also be n-best lists.
        mask: the mask token that every text must contain; None if the task fills in none.
    """

    columns: tuple[str, ...]
    takes_lists: bool
    mask: str | None

    def find_fault(self, values: Sequence[Any]) -> str | None:
        """What is wrong with a row's values, given in the order of `columns`; None if nothing is."""
        for name, value in zip(self.columns, values, strict=True):
            if value is None or (isinstance(value, float) and np.isnan(value)):  # data frames write null as NaN
                return f"{name} is null"
            if isinstance(value, list) and self.takes_lists:
                continue  # an n-best list, which the task checks
            if not isinstance(value, str):
                return f"{name} is of type {type(value).__name__}, not text"
            try:
                value.encode()
            except UnicodeEncodeError as error:
                return f"{name} is not valid Unicode ({error.reason} at character {error.start})"
            if self.mask and self.mask.casefold() not in value.casefold():
                return f"{name} has no {self.mask}"
        return None


class Scorer:
    """A model and how to apply it to rows. It can be pickled: a copy loads the file anew.

    Attributes:
        results: the columns of answers and their kind: "vector", "vectors", "weights", "text", "number", "numbers" or
            "json".
        width, dtype: numbers in a vector, and their type.
        prefix: of the names of all results.
        settings: everything that the results depend on, besides the model and its backend.
        backend: name of the backend that runs the model.
        check: what a row must be to be scored.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        columns: Sequence[str] = ("text",),
        *,
        task: str | None = None,
        options: Mapping[str, Any] | None = None,
        too_long: str = "truncate",
        dtype: str = "f32",
        prefix: str = "",
        scores: bool = False,
        threshold: float | None = None,
        backend: str = "auto",
        device: str = "cpu",
        threads: int | None = None,
    ) -> None:
        """Load the model and answer one example, which finds options that do not fit at once.

        Args:
            model: a model file.
            columns: the column of texts, or of n-best lists; two for pairs, or for a question and its context.
            task: a task that fits the file; None for the file's own.
            options: options of the task, as `model(texts, **options)` takes them.
            too_long: "truncate" rows of too many tokens, or make them an "error".
            dtype: of embeddings, "f32", "f16", "int8" or "binary", as `quantize_embeddings` makes them; int8 adds a
                column for what the codes are to be multiplied with.
            prefix: put before the names of all result columns.
            scores: of a classifier, also a column for the score of each label, "score_LABEL".
            threshold: of a classifier, in the place of the best label a list of all whose score is at least this, in
                the column "labels".
            backend: as for `edgebert.load`; so are device and threads.

        Raises:
            InvalidInputError: an argument that is not usable, or does not fit the file.
        """
        is_list = isinstance(columns, Sequence) and not isinstance(columns, str) and len(columns) in (1, 2)
        if not is_list or not all(isinstance(name, str) for name in columns):
            raise InvalidInputError(f"columns must be a list of one or two names, got {columns!r}")
        if too_long not in TOO_LONG:
            raise InvalidInputError(f"too_long must be one of {', '.join(TOO_LONG)}, got {too_long!r}")
        if dtype not in DTYPES:
            raise InvalidInputError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
        if not isinstance(prefix, str):
            raise InvalidInputError(f"prefix must be text, got {prefix!r}")
        if not isinstance(options or {}, Mapping) or not all(isinstance(name, str) for name in options or {}):
            raise InvalidInputError(f"options must be values by name, got {options!r}")
        if taken := {"task", "return_truncated"}.intersection(options or {}):
            raise InvalidInputError(f"{min(taken)} is not to be given as an option: the scorer sets it")
        if threshold is not None and (isinstance(threshold, bool) or not isinstance(threshold, (int, float))):
            raise InvalidInputError(f"threshold must be a number, got {threshold!r}")
        self.columns = tuple(columns)
        self.settings = {
            "columns": list(columns), "task": task, "options": dict(options or {}), "too_long": too_long,
            "dtype": dtype, "prefix": prefix, **({"scores": True} if scores else {}),
            **({} if threshold is None else {"threshold": threshold}),
        }  # fmt: skip
        self._file = model
        self._place: dict[str, Any] = {"backend": backend, "device": device, "threads": threads}
        self._model = load(model, **self._place)
        self._task = self._model.choose_task(task)
        if self._model.tokenizer is None:
            raise InvalidInputError(
                f"{model} has no tokenizer, and texts need one: export it from a folder that has one"
            )
        if self._task == "reranking":
            raise InvalidInputError("reranking orders the documents of one query: score pairs, without a task")
        self._options = {**(options or {}), "task": self._task}
        if dtype != "f32" and self._task not in ("embedding", "multi-vector"):
            raise InvalidInputError(f"dtype is of embeddings, and this file's task is {self._task}: leave it out")
        if self._task == "sparse-embedding":
            self._options["return_arrays"] = True
        self._scores, self._threshold = scores, threshold
        if scores or threshold is not None:
            if self._task not in ("text-classification", "next-sentence"):
                raise InvalidInputError(f"scores and threshold are for classifiers, this file's task is {self._task}")
            if "top_k" in self._options:
                raise InvalidInputError("scores and threshold look at every label: leave top_k out")
            least, most = 0.0, 1.0
            if self._task == "text-classification":
                least, most = find_range(self._model.spec, self._options.get("function_to_apply"))
            if threshold is not None and not least <= threshold <= most:
                raise InvalidInputError(
                    f"threshold must be from {least:g} to {most:g}, as this file's scores are, got {threshold!r}"
                )
            self._options["top_k"] = None
        self._too_long = too_long
        self._dtype = dtype
        self.dtype = quantize_embeddings(np.zeros(0, np.float32), dtype).dtype
        self.prefix = prefix
        self.backend = self._model.backend.name

        tokenizer, mask = self._model.tokenizer, None
        if self._task == "fill-mask" and tokenizer and tokenizer.mask_id is not None:
            mask = tokenizer.id_to_token(tokenizer.mask_id)
        self.check = RowCheck(self.columns, self._task == "rescoring", mask)
        [example], _ = self._run([self._make_input((mask or "a",) * len(columns))])
        self.width = 0
        if self._task in ("embedding", "multi-vector"):
            kinds = {"embedding": "vector", "embedding_scale": "number"}
            if self._task == "multi-vector":
                kinds = {"embeddings": "vectors", "embedding_scales": "numbers"}
            kinds = {name: kind for name, kind in kinds.items() if name in example}
            self.width = next(iter(example.values())).shape[-1]
        elif self._task == "sparse-embedding":
            kinds = {"weights": "weights"}
        elif isinstance(example, dict) and {*example} & {"label", "labels"} and self._task != "explain":
            kinds = {name: {"label": "text", "labels": "json"}.get(name, "number") for name in example}
        else:
            kinds = {"answer": "json"}
        self.results = {prefix + name: kind for name, kind in kinds.items()}
        self.error_column, self.truncated_column = prefix + "error", prefix + "truncated"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._file, {**self.settings, **self._place})

    def __call__(self, columns: Mapping[str, Iterable[Any]]) -> dict[str, list[Any]]:
        """Answer rows; a bad one costs no other.

        Args:
            columns: values by column, of which those named at the start are used: a dict of lists, a data frame, …

        Returns:
            Lists by name: the result columns, None where a row has an error; "error", None where it has none; and
            "truncated", whether only the beginning of the row was used.

        Raises:
            InvalidInputError: columns that are missing, no lists, or not of one length.
        """
        inputs, errors = self._read(columns)
        answers: list[Any] = [None] * len(inputs)
        truncated = [False] * len(inputs)
        self._answer([i for i, error in enumerate(errors) if error is None], inputs, answers, truncated, errors)
        results: dict[str, list[Any]] = {}
        for name, kind in self.results.items():
            key = name.removeprefix(self.prefix)
            is_field = kind in _FIELDS or key == "labels"
            results[name] = [answer[key] if is_field and answer is not None else answer for answer in answers]
        return {**results, self.error_column: errors, self.truncated_column: truncated}

    def _read(self, columns: Mapping[str, Iterable[Any]]) -> tuple[list[Any], list[str | None]]:
        """The model's inputs, and what is wrong with those that are not."""
        try:
            if any(isinstance(columns[name], (str, bytes)) for name in self.columns):
                raise TypeError("one text")
            given = [list(columns[name]) for name in self.columns]
        except (LookupError, TypeError) as error:
            raise InvalidInputError(
                f"expected lists of values by column, {' and '.join(self.columns)} among them, got "
                f"{type(columns).__name__} ({error})"
            ) from None
        if len({*map(len, given)}) > 1:
            raise InvalidInputError(
                f"columns must be of one length, got {' and '.join(str(len(one)) for one in given)}"
            )
        rows = list(zip(*given, strict=True))
        return [self._make_input(row) for row in rows], [self.check.find_fault(row) for row in rows]

    def _make_input(self, row: Sequence[Any]) -> Any:
        """What the model takes for a row: a text, a pair, a question with its context, or an n-best list."""
        if self._task == "question-answering":
            return dict(zip(("question", "context"), row, strict=False))
        if len(row) == 2:
            return tuple(row)
        return {"hypotheses": row[0]} if isinstance(row[0], list) else row[0]

    def _answer(
        self, rows: list[int], inputs: list[Any], answers: list[Any], truncated: list[bool], errors: list[str | None]
    ) -> None:
        """Fill in `rows`. One bad row makes the model refuse a whole call, so the rows are halved until it is found."""
        if not rows:
            return
        try:
            found, is_truncated = self._run([inputs[i] for i in rows])
        except InvalidInputError as error:
            if len(rows) == 1:
                errors[rows[0]] = str(error)
                return
            half = len(rows) // 2
            self._answer(rows[:half], inputs, answers, truncated, errors)
            self._answer(rows[half:], inputs, answers, truncated, errors)
            return
        for i, answer, is_long in zip(rows, found, is_truncated, strict=True):
            truncated[i] = bool(is_long)
            if is_long and self._too_long == "error":
                assert self._model.tokenizer is not None  # as there are texts
                limit = find_limit(self._task, self._model.spec, self._model.tokenizer, self._options)
                errors[i] = f"more than {limit} tokens"
            else:
                answers[i] = answer

    def _run(self, inputs: list[Any]) -> tuple[Sequence[Any], Bools]:
        answers, is_truncated = self._model.answer_each(inputs, **self._options)
        if self._task == "embedding":
            answers = self._store("embedding", "embedding_scale", np.asarray(answers))
        elif self._task == "multi-vector":
            answers = [self._store("embeddings", "embedding_scales", vectors[None])[0] for vectors in answers]
        elif self._task == "sparse-embedding":
            answers = [self._name_weights(*embedding) for embedding in answers]
        if self._scores or self._threshold is not None:
            answers = [self._spread(labels) for labels in answers]
        return answers, is_truncated

    def _store(self, name: str, scale_name: str, rows: F32) -> list[dict[str, Any]]:
        """Of each row, an embedding or those of a text's tokens, the values of columns."""
        codes = quantize_embeddings(rows, self._dtype)
        if self._dtype != "int8":
            return [{name: row} for row in codes]
        return [{name: row, scale_name: scale} for row, scale in zip(codes, find_scales(rows).tolist(), strict=True)]

    def _name_weights(self, ids: Any, weights: Any) -> list[dict[str, Any]]:
        """A text's weights by token, largest first."""
        tokenizer = self._model.tokenizer
        assert tokenizer is not None
        order = np.lexsort((ids, -weights))
        return [
            {"id": token_id, "token": tokenizer.id_to_token(token_id), "weight": weight}
            for token_id, weight in zip(ids[order].tolist(), weights[order].tolist(), strict=True)
        ]

    def _spread(self, labels: list[dict[str, Any]]) -> dict[str, Any]:
        """A text's labels and their scores, best first, as the values of columns."""
        row: dict[str, Any] = dict(labels[0])
        if self._threshold is not None:
            row = {"labels": [one["label"] for one in labels if one["score"] >= self._threshold]}
        if self._scores:
            scores = {one["label"]: one["score"] for one in labels}
            row |= {f"score_{label}": scores[label] for label in self._model.spec.labels}
        return row


def _rebuild(model: str | os.PathLike[str], options: dict[str, Any]) -> Scorer:
    return Scorer(model, **options)
