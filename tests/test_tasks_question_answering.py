"""Question answering against every span scored one by one from transformers' logits, as its 4.57 pipeline scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgebert
from edgebert.errors import InvalidInputError

pipelines = pytest.importorskip("pipelines")

QUESTIONS = ["is it off ?", "the router ?", "中 turn ?"]
CONTEXTS = [
    "the router restarted , the modem is off .",
    "U\u0308ber  straße😀bad 中文 unknownword\troses.",
    "the roses and the water at the root , turn off and on the router . it is very slow , not good ! " * 2
    + "中文 restarting the modem , fast water .",
]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory, tokenizer_json: str) -> tuple[Any, Any, Path]:
    """A tiny random model, its tokenizer and its model file."""
    return pipelines.make_pipeline_parts(tmp_path_factory.mktemp("reader"), tokenizer_json, "question-answering")


def expected_answers(
    reader: tuple[Any, Any, Path],
    question: str,
    context: str,
    *,
    size: int,
    stride: int,
    top_k: int,
    max_answer_len: int = 15,
) -> tuple[dict[tuple[int, int], float], float]:
    """Spans of whole words with the sum of their scores, and the score of no answer.

    Of each window the 2 * top_k + 10 best spans of tokens count.
    """
    import torch

    model, tokenizer, _ = reader
    encoded = tokenizer(
        question, context, truncation="only_second", max_length=size, stride=stride, return_overflowing_tokens=True
    )
    spans: dict[tuple[int, int], float] = {}
    null_scores = []
    for window in encoded.encodings:
        with torch.no_grad():
            out = model(torch.tensor([window.ids]), token_type_ids=torch.tensor([window.type_ids]))
        places = [0] + [i for i, text in enumerate(window.sequence_ids) if text == 1]
        start = out.start_logits[0, places].softmax(0).tolist()
        end = out.end_logits[0, places].softmax(0).tolist()
        null_scores.append(start[0] * end[0])
        scored = []
        for i in range(1, len(places)):
            for j in range(i, min(i + max_answer_len, len(places))):
                bounds = (
                    window.word_to_chars(window.token_to_word(places[i]), 1)[0],
                    window.word_to_chars(window.token_to_word(places[j]), 1)[1],
                )
                scored.append((start[i] * end[j], bounds))
        for score, bounds in sorted(scored, reverse=True)[: 2 * top_k + 10]:
            spans[bounds] = spans.get(bounds, 0.0) + score
    return spans, min(null_scores)


def assert_best(found: Any, spans: dict[tuple[int, int], float], context: str) -> None:
    """The answers are whole-word spans, of the score they should have, and none is better; equal texts are one."""
    best: dict[str, float] = {}
    for (start, end), score in spans.items():
        text = context[start:end].lower()
        best[text] = best.get(text, 0.0) + score
    found = found if isinstance(found, list) else [found]
    ranked = sorted(best.values(), reverse=True)[: len(found)]
    for answer, score in zip(found, ranked, strict=True):
        assert list(answer) == ["score", "start", "end", "answer"]
        assert answer["answer"] == context[answer["start"] : answer["end"]]
        assert (answer["start"], answer["end"]) in spans
        assert answer["score"] == pytest.approx(score, abs=1e-5)
        assert answer["score"] == pytest.approx(best[answer["answer"].lower()], abs=1e-5)


@pytest.mark.parametrize("context", CONTEXTS)
def test_answers_as_every_span_scored(backend: str, reader: tuple[Any, Any, Path], context: str) -> None:
    model = edgebert.load(reader[2], backend)
    for question in QUESTIONS:
        spans, null_score = expected_answers(reader, question, context, size=32, stride=16, top_k=3)
        found = model(question=question, context=context, top_k=3)
        assert len(found) == 3
        assert_best(found, spans, context)
        found = model({"question": question, "context": context}, handle_impossible_answer=True, top_k=500)
        (null,) = [answer for answer in found if not answer["answer"]]
        assert null == {"score": pytest.approx(null_score, abs=1e-6), "start": 0, "end": 0, "answer": ""}
        assert [answer["score"] for answer in found] == sorted((answer["score"] for answer in found), reverse=True)


@pytest.mark.parametrize(("size", "stride"), [(20, 0), (20, 3), (32, 20)])
def test_windows_of_any_size(reader: tuple[Any, Any, Path], size: int, stride: int) -> None:
    model = edgebert.load(reader[2], "numpy")
    spans, _ = expected_answers(reader, QUESTIONS[0], CONTEXTS[2], size=size, stride=stride, top_k=1, max_answer_len=2)
    options = {"question": QUESTIONS[0], "context": CONTEXTS[2], "max_answer_len": 2}
    found = model(**options, max_seq_len=size, doc_stride=stride)
    assert_best(found, spans, CONTEXTS[2])
    assert model(**options, max_length=size, stride=stride) == found


def test_shapes(reader: tuple[Any, Any, Path]) -> None:
    model = edgebert.load(reader[2], "numpy")
    one = [model(question=question, context=CONTEXTS[0]) for question in QUESTIONS]
    assert model(question=QUESTIONS, context=CONTEXTS[0]) == one
    assert model(question=QUESTIONS, context=[CONTEXTS[0]] * 3, batch_tokens=1) == one
    assert model([{"question": question, "context": CONTEXTS[0]} for question in QUESTIONS]) == one
    assert model(question=QUESTIONS[:1], context=CONTEXTS[:1]) == one[0]
    several = model(question=QUESTIONS, context=CONTEXTS, top_k=2)
    assert [len(answers) for answers in several] == [2, 2, 2]


def test_a_context_without_tokens_has_no_answer(reader: tuple[Any, Any, Path]) -> None:
    # as transformers' pipeline scores it
    model = edgebert.load(reader[2], "numpy")
    for context in (" ", "\t \n", "\u200b"):
        nothing = {"score": 0.0, "start": 0, "end": 0, "answer": ""}
        assert model(question="a", context=context) == nothing
        assert model(question="a", context=context, handle_impossible_answer=True) == nothing | {"score": 1.0}


@pytest.mark.parametrize(("num_words", "room"), [(12, 17), (13, 16), (20, 9), (28, 1)])
def test_questions_that_leave_no_room_for_the_default_stride(
    reader: tuple[Any, Any, Path], num_words: int, room: int
) -> None:
    model = edgebert.load(reader[2], "numpy")
    question = " ".join((["the", "router"] * num_words)[:num_words])
    stride = 16 if room > 16 else room // 2
    spans, _ = expected_answers(reader, question, CONTEXTS[2], size=32, stride=stride, top_k=1, max_answer_len=2)
    found = model(question=question, context=CONTEXTS[2], max_answer_len=2)
    assert_best(found, spans, CONTEXTS[2])
    assert model(question=question, context=CONTEXTS[2], max_answer_len=2, stride=stride) == found
    with pytest.raises(InvalidInputError, match=f"leaves {room} tokens to a window, .* and stride is {room}: raise"):
        model(question=question, context=CONTEXTS[2], stride=room)


def test_align_to_words(reader: tuple[Any, Any, Path]) -> None:
    model = edgebert.load(reader[2], "numpy")
    options = {"question": QUESTIONS[0], "context": "restarting turned routers slowing", "top_k": 20}
    found = model(**options, align_to_words=False)
    inside = [answer for answer in found if " " not in answer["answer"] and len(answer["answer"]) <= 4]
    assert inside, "no answer is a part of a word"
    words = set(options["context"].split())
    assert all(set(answer["answer"].split()) <= words for answer in model(**options))


def test_truncation_instead_of_windows(reader: tuple[Any, Any, Path]) -> None:
    model = edgebert.load(reader[2], "numpy")
    inputs = [{"question": QUESTIONS[0], "context": context} for context in CONTEXTS]
    assert not model(inputs, return_truncated=True)[1].any()
    found, is_truncated = model(inputs, truncation=True, return_truncated=True, top_k=50)
    assert is_truncated.tolist() == [False, False, True]
    assert max(answer["end"] for answer in found[2]) < len(CONTEXTS[2]) / 2
    with pytest.warns(UserWarning, match="1 of 3 texts were truncated"):
        model(inputs, truncation=True)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        ([], {}, "expected question=… and context=…"),
        ([], {"question": "a"}, "expected question=… and context=…"),
        ([], {"question": ["a", "b"], "context": ["c"]}, "expected question=… and context=…"),
        ([{"question": "a"}], {}, "input 0: expected a dict with question and context alone, got question"),
        ([{"question": "a", "context": ""}], {}, "input 0: context must be a text that is not empty, got ''"),
        ([{"question": "a", "context": "b"}], {"context": "c"}, "expected inputs, or question=.* got both"),
        (["a"], {}, 'expected {"question": …, "context": …} or a list, got str'),
        ([["a"]], {}, "input 0: expected a dict with question and context alone, got str"),
        ([], {"question": "a", "context": "b", "top_k": 0}, "top_k must be a positive integer, got 0"),
        ([], {"question": "a", "context": "b", "max_answer_len": "2"}, "max_answer_len must be a positive integer"),
        ([], {"question": "a " * 90, "context": "b"}, "leaves 0 tokens to a window, .* first text of row 0 taken off"),
        ([{"question": "a\ud800", "context": "b"}], {}, "input 0: question is not valid Unicode .* at character 1"),
        ([{"question": "a", "context": "\ud800"}], {}, "input 0: context is not valid Unicode .* at character 0"),
        ([], {"question": "a", "context": "b", "stride": 78}, "leaves 78 tokens to a window, special tokens taken off"),
        ([], {"question": "a", "context": "b " * 99, "doc_stride": 77}, "and stride is 77: raise max_length or lower"),
        ([], {"question": "a", "context": "b", "max_seq_len": "9"}, "max_seq_len must be a positive integer, got '9'"),
        (
            [],
            {"question": "a", "context": "b", "max_seq_len": 81},
            "max_seq_len must be an integer from 1 to 80, the mod",
        ),
        ([], {"question": "a", "context": "b", "max_length": [9]}, r"max_length must be a positive integer, got \[9\]"),
        ([], {"question": "a", "context": "b", "doc_stride": -1}, "doc_stride must be an integer of at least 0, and"),
        ([], {"question": "a", "context": "b", "stride": 2**32}, "stride must be an integer of at least 0, and less"),
    ],
)
def test_refuses(make_file: Callable[..., Path], inputs: list, options: dict, message: str) -> None:
    model = edgebert.load(make_file(task="question-answering"), "numpy")
    with pytest.raises(InvalidInputError, match=message):
        model(*inputs, **options)
