"""The C API's texts and answers through ctypes, as a C program calls them, with answers in the form that tasks give."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_char_p, c_double, c_float, c_int32, c_int64, c_uint8, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from edgebert.backends import native

UNITS = {"bytes": 1, "characters": 2, "utf16": 3}
FUNCTIONS = {None: 0, "none": 1, "sigmoid": 2, "tanh": 3, "softmax": 4}
STRATEGIES = ("none", "simple", "first", "average", "max")
CANCELLED = 7


class CError(Exception):
    """A call that failed; the first argument is its status."""


class Text(ctypes.Structure):
    _fields_ = (("data", c_char_p), ("size", c_int64))


def _struct(name: str, **fields: Any) -> Any:
    return type(name, (ctypes.Structure,), {"_fields_": tuple(fields.items())})


I32 = c_int32
SessionOptions = _struct(
    "SessionOptions", max_length=I32, long_texts=I32, stride=I32, offset_unit=I32, batch_tokens=I32
)
EmbedOptions = _struct("EmbedOptions", prompt_name=c_char_p, prompt=c_char_p, normalize=I32, width=I32)
Embeddings = _struct("Embeddings", num_texts=I32, width=I32, data=POINTER(c_float), is_truncated=POINTER(c_uint8))
ClassifyOptions = _struct("ClassifyOptions", top_k=I32, function=I32)
Classes = _struct(
    "Classes",
    num_texts=I32,
    top_k=I32,
    labels=POINTER(I32),
    scores=POINTER(c_float),
    is_truncated=POINTER(c_uint8),
)
RankOptions = _struct("RankOptions", label=c_char_p, top_k=I32, function=I32)
Ranking = _struct("Ranking", num_ranked=I32, texts=POINTER(I32), scores=POINTER(c_float), is_truncated=POINTER(c_uint8))
LabelOptions = _struct("LabelOptions", aggregation=I32, ignored=POINTER(c_char_p), num_ignored=I32)
Entity = _struct("Entity", label=c_char_p, label_id=I32, token=I32, begin=I32, end=I32, score=c_double)
Entities = _struct(
    "Entities", num_texts=I32, bounds=POINTER(I32), entities=POINTER(Entity), is_truncated=POINTER(c_uint8)
)
AnswerOptions = _struct("AnswerOptions", top_k=I32, max_answer_tokens=I32, allows_no_answer=I32, keeps_tokens=I32)
Span = _struct("Span", begin=I32, end=I32, score=c_double)
Answers = _struct("Answers", num_questions=I32, bounds=POINTER(I32), spans=POINTER(Span), is_truncated=POINTER(c_uint8))
FillOptions = _struct("FillOptions", top_k=I32)
Fills = _struct(
    "Fills",
    num_texts=I32,
    top_k=I32,
    bounds=POINTER(I32),
    tokens=POINTER(I32),
    scores=POINTER(c_float),
    is_truncated=POINTER(c_uint8),
)


@cache
def library(kind: str = "cpu") -> ctypes.CDLL:
    """The native library, loaded beside the backend's, with the functions declared that need it."""
    found = ctypes.CDLL(native.load_library(kind)._name)
    for name in ("eb_last_error", "eb_model_task", "eb_model_label", "eb_model_output"):
        getattr(found, name).restype = c_char_p
    found.eb_model_label.argtypes = found.eb_model_output.argtypes = [c_void_p, c_int32]
    found.eb_model_tokenizer.restype = c_void_p
    for name in ("task", "hidden_size", "max_length", "max_positions", "num_outputs", "num_labels", "tokenizer"):
        getattr(found, f"eb_model_{name}").argtypes = [c_void_p]
    found.eb_free.argtypes = [c_void_p]
    found.eb_session_open.argtypes = [c_void_p, c_void_p, c_void_p]
    found.eb_session_free.argtypes = [c_void_p]
    found.eb_session_cancel.argtypes = [c_void_p, c_int32]
    found.eb_rank.argtypes = [c_void_p, Text, c_void_p, c_int32, c_void_p, c_void_p]
    return found


def check(status: int, kind: str = "cpu") -> None:
    if status:
        raise CError(status, library(kind).eb_last_error().decode())


def texts_of(texts: Sequence[str | bytes]) -> Any:
    """eb_text[n]; what has no NUL inside is given as a C string."""
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    return (Text * len(encoded))(*((text, -1 if b"\0" not in text else len(text)) for text in encoded))


def _take(pointer: Any, count: int) -> Any:
    return np.ctypeslib.as_array(pointer, (count,)).copy() if count else np.zeros(0, np.float32)


class CModel:
    """A model and a session of it. Options are those of `SessionOptions`."""

    def __init__(
        self,
        path: Path,
        *,
        threads: int = 1,
        ids_only: int = 0,
        full_depth: int = 0,
        model: c_void_p | None = None,
        kind: str = "cpu",
        **options: int,
    ) -> None:
        """With `model`, a session of another one's model."""
        self.kind, self.library = kind, library(kind)
        self.model, self.session, self.is_owner = model or c_void_p(), c_void_p(), model is None
        loading = native._Options(num_threads=threads, ids_only=ids_only, full_depth=full_depth)
        if model is None:
            check(self.library.eb_load(str(path).encode(), ctypes.byref(loading), ctypes.byref(self.model)), kind)
        chosen = SessionOptions(**options)
        check(self.library.eb_session_open(self.model, ctypes.byref(chosen), ctypes.byref(self.session)), kind)
        self.is_truncated: list[bool] = []

    def __del__(self) -> None:
        self.library.eb_session_free(self.session)
        if self.is_owner:
            self.library.eb_free(self.model)

    @property
    def labels(self) -> list[str]:
        return [
            self.library.eb_model_label(self.model, i).decode()
            for i in range(self.library.eb_model_num_labels(self.model))
        ]

    def _call(self, name: str, result: Any, options: Any, count: int, *arguments: Any) -> Any:
        function = getattr(self.library, name)
        check(
            function(self.session, *arguments, c_int32(count), ctypes.byref(options), ctypes.byref(result)), self.kind
        )
        self.is_truncated = _take(result.is_truncated, count).astype(bool).tolist()
        return result

    def embed(self, texts: Sequence[str | bytes], **options: Any) -> Any:
        found = self._call("eb_embed", Embeddings(), EmbedOptions(**options), len(texts), texts_of(texts))
        return _take(found.data, found.num_texts * found.width).reshape(found.num_texts, found.width)

    def classify(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, top_k: int = 0, function: str | None = None
    ) -> Any:
        second = None if pairs is None else texts_of(pairs)
        options = ClassifyOptions(top_k, FUNCTIONS[function])
        found = self._call("eb_classify", Classes(), options, len(texts), texts_of(texts), second)
        labels, scores = (
            _take(x, found.num_texts * found.top_k).reshape(-1, found.top_k) for x in (found.labels, found.scores)
        )
        return [
            [{"label": self.labels[i], "score": float(score)} for i, score in zip(*row, strict=True)]
            for row in zip(labels.astype(int), scores, strict=True)
        ]

    def rank(
        self,
        query: str,
        texts: Sequence[str],
        *,
        label: str | None = None,
        top_k: int = 0,
        function: str | None = None,
    ) -> Any:
        options = RankOptions(label.encode() if label else None, top_k, FUNCTIONS[function])
        found = self._call("eb_rank", Ranking(), options, len(texts), texts_of([query])[0], texts_of(texts))
        return [
            {"corpus_id": int(i), "score": float(score)}
            for i, score in zip(
                _take(found.texts, found.num_ranked), _take(found.scores, found.num_ranked), strict=True
            )
        ]

    def label(self, texts: Sequence[str], strategy: str = "none", ignored: Sequence[str] | None = None) -> Any:
        """Entities without `word`, which their places say."""
        names = None if ignored is None else (c_char_p * len(ignored))(*(name.encode() for name in ignored))
        options = LabelOptions(STRATEGIES.index(strategy), names, len(ignored or ()))
        found = self._call("eb_label_tokens", Entities(), options, len(texts), texts_of(texts))
        answers = []
        for i in range(found.num_texts):
            entities = []
            for k in range(found.bounds[i], found.bounds[i + 1]):
                entity = found.entities[k]
                key = "entity" if strategy == "none" else "entity_group"
                told = {key: entity.label.decode(), "score": entity.score, "start": entity.begin, "end": entity.end}
                assert self.labels[entity.label_id].endswith(told[key])
                if strategy == "none":
                    told["index"] = entity.token
                else:
                    assert entity.token == -1
                entities.append(told)
            answers.append(entities)
        return answers

    def answer(self, questions: Sequence[str], contexts: Sequence[str], **options: int) -> Any:
        """Spans as {"score", "start", "end"}."""
        chosen = AnswerOptions(**options)
        found = self._call("eb_answer", Answers(), chosen, len(questions), texts_of(questions), texts_of(contexts))
        return [
            [
                {"score": span.score, "start": span.begin, "end": span.end}
                for span in (found.spans[k] for k in range(found.bounds[i], found.bounds[i + 1]))
            ]
            for i in range(found.num_questions)
        ]

    def fill(self, texts: Sequence[str], top_k: int = 0) -> Any:
        """Of each text, for each mask, (token, score) best first."""
        found = self._call("eb_fill_mask", Fills(), FillOptions(top_k), len(texts), texts_of(texts))
        k = found.top_k
        return [
            [
                [(found.tokens[mask * k + j], found.scores[mask * k + j]) for j in range(k)]
                for mask in range(found.bounds[i], found.bounds[i + 1])
            ]
            for i in range(found.num_texts)
        ]
